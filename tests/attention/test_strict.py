"""Strictly causal Lighthouse layers: nothing depends on later tokens."""

import pytest
import torch

from lhtrain.attention import LighthouseAttention, dense_attention, lighthouse_attention
from lhtrain.kernels.pyramid import Pyramid
from lhtrain.kernels.scores.naive import max_pooled
from lhtrain.kernels.selection.naive import select_indices
from lhtrain.kernels.windows.naive import gather_pooled

SIZES = {"levels": 3, "pooling": 2, "budget": 16, "tile": 4}  # tiles of 64 of 256 tokens: 16 coarsest entries
N, TOKENS = 256, 64


def draw(n=N, heads=2, groups=2, dim=8, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    return [torch.randn(2, n, number, dim, dtype=dtype) for number in (heads, groups, groups)]


def layer(q, k, v, window=32, scorer="norm", **changes):
    return lighthouse_attention(
        q, k, v, strictly_causal=True, window=window, scorer=scorer, **SIZES | changes
    )


def plainly(q, k, v, window):
    """One position after the other, from the definition; norm scores, as many key heads as query heads."""
    pyramid = Pyramid(N, *(SIZES[key] for key in ("levels", "pooling", "budget", "tile")))
    qk, kq = (max_pooled(x.float().norm(dim=-1).transpose(1, 2), pyramid) for x in (q, k))
    indices = select_indices(qk, kq, pyramid, len(q))
    rows_k, rows_v = (gather_pooled(x, indices, pyramid) for x in (k, v))
    rows = rows_k.shape[1] * TOKENS // N  # of a tile
    out = torch.empty_like(q)
    for j in range(N):
        tile = (j + 1) // TOKENS  # the one that a position belongs to: the next, where it closes one
        parts = [(q[:, j], k[:, max(min(tile * TOKENS - window, j), 0) : j + 1],
                  v[:, max(min(tile * TOKENS - window, j), 0) : j + 1])]  # fmt: skip
        ends = (j + 1) // 4 * 4  # where the last coarsest query ends
        visible = ends // TOKENS - window // TOKENS
        if visible > 0:
            parts.append(
                (q[:, ends - 4 : ends].mean(1), rows_k[:, : visible * rows], rows_v[:, : visible * rows])
            )
        total, weighted = 0, 0
        for query, keys, values in parts:
            weights = (torch.einsum("bhd,bshd->bhs", query, keys) * q.shape[-1] ** -0.5).exp()
            total = total + weights.sum(-1, keepdim=True)
            weighted = weighted + torch.einsum("bhs,bshd->bhd", weights, values)
        out[:, j] = weighted / total
    return out


@pytest.mark.parametrize("window", [0, 1, 32, 64, 100, 128])
def test_it_is_its_definition(window):
    q, k, v = draw()
    torch.testing.assert_close(layer(q, k, v, window), plainly(q, k, v, window))


@pytest.mark.parametrize("cut", [1, 50, 63, 64, 65, 130, 192, 255])
@pytest.mark.parametrize("window", [0, 32])
def test_nothing_before_a_cut_depends_on_what_follows(cut, window):
    """Values and choices: other tokens after the cut, of far higher norm, change no output before it."""
    q, k, v = draw()
    others = [
        torch.cat([x[:, :cut], 30 * y[:, cut:]], 1) for x, y in zip((q, k, v), draw(seed=1), strict=True)
    ]
    assert torch.equal(layer(q, k, v, window)[:, :cut], layer(*others, window)[:, :cut])


def test_the_published_layer_fails_that_test():
    """So the test above can fail: choices in a tile of the published layer depend on later tokens."""
    q, k, v = draw()
    sizes = {key: SIZES[key] for key in ("levels", "pooling", "budget", "tile")}
    others = [torch.cat([x[:, :40], 30 * y[:, 40:]], 1) for x, y in zip((q, k, v), draw(seed=1), strict=True)]
    outs = [lighthouse_attention(*tokens, **sizes)[:, :40] for tokens in ((q, k, v), others)]
    assert not torch.allclose(*outs)


@pytest.mark.parametrize("window", [N, 10 * N])
def test_a_window_of_the_whole_sequence_is_full_attention(window):
    results = []
    for attend in (lambda q, k, v: layer(q, k, v, window), dense_attention):
        leaves = [x.requires_grad_() for x in draw(heads=4)]
        out = attend(*leaves)
        out.square().sum().backward()
        results.append([out, *(x.grad for x in leaves)])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)


def test_gradients():
    q, k, v = (x[:1, :, :1].requires_grad_() for x in draw(dim=2))
    assert torch.autograd.gradcheck(lambda *x: layer(*x, 10), (q, k, v), fast_mode=True)


@pytest.mark.slow
@pytest.mark.parametrize(("heads", "groups"), [(4, 2)])
def test_the_kernels_are_the_reference(heads, groups):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    results = []
    for backend in ("triton", "reference"):
        leaves = [x.float().to(device).requires_grad_() for x in draw(heads=heads, groups=groups, dim=16)]
        out = layer(*leaves, 40, backend=backend)
        out.square().sum().backward()
        results.append([out, *(x.grad for x in leaves)])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=2e-5, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_the_layer_compiles_into_one_graph(backend):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    q, k, v = (x.float().to(device) for x in draw(dim=16))
    attend = LighthouseAttention(**SIZES, strictly_causal=True, window=32, backend=backend)
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(q, k, v), attend(q, k, v))


@pytest.mark.parametrize("own_queries", [False, True])
def test_the_first_token_stays_at_full_resolution(own_queries):
    """Trained models attend much to it, although its norms are small."""
    q, k, v = draw()
    for x in (q, k):
        x[:, :2] *= 1e-3
    options = SIZES | {"window": 2 * TOKENS, "strictly_causal": not own_queries, "own_queries": own_queries}
    changed = v.clone()
    changed[:, 0] += 1000.0
    pooled = v.clone()
    pooled[:, 0], pooled[:, 1] = pooled[:, 0] + 500.0, pooled[:, 1] + 500.0  # the same mean of both
    one, other = (lighthouse_attention(q, k, x, **options)[:, -1] for x in (changed, pooled))
    assert not torch.allclose(one, other, atol=1e-3)
