"""The merge of exact local attention with the selected rows: the kernels against the naive version."""

import pytest
import torch

from lhtrain.kernels.merge import kernel, naive
from lhtrain.kernels.pyramid import Pyramid
from tests.kernels import cases

SHAPES = [Pyramid(512, 2, 4, 128), Pyramid(512, 3, 2, 32, 16), Pyramid(528, 4, 2, 48, 16)]
if cases.ON_GPU:
    SHAPES += [Pyramid(98304, 3, 4, 1536), Pyramid(65536, 5, 4, 256), Pyramid(2**20, 4, 4, 4096)]


def draw(pyramid, device, dtype, batch=2, heads=2, groups=1, dim=12, before=False):
    """near, near_lse, rows, rows_lse, row_of_entry, before."""
    _, row_of_entry = cases.random_selection(pyramid, groups, device, batch)
    n_rows, ahead = pyramid.n_selected, None
    if before:  # of the entries before the first of each level, the last is not kept in the first element
        ahead = n_rows + torch.arange(pyramid.levels - 1, device=device).expand(batch, groups, -1).clone()
        ahead[0, :, -1] = -1
        n_rows += pyramid.levels - 1
    near = torch.randn(batch, pyramid.seq_len, heads, dim, device=device).to(dtype)
    rows = torch.randn(batch, n_rows, heads, dim, device=device).to(dtype)
    lses = [torch.randn(batch, heads, n, device=device) for n in (pyramid.seq_len, n_rows)]
    return near, lses[0], rows, lses[1], row_of_entry.int(), None if ahead is None else ahead.int()


def test_the_finest_kept_entry_that_reaches_a_position_is_taken(device):
    pyramid = SHAPES[1].check()
    _, row_of_entry = cases.random_selection(pyramid, 1, device)
    taken, places = naive.finest_rows(row_of_entry, pyramid)[0, 0].tolist(), row_of_entry[0, 0].tolist()
    for j in range(pyramid.seq_len):
        want = -1
        for level in reversed(range(pyramid.levels)):
            entry = (j - 2**level + 1) // 2**level
            if entry >= 0 and places[pyramid.offset(level) + entry] >= 0:
                want = places[pyramid.offset(level) + entry]
        assert taken[j] == want


@pytest.mark.parametrize("before", [False, True], ids=["alone", "after a chunk"])
@pytest.mark.parametrize("pyramid", SHAPES, ids=lambda p: f"N{p.seq_len}-L{p.levels}-p{p.pooling}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_merge_is_naive(pyramid, dtype, before, device, poison):
    pyramid.check()
    bound = 1e-5 if dtype == torch.float32 else 1.2e-2  # differences of outputs that were rounded
    near, near_lse, rows, rows_lse, row_of_entry, ahead = draw(pyramid, device, dtype, before=before)
    leaves = [x.float().requires_grad_() for x in (rows, rows_lse)]
    want, want_lse = naive.merge(near.float(), near_lse, *leaves, row_of_entry, pyramid, ahead)
    grad = torch.randn_like(want).to(dtype)
    want_grads = torch.autograd.grad(want, leaves, grad.float())
    out, lse = kernel.merge(near.clone(), near_lse.clone(), rows, rows_lse, row_of_entry, pyramid, ahead)
    assert out.dtype == dtype and cases.error(out, want) < bound
    torch.testing.assert_close(lse, want_lse, rtol=1e-5, atol=1e-5)
    grads = kernel.merge_backward(grad, out, lse, rows, rows_lse, row_of_entry, pyramid, ahead)
    for got, wanted in zip(grads, want_grads, strict=True):
        assert cases.error(got, wanted) < bound


def test_a_position_that_no_row_reaches_keeps_its_near_part(device, poison):
    pyramid = Pyramid(512, 2, 4, 128).check()
    near, near_lse, rows, rows_lse, row_of_entry, _ = draw(pyramid, device, torch.float32)
    row_of_entry.fill_(-1)
    for merge in (kernel.merge, naive.merge):
        out, lse = merge(near.clone(), near_lse.clone(), rows, rows_lse, row_of_entry, pyramid)
        assert torch.equal(out, near) and torch.equal(lse, near_lse)
