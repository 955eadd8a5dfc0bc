"""The decoder compared with transformers' Llama; its number of parameters and initial weights."""

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from lhtrain.attention import DenseAttention, LighthouseAttention
from lhtrain.attention.sliding import SlidingAttention
from lhtrain.conf.schema import ModelConfig
from lhtrain.interop import config_json, published_name
from lhtrain.model.decoder import GPT
from lhtrain.model.rope import Rope

TINY = {"name": "t", "seq_len": 64, "vocab_size": 96, "dim": 32, "n_layers": 3, "ffn_dim": 80}


def tiny(**changes):
    return ModelConfig(**({"n_heads": 4, "n_kv_heads": 4, "head_dim": 8} | TINY | changes))


def as_llama(ours: GPT) -> LlamaForCausalLM:
    """A Llama with the weights of `ours`."""
    llama = LlamaForCausalLM(LlamaConfig(**config_json(ours.config)))
    state = {published_name(name): tensor for name, tensor in ours.state_dict().items()}
    llama.load_state_dict(state)
    return llama.eval()


@pytest.mark.parametrize(
    "changes",
    [{}, {"n_kv_heads": 2}, {"tie_embeddings": True}, {"head_dim": 16, "rope_theta": 5e5, "norm_eps": 1e-6}],
)
def test_logits_and_gradients_equal_llamas(changes):
    model = GPT(tiny(**changes))
    model.init_weights(0, width_ratio=4.0)  # muP has no factors that transformers would have to know
    with torch.no_grad():  # change the initial values, with which norms are ones and logits almost equal
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    llama = as_llama(model)
    tokens = torch.randint(0, 96, (2, 50))
    ours, theirs = model(tokens), llama(tokens).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
    llama(tokens, labels=tokens).loss.backward()
    there = llama.model.layers[1].self_attn.k_proj.weight.grad
    torch.testing.assert_close(model.blocks[1].attention.wk.weight.grad, there, rtol=1e-4, atol=1e-6)


LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}


@pytest.mark.parametrize("n_kv_heads", [1, 4])
@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ((LlamaConfig, LlamaForCausalLM), {"rope_scaling": LLAMA3}),
        ((LlamaConfig, LlamaForCausalLM), {"rope_scaling": YARN}),
        ((Qwen2Config, Qwen2ForCausalLM), {"qkv_bias": True, "tie_embeddings": True}),
        ((Qwen2Config, Qwen2ForCausalLM), {"qkv_bias": True, "rope_scaling": YARN}),
        ((Qwen3Config, Qwen3ForCausalLM), {"qk_norm": True, "head_dim": 16}),
    ],
)
def test_logits_and_gradients_equal_those_of_the_family(family, changes, n_kv_heads):
    model = GPT(tiny(**changes, n_kv_heads=n_kv_heads))
    model.init_weights(0)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    published = family[1](family[0](**config_json(model.config))).eval()
    names = {name: published_name(name) for name, _ in model.named_parameters()}
    loaded = published.load_state_dict({names[name]: x for name, x in model.named_parameters()}, strict=False)
    assert loaded.unexpected_keys == [] and {*loaded.missing_keys} <= {"lm_head.weight"}
    published.tie_weights()
    tokens = torch.randint(0, 96, (2, 50))
    torch.testing.assert_close(model(tokens), published(tokens).logits, rtol=1e-5, atol=1e-5)
    model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
    published(tokens, labels=tokens).loss.backward()
    theirs = dict(published.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[names[name]].grad, rtol=1e-3, atol=1e-5)


def test_biases_start_at_zero_and_leave_the_other_weights_as_they_are():
    plain, biased = GPT(tiny()), GPT(tiny(qkv_bias=True, qk_norm=True))
    plain.init_weights(3)
    biased.init_weights(3)
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter, biased.get_parameter(name))
    assert not biased.blocks[0].attention.wq.bias.any()
    assert (biased.blocks[0].attention.q_norm.weight == 1).all()


def test_the_rotary_embedding_of_a_stage_replaces_that_of_the_model():
    model, tokens = GPT(tiny()), torch.randint(0, 96, (1, 64))
    model.init_weights(0)
    before, model.rope = model.hidden(tokens), Rope(1e6, YARN)
    assert not torch.equal(model.hidden(tokens), before)
    other = GPT(tiny(rope_theta=1e6, rope_scaling=YARN))
    other.init_weights(0)
    assert torch.equal(model.hidden(tokens), other.hidden(tokens))


@pytest.mark.parametrize("tie", [False, True])
def test_parameter_counts(tie):
    total, inner = GPT(tiny(tie_embeddings=tie)).n_parameters()
    per_block = 4 * 32 * 32 + 3 * 32 * 80 + 2 * 32
    assert inner == 3 * per_block + 32
    assert total == inner + 96 * 32 * (1 if tie else 2)


def test_initial_weights_are_scaled_by_depth_and_fixed_by_the_seed():
    config = tiny(dim=256, head_dim=64, ffn_dim=512, n_layers=8)
    model, again, other = GPT(config), GPT(config), GPT(config)
    for which, seed in ((model, 1), (again, 1), (other, 2)):
        which.init_weights(seed)
    block = model.blocks[5]
    assert block.attention.wq.weight.std().item() == pytest.approx(0.02, rel=0.03)
    assert block.attention.wo.weight.std().item() == pytest.approx(0.02 / 4, rel=0.03)
    assert block.ffn.down.weight.std().item() == pytest.approx(0.02 / 4, rel=0.03)
    assert (block.ffn_norm.weight == 1).all()
    same = [torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True)]
    assert all(same)
    assert not torch.equal(model.head.weight, other.head.weight)


def test_sliding_layers_slide_in_every_stage():
    """Also with full attention, and a later token than the window sees changes nothing."""
    model = GPT(tiny(n_layers=2, sliding_window=3, sliding_layers=[0, 1]))
    model.init_weights(0)
    tokens = torch.randint(0, 64, (1, 16), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[0, 0] += 1
    same = [(a == b).all().item() for a, b in zip(model(tokens)[0], model(changed)[0], strict=True)]
    assert same == [False] * 5 + [True] * 11  # two layers of two earlier tokens each
    model.attend_with(LighthouseAttention(2, 4, 128))
    assert [type(block.attention.attend) for block in model.blocks] == [SlidingAttention] * 2


def test_dense_layers_keep_full_attention():
    model = GPT(tiny(dense_layers=[0, 2]))
    layer = LighthouseAttention(levels=2, pooling=2, budget=128)
    model.attend_with(layer)
    assert [block.attention.attend for block in model.blocks] == [DenseAttention(), layer, DenseAttention()]


def test_lighthouse_and_full_attention_share_the_weights():
    """The outputs are close but not equal, because the layer does not select the whole sequence."""
    model = GPT(tiny(seq_len=1024))
    model.init_weights(0)
    tokens = torch.randint(0, 96, (1, 1024))
    dense = model.loss(tokens, tokens).item()
    names = list(model.state_dict())
    model.attend_with(LighthouseAttention(levels=2, pooling=4, budget=128))
    lighthouse = model.loss(tokens, tokens).item()
    assert lighthouse == pytest.approx(dense, rel=1e-2) and lighthouse != dense
    assert list(model.state_dict()) == names
