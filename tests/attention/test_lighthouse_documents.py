"""Lighthouse layers that keep documents apart: windowed, published and strictly causal."""

from itertools import pairwise

import pytest
import torch
import torch._dynamo.testing

from lhtrain.attention import lighthouse_attention
from lhtrain.attention.documents import documents_of, first_keys
from lhtrain.attention.row_documents import by_group, coarsest_rows, of_groups, row_bounds
from lhtrain.attention.window_kernels import WINDOW_KERNELS
from lhtrain.kernels.pyramid import Pyramid
from lhtrain.kernels.scores.naive import max_pooled
from lhtrain.kernels.selection.naive import inverse, select_indices
from lhtrain.kernels.selection.precedence import documents_first, last_document_only, with_precedence
from lhtrain.kernels.windows.naive import gather_pooled

N, SIZES = 128, {"levels": 3, "pooling": 2, "budget": 16, "tile": 4}  # four tiles of 32 tokens, windows of 4
BEGINS = [[0, 4, 40, 72, 76], [64]]  # of the documents of two sequences
KINDS = {
    "published": {},
    "windowed": {"window": 9},
    "whole window": {"window": N},
    "strict": {"strictly_causal": True, "window": 9},
    "strict, no window": {"strictly_causal": True},
}
ISOLATED = ["whole window", "strict", "strict, no window"]  # nothing of another document, not even by choice


def documents(begins=BEGINS, n=N, device="cpu"):
    docs = documents_of(begins, n, most=8)
    return type(docs)(*(x.to(device) for x in docs))


def draw(heads=4, groups=2, dim=16, n=N, batch=2, seed=0, dtype=torch.float32, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, n, number, dim) for number in (heads, groups, groups)]
    return [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes]


def layer(q, k, v, kind, docs, backend="reference", **changes):
    return lighthouse_attention(q, k, v, **SIZES | KINDS[kind] | changes, backend=backend, documents=docs)


def results(attend, tensors, weights=None):
    """The output, and the gradients of q, k and v for one gradient of the output."""
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    out = attend(*leaves)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(7)).to(out)
    out.backward(grad if weights is None else grad * weights)
    return [out.detach(), *(x.grad for x in leaves)]


def plainly(q, k, v, kind, docs):
    """One position after the other, from the definition: a softmax over all that the position sees."""
    options = SIZES | {"window": 0, "strictly_causal": False} | KINDS[kind]
    window, strict = options["window"], options["strictly_causal"]
    pyramid = Pyramid(N, *(options[key] for key in ("levels", "pooling", "budget", "tile")))
    scores = (max_pooled(x.float().norm(dim=-1).transpose(1, 2), pyramid) for x in (q, k))
    first = last_document_only(docs.starts, pyramid, first=True)
    chosen = first if strict else documents_first(docs.starts, pyramid)
    indices = select_indices(*with_precedence(*scores, chosen), pyramid, len(q))
    rows_q, rows_k, rows_v = (gather_pooled(x, indices, pyramid) for x in (q, k, v))
    first = torch.empty_like(indices)  # the first token of each row's window, and the one after its last
    for level in range(pyramid.levels):
        of_level = indices >= pyramid.offset(level)
        first = torch.where(of_level, (indices - pyramid.offset(level)) * 2**level, first)
    places, rows_per_tile = inverse(indices, pyramid), indices.shape[-1] // pyramid.n_tiles
    tile, n_repeat = pyramid.tile_tokens, q.shape[2] // k.shape[2]

    def weigh(query, keys, values):
        weights = (keys @ query * q.shape[-1] ** -0.5).exp()
        return weights.sum(), weights @ values

    def at(b, h, j):
        """The output of one position of one head."""
        g, start = h // n_repeat, int(docs.starts[b, j])

        def rows_seen(stop):
            mine = (first[b, g] >= start) & (torch.arange(indices.shape[-1]) < stop)
            return rows_k[b, mine, g], rows_v[b, mine, g]

        def near(lo):
            return weigh(q[b, j, h], k[b, lo : j + 1, g], v[b, lo : j + 1, g])

        if strict:
            parts = [near(max(min((j + 1) // tile * tile - window, j), start, 0))]
            end = (j + 1) // 4 * 4
            visible = (end // tile - window // tile) * rows_per_tile
            if end - 4 >= start:
                parts.append(weigh(q[b, end - 4 : end, h].mean(0), *rows_seen(visible)))
        else:
            entries = [(level, (j - 2**level + 1) // 2**level) for level in range(3)]
            of_levels = [
                int(places[b, g, pyramid.offset(level) + entry])
                for level, entry in entries
                if entry * 2**level >= start
            ]
            kept = [row for row in of_levels if row >= 0]
            of_rows = [weigh(rows_q[b, row, h], *rows_seen(row + 1)) for row in kept]
            if not window:
                return sum((weighted / total for total, weighted in of_rows), torch.zeros(q.shape[-1]))
            parts = [near(max(j - window + 1, start)), *of_rows[:1]]
        return sum(weighted for _, weighted in parts) / sum(total for total, _ in parts)

    out = [[torch.stack([at(b, h, j) for h in range(q.shape[2])]) for j in range(N)] for b in range(len(q))]
    return torch.stack([torch.stack(of_sequence) for of_sequence in out])


@pytest.mark.parametrize("kind", ["published", "windowed", "strict", "strict, no window"])
def test_it_is_its_definition(kind):
    q, k, v = draw(heads=2, groups=1)
    docs = documents()
    torch.testing.assert_close(layer(q, k, v, kind, docs), plainly(q, k, v, kind, docs), rtol=1e-4, atol=1e-5)


def other_document(docs, begin, end):
    """1 at the positions of the first sequence that are not in the document begin ... end - 1."""
    weights = torch.ones(*docs.starts.shape, 1, 1)
    weights[0, begin:end] = 0
    return weights


@pytest.mark.parametrize(("begin", "end"), [(0, 4), (40, 72), (72, 76), (76, 128)])
@pytest.mark.parametrize(
    ("kind", "scorer"),
    [*((kind, "norm") for kind in ISOLATED), ("published", "position"), ("windowed", "position")],
)
def test_a_token_changes_no_other_document(kind, scorer, begin, end):
    """Outputs of other documents, and their gradients; and they have no gradient from this document.

    The published and the windowed layer choose by the scores of a whole tile, so that only scores without
    text isolate documents there."""
    docs, tensors = documents(), draw()
    outside = other_document(docs, begin, end)
    changed = [x.clone() for x in tensors]
    for x, y in zip(changed, draw(seed=1), strict=True):
        x[0, (begin + end) // 2] = 30 * y[0, 0]
    got, want = (
        results(lambda *x: layer(*x, kind, docs, scorer=scorer), own, outside) for own in (changed, tensors)
    )
    assert torch.equal(got[0] * outside, want[0] * outside)
    assert not torch.equal(got[0], want[0])
    for one, other in zip(got[1:], want[1:], strict=True):
        assert torch.equal(one * outside, other * outside)
        assert not (one[0, begin:end] != 0).any()


@pytest.mark.parametrize("kind", ["published", "windowed"])
def test_a_tile_of_several_documents_chooses_by_the_scores_of_all(kind):
    """What is let through: a token of one document can change which entries of another are expanded in the
    same tile. It reaches no other tile, except where a document of that tile continues."""
    docs, tensors = documents([[0, 32, 48, 64, 96], []]), draw()
    changed = [x.clone() for x in tensors]
    for x in changed[:2]:
        x[0, 40:48] *= 30  # of the document 32 ... 47, in the tile 32 ... 63
    got, want = (layer(*own, kind, docs) for own in (changed, tensors))
    differs = (got != want).any(-1).any(-1)[0]
    assert differs[48:64].any() and not differs[:32].any() and not differs[64:].any()


@pytest.mark.parametrize("kind", KINDS)
def test_whole_tiles_equal_each_document_alone(kind):
    tensors, begins = draw(), [[0, 32, 96], [64]]

    def attend(*x):
        return layer(*x, kind, documents(begins))

    got = results(attend, tensors)
    for b, starts in enumerate(begins):
        bounds = sorted({0, N, *starts})
        for begin, end in pairwise(bounds):
            here = [x[b : b + 1, begin:end] for x in tensors]
            alone = SIZES | {"budget": SIZES["budget"] * (end - begin) // N}
            weights = torch.zeros(len(tensors[0]), N, 1, 1)
            weights[b, begin:end] = 1
            out = results(
                lambda *x: layer(*x, kind, documents(begins)), tensors, weights
            )  # only its gradient
            grad = torch.randn(tensors[0].shape, generator=torch.Generator().manual_seed(7))
            leaves = [x.clone().requires_grad_() for x in here]
            want = lighthouse_attention(*leaves, **alone | KINDS[kind])
            want.backward(grad[b : b + 1, begin:end])
            torch.testing.assert_close(got[0][b, begin:end], want[0], rtol=1e-5, atol=1e-5)
            for one, leaf in zip(out[1:], leaves, strict=True):
                torch.testing.assert_close(one[b, begin:end], leaf.grad[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_one_document_is_the_layer_without(kind):
    tensors = draw()
    got = results(lambda *x: layer(*x, kind, documents([[], []])), tensors)
    want = results(lambda *x: layer(*x, kind, None), tensors)
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_each_position_of_a_covered_document_has_an_output():
    """Without its first entries a document begins with outputs of zero, as a sequence does."""
    q, k, v = draw()
    q[:, 64:68] = 0  # which no score would choose
    k[:, 64:68] = 0
    docs = documents([[64], [64]])
    empty = (layer(q, k, v, "published", docs, cover_prefix=False) == 0).all(-1).all(-1)
    assert empty[:, 64:67].any()
    assert not (layer(q, k, v, "published", docs) == 0).all(-1).all(-1).any()


def test_documents_must_begin_where_coarsest_windows_do():
    with pytest.raises(ValueError, match=r"begins at 6: .* multiples of pooling\^\(levels-1\) = 4"):
        layer(*draw(), "windowed", documents([[6], []]))


def test_where_documents_begin_among_the_rows():
    pyramid = Pyramid(N, *SIZES.values())
    docs, groups = documents(), 2
    qk, kq = (torch.rand(2, groups, pyramid.n_entries - N) for _ in range(2))
    indices = select_indices(qk, kq, pyramid, 0)
    coarsest = coarsest_rows(inverse(indices, pyramid), pyramid)
    n_rows = indices.shape[-1]
    bounds = row_bounds(docs.bounds, coarsest, N, n_rows)
    assert len(bounds) == groups * (len(docs.bounds) - 1) + 1
    starts = first_keys(bounds, groups * 2 * n_rows).view(-1, n_rows)
    for g in range(groups):
        for b in range(2):
            for row, entry in enumerate(indices[b, g].tolist()):
                level = sum(entry >= pyramid.offset(level) for level in range(1, 3))
                start = docs.starts[b, (entry - pyramid.offset(level)) * 2**level]
                before = [
                    other
                    for other in indices[b, g].tolist()
                    if (own := sum(other >= pyramid.offset(level) for level in range(1, 3))) >= 0
                    and (other - pyramid.offset(own)) * 2**own < start
                ]
                assert starts[g * 2 + b, row] == (g * 2 + b) * n_rows + len(before)
    x = torch.randn(2, 5, 4, 3)
    assert torch.equal(of_groups(by_group(x, groups), groups), x)
    assert torch.equal(by_group(x, groups)[3], x[1, :, 2:])


GPU_CASES = [(8, 8, 128), (9, 3, 64), (8, 2, 128)]


def gpu_case(heads, dtype, n=8192):
    """Documents of 5,008, 16 and 3,168 tokens, and one whole sequence; tiles of 2,048 tokens."""
    tensors = draw(*heads, n=n, dtype=dtype, device="cuda")
    return tensors, documents([[5008, 5024], []], n, "cuda")


def gpu_layer(q, k, v, kind, docs, backend="auto"):
    options = {"levels": 3, "pooling": 4, "budget": 512, "scorer": "position"}  # rounding changes no choice
    options |= {key: 512 if key == "window" else value for key, value in KINDS[kind].items()}
    return lighthouse_attention(q, k, v, **options, backend=backend, documents=docs)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("heads", GPU_CASES, ids=str)
@pytest.mark.parametrize("kind", ["published", "windowed", "strict"])
def test_the_kernels_of_a_gpu_are_the_reference(kind, heads, dtype):
    tensors, docs = gpu_case(heads, dtype)
    got = results(lambda *x: gpu_layer(*x, kind, docs), tensors)
    wide = [x.float() for x in tensors]
    want = results(lambda *x: gpu_layer(*x, kind, docs, "reference"), wide)
    bound = 1e-4 if dtype == torch.float32 else 1.5e-2
    for one, other in zip(got, want, strict=True):
        assert (one.float() - other).norm() <= bound * other.norm()


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["fa4", "flash", "ranges"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("heads", GPU_CASES, ids=str)
def test_every_kernel_of_windows_keeps_documents_apart(name, heads, dtype, monkeypatch):
    (q, *others), docs = gpu_case(heads, dtype)
    if not WINDOW_KERNELS[name].runs(q):
        pytest.skip(f"{name} does not run here")
    monkeypatch.setattr("lhtrain.attention.windowed.window_kernel_for", lambda q: name)
    got = results(lambda *x: gpu_layer(*x, "windowed", docs), (q, *others))
    wide = [x.float() for x in (q, *others)]
    want = results(lambda *x: gpu_layer(*x, "windowed", docs, "reference"), wide)
    for one, other in zip(got, want, strict=True):
        assert (one.float() - other).norm() <= 1.5e-2 * other.norm()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("kind", ["published", "windowed", "strict"])
def test_a_token_changes_no_other_document_on_a_gpu(kind, dtype):
    (q, k, v), docs = gpu_case((8, 2, 64), dtype)
    outside = torch.ones(2, 8192, 1, 1, device="cuda", dtype=dtype)
    outside[0, :5008] = 0
    changed = [x.clone() for x in (q, k, v)]
    for x in changed:
        x[0, 4900] *= 30
    torch.use_deterministic_algorithms(True)
    try:
        got, want = (
            results(lambda *x: gpu_layer(*x, kind, docs), own, outside) for own in (changed, (q, k, v))
        )
    finally:
        torch.use_deterministic_algorithms(False)
    for one, other in zip(got, want, strict=True):
        assert torch.equal(one * outside, other * outside)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["published", "windowed", "strict"])
def test_on_a_gpu_the_layer_compiles_once_and_never_waits(kind):
    """Boundaries change without another compilation, and nothing reads the device."""
    tensors, docs = gpu_case((8, 2, 64), torch.bfloat16)
    counter = torch._dynamo.testing.CompileCounterWithBackend("inductor")
    compiled = torch.compile(gpu_layer, fullgraph=True, backend=counter, dynamic=False)
    for begins in ([[5008, 5024], []], [[16, 4096], [800]]):
        docs = documents(begins, 8192, "cuda")
        got, want = (
            results(lambda *x, own=own, docs=docs: own(*x, kind, docs), tensors)
            for own in (compiled, gpu_layer)
        )
        for one, other in zip(got, want, strict=True):
            assert (one.float() - other.float()).norm() <= 1.5e-2 * other.float().norm()
    assert counter.frame_count == 1
    torch.cuda.set_sync_debug_mode("error")
    try:
        results_on_device = gpu_layer(*(x.requires_grad_() for x in tensors), kind, docs)
        results_on_device.backward(torch.ones_like(results_on_device))
    finally:
        torch.cuda.set_sync_debug_mode("default")
