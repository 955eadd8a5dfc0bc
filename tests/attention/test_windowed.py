"""Windowed Lighthouse layers: exact local attention merged with the selected rows."""

import pytest
import torch

from lhtrain.attention import LighthouseAttention, dense_attention, lighthouse_attention
from lhtrain.attention.window_kernels import WINDOW_KERNELS, cpu_window, naive_window
from lhtrain.attention.windowed import merge_window
from lhtrain.kernels.pyramid import Pyramid
from lhtrain.kernels.scores.naive import max_pooled
from lhtrain.kernels.selection.naive import select_rows
from lhtrain.kernels.windows.naive import gather_pooled

N, SIZES = 256, {"levels": 3, "pooling": 2, "budget": 16, "tile": 8}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def draw(n=N, heads=2, groups=2, dim=8, dtype=torch.float64, seed=0, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(2, n, number, dim) for number in (heads, groups, groups)]
    return [torch.randn(s, dtype=torch.float64, generator=generator).to(device, dtype) for s in shapes]


def layer(q, k, v, window=32, **changes):
    return lighthouse_attention(q, k, v, window=window, **SIZES | changes)


def results(attend, tensors):
    """The output, and the gradients of q, k and v for one gradient of the output."""
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    out = attend(*leaves)
    torch.manual_seed(7)
    out.backward(torch.randn(out.shape, dtype=torch.float64).to(out))
    return [out.detach(), *(x.grad for x in leaves)]


def plainly(q, k, v, window):
    """One position after the other, from the definition: the exponentials of both parts, divided once."""
    pyramid = Pyramid(N, *(SIZES[key] for key in ("levels", "pooling", "budget", "tile")))
    qk, kq = (max_pooled(x.float().norm(dim=-1).transpose(1, 2), pyramid) for x in (q, k))
    indices, places = select_rows(qk, kq, pyramid, len(q))
    rows = [gather_pooled(x, indices, pyramid) for x in (q, k, v)]
    out = []
    for j in range(N):
        total, weighted = torch.zeros(2, 2, 1), torch.zeros(2, 2, q.shape[-1])
        for b in range(2):
            for h in range(2):
                entries = [(j - 2**level + 1) // 2**level for level in range(3)]
                kept = [
                    int(places[b, h, pyramid.offset(level) + entry])
                    for level, entry in enumerate(entries)
                    if entry >= 0
                ]
                row = next((place for place in kept if place >= 0), None)
                parts = [
                    (
                        q[b, j, h],
                        k[b, max(j - window + 1, 0) : j + 1, h],
                        v[b, max(j - window + 1, 0) : j + 1, h],
                    )
                ]
                if row is not None:
                    parts.append((rows[0][b, row, h], rows[1][b, : row + 1, h], rows[2][b, : row + 1, h]))
                for query, keys, values in parts:
                    weights = (keys @ query * q.shape[-1] ** -0.5).exp()
                    total[b, h] += weights.sum()
                    weighted[b, h] += weights @ values
        out.append(weighted / total)
    return torch.stack(out, 1)


@pytest.mark.parametrize("window", [1, 5, 32, 255])
def test_it_is_its_definition(window):
    torch.set_default_dtype(torch.float64)
    try:
        q, k, v = draw()
        torch.testing.assert_close(layer(q, k, v, window), plainly(q, k, v, window))
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("window", [N, N + 1, 10**6])
@pytest.mark.parametrize(("heads", "groups"), [(2, 2), (4, 2)])
def test_a_window_of_the_whole_sequence_is_full_attention(window, heads, groups):
    tensors = draw(heads=heads, groups=groups)
    got = results(lambda *x: layer(*x, window), tensors)
    for one, other in zip(got, results(dense_attention, tensors), strict=True):
        torch.testing.assert_close(one, other)


def test_a_window_of_nothing_is_the_published_layer():
    tensors = draw()
    got = results(lambda *x: layer(*x, 0), tensors)
    for one, other in zip(got, results(lambda *x: lighthouse_attention(*x, **SIZES), tensors), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("cut", [1, 37, 128, 255])
def test_values_after_a_cut_change_nothing_before_it(cut):
    """Queries and keys stay, which decide the selection."""
    q, k, v = draw()
    other = torch.cat([v[:, :cut], 30 * v[:, cut:]], 1)
    torch.testing.assert_close(layer(q, k, v)[:, :cut], layer(q, k, other)[:, :cut])


def test_gradients():
    tensors = [x[:1, :, :1].requires_grad_() for x in draw(dim=2)]
    assert torch.autograd.gradcheck(lambda *x: layer(*x, 10), tensors, fast_mode=True)


@pytest.mark.parametrize(
    ("n", "earlier", "window"),
    [(300, 0, 40), (300, 39, 40), (130, 0, 129), (50, 20, 30), (513, 7, 1), (700, 9, 350)],
)
@pytest.mark.parametrize("groups", [4, 2])
def test_the_kernel_of_cpus_is_naive(n, earlier, window, groups):
    """Forward and backward through both results, with keys that begin before the queries do."""
    torch.manual_seed(0)
    shapes = [(2, n, 4, 6), *[(2, n + earlier, groups, 6)] * 2]
    tensors = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    grads = torch.randn(2, n, 4, 6, dtype=torch.float64), torch.randn(2, 4, n, dtype=torch.float64)
    found = []
    for attend in (cpu_window, naive_window):
        leaves = [x.clone().requires_grad_() for x in tensors]
        pair = attend(*leaves, window)
        torch.autograd.backward(pair, grads)
        found.append([*(x.detach() for x in pair), *(x.grad for x in leaves)])
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want)


def test_a_negative_window_is_refused():
    with pytest.raises(ValueError, match="window=-1: must be at least 0"):
        layer(*draw(), window=-1)


@pytest.mark.slow
@pytest.mark.parametrize(("heads", "groups"), [(4, 2)])
def test_the_kernels_are_the_reference(heads, groups):
    tensors = draw(heads=heads, groups=groups, dim=16, dtype=torch.float32, device=DEVICE)
    got, want = (
        results(lambda *x, backend=backend: layer(*x, 40, backend=backend), tensors)
        for backend in ("triton", "reference")
    )
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-5)


@pytest.mark.slow
def test_the_layer_compiles_into_one_graph():
    tensors = draw(dim=16, dtype=torch.float32, device=DEVICE)
    attend = LighthouseAttention(**SIZES, window=32, backend="triton")
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    for one, other in zip(results(compiled, tensors), results(attend, tensors), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kernel", WINDOW_KERNELS)
@pytest.mark.parametrize(("heads", "groups", "dim"), [(8, 8, 128), (8, 2, 64)])
@pytest.mark.parametrize("earlier", [0, 300])
def test_every_window_kernel_is_naive(kernel, dtype, heads, groups, dim, earlier):
    """Forward and backward, with keys that begin before the queries do."""
    kernel = WINDOW_KERNELS[kernel]
    torch.manual_seed(0)
    shapes = [(2, 1500, heads, dim), *[(2, 1500 + earlier, groups, dim)] * 2, (2, 1500, heads, dim)]
    q, k, v, grad = (torch.randn(shape, device="cuda").to(dtype) for shape in shapes)
    if not kernel.runs(q):
        pytest.skip(f"{kernel.name} does not run here")
    leaves = [x.float().requires_grad_() for x in (q, k, v)]
    want, want_lse = naive_window(*leaves, 333)
    want.backward(grad.float())
    out, lse = kernel.forward(q, k, v, 333)
    grads = kernel.backward(grad, q, k, v, out, lse, 333)
    torch.testing.assert_close(lse, want_lse, rtol=1e-2, atol=1e-2)
    for got, wanted in zip((out, *grads), (want, *(x.grad for x in leaves)), strict=True):
        assert (got.float() - wanted).norm() <= 1e-2 * wanted.norm()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(("heads", "groups", "dim"), [(8, 8, 128), (8, 2, 64), (4, 4, 80)])
@pytest.mark.parametrize("strictly_causal", [False, True])
def test_the_layer_at_every_dtype(dtype, heads, groups, dim, strictly_causal):
    """`position` scores, so that rounding changes no choice."""
    tensors = draw(8192, heads, groups, dim, dtype, device="cuda")
    options = {"levels": 3, "pooling": 4, "budget": 128, "window": 512, "scorer": "position"}
    options["strictly_causal"] = strictly_causal
    got = results(lambda *x: lighthouse_attention(*x, **options), tensors)
    wide = [x.float() for x in tensors]
    want = results(lambda *x: lighthouse_attention(*x, **options, backend="reference"), wide)
    bound = 1e-4 if dtype == torch.float32 else 1.5e-2
    for one, other in zip(got, want, strict=True):
        assert (one.float() - other).norm() <= bound * other.norm()


@pytest.mark.gpu
@pytest.mark.parametrize("strictly_causal", [False, True])
@pytest.mark.parametrize("dim", [64, 128])
def test_deterministic_mode_repeats_to_the_bit(dim, strictly_causal):
    tensors = draw(16384, 8, 2, dim, torch.bfloat16, device="cuda")
    options = {"levels": 3, "pooling": 4, "budget": 256, "window": 512, "strictly_causal": strictly_causal}
    torch.use_deterministic_algorithms(True)
    try:
        once, again = (results(lambda *x: lighthouse_attention(*x, **options), tensors) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(one, other) for one, other in zip(once, again, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_compiled_on_a_gpu_it_is_the_layer(dtype):
    tensors = draw(8192, 8, 2, 64, dtype, device="cuda")
    attend = LighthouseAttention(levels=3, pooling=4, budget=128, window=512)
    compiled = torch.compile(attend, fullgraph=True, dynamic=False)
    for one, other in zip(results(compiled, tensors), results(attend, tensors), strict=True):
        assert (one.float() - other.float()).norm() <= 1e-2 * other.float().norm()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_the_memory_of_a_layer_grows_with_its_tokens_alone(dtype):
    """All scores of 65,536 tokens would take 17 GB a head in float32."""
    q, k, v = (x[:1].requires_grad_() for x in draw(65536, 2, 2, 64, dtype, device="cuda"))
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    options = {"levels": 3, "pooling": 4, "budget": 1024, "window": 512}
    lighthouse_attention(q, k, v, **options).sum().backward()
    assert torch.cuda.max_memory_allocated() - before < 24 * q.numel() * q.element_size()


@pytest.mark.slow
@pytest.mark.parametrize("begins", [True, False], ids=["first chunk", "after a chunk"])
def test_the_operator_takes_a_chunk_with_what_precedes_it(begins):
    """Forward and backward, with the kernels and without: earlier keys and rows of earlier entries."""
    pyramid, window, heads, groups = Pyramid(64, 3, 2, 8, 4), 10, 4, 2
    generator = torch.Generator().manual_seed(0)
    qk, kq = (torch.randn(1, groups, pyramid.n_entries - 64, generator=generator) for _ in range(2))
    _, places = select_rows(qk, kq, pyramid, 0)
    n_rows, earlier = pyramid.n_selected, 0 if begins else window - 1
    before = None if begins else torch.tensor([[[n_rows, -1], [-1, n_rows + 1]]], dtype=torch.int32)
    n_rows += 0 if begins else 2
    shapes = [
        (1, 64, heads, 16),
        *[(1, 64 + earlier, groups, 16)] * 2,
        (1, n_rows, heads, 16),
        (1, heads, n_rows),
    ]
    tensors = [torch.randn(shape, generator=generator).to(DEVICE) for shape in shapes]
    before = None if before is None else before.to(DEVICE)

    def run(kernels):
        leaves = [x.clone().requires_grad_() for x in tensors]
        own = places.int().to(DEVICE)
        out = merge_window(*leaves, own, pyramid, window, kernels, before)
        (out * torch.arange(out.numel(), device=DEVICE).view_as(out).cos()).sum().backward()
        return [out.detach(), *(x.grad for x in leaves)]

    for one, other in zip(run(True), run(False), strict=True):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-5)
