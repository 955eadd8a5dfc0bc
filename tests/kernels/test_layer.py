"""The whole layer with the kernels: recorded outputs, the reference, compilation, graphs, repeatability."""

import pytest
import torch

from lhtrain.attention import Pyramid, dense_attention, lighthouse_attention
from lhtrain.kernels import ops
from lhtrain.kernels.scores.kernel import score
from lhtrain.kernels.selection.naive import select_rows
from lhtrain.kernels.windows.naive import gather_pooled, scatter_back
from tests.attention import golden
from tests.kernels import cases


def run(tensors, grad, pyramid_options, backend, **options):
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    out = lighthouse_attention(*leaves, backend=backend, **pyramid_options, **options)
    return out, *torch.autograd.grad(out, leaves, grad)


@pytest.mark.parametrize("number", golden.cases() if cases.ON_GPU else [0])
@pytest.mark.slow
def test_reproduces_the_published_layer(number, device):
    case = golden.load(number)
    q, k, v, grad = (x.to(device) for x in case.inputs)
    indices = ops.gather_rows(q, k, v, *case.sizes.values(), 0)[3]
    assert torch.equal(indices.long().cpu(), case.indices)
    found = run((q, k, v), grad, case.sizes, "triton", cover_prefix=False, dense="math")
    for name, value in zip(("out", "dq", "dk", "dv"), found, strict=True):
        assert case.error(name, value) < 1e-5, name
        assert case.norm_error(name, value) < 1e-5, name


SHAPES = [((512, 2, 4, 128), 2, 3, 3, 16)]
if cases.ON_GPU:
    SHAPES += [
        ((4096, 3, 4, 128), 1, 1, 1, 128),
        ((2080, 3, 4, 128), 3, 5, 5, 64),
        ((8192, 3, 4, 128), 1, 8, 2, 128),
        ((8192, 4, 2, 512), 2, 6, 3, 64),
        ((12288, 3, 8, 128), 1, 3, 1, 96),
        ((32768, 5, 4, 128), 1, 2, 2, 64),
        ((65536, 4, 8, 128), 1, 2, 1, 128),
        ((8192, 5, 2, 128), 1, 2, 2, 128),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("sizes", "batch", "heads", "kv_heads", "dim"), SHAPES)
def test_agrees_with_the_float32_reference(sizes, batch, heads, kv_heads, dim, dtype, device):
    """Return tensors whose norms differ by more than float32's rounding, so that no near-tie is ambiguous.

    They differ between tokens and also between heads, because a group uses the maximum over its heads.
    """
    pyramid = Pyramid(*sizes).check()
    tensors = cases.draw_qkv(pyramid, device, batch, heads, kv_heads, dim)
    for x in tensors[:2]:
        ranks = torch.rand(x.shape[:3], device=device).flatten(1).argsort(1).view(x.shape[:3])
        norms = ranks / ranks[0].numel() + 0.5
        x *= (norms / x.norm(dim=-1)).unsqueeze(-1) * dim**0.5
    tensors = [x.to(dtype) for x in tensors]
    if (
        dtype != torch.float32
    ):  # rounding makes ties and near-ties again: take the reference at the kernels' word
        return compare_for_one_selection(tensors, pyramid)
    grad = torch.randn_like(tensors[0])
    found = run(tensors, grad, cases.options(pyramid), "triton", dense="math")
    want = run(tensors, grad, cases.options(pyramid), "reference", dense="math")
    for a, b in zip(found, want, strict=True):
        assert cases.error(a, b) < 1e-5


def compare_for_one_selection(tensors, pyramid):
    q, k, v = tensors
    indices = ops.gather_rows(q, k, v, *cases.options(pyramid).values(), len(q))[3].long()
    grad = torch.randn_like(q)
    found = run(tensors, grad, cases.options(pyramid), "triton")
    leaves = [x.float().requires_grad_() for x in tensors]
    rows = dense_attention(*(gather_pooled(x, indices, pyramid) for x in leaves), "math")
    out = scatter_back(rows, indices, pyramid)
    want = out, *torch.autograd.grad(out, leaves, grad.float())
    for a, b in zip(found, want, strict=True):
        assert a.dtype == q.dtype and cases.error(a, b) < 1e-2


@pytest.mark.slow
def test_compiles_as_one_graph(device):
    pyramid = Pyramid(512, 2, 4, 128).check()
    tensors = cases.draw_qkv(pyramid, device, dim=16)
    grad = torch.randn_like(tensors[0])
    backend = "inductor" if cases.ON_GPU else "aot_eager"
    layer = torch.compile(lighthouse_attention, fullgraph=True, backend=backend)
    leaves = [x.clone().requires_grad_() for x in tensors]
    out = layer(*leaves, backend="triton", dense="math", **cases.options(pyramid))
    found = out, *torch.autograd.grad(out, leaves, grad)
    for a, b in zip(found, run(tensors, grad, cases.options(pyramid), "triton", dense="math"), strict=True):
        assert cases.error(a, b) < 1e-6


def test_operators_keep_pytorchs_rules(device):
    """PyTorch's own checker: fake shapes, autograd registration, no hidden mutation."""
    pyramid = Pyramid(512, 2, 4, 128).check()
    q, k, v = cases.draw_qkv(pyramid, device, kv_heads=1, dim=8)
    for x in (q, k, v):
        x.requires_grad_()
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(
        ops.gather_rows, (q, k, v, *cases.options(pyramid).values(), len(q)), test_utils=checks
    )
    rows, *_, row_of_entry = ops.gather_rows(q, k, v, *cases.options(pyramid).values(), len(q))
    rows = rows.detach().requires_grad_()
    torch.library.opcheck(
        ops.scatter_rows, (rows, row_of_entry, 512, *cases.options(pyramid).values()), test_utils=checks
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": torch.float64}, "dtype=torch.float64"),
        ({"dim": 320}, "head_dim=320: must be between 1 and 256"),
    ],
)
def test_the_error_names_what_the_kernels_do_not_support(change, message, device):
    pyramid = Pyramid(512, 2, 4, 128).check()
    q, k, v = cases.draw_qkv(pyramid, device, **change)
    with pytest.raises(ValueError, match=message):
        lighthouse_attention(q, k, v, backend="triton", **cases.options(pyramid))


def test_the_error_for_a_pooling_factor_too_large_to_unroll(device):
    q = torch.zeros(1, 16384, 1, 4, device=device)
    with pytest.raises(ValueError, match="pooling=128: must be at most 64"):
        lighthouse_attention(q, q, q, levels=2, pooling=128, budget=128, backend="triton")


@pytest.mark.gpu
def test_kernels_are_bitwise_repeatable(device):
    pyramid = Pyramid(32768, 3, 4, 512).check()
    q, k, v = cases.draw_qkv(pyramid, device, heads=8, kv_heads=8, dim=128, dtype=torch.bfloat16)
    sizes = tuple(cases.options(pyramid).values())

    def everything():
        *rows, indices, row_of_entry = ops.gather_rows(q, k, v, *sizes, len(q))
        out = ops.scatter_rows(rows[0], row_of_entry, 32768, *sizes)
        grad_rows = ops.scatter_rows_backward(out, row_of_entry, 32768, *sizes)
        grads = ops.gather_rows_backward(*rows, row_of_entry, 32768, *sizes)
        return *rows, indices, row_of_entry, out, grad_rows, *grads

    first = everything()
    for _ in range(20):
        assert all(torch.equal(a, b) for a, b in zip(first, everything(), strict=True))


@pytest.mark.gpu
def test_forward_and_backward_capture_into_a_cuda_graph(device):
    pyramid = Pyramid(8192, 3, 4, 128).check()
    tensors = cases.draw_qkv(pyramid, device, heads=4, kv_heads=2, dim=64, dtype=torch.bfloat16)
    grad = torch.randn_like(tensors[0])
    static = [x.clone().requires_grad_() for x in tensors]

    def step():
        out = lighthouse_attention(*static, backend="triton", **cases.options(pyramid))
        return out, *torch.autograd.grad(out, static, grad)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step()
    fresh = cases.draw_qkv(pyramid, device, heads=4, kv_heads=2, dim=64, dtype=torch.bfloat16)
    with torch.no_grad():
        for x, y in zip(static, fresh, strict=True):
            x.copy_(y)
    graph.replay()
    for a, b in zip(found, step(), strict=True):  # the attention's backward pass may differ in the last bits
        assert cases.error(a, b) < 1e-2


@pytest.mark.gpu
@pytest.mark.parametrize("sizes", [(2**20, 4, 4, 4096), (2**20, 3, 4, 16384)], ids=["L4", "S196608"])
def test_runs_at_a_million_tokens(sizes, device, poison):
    """With the kernels' scores the reference selects the same entries; all pooled rows of q are checked."""
    pyramid = Pyramid(*sizes).check()
    q, k, v = cases.draw_qkv(pyramid, device, heads=2, kv_heads=2, dim=64, dtype=torch.bfloat16)
    rows_q, _, _, indices, row_of_entry = ops.gather_rows(q, k, v, *cases.options(pyramid).values(), len(q))
    want_indices, want_row_of_entry = select_rows(*score(q, k, pyramid), pyramid, True)
    assert torch.equal(indices.long(), want_indices) and torch.equal(row_of_entry.long(), want_row_of_entry)
    assert cases.error(rows_q, gather_pooled(q.float(), want_indices, pyramid)) < 6e-3
    out = lighthouse_attention(q, k, v, backend="triton", **cases.options(pyramid))
    assert out.isfinite().all()
