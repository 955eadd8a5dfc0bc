"""Windowed Lighthouse layers whose positions attend to the rows with their own queries."""

import pytest
import torch

from lhtrain.attention import LighthouseAttention, lighthouse_attention
from lhtrain.attention.documents import documents_of
from lhtrain.attention.own_queries import Fold, rows_seen, tokens_per_row
from lhtrain.attention.where import Where
from lhtrain.kernels.pyramid import Pyramid
from lhtrain.kernels.scores.naive import max_pooled
from lhtrain.kernels.selection.naive import select_rows
from lhtrain.kernels.selection.precedence import last_document_only, with_precedence
from lhtrain.kernels.windows.naive import gather_pooled
from tests.attention.test_windowed import results

N = 256
SIZES = {"levels": 3, "pooling": 2, "budget": 32, "tile": 4}  # 8 tiles of 32 tokens, 24 rows each
WIDE = {"levels": 2, "pooling": 4, "budget": 16, "tile": 4}  # 4 tiles of 64 tokens, 32 rows each
PYRAMIDS = [pytest.param(SIZES, id="filled"), pytest.param(WIDE, id="exact")]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def draw(heads=4, groups=2, dim=16, dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    return [torch.randn(2, N, n, dim, dtype=torch.float64).to(DEVICE, dtype) for n in (heads, groups, groups)]


def layer(q, k, v, sizes=SIZES, window=128, **changes):
    return lighthouse_attention(q, k, v, window=window, own_queries=True, **sizes | changes)


def plainly(q, k, v, sizes, window, starts=None):
    """Each position by itself: the exponentials of both parts, divided once.

    starts: (B, N), where the document of each position begins.
    """
    pyramid = Pyramid(N, *(sizes[key] for key in ("levels", "pooling", "budget", "tile")))
    qk, kq = (x.float().norm(dim=-1).transpose(1, 2) for x in (q, k))
    qk, kq = (max_pooled(x, pyramid) for x in (qk.unflatten(1, (k.shape[2], -1)).amax(2), kq))
    if starts is not None:
        qk, kq = with_precedence(qk, kq, last_document_only(starts, pyramid, first=True))
    indices, _ = select_rows(qk, kq, pyramid, len(q))
    starts = torch.zeros(len(q), N) if starts is None else starts
    levels = range(pyramid.levels)
    firsts = torch.cat([torch.arange(pyramid.size(level)) * pyramid.pooling**level for level in levels])
    rows_k, rows_v = (gather_pooled(x, indices, pyramid) for x in (k, v))
    group = torch.arange(q.shape[2], device=q.device) // (q.shape[2] // k.shape[2])
    rows_per_tile, t = indices.shape[-1] // pyramid.n_tiles, pyramid.tile_tokens
    share = -(-t // rows_per_tile)  # tokens a row, rounded up
    begins = firsts[indices.cpu()].to(q.device).transpose(1, 2)[:, :, group]  # of rows, (B, S, H)
    out = []
    for j in range(N):
        seen = max((j // t - 1) * rows_per_tile + j % t // share + 1, 0) if j >= t else 0
        first = max(j - window + 1, 0)
        start = starts[:, j, None, None].to(q.device)
        tokens = torch.arange(first, j + 1, device=q.device)[:, None].expand(-1, q.shape[2])
        hidden = torch.cat([tokens.expand(len(q), -1, -1) < start, begins[:, :seen] < start], 1)
        keys = torch.cat([k[:, first : j + 1], rows_k[:, :seen]], 1)[:, :, group]
        values = torch.cat([v[:, first : j + 1], rows_v[:, :seen]], 1)[:, :, group]
        scores = torch.einsum("bhd,bshd->bhs", q[:, j], keys) * q.shape[-1] ** -0.5
        weights = scores.masked_fill(hidden.transpose(1, 2), -torch.inf).softmax(-1)
        out.append(torch.einsum("bhs,bshd->bhd", weights, values))
    return torch.stack(out, 1)


@pytest.mark.parametrize("sizes", PYRAMIDS)
@pytest.mark.parametrize("window", [128, 200])
def test_it_is_its_definition(sizes, window):
    tensors = draw(dtype=torch.float64)
    found = results(lambda *x: layer(*x, sizes, window, backend="reference"), tensors)
    wanted = results(lambda *x: plainly(*x, sizes, window), tensors)
    for one, other in zip(found, wanted, strict=True):
        # The logsumexps are float32.
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sizes", PYRAMIDS)
@pytest.mark.parametrize("begins", [[[0, 4, 8, 100, 128, 200, 252], [0, 60]], [range(0, N, 4), [0]]])
def test_documents_of_any_length_are_its_definition(sizes, begins):
    """Documents shorter than the window and than a tile, and some that begin or end where a tile does."""
    documents = documents_of(begins, N, N // 4)
    documents = type(documents)(*(x.to(DEVICE) for x in documents))
    tensors = draw(dtype=torch.float64)
    found = results(lambda *x: layer(*x, sizes, documents=documents, backend="reference"), tensors)
    wanted = results(lambda *x: plainly(*x, sizes, 128, documents.starts), tensors)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("sizes", "heads"), [(SIZES, (2, 1)), (WIDE, (2, 2))])
def test_kernels_are_the_reference(sizes, heads):
    tensors = [x[:1] for x in draw(*heads, dim=8)]
    found, wanted = (
        results(lambda *x, name=name: layer(*x, sizes, backend=name), tensors)
        for name in ("triton", "reference")
    )
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("backend", ["reference", pytest.param("triton", marks=pytest.mark.slow)])
def test_documents_apart_are_documents_alone(backend):
    """Each document gives what it gives as a sequence of its own, which has the same tiles."""
    q, k, v = draw(2, 1, dim=8)
    documents = documents_of([[0, 128], [0]], N, 3)
    documents = type(documents)(*(x.to(DEVICE) for x in documents))
    together = layer(q, k, v, window=64, documents=documents, backend=backend)
    half = SIZES | {"budget": SIZES["budget"] // 2}
    for part in (slice(0, 128), slice(128, 256)):
        alone = layer(*(x[:1, part] for x in (q, k, v)), half, window=64, backend=backend)
        torch.testing.assert_close(together[:1, part], alone, rtol=1e-4, atol=1e-5)
    alone = layer(*(x[1:] for x in (q, k, v)), window=64, backend=backend)
    torch.testing.assert_close(together[1:], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("changed", [1, 40, 130, 250])
@pytest.mark.parametrize("sizes", PYRAMIDS)
def test_later_tokens_change_nothing(sizes, changed):
    tensors = draw()
    before = layer(*tensors, sizes)
    others = [x.clone() for x in tensors]
    for x, other in zip(others, draw(seed=1), strict=True):
        x[:, changed:] = 10 * other[:, changed:]
    after = layer(*others, sizes)
    torch.testing.assert_close(after[:, :changed], before[:, :changed])
    assert not torch.allclose(after[:, changed:], before[:, changed:])


@pytest.mark.parametrize("sizes", PYRAMIDS)
def test_a_position_sees_all_rows_of_tiles_before_the_last_two_and_none_of_its_own(sizes):
    pyramid = Pyramid(N, *(sizes[key] for key in ("levels", "pooling", "budget", "tile")))
    seen = rows_seen(pyramid, torch.arange(N)).hi
    tiles = torch.arange(N) // pyramid.tile_tokens
    whole = (tiles - 1).clamp(min=0) * (pyramid.n_selected // pyramid.n_tiles)
    assert (seen >= whole).all()  # all rows of the tiles that a window of two tiles may not reach
    assert (seen <= tiles * (pyramid.n_selected // pyramid.n_tiles)).all()  # none of an open tile


@pytest.mark.parametrize("sizes", PYRAMIDS)
def test_folding_and_back(sizes):
    pyramid = Pyramid(N, *(sizes[key] for key in ("levels", "pooling", "budget", "tile")))
    q, k, _ = draw()
    rows = torch.zeros(2, pyramid.n_selected, k.shape[2], 16, device=DEVICE)
    fold = Fold(q, rows, pyramid)
    folded = fold(q)
    assert folded.shape == (2, fold.seen(rows).shape[1], tokens_per_row(pyramid) * q.shape[2], 16)
    back = fold.unfolded(folded, 5.0)
    assert (back[:, : pyramid.tile_tokens] == 5).all()
    torch.testing.assert_close(back[:, pyramid.tile_tokens :], q[:, pyramid.tile_tokens :])


def test_a_window_of_the_sequence_is_full_attention():
    tensors = draw()
    full = results(lambda *x: lighthouse_attention(*x, window=N, **SIZES), tensors)
    for one, other in zip(results(lambda *x: layer(*x, window=N), tensors), full, strict=True):
        torch.testing.assert_close(one, other)


def test_a_window_of_less_than_two_tiles_is_refused():
    with pytest.raises(ValueError, match="window=63: must be at least"):
        layer(*draw(), window=63)


def test_the_layer_of_a_model():
    attend = LighthouseAttention(3, 2, 32, tile=4, window=64, own_queries=True)
    tensors = draw()
    positions = torch.arange(N, device=DEVICE)
    found = attend(*tensors, Where(torch.ones(N, 1), positions=positions))
    torch.testing.assert_close(found, layer(*tensors, window=64))


@pytest.mark.gpu
@pytest.mark.parametrize("dim", [64, 128])
def test_gpu_kernels_in_half_precision(dim):
    sizes = {"levels": 3, "pooling": 4, "budget": 256, "tile": 16}  # 16 tiles of 1,024 tokens
    torch.manual_seed(0)
    shapes = [(1, 16_384, heads, dim) for heads in (6, 2, 2)]
    tensors = [torch.randn(shape, device="cuda", dtype=torch.bfloat16) for shape in shapes]
    found = results(lambda *x: layer(*x, sizes, 2048), tensors)
    wanted = results(lambda *x: layer(*x, sizes, 2048, backend="reference"), [x.float() for x in tensors])
    for one, other in zip(found, wanted, strict=True):
        assert (one.float() - other).norm() / other.norm() < 2e-2
