"""Every scorer over ranks that are threads: scores that look beyond a chunk are those of one rank."""

from types import SimpleNamespace

import pytest
import torch

from lhtrain.attention import LighthouseAttention
from lhtrain.attention.where import Where
from lhtrain.context_parallel import over_ranks, positions
from lhtrain.kernels.scores import gla
from tests.context_parallel.threads import ThreadRanks

HEADS, DIM, BATCH, WIDTH = 4, 8, 1, 16


def result(attend, tensors, where):
    leaves = [x.detach().clone().requires_grad_() for x in tensors[:3]]
    out = attend(*leaves, where)
    out.backward(tensors[3])
    return [out.detach(), *(leaf.grad for leaf in leaves)]


@pytest.mark.parametrize(
    ("scorer", "method", "size", "settings"),
    [
        *(("dilated", "ring", 2, {}), ("dilated", "ulysses", 4, {})),
        *(("gla", "ring", 2, {}), ("gla", "ulysses", 4, {})),
        *(("position", "ulysses", 2, {}), ("recent", "ulysses", 2, {})),
        ("dilated", "ulysses", 2, {"strictly_causal": True, "tile": 128, "window": 64}),
    ],
)
def test_the_selection_is_that_of_one_rank(scorer, method, size, settings, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(gla, "CHUNK", 64)
    n = 1024 * size  # of a chunk's 256 entries 128 are expanded
    tensors, x = [torch.randn(BATCH, n, HEADS, DIM) for _ in range(4)], torch.randn(BATCH, n, WIDTH)
    own = gla.Gla(SimpleNamespace(n_kv_heads=HEADS, dim=WIDTH))
    torch.nn.init.normal_(own.weight)
    name = None if scorer == "gla" else scorer
    plain, by_norms = (
        LighthouseAttention(2, 2, 256 * size, scorer=one, **settings) for one in (name, "norm")
    )

    def where(here):
        return Where((x, x), own if scorer == "gla" else None, here, x[:, here])

    whole = torch.arange(n)
    want, norms = result(plain, tensors, where(whole)), result(by_norms, tensors, Where((x, x)))
    assert (want[0] - norms[0]).abs().max() > 0.1

    def on(rank):
        here = positions(n, rank, size)
        attend = over_ranks(plain, method, True, "group", rank, size)
        return here, result(attend, [part[:, here] for part in tensors], where(here))

    for here, got in ThreadRanks(size, monkeypatch).run(on):
        for mine, of_one in zip(got, want, strict=True):
            torch.testing.assert_close(mine, of_one[:, here], rtol=1e-4, atol=1e-5)
