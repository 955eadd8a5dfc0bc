"""Attention to ranges of keys: the kernel against the naive version, and that against masked attention."""

import pytest
import torch

from lhtrain.kernels import ops
from lhtrain.kernels.ranges import kernel, naive


def window(n, width):
    t = torch.arange(n, dtype=torch.int32)
    return (t - width + 1).clamp(min=0), t + 1


def blocks(n, n_keys, size):
    """Query t sees the keys of the tiles before its own."""
    tiles = n_keys // (n // size)
    hi = torch.arange(n, dtype=torch.int32) // size * tiles
    return torch.zeros_like(hi), hi


CASES = {  # queries, keys, lo, hi
    "window": (150, 150, *window(150, 37)),
    "window of one": (70, 70, *window(70, 1)),
    "all before": (100, 100, *window(100, 200)),
    "tiles, the first sees nothing": (96, 160, *blocks(96, 160, 24)),
    "nothing at all": (40, 50, torch.zeros(40, dtype=torch.int32), torch.zeros(40, dtype=torch.int32)),
    "keys nobody sees": (65, 200, torch.full((65,), 70, dtype=torch.int32), torch.full((65,), 131).int()),
}


def draw(n, n_keys, heads, groups, dim, device, dtype=torch.float32):
    torch.manual_seed(0)
    shapes = [(2, n, heads, dim), (2, n_keys, groups, dim), (2, n_keys, groups, dim), (2, n, heads, dim)]
    tensors = [torch.randn(shape, device=device).to(dtype) for shape in shapes]
    return *tensors, torch.randn(2, heads, n, device=device)


def results(attend, q, k, v, lo, hi, grad, grad_lse):
    """out, lse and the gradients of q, k, v."""
    leaves = [x.detach().clone().requires_grad_() for x in (q, k, v)]
    out, lse = attend(*leaves, lo, hi)
    torch.autograd.backward([out, lse], [grad, grad_lse.masked_fill(lse == -torch.inf, 0)])
    return [out, lse, *(x.grad for x in leaves)]


@pytest.mark.parametrize("case", CASES)
def test_naive_is_masked_attention(case):
    n, n_keys, lo, hi = CASES[case]
    q, k, v, grad, grad_lse = (x.double() for x in draw(n, n_keys, 4, 2, 12, "cpu"))

    def masked(q, k, v, lo, hi):
        keys, values = (x.repeat_interleave(2, 2) for x in (k, v))
        scores = torch.einsum("bthd,bshd->bhts", q, keys) * 12**-0.5
        number = torch.arange(n_keys)
        weights = scores.exp() * ((number >= lo[:, None]) & (number < hi[:, None]))
        total = weights.sum(-1, keepdim=True)
        weights = weights / total.masked_fill(total == 0, 1)
        return torch.einsum("bhts,bshd->bthd", weights, values), total.squeeze(-1).log()

    n_some = int((hi > lo).sum())  # the plain version's gradient of log(0) is NaN
    if n_some < n:
        first = int((hi > lo).int().argmax()) if n_some else n
        out, lse = naive.attend_ranges(q, k, v, lo, hi)
        assert (out[:, :first] == 0).all() and (lse[..., :first] == -torch.inf).all()
        q, grad, lo, hi, grad_lse = (
            q[:, first:],
            grad[:, first:],
            lo[first:],
            hi[first:],
            grad_lse[..., first:],
        )
    if n_some:
        got = results(naive.attend_ranges, q, k, v, lo, hi, grad, grad_lse)
        for one, other in zip(got, results(masked, q, k, v, lo, hi, grad, grad_lse), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def apart(case, groups):
    """Other ranges for each of two batch elements, and for each group where there are several."""
    n, n_keys, lo, hi = CASES[case]
    los = [(lo - by).clamp(min=0) for by in range(2 * groups)]
    his = [(hi - 2 * by).clamp(min=0) for by in range(2 * groups)]
    shape = (2, groups, n) if groups > 1 else (2, n)
    return n, n_keys, torch.stack(los).view(shape), torch.stack(his).view(shape)


@pytest.mark.parametrize("case", ["window", "tiles, the first sees nothing"])
@pytest.mark.parametrize("groups", [1, 2])
def test_ranges_of_each_batch_element_and_group(case, groups, device, poison):
    """Naive is naive for each alone, and the kernel is naive."""
    n, n_keys, lo, hi = apart(case, groups)
    q, k, v, grad, grad_lse = draw(n, n_keys, 4, groups, 16, device)
    got, want = (
        results(attend, q, k, v, lo.to(device), hi.to(device), grad, grad_lse)
        for attend in (ops.attend_ranges, naive.attend_ranges)
    )
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-5)
    for b in range(2):
        for g in range(groups):
            heads, bounds = slice(g * 4 // groups, (g + 1) * 4 // groups), (lo[b], hi[b])
            own = [x.to(device) if groups == 1 else x[g].to(device) for x in bounds]
            out, lse = naive.attend_ranges(*(x[b, None, :, s] for x, s in zip(
                (q, k, v), (heads, slice(g, g + 1), slice(g, g + 1)), strict=True)), *own)  # fmt: skip
            torch.testing.assert_close(want[0][b, :, heads], out[0])
            torch.testing.assert_close(want[1][b, heads], lse[0])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("heads", "groups", "dim"), [(2, 2, 16), (4, 2, 20)])
def test_kernel_is_naive(case, heads, groups, dim, device, poison):
    n, n_keys, lo, hi = CASES[case]
    q, k, v, grad, grad_lse = draw(n, n_keys, heads, groups, dim, device)
    lo, hi = lo.to(device), hi.to(device)
    got = results(ops.attend_ranges, q, k, v, lo, hi, grad, grad_lse)
    for one, other in zip(got, results(naive.attend_ranges, q, k, v, lo, hi, grad, grad_lse), strict=True):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-5)


def test_naive_in_several_parts(monkeypatch):
    n, n_keys, lo, hi = CASES["window"]
    tensors = draw(n, n_keys, 2, 1, 8, "cpu")
    whole = results(naive.attend_ranges, *tensors[:3], lo, hi, *tensors[3:])
    monkeypatch.setattr(naive, "QUERIES", 32)
    for one, other in zip(
        results(naive.attend_ranges, *tensors[:3], lo, hi, *tensors[3:]), whole, strict=True
    ):
        torch.testing.assert_close(one, other)


def test_results_do_not_depend_on_strides(device, poison):
    n, n_keys, lo, hi = CASES["window"]
    q, k, v, grad, _ = draw(n, n_keys, 2, 2, 16, device)
    apart = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    lo, hi = lo.to(device), hi.to(device)
    out, lse = kernel.forward(q, k, v, lo, hi)
    for one, other in zip(kernel.forward(*apart, lo, hi), (out, lse), strict=True):
        assert torch.equal(one, other)
    want = kernel.backward(grad, None, q, k, v, lo, hi, out, lse)
    for one, other in zip(kernel.backward(grad, None, *apart, lo, hi, out, lse), want, strict=True):
        assert torch.equal(one, other)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("heads", "groups", "dim"), [(8, 8, 128), (8, 2, 64), (4, 4, 256), (3, 1, 80)])
def test_kernel_at_every_dtype(dtype, heads, groups, dim, device, poison):
    n = 1500
    lo, hi = (x.to(device) for x in window(n, 333))
    q, k, v, grad, grad_lse = draw(n, n, heads, groups, dim, device, dtype)
    got = results(ops.attend_ranges, q, k, v, lo, hi, grad, grad_lse)
    wide = [x.float() for x in (q, k, v)]
    want = results(naive.attend_ranges, *wide, lo, hi, grad.float(), grad_lse)
    bound = 1e-5 if dtype == torch.float32 else 1e-2
    for one, other in zip(got, want, strict=True):
        assert (one.float() - other).norm() <= bound * other.norm()
