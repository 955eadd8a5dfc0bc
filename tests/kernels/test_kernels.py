"""Each kernel compared with its naive version. Without a GPU: small shapes in Triton's interpreter."""

import pytest
import torch

from lhtrain.kernels.pyramid import Pyramid
from lhtrain.kernels.scores import naive as naive_scores
from lhtrain.kernels.scores.kernel import score
from lhtrain.kernels.scores.naive import max_pooled
from lhtrain.kernels.selection import naive as naive_selection
from lhtrain.kernels.selection.kernel import select_rows
from lhtrain.kernels.windows import kernel as windows
from lhtrain.kernels.windows import naive as naive_windows
from tests.kernels import cases

SMALL = [  # N, L, p, k
    (512, 2, 4, 128),
    (1088, 2, 8, 128),  # 136 candidates, the last token block half full
    (2080, 3, 4, 128),
    (2048, 5, 2, 128),
    (1024, 3, 4, 32, 16),  # two tiles of 16 expanded entries
]
LARGE = [
    (4096, 4, 2, 256),
    (98304, 3, 4, 1536),
    (24576, 3, 8, 384),
    (81920, 4, 4, 1280),
    (65536, 5, 4, 256),  # windows of 256: the long path
    (65536 + 512, 4, 8, 128),
    (1048576, 5, 8, 256),
    (98304, 3, 4, 1536, 16),
    (40960, 2, 2, 128),  # one tile of 20,480 candidates, more than a block
]
SHAPES = [Pyramid(*sizes) for sizes in (SMALL + LARGE if cases.ON_GPU else SMALL)]
DIMS = (128, 20) if cases.ON_GPU else (12,)


def name(pyramid):
    return f"N{pyramid.seq_len}-L{pyramid.levels}-p{pyramid.pooling}-k{pyramid.budget}-tile{pyramid.tile}"


@pytest.fixture(params=SHAPES, ids=name)
def pyramid(request):
    return request.param.check()


@pytest.mark.parametrize(("heads", "kv_heads"), [(3, 3), (4, 2)])
def test_scores_are_the_window_maxima_of_the_norms(pyramid, device, poison, heads, kv_heads):
    q, k, _ = cases.draw_qkv(pyramid, device, heads=heads, kv_heads=kv_heads, dim=12)
    for got, want in zip(score(q, k, pyramid), naive_scores.score(q, k, pyramid), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=0)


@pytest.mark.parametrize("covered", [0, 1])
@pytest.mark.parametrize("kind", ["random", "ties", "signs"])
def test_selection_equals_the_reference(pyramid, device, poison, kind, covered):
    shape = (2, 2, pyramid.seq_len)
    draws = {
        "random": lambda: torch.rand(shape, device=device),
        "ties": lambda: torch.randint(0, 4, shape, device=device).float(),
        "signs": lambda: torch.randn(shape, device=device).round(decimals=1),  # with 0 and -0
    }
    scores = [max_pooled(draws[kind](), pyramid) for _ in range(2)]
    indices, row_of_entry = select_rows(*scores, pyramid, covered)
    want_indices, want_row_of_entry = naive_selection.select_rows(*scores, pyramid, covered)
    assert torch.equal(indices.long(), want_indices)
    assert torch.equal(row_of_entry.long(), want_row_of_entry)


def test_a_group_selects_by_the_maximum_over_its_query_heads(device, poison):
    pyramid = Pyramid(2048, 3, 4, 128).check()
    draws = (torch.rand(2, heads, 2048, device=device) for heads in (6, 2))
    qk, kq = (max_pooled(scores, pyramid) for scores in draws)
    best = torch.stack([qk[:, :3].amax(1), qk[:, 3:].amax(1)], 1)
    want = naive_selection.select_rows(best, kq, pyramid, 2)[0]
    for which in (select_rows, naive_selection.select_rows):
        assert torch.equal(which(qk, kq, pyramid, 2)[0].long(), want)


def test_order_is_exact_at_four_million_tokens(device, poison):
    """Sorting by float32 keys fails here: the last positions need 22 bits, and the level 2 or 3 more."""
    pyramid = Pyramid(2**22, 5, 8, 256).check()
    scores = [torch.rand(1, 1, pyramid.n_entries - pyramid.seq_len, device=device) for _ in range(2)]
    want_indices, want_row_of_entry = naive_selection.select_rows(*scores, pyramid, True)
    indices, row_of_entry = select_rows(*scores, pyramid, True)
    assert torch.equal(indices.long(), want_indices)
    assert torch.equal(row_of_entry.long(), want_row_of_entry)


@pytest.mark.parametrize(
    ("dtype", "batch"),
    [(torch.float32, 1), (torch.bfloat16, 1), pytest.param(torch.float16, 2, marks=pytest.mark.slow)],
    ids=str,
)
def test_gather_and_scatter(pyramid, device, poison, dtype, batch):
    """Gather, scatter and both backward passes, compared with autograd of the float32 reference."""
    if pyramid.seq_len * batch > 2_000_000:
        pytest.skip("the reference would need too much memory")
    bound = 1e-5 if dtype == torch.float32 else 6e-3
    heads, kv_heads = (4, 2) if batch > 1 else (3, 3)
    indices, row_of_entry = cases.random_selection(pyramid, kv_heads, device, batch)
    row_of_entry = row_of_entry.int()
    for dim in DIMS:
        tokens = cases.draw_qkv(pyramid, device, batch, heads, kv_heads, dim, dtype)
        leaves = [x.float().requires_grad_() for x in tokens]
        want_rows = naive_windows.gather(*leaves, indices, pyramid)
        rows = windows.gather(*tokens, row_of_entry, pyramid)
        for got, want in zip(rows, want_rows, strict=True):
            assert got.dtype == dtype and cases.error(got, want) < bound

        grads = [torch.randn_like(x) for x in rows]
        want_grads = torch.autograd.grad(want_rows, leaves, [g.float() for g in grads])
        for got, want in zip(windows.gather_backward(*grads, row_of_entry, pyramid), want_grads, strict=True):
            assert got.dtype == dtype and cases.error(got, want) < bound

        leaf = rows[0].float().requires_grad_()
        want = naive_windows.scatter_back(leaf, indices, pyramid)
        got = windows.scatter(rows[0], row_of_entry, pyramid)
        assert got.dtype == dtype and cases.error(got, want) < bound
        grad = torch.randn_like(got)
        want = torch.autograd.grad(want, leaf, grad.float())[0]
        got = windows.scatter_backward(grad, row_of_entry, pyramid)
        assert got.dtype == dtype and cases.error(got, want) < bound


def test_inputs_may_have_gaps_between_heads(device, poison):
    """A fused projection returns views; only the last dimension must be contiguous."""
    pyramid = Pyramid(512, 2, 4, 128).check()
    fused = torch.randn(2, 512, 7, 20, device=device)
    views = fused[:, :, :3, :12], fused[:, :, 3:6, :12], fused[:, :, 4:7, 4:16]
    _, row_of_entry = cases.random_selection(pyramid, 3, device, batch=2)
    for a, b in zip(
        windows.gather(*views, row_of_entry.int(), pyramid),
        windows.gather(*(x.contiguous() for x in views), row_of_entry.int(), pyramid),
        strict=True,
    ):
        assert torch.equal(a, b)
    for a, b in zip(score(*views[:2], pyramid), naive_scores.score(*views[:2], pyramid), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=0)


def test_heads_may_be_further_apart_than_32_bits_count(device):
    """As in the transpose of (B, H, N, D) with a million tokens; most of the 4 GB are never touched."""
    pyramid, apart = Pyramid(512, 2, 4, 128).check(), 2**30 + 1024
    memory = torch.empty(2 * apart + 512 * 4, dtype=torch.float16, device=device)
    x = memory.as_strided((1, 512, 3, 4), (len(memory), 4, apart, 1))
    x.copy_(torch.randn(x.shape, device=device))
    _, row_of_entry = cases.random_selection(pyramid, 3, device)
    want = windows.gather(*[x.contiguous()] * 3, row_of_entry.int(), pyramid)
    for a, b in zip(windows.gather(x, x, x, row_of_entry.int(), pyramid), want, strict=True):
        assert torch.equal(a, b)
    for a, b in zip(score(x, x, pyramid), score(x.contiguous(), x.contiguous(), pyramid), strict=True):
        assert torch.equal(a, b)
