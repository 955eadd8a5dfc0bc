"""Ring, Ulysses and Lighthouse over ranks that are threads, against one rank, forward and backward."""

import pytest
import torch

from lhtrain.attention import DenseAttention, LighthouseAttention
from lhtrain.context_parallel import over_ranks, positions
from tests.context_parallel.threads import ThreadRanks

HEADS, DIM, BATCH, SEQ_LEN = 4, 8, 2, 2048
METHODS = [("ring", 1), ("ring", 4), ("ulysses", 4)]


def result(attend, tensors):
    leaves = [x.detach().clone().requires_grad_() for x in tensors[:3]]
    out = attend(*leaves)
    out.backward(tensors[3])
    return [out.detach(), *(leaf.grad for leaf in leaves)]


def layer(kind, size):
    if kind == "dense":
        return DenseAttention()
    if kind == "lighthouse":  # a chunk is one tile: the least budget that there is
        return LighthouseAttention(levels=2, pooling=2, budget=256 * size)
    return LighthouseAttention(3, 2, 64, tile=8, strictly_causal=True, window=100)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize(("method", "n_kv"), METHODS)
@pytest.mark.parametrize("kind", ["dense", "lighthouse", "strictly causal"])
def test_the_result_is_that_of_one_rank(kind, method, n_kv, size, monkeypatch):
    torch.manual_seed(0)
    tensors = [torch.randn(BATCH, SEQ_LEN, n, DIM) for n in (HEADS, n_kv, n_kv, HEADS)]
    plain = layer(kind, size)
    want = result(plain, tensors)

    def on(rank):
        here = positions(SEQ_LEN, rank, size)
        attend = over_ranks(plain, method, True, "group", rank, size)
        return here, result(attend, [x[:, here] for x in tensors])

    for here, got in ThreadRanks(size, monkeypatch).run(on):
        for mine, whole in zip(got, want, strict=True):
            torch.testing.assert_close(mine, whole[:, here], rtol=1e-4, atol=1e-5)


def test_a_window_longer_than_a_chunk_is_refused(monkeypatch):
    plain = LighthouseAttention(3, 2, 64, tile=8, strictly_causal=True, window=600)
    tokens = torch.randn(1, SEQ_LEN // 2, HEADS, DIM)
    with pytest.raises(ValueError, match="window=600: must be at most the 512 tokens of a chunk"):
        ThreadRanks(2, monkeypatch).run(
            lambda rank: over_ranks(plain, "ring", True, "group", rank, 2)(tokens, tokens, tokens)
        )
