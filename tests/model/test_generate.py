"""Generation with caches gives the same text as the parallel forward pass."""

import pytest
import torch

from lhtrain.attention import DenseAttention, LighthouseAttention
from lhtrain.attention.dense import FULL_ATTENTION
from lhtrain.conf.schema import ModelConfig
from lhtrain.model.decoder import GPT
from lhtrain.model.generate import caches, generate

SEQ_LEN = 128
LAYERS = {
    "full": DenseAttention(),
    "strictly causal": LighthouseAttention(2, 4, 16, tile=4, strictly_causal=True, window=16),
}


@pytest.fixture
def model():
    sizes = {"vocab_size": 40, "dim": 32, "n_layers": 3, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 48}
    model = GPT(ModelConfig(**sizes, head_dim=8, seq_len=SEQ_LEN, dense_layers=[0]))
    model.init_weights(seed=0, put=lambda parameter, drawn: parameter.copy_(3 * drawn))
    return model


@pytest.mark.parametrize("layer", LAYERS)
def test_logits_are_those_of_the_parallel_forward_pass(model, layer):
    model.attend_with(LAYERS[layer])
    tokens = torch.randint(40, (2, SEQ_LEN), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        want = model(tokens)
        with caches(model, SEQ_LEN):
            steps = [
                model.head(model.hidden(tokens[:, t : t + 1], torch.tensor([t]))) for t in range(SEQ_LEN)
            ]
    torch.testing.assert_close(torch.cat(steps, 1), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", LAYERS)
def test_each_token_is_the_likeliest_after_those_before_it(model, layer):
    model.attend_with(LAYERS[layer])
    prompt = torch.randint(40, (2, 20), generator=torch.Generator().manual_seed(1))
    tokens = generate(model, prompt, SEQ_LEN - 20, SEQ_LEN)
    assert tokens.shape == (2, SEQ_LEN) and torch.equal(tokens[:, :20], prompt)
    with torch.no_grad():
        assert torch.equal(model(tokens)[:, 19:-1].argmax(-1), tokens[:, 20:])
    attends = [block.attention.attend for block in model.blocks]
    assert attends == [FULL_ATTENTION, LAYERS[layer], LAYERS[layer]]


def test_layers_that_use_later_tokens_are_refused(model):
    published = LighthouseAttention(2, 4, 128)
    model.attend_with(published)
    with pytest.raises(ValueError, match="strictly_causal=False"):
        generate(model, torch.zeros(1, 3, dtype=torch.int64), 1, SEQ_LEN)
    assert model.blocks[1].attention.attend is published
