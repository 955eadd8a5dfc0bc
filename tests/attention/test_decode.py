"""Caches give the outputs of the whole sequence, however its tokens come."""

import pytest
import torch

from lhtrain.attention import LighthouseAttention, dense_attention
from lhtrain.attention.decode import FullCache, Kept, StrictCache, cache_of
from tests.attention.test_strict import SIZES, TOKENS, N, draw, layer


def strict(window, capacity=0, **changes):
    attend = LighthouseAttention(**SIZES | changes, strictly_causal=True, window=window)
    return StrictCache(attend, N, capacity)


def outputs(cache, tokens, ends):
    """The outputs of `cache` for q, k, v that come in parts, which end at `ends`."""
    starts = [0, *ends[:-1]]
    parts = [cache(*(x[:, a:b] for x in tokens)) for a, b in zip(starts, ends, strict=True)]
    return torch.cat(parts, 1)


# One token at a time; in one pass; parts that begin and end inside, at and around the ends of tiles and of
# coarsest windows (4 tokens).
PARTS = {
    "one by one": list(range(1, N + 1)),
    "at once": [N],
    "a prompt, then tokens": [100, *range(101, N + 1)],
    "a prompt of whole tiles": [2 * TOKENS, *range(2 * TOKENS + 1, N + 1)],
    "uneven": [1, 3, 62, 63, 65, 66, 127, 128, 130, 131, 134, 135, 192, 193, 255, N],
}


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS.keys())
@pytest.mark.parametrize("window", [0, 1, 32, 64, 100, 2 * N])
def test_a_strictly_causal_layer(parts, window):
    tokens = draw(heads=4, groups=2)
    cache = strict(window)
    torch.testing.assert_close(outputs(cache, tokens, parts), layer(*tokens, window))
    assert cache.k.size == min(window, N) and cache.q.size == 0  # all tiles are closed


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS.keys())
@pytest.mark.parametrize("window", [2 * TOKENS, 150, N - 1])
def test_a_layer_with_own_queries(parts, window):
    tokens = draw(heads=4, groups=2)
    attend = LighthouseAttention(**SIZES, own_queries=True, window=window)
    cache = cache_of(attend, N)
    torch.testing.assert_close(outputs(cache, tokens, parts), attend(*tokens), rtol=1e-5, atol=1e-6)
    assert cache.k.size == window and cache.q.size == 0  # all tiles are closed


@pytest.mark.parametrize("window", [N, 2 * N])
def test_own_queries_with_a_window_of_the_sequence_are_full_attention(window):
    tokens = draw(heads=4, groups=2)
    attend = LighthouseAttention(**SIZES, own_queries=True, window=window)
    for parts in PARTS.values():
        torch.testing.assert_close(outputs(cache_of(attend, N), tokens, parts), attend(*tokens))


@pytest.mark.parametrize("groups", [4, 1])
@pytest.mark.parametrize("scorer", ["position", "recent"])
def test_other_heads_and_scorers(groups, scorer):
    tokens = draw(heads=4, groups=groups)
    cache = strict(32, scorer=scorer)
    got = outputs(cache, tokens, PARTS["uneven"])
    torch.testing.assert_close(got, layer(*tokens, 32, scorer=scorer))


def test_the_memory_of_a_strictly_causal_layer_does_not_grow_with_its_tokens():
    """Only rows grow: here 28 of 64 tokens. Their memory is allocated once if the capacity is known."""
    tokens = draw()
    cache = strict(32, capacity=N)
    outputs(cache, [x[:, :TOKENS] for x in tokens], [TOKENS])
    memory = cache.rows_k.seen.untyped_storage().data_ptr()
    outputs(cache, [x[:, TOKENS:] for x in tokens], list(range(1, N - TOKENS + 1)))
    assert cache.rows_k.seen.untyped_storage().data_ptr() == memory
    assert cache.k.seen.untyped_storage().nbytes() <= 2 * (32 + TOKENS) * 2 * 8 * 8
    assert cache.rows_k.size == N // TOKENS * cache.rows_per_tile


def test_a_cache_of_full_attention():
    tokens = draw(heads=4)
    for parts in PARTS.values():
        torch.testing.assert_close(outputs(FullCache(N), tokens, parts), dense_attention(*tokens))


def test_kept_tokens_are_appended_without_copying_those_before():
    kept = Kept(capacity=10)
    places = set()
    for number in range(10):
        seen = kept.add(torch.full((1, 1), float(number)))
        places.add(seen.data_ptr())
    assert len(places) == 1 and seen.tolist() == [list(range(10))]
    kept.add(torch.full((1, 1), 10.0))  # more than the capacity
    kept.keep_last(2)
    assert kept.seen.tolist() == [[9, 10]]


def test_a_cache_refuses_other_layers():
    with pytest.raises(ValueError, match="strictly_causal=False"):
        StrictCache(LighthouseAttention(levels=3, pooling=2, budget=128), 1024)


@pytest.mark.slow
def test_the_kernels_take_a_prompt_in_one_pass():
    device = "cuda" if torch.cuda.is_available() else "cpu"  # interpreted on a CPU
    tokens = [x.float().to(device) for x in draw(heads=4, groups=2, dim=16)]
    cache = strict(40, backend="triton")
    got = outputs(cache, tokens, [150, 151, N])
    torch.testing.assert_close(got, layer(*tokens, 40), rtol=2e-5, atol=2e-5)
