"""Generation with caches gives the same text as the parallel forward pass."""

import pytest
import torch

from lhtrain.attention import DenseAttention, LighthouseAttention
from lhtrain.attention.dense import FULL_ATTENTION
from lhtrain.attention.sliding import SlidingAttention
from lhtrain.conf.schema import ModelConfig
from lhtrain.model.decoder import GPT
from lhtrain.model.generate import Sampler, caches, generate, stream

SEQ_LEN = 128
LAYERS = {
    "full": DenseAttention(),
    "sliding": SlidingAttention(16),
    "strictly causal": LighthouseAttention(2, 4, 16, tile=4, strictly_causal=True, window=16),
    "own queries": LighthouseAttention(2, 4, 16, tile=4, own_queries=True, window=64),
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
    assert_restored(model, layer)


def assert_restored(model, layer):
    attends = [block.attention.attend for block in model.blocks]
    assert attends == [FULL_ATTENTION, LAYERS[layer], LAYERS[layer]]


def test_layers_that_use_later_tokens_are_refused(model):
    published = LighthouseAttention(2, 4, 128)
    model.attend_with(published)
    with pytest.raises(ValueError, match="strictly_causal=False"):
        generate(model, torch.zeros(1, 3, dtype=torch.int64), 1, SEQ_LEN)
    assert model.blocks[1].attention.attend is published


@pytest.mark.parametrize("layer", LAYERS)
def test_the_prompt_is_one_pass(model, layer):
    """And a stream that is not read to its end restores the layers, too."""
    model.attend_with(LAYERS[layer])
    lengths = []
    model.blocks[0].run = lambda block, x, where: lengths.append(x.shape[1]) or block.compute(x, where)
    prompt = torch.randint(40, (1, 100), generator=torch.Generator().manual_seed(1))
    tokens = stream(model, prompt, 50, SEQ_LEN)
    for _ in range(3):
        next(tokens)
    assert lengths == [100, 1, 1]
    tokens.close()
    assert_restored(model, layer)


def test_generating_beyond_the_length_of_training_works(model):
    model.attend_with(LAYERS["strictly causal"])
    prompt = torch.zeros(1, SEQ_LEN - 3, dtype=torch.int64)
    assert generate(model, prompt, 40, SEQ_LEN).shape == (1, SEQ_LEN + 37)


PROBABILITIES = torch.tensor([0.1, 0.5, 0.05, 0.35])


def draws(n=4000, **settings):
    sampler = Sampler(**settings)
    counts = sampler(PROBABILITIES.log().expand(n, -1)).bincount(minlength=4)
    return counts / n


def test_tokens_are_drawn_with_their_probabilities():
    torch.testing.assert_close(draws(), PROBABILITIES, atol=0.03, rtol=0)
    squared = PROBABILITIES**2 / (PROBABILITIES**2).sum()
    torch.testing.assert_close(draws(temperature=0.5), squared, atol=0.03, rtol=0)


@pytest.mark.parametrize(
    ("top_p", "kept"), [(1e-9, [1]), (0.49, [1]), (0.51, [1, 3]), (0.84, [1, 3]), (0.86, [0, 1, 3])]
)
def test_top_p_keeps_the_likeliest_tokens(top_p, kept):
    counts = draws(top_p=top_p)
    assert counts.nonzero().flatten().tolist() == kept
    expected = PROBABILITIES[kept] / PROBABILITIES[kept].sum()
    torch.testing.assert_close(counts[kept], expected, atol=0.03, rtol=0)


@pytest.mark.parametrize("temperature", [0, 1e-300, 1e-3])
def test_no_temperature_is_the_likeliest_token(temperature):
    assert draws(10, temperature=temperature).tolist() == [0, 1, 0, 0]


def test_a_seed_gives_the_same_tokens():
    logits = torch.randn(100, 50)
    one, same, other = (Sampler(seed=seed)(logits) for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_rows_beyond_the_vocabulary_are_never_drawn():
    logits = torch.tensor([0.0, 0.0, 99.0]).expand(50, -1)
    assert Sampler(vocab_size=2)(logits).max() == 1 and Sampler(0, vocab_size=2)(logits).max() == 0


def test_logits_that_are_not_finite_are_an_error():
    with pytest.raises(ValueError, match="not finite"):
        Sampler()(torch.tensor([[0.0, torch.nan]]))
