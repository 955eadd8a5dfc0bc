"""Attention that keeps documents apart: each kernel against the reference, and what it means."""

import pytest
import torch
import torch._dynamo.testing

from lhtrain.attention.dense import DenseAttention, dense_attention
from lhtrain.attention.documents import documents_of, first_keys
from lhtrain.attention.lighthouse import LighthouseAttention
from lhtrain.attention.varlen import (
    VARLEN_KERNELS,
    VarlenKernel,
    attend_documents,
    key_ranges,
    naive_documents,
)
from lhtrain.attention.where import Where
from lhtrain.kernels.pyramid import Pyramid
from lhtrain.kernels.ranges.naive import attend_ranges

gpu = pytest.mark.gpu
ON_GPU = {
    "fa4": [torch.bfloat16, torch.float16],
    "flash": [torch.bfloat16, torch.float16],
    "ranges": [torch.float32],
}
KERNELS = [
    ("cpu", torch.float32),
    *(pytest.param(name, dtype, marks=gpu) for name in ON_GPU for dtype in ON_GPU[name]),
]
# Where documents begin in each sequence of 300 tokens. `most` leaves boundaries at the end that repeat.
BEGINS = {
    "one sequence": [[0, 1, 40, 41, 168, 296]],
    "three sequences": [[17, 128], [], [1, 2, 3, 299]],
    "one document": [[]],
}


def draw(batch, dim, device="cpu", dtype=torch.float32, n=300, heads=9, groups=3):
    torch.manual_seed(0)
    shapes = [
        (batch, n, heads, dim),
        (batch, n, groups, dim),
        (batch, n, groups, dim),
        (batch, n, heads, dim),
    ]
    return [torch.randn(shape).to(device, dtype) for shape in shapes]


def results(attend, q, k, v, grad, *further, grad_lse=None):
    """out, lse and the gradients of q, k and v."""
    leaves = [x.detach().clone().requires_grad_() for x in (q, k, v)]
    out, lse = attend(*leaves, *further)
    pairs = [(out, grad)] if grad_lse is None else [(out, grad), (lse, grad_lse)]
    torch.autograd.backward(*zip(*pairs, strict=True))
    return [out.detach(), lse.detach(), *(x.grad for x in leaves)]


@pytest.mark.parametrize("window", [None, 1, 33, 1000])
@pytest.mark.parametrize("begins", BEGINS)
@pytest.mark.parametrize(("kernel", "dtype"), KERNELS)
@pytest.mark.parametrize("dim", [pytest.param(128, marks=gpu), 64])
def test_kernels_equal_the_reference(kernel, dtype, begins, window, dim):
    device = "cpu" if kernel == "cpu" else "cuda"
    bounds = documents_of(BEGINS[begins], 300, most=9).bounds.to(device)
    q, k, v, grad = draw(len(BEGINS[begins]), dim, device, dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for grad_lse in (None, torch.randn(len(q), 9, 300).to(device)):
        got = results(attend_documents, q, k, v, grad, bounds, window, kernel, grad_lse=grad_lse)
        tensors = (x.float() for x in (q, k, v, grad))
        want = results(naive_documents, *tensors, bounds, window, grad_lse=grad_lse)
        for one, other in zip(got, want, strict=True):
            torch.testing.assert_close(one.float(), other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("window", [0, 16])
def test_no_segment_is_longer_than_the_kernel_is_told(monkeypatch, window):
    """Documents of tokens, and of selected rows. A kernel on a GPU would leave the rest out."""
    told = []

    def checked(pass_of):
        def call(*inputs):
            *_, bounds, _, _, longest = inputs
            assert max(int(one.diff().max()) for one in bounds) <= longest
            told.append(longest)
            return pass_of(*inputs)

        return call

    cpu = VARLEN_KERNELS["cpu"]
    monkeypatch.setitem(
        VARLEN_KERNELS, "cpu", VarlenKernel("cpu", checked(cpu.forward), checked(cpu.backward))
    )
    pyramid = Pyramid(256, levels=2, pooling=4, budget=32, tile=32)
    documents = documents_of([[0, 64, 80], [], [4, 252]], 256, most=9)
    q, k, v, grad = draw(3, 16, n=256)
    for attend in (DenseAttention(), LighthouseAttention(2, 4, 32, tile=32, window=window)):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        attend(*leaves, Where((), documents=documents)).backward(grad)
    assert set(told) <= {256, pyramid.n_selected} and len(set(told)) == 2


@pytest.mark.parametrize(("kernel", "dtype"), KERNELS)
def test_all_keys_of_a_segment_with_other_bounds_for_queries(kernel, dtype):
    """As the ring needs it: keys come before the queries, and some segments have no queries or no keys."""
    device = "cpu" if kernel == "cpu" else "cuda"
    bounds = [
        torch.tensor(x, dtype=torch.int32, device=device) for x in ([0, 3, 3, 90, 200], [0, 50, 90, 90, 160])
    ]
    q, _, _, grad = (x[0] for x in draw(1, 64, device, dtype, n=200))
    _, k, v, _ = (x[0] for x in draw(1, 64, device, dtype, n=160))
    kernel = VARLEN_KERNELS[kernel]
    out, lse = kernel.forward(q, k, v, bounds, False, None)
    lo, hi = key_ranges(bounds, 200, causal=False, window=None)
    assert lo[[0, 2, 3, 89, 90, 199]].tolist() == [0, 0, 90, 90, 90, 90]
    assert hi[[0, 2, 3, 89, 90, 199]].tolist() == [50, 50, 90, 90, 160, 160]
    leaves = [x[None].float().requires_grad_() for x in (q, k, v)]
    want, want_lse = attend_ranges(*leaves, lo, hi)
    met_q, met_k = (lo < hi), torch.ones(160, dtype=torch.bool, device=device)
    met_k[50:90] = False
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(out[met_q].float(), want[0, met_q], **tolerance)
    torch.testing.assert_close(lse[:, met_q], want_lse[0, :, met_q], **tolerance)
    out, lse = torch.where(met_q[:, None, None], out, 0), torch.where(met_q, lse, 0)
    got = kernel.backward(grad, None, q, k, v, out, lse, bounds, False, None)
    wanted = torch.autograd.grad(want, leaves, grad[None].float())
    for one, other, met in zip(got, wanted, (met_q, met_k, met_k), strict=True):
        torch.testing.assert_close(one[met].float(), other[0, met], **tolerance)


@pytest.mark.parametrize("backend", ["auto", "math"])
def test_each_document_is_as_if_alone(backend):
    """Forward and backward; a change of one document changes no bit of another."""
    begins = [[0, 5, 90], [30]]
    q, k, v, grad = draw(2, 16, n=128)
    attend, where = DenseAttention(backend), Where((q, q), documents=documents_of(begins, 128, most=4))
    whole = [x.clone().requires_grad_() for x in (q, k, v)]
    out = attend(*whole, where)
    grads = torch.autograd.grad(out, whole, grad)
    for b, begin, end in [(0, 0, 5), (0, 5, 90), (0, 90, 128), (1, 0, 30), (1, 30, 128)]:
        here = (slice(b, b + 1), slice(begin, end))
        alone = [x[here].clone().requires_grad_() for x in (q, k, v)]
        expected = dense_attention(*alone)
        torch.testing.assert_close(out[here], expected)
        for one, other in zip(grads, torch.autograd.grad(expected, alone, grad[here]), strict=True):
            torch.testing.assert_close(one[here], other)

    changed = [x.clone() for x in (q, k, v)]
    for x in changed:
        x[0, 40] += 1
    changed = [x.requires_grad_() for x in changed]
    out_changed = attend(*changed, where)
    others = torch.ones(2, 128, dtype=torch.bool)
    others[0, 5:90] = False
    assert torch.equal(out_changed[others], out[others]) and not torch.equal(out_changed, out)
    for one, other in zip(torch.autograd.grad(out_changed, changed, grad), grads, strict=True):
        assert torch.equal(one[others], other[others])


def test_other_boundaries_do_not_compile_again():
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    attend = torch.compile(DenseAttention(), fullgraph=True, dynamic=False, backend=counter)
    q, k, v, _ = draw(2, 16, n=64)
    for begins in ([[], []], [[7], [1, 2, 3]], [[1, 2, 3, 4], [63]]):
        documents = documents_of(begins, 64, most=5)
        got = attend(q, k, v, Where((q, q), documents=documents))
        torch.testing.assert_close(got, naive_documents(q, k, v, documents.bounds)[0])
    assert counter.frame_count == 1


def test_the_operator_keeps_the_compilers_rules():
    q, k, v, _ = draw(2, 8, n=40)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    bounds = documents_of([[3], [9, 11]], 40, most=4).bounds
    for window in (None, 5):
        torch.library.opcheck(torch.ops.lhtrain.documents.default, (*leaves, bounds, window, "cpu"))


def test_ranges_of_keys_never_fall():
    bounds = documents_of([[3, 50], [], [1]], 64, most=5).bounds
    for window in (None, 1, 20):
        lo, hi = key_ranges((bounds, bounds), 192, True, window)
        assert (lo.diff() >= 0).all() and (hi.diff() >= 0).all() and (lo < hi).all()
        expected = hi - (hi if window is None else window)
        assert torch.equal(lo, torch.maximum(first_keys(bounds, 192), expected.clamp(min=0)))


def test_cudnn_names_what_keeps_documents_apart():
    q, k, v, _ = draw(1, 8, n=8)
    with pytest.raises(ValueError, match="use auto, flash or math"):
        dense_attention(q, k, v, "cudnn", documents_of([[]], 8, most=1))
