"""Ring, Ulysses and Lighthouse over ranks that are threads, against one rank, forward and backward."""

from types import SimpleNamespace

import pytest
import torch

from lhtrain.attention import DenseAttention, LighthouseAttention
from lhtrain.attention.dense_kernels import DENSE_KERNELS, attend_with_lse, backward_of
from lhtrain.attention.documents import Documents, documents_of
from lhtrain.attention.flash4 import fa4_runs
from lhtrain.attention.sliding import SlidingAttention
from lhtrain.attention.varlen import attend_documents, naive_documents
from lhtrain.attention.where import Where
from lhtrain.attention.windowed import attend_rows
from lhtrain.conf.rules.parallel import HEADS_ALONE
from lhtrain.context_parallel import over_ranks, positions, ring
from lhtrain.context_parallel.ring import ring_with_lse
from lhtrain.context_parallel.ulysses import ulysses_by, ulysses_with_lse
from lhtrain.kernels.scores.gla import Gla
from tests.context_parallel.threads import ThreadRanks

HEADS, DIM, BATCH, SEQ_LEN = 4, 8, 2, 2048
METHODS = [("ring", 1), ("ring", 4), ("ulysses", 4)]


def result(attend, tensors):
    leaves = [x.detach().clone().requires_grad_() for x in tensors[:3]]
    out = attend(*leaves)
    out.backward(tensors[3])
    return [out.detach(), *(leaf.grad for leaf in leaves)]


def layer(kind, size):
    if kind == "dense":
        return DenseAttention()
    if kind == "lighthouse":  # a chunk is one tile: the least budget that there is
        return LighthouseAttention(levels=2, pooling=2, budget=256 * size)
    if kind == "sliding":
        return SlidingAttention(100)
    if kind == "windowed":
        return LighthouseAttention(3, 2, 64, tile=8, window=100)
    return LighthouseAttention(3, 2, 64, tile=8, strictly_causal=True, window=100)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize(("method", "n_kv"), METHODS)
@pytest.mark.parametrize("kind", ["dense", "lighthouse", "windowed", "strictly causal", "sliding"])
def test_the_result_is_that_of_one_rank(kind, method, n_kv, size, monkeypatch):
    torch.manual_seed(0)
    tensors = [torch.randn(BATCH, SEQ_LEN, n, DIM) for n in (HEADS, n_kv, n_kv, HEADS)]
    plain = layer(kind, size)
    want = result(plain, tensors)

    def on(rank):
        here = positions(SEQ_LEN, rank, size)
        attend = over_ranks(plain, method, True, "group", rank, size)
        return here, result(attend, [x[:, here] for x in tensors])

    for here, got in ThreadRanks(size, monkeypatch).run(on):
        for mine, whole in zip(got, want, strict=True):
            torch.testing.assert_close(mine, whole[:, here], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scorer", HEADS_ALONE)
@pytest.mark.parametrize("begins", [None, [[28, 64, 68, 132, 192], [244]]])
@pytest.mark.parametrize("size", [2, 4])
def test_own_queries_are_those_of_one_rank(size, begins, scorer, monkeypatch):
    """With one tile in a chunk or several, and windows that end in another chunk."""
    n, docs = 256, None if begins is None else documents_of(begins, 256, most=8)
    plain = LighthouseAttention(3, 2, 16, tile=2, window=80, own_queries=True, scorer=scorer)
    torch.manual_seed(0)
    tensors = [torch.randn(BATCH, n, heads, DIM) for heads in (HEADS, 4, 4, HEADS)]

    def of(attend, here):
        own = None if docs is None else Documents(docs.starts[:, here], docs.bounds)
        where = Where(tuple(tensors[:2]), positions=here, documents=own)
        return result(lambda *mine: attend(*mine, where), [x[:, here] for x in tensors])

    want = of(plain, torch.arange(n))

    def on(rank):
        here = positions(n, rank, size)
        return here, of(over_ranks(plain, "ulysses", True, "group", rank, size), here)

    for here, got in ThreadRanks(size, monkeypatch).run(on):
        for mine, whole in zip(got, want, strict=True):
            torch.testing.assert_close(mine, whole[:, here], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("window", [1, 30, 256])
@pytest.mark.parametrize(("method", "n_kv"), METHODS)
def test_a_sliding_window_keeps_documents_apart(method, n_kv, window, monkeypatch):
    torch.manual_seed(0)
    n, plain = 256, SlidingAttention(window)
    tensors = [torch.randn(BATCH, n, heads, DIM) for heads in (HEADS, n_kv, n_kv, HEADS)]
    documents = documents_of(BEGINS["some"], n, most=n)
    want = result(lambda *x: plain(*x, Where((x[0], x[0]), documents=documents)), tensors)

    def on(rank):
        here = positions(n, rank, 2)
        attend = over_ranks(plain, method, True, "group", rank, 2)
        where = Where((want[0],) * 2, documents=Documents(documents.starts[:, here], documents.bounds))
        return here, result(lambda *x: attend(*x, where), [x[:, here] for x in tensors])

    for here, got in ThreadRanks(2, monkeypatch).run(on):
        for mine, whole in zip(got, want, strict=True):
            torch.testing.assert_close(mine, whole[:, here], rtol=1e-4, atol=1e-5)


def test_a_sliding_window_longer_than_a_chunk_is_refused(monkeypatch):
    attend = over_ranks(SlidingAttention(66), "ring", True, "group", 0, 2)
    with pytest.raises(ValueError, match="must be at most the 64 tokens of a chunk"):
        attend(*(torch.zeros(1, 128, 1, DIM) for _ in range(3)))


# Documents that begin and end inside a chunk, at a border of chunks (of 2 and of 4 ranks), and that span all.
BEGINS = {
    "some": [[1, 64, 130, 200, 255], [128]],
    "one document": [[], []],
    "one, and one of each token": [[], range(256)],
}


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize(("method", "n_kv"), METHODS)
@pytest.mark.parametrize("begins", BEGINS)
def test_documents_apart_as_on_one_rank(begins, method, n_kv, size, monkeypatch):
    """Output, logsumexp and gradients, against attention to ranges of keys on one rank."""
    torch.manual_seed(0)
    n = 256
    q, k, v, grad = (torch.randn(BATCH, n, heads, DIM) for heads in (HEADS, n_kv, n_kv, HEADS))
    grad_lse, documents = torch.randn(BATCH, HEADS, n), documents_of(BEGINS[begins], n, most=n)
    want = both_results(lambda *x: naive_documents(*x, documents.bounds), q, k, v, grad, grad_lse)
    of_output = result(lambda *x: naive_documents(*x, documents.bounds)[0], (q, k, v, grad))

    def on(rank):
        here = positions(n, rank, size)
        attend = over_ranks(DenseAttention(), method, True, "group", rank, size)
        mine = [x[:, here] for x in (q, k, v, grad)]
        where = Where((q, q), documents=Documents(documents.starts[:, here], documents.bounds))
        with_lse = apart_with_lse(method, size, documents.bounds)
        got = both_results(with_lse, *mine, grad_lse[..., here])
        return here, got, result(lambda *x: attend(*x, where), mine)

    for here, got, output in ThreadRanks(size, monkeypatch).run(on):
        for mine, whole in zip([*got, *output], [*want, *of_output], strict=True):
            whole = whole[:, here] if whole.ndim == 4 else whole[..., here]
            torch.testing.assert_close(mine, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize(("method", "n_kv"), [("ring", 2), ("ulysses", 4)])
@pytest.mark.parametrize(
    "kind", ["published", "windowed", "whole window", "strict", "strict, whole window", "dilated", "gla"]
)
def test_documents_apart_are_those_of_one_rank(kind, method, n_kv, size, monkeypatch):
    """Documents that begin in a chunk, at its border, and in the chunk before."""
    n, options = 256, {"window": 21} if kind != "published" else {}
    options |= {"window": 256} if "whole window" in kind else {}
    options |= {"scorer": kind} if kind == "dilated" else {"scorer": None} if kind == "gla" else {}
    plain = LighthouseAttention(3, 2, 16, tile=2, strictly_causal="strict" in kind, **options)
    docs = documents_of([[28, 64, 68, 132, 192], [244]], n, most=8)
    torch.manual_seed(0)
    tensors = [torch.randn(BATCH, n, heads, DIM) for heads in (HEADS, n_kv, n_kv, HEADS)]
    x, scorer = torch.randn(BATCH, n, 12), None
    if kind == "gla":
        scorer = Gla(SimpleNamespace(dim=12, n_kv_heads=n_kv))
        torch.nn.init.normal_(scorer.weight, std=3.0)

    def where(here):
        own = Documents(docs.starts[:, here], docs.bounds)
        return Where(tuple(tensors[:2]), scorer, x=x[:, here], documents=own)

    def of(attend, here):
        return result(lambda *own: attend(*own, where(here)), [x[:, here] for x in tensors])

    want = of(plain, torch.arange(n))

    def on(rank):
        here = positions(n, rank, size)
        return here, of(over_ranks(plain, method, True, "group", rank, size), here)

    for here, got in ThreadRanks(size, monkeypatch).run(on):
        for mine, whole in zip(got, want, strict=True):
            torch.testing.assert_close(mine, whole[:, here], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("strictly_causal", [False, True])
def test_a_window_longer_than_a_chunk_is_refused(strictly_causal, monkeypatch):
    plain = LighthouseAttention(3, 2, 64, tile=8, strictly_causal=strictly_causal, window=600)
    tokens = torch.randn(1, SEQ_LEN // 2, HEADS, DIM)
    with pytest.raises(ValueError, match="window=600: must be at most the 512 tokens of a chunk"):
        ThreadRanks(2, monkeypatch).run(
            lambda rank: over_ranks(plain, "ring", True, "group", rank, 2)(tokens, tokens, tokens)
        )


def both_results(attend, q, k, v, grad, grad_lse):
    """The results that have a gradient, and the gradients of q, k and v."""
    leaves = [x.detach().clone().requires_grad_() for x in (q, k, v)]
    pairs = zip(attend(*leaves), (grad, grad_lse), strict=True)
    found = [(result, grad) for result, grad in pairs if grad is not None]
    torch.autograd.backward(*zip(*found, strict=True))
    return [*(result.detach() for result, _ in found), *(x.grad for x in leaves)]


def apart_with_lse(method, size, bounds):
    if method == "ring":
        return lambda q, k, v: ring_with_lse(q, k, v, "group", bounds)
    return lambda *x: ulysses_by(lambda *heads: attend_documents(*heads, bounds), *x, "group", size)


def attention_with_lse(method, rank, size, kernels=False):
    if method == "ring":
        return lambda q, k, v: ring_with_lse(q, k, v, "group")
    return lambda q, k, v: ulysses_with_lse(q, k, v, "group", size, kernels)


@pytest.mark.parametrize("used", ["both", "output", "logsumexp"])
@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize(("method", "n_kv", "kernel"), [
    ("ring", 1, "cpu"), ("ring", 4, "cpu"), ("ring", 1, "naive"), ("ulysses", 4, "cpu"),
])  # fmt: skip
def test_the_logsumexp_and_its_gradient_are_those_of_one_rank(method, n_kv, kernel, size, used, monkeypatch):
    """The kernel "cpu" takes no gradient of the logsumexp by itself, and "naive" does."""
    torch.manual_seed(0)
    n = 256
    shapes = [(BATCH, n, heads, DIM) for heads in (HEADS, n_kv, n_kv, HEADS)]
    q, k, v, grad = (torch.randn(shape) for shape in shapes)
    grad = None if used == "logsumexp" else grad
    grad_lse = None if used == "output" else torch.randn(BATCH, HEADS, n)
    want = both_results(lambda *x: attend_rows(*x, False), q, k, v, grad, grad_lse)
    monkeypatch.setattr(ring, "kernel_for", lambda q: DENSE_KERNELS[kernel])

    def on(rank):
        here = positions(n, rank, size)
        of_lse = None if grad_lse is None else grad_lse[..., here]
        mine = [None if x is None else x[:, here] for x in (q, k, v, grad)]
        return here, both_results(attention_with_lse(method, rank, size), *mine, of_lse)

    for here, got in ThreadRanks(size, monkeypatch).run(on):
        for mine, whole in zip(got, want, strict=True):
            whole = whole[:, here] if whole.ndim == 4 else whole[..., here]
            torch.testing.assert_close(mine, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("used", [slice(2), slice(1), slice(1, 2)], ids=["both", "output", "logsumexp"])
def test_the_ring_compiles_into_one_graph(used, monkeypatch):
    torch.manual_seed(0)
    tensors = [torch.randn(BATCH, 64, n, DIM) for n in (HEADS, 1, 1)]

    def loss(q, k, v):
        return sum(result.square().sum() for result in ring_with_lse(q, k, v, "group")[used])

    def gradients(function):
        leaves = [x.clone().requires_grad_() for x in tensors]
        function(*leaves).backward()
        return [x.grad for x in leaves]

    def on(rank):
        return gradients(loss), gradients(torch.compile(loss, fullgraph=True, backend="aot_eager"))

    ((want, got),) = ThreadRanks(1, monkeypatch).run(on)
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize(
    ("method", "n_kv", "kernel"),
    [("ring", 2, "fa4"), ("ring", 8, "flash"), ("ring", 2, "flash"), ("ulysses", 4, None)],
)
def test_the_kernels_of_a_gpu_give_the_logsumexp_and_its_gradient(
    method, n_kv, kernel, dim, dtype, monkeypatch
):
    """Two ranks that share one GPU, against float32 on one rank."""
    n, heads, size = 2048, 8, 2
    torch.manual_seed(0)
    shapes = [(1, n, number, dim) for number in (heads, n_kv, n_kv, heads)]
    tensors = [torch.randn(shape, device="cuda").to(dtype) for shape in shapes]
    grad_lse = torch.randn(1, heads, n, device="cuda")
    if kernel == "fa4" and not fa4_runs():
        pytest.skip("FlashAttention-4 does not run here")
    naive = DENSE_KERNELS["naive"]
    wide = [x.float() for x in tensors]
    want = both_results(lambda *x: attend_with_lse(*x, kernel=naive), *wide, grad_lse)
    if kernel:
        monkeypatch.setattr(ring, "kernel_for", lambda q: DENSE_KERNELS[kernel])
    compile_fa4(tensors)

    def on(rank):
        here = positions(n, rank, size).cuda()
        attend = attention_with_lse(method, rank, size, kernels=True)
        return here, both_results(attend, *(x[:, here] for x in tensors), grad_lse[..., here])

    for here, got in ThreadRanks(size, monkeypatch).run(on):
        for mine, whole in zip(got, want, strict=True):
            whole = whole[:, here] if whole.ndim == 4 else whole[..., here]
            assert (mine.float() - whole).norm() <= 2e-2 * whole.norm()


def compile_fa4(tensors):
    """Compile FlashAttention-4 for these tensors: its compiler does not work in two threads at once."""
    q, k, v, grad = (x[:, :512] for x in tensors)
    kernel = DENSE_KERNELS["fa4"]
    for causal in (True, False) if fa4_runs() and q.dtype != torch.float32 else ():
        out, lse = kernel.forward(q, k, v, causal)
        backward_of(kernel, grad, torch.ones_like(lse), q, k, v, out, lse, causal)


def over_two_ranks(plain, tensors, monkeypatch, exact=True, method="ring"):
    """For each of two ranks: its positions, and its output and gradients of q, k and v."""

    def on(rank):
        here = positions(tensors[0].shape[1], rank, 2)
        attend = over_ranks(plain, method, exact, "group", rank, 2)
        return here, result(attend, [x[:, here] for x in tensors])

    return ThreadRanks(2, monkeypatch).run(on)


@pytest.mark.parametrize("method", ["ring", "ulysses"])
@pytest.mark.parametrize("levels", [2, 4])
@pytest.mark.parametrize("window", [1, 2, 37, 64, 256, 1000])
@pytest.mark.parametrize("strictly_causal", [False, True])
def test_every_window_is_that_of_one_rank(strictly_causal, window, levels, method, monkeypatch):
    """From one token to a chunk of 64, and the whole sequence."""
    torch.manual_seed(0)
    tensors = [torch.randn(BATCH, 256, n, DIM) for n in (HEADS, 2, 2, HEADS)]
    plain = LighthouseAttention(levels, 2, 8, tile=2, window=window, strictly_causal=strictly_causal)
    want = result(plain, tensors)
    for here, got in over_two_ranks(plain, tensors, monkeypatch, method=method):
        for mine, whole in zip(got, want, strict=True):
            torch.testing.assert_close(mine, whole[:, here], rtol=1e-4, atol=1e-5)


def test_local_selection_leaves_out_what_reaches_into_a_windowed_chunk(monkeypatch):
    torch.manual_seed(0)
    tensors = [torch.randn(BATCH, 256, HEADS, DIM) for _ in range(4)]
    plain = LighthouseAttention(3, 2, 8, tile=2, window=37, cover_prefix=False)
    want = result(plain, tensors)[0]
    differing = set()
    for here, got in over_two_ranks(plain, tensors, monkeypatch, exact=False):
        differs = (got[0] - want[:, here]).abs().amax((0, 2, 3)) > 1e-4
        differing |= set(here[differs].tolist())
    # The coarsest entries have windows of 4 tokens: they reach the first 3 positions of the next chunk.
    assert differing and differing <= {start + i for start in (64, 128, 192) for i in range(3)}


@pytest.mark.slow
def test_a_windowed_layer_over_ranks_compiles_into_one_graph(monkeypatch):
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"  # a CPU interprets the kernels
    tensors = [torch.randn(1, 64, 2, 16, device=device) for _ in range(4)]
    plain = LighthouseAttention(3, 2, 4, tile=2, window=20, backend="triton")
    attend = over_ranks(plain, "ring", True, "group", 0, 1)
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    (got,) = ThreadRanks(1, monkeypatch).run(lambda rank: result(compiled, tensors))
    for mine, whole in zip(got, result(plain, tensors), strict=True):
        torch.testing.assert_close(mine, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize(("method", "n_kv"), [("ring", 2), ("ulysses", 4)])
def test_a_windowed_layer_over_ranks_on_a_gpu(method, n_kv, dim, dtype, monkeypatch):
    """Two ranks that share one GPU, with its kernels, against one rank with the same kernels."""
    torch.manual_seed(0)
    tensors = [torch.randn(2, 8192, n, dim, device="cuda").to(dtype) for n in (8, n_kv, n_kv, 8)]
    plain = LighthouseAttention(3, 4, 512, window=512)
    want = result(plain, tensors)
    compile_fa4(tensors)
    for here, got in over_two_ranks(plain, tensors, monkeypatch, method=method):
        for mine, whole in zip(got, want, strict=True):
            whole = whole[:, here.cuda()].float()
            assert (mine.float() - whole).norm() <= (1e-4 if dtype == torch.float32 else 2e-2) * whole.norm()
