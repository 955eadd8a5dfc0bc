"""Sliding-window attention against dense attention with a mask, forward and backward."""

import pytest
import torch

from lhtrain.attention.decode import SlidingCache
from lhtrain.attention.dense import dense_attention
from lhtrain.attention.documents import documents_of
from lhtrain.attention.flash4 import INSTALLED
from lhtrain.attention.sliding import SlidingAttention, _sliding, attend_near, sliding_attention
from lhtrain.attention.where import Where
from lhtrain.attention.window_kernels import WINDOW_KERNELS, window_kernel_for
from lhtrain.compute.apply import apply
from lhtrain.conf.schema import Compile, ComputeConfig, ModelConfig, Recompute
from lhtrain.model.decoder import GPT

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
BATCH, N, HEADS, GROUPS, DIM = 2, 300, 4, 2, 16


def draw(n_keys=N, dtype=torch.float32):
    torch.manual_seed(0)
    shapes = (N, HEADS), (n_keys, GROUPS), (n_keys, GROUPS)
    return [torch.randn(BATCH, *shape, DIM, dtype=dtype, device=DEVICE) for shape in shapes]


def masked(q, k, v, window, starts=None):
    """Dense attention with a mask; keys may begin earlier than queries."""
    earlier = k.shape[1] - q.shape[1]
    query = torch.arange(q.shape[1], device=q.device)[:, None]
    key = torch.arange(k.shape[1], device=q.device)[None, :] - earlier
    seen = ((key <= query) & (key > query - window)).expand(len(q), -1, -1)
    if starts is not None:
        seen = seen & (key[None] >= starts[:, :, None])
    k, v = (x.repeat_interleave(HEADS // GROUPS, 2) for x in (k, v))
    scores = torch.einsum("bthd,bshd->bhts", q, k) * q.shape[-1] ** -0.5
    scores = scores.masked_fill(~seen[:, None], -torch.inf)
    return torch.einsum("bhts,bshd->bthd", scores.softmax(-1), v)


def with_gradients(attend, tensors):
    leaves = [x.clone().requires_grad_() for x in tensors]
    out = attend(*leaves)
    torch.manual_seed(1)
    out.backward(torch.randn(out.shape, device=out.device).to(out.dtype))
    return [out.detach(), *(leaf.grad for leaf in leaves)]


def assert_same(attend, want, tensors):
    for got, expected in zip(with_gradients(attend, tensors), with_gradients(want, tensors), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-3 if CUDA else 1e-4, atol=1e-4 if CUDA else 1e-5)


@pytest.mark.parametrize("window", [1, 7, 128, 130, N - 1])
def test_it_is_dense_attention_with_a_mask(window):
    assert_same(SlidingAttention(window), lambda *x: masked(*x, window), draw())


@pytest.mark.parametrize("window", [N, N + 1])
def test_a_window_as_long_as_the_sequence_is_full_attention_bit_for_bit(window):
    got, want = (with_gradients(f, draw()) for f in (SlidingAttention(window), dense_attention))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("window", [1, 40, 200])
def test_documents_are_kept_apart(window):
    documents = documents_of([[0, 5, 150], [33]], N, 4)
    documents = type(documents)(*(x.to(DEVICE) for x in documents))
    rotation = torch.zeros(0), torch.zeros(0)

    def attend(q, k, v):
        return SlidingAttention(window)(q, k, v, Where(rotation, documents=documents))

    assert_same(attend, lambda *x: masked(*x, window, documents.starts.long()), draw())


@pytest.mark.parametrize("with_documents", [False, True])
def test_keys_may_begin_earlier_than_queries(with_documents):
    starts = None
    if with_documents:
        starts = torch.tensor([[-20] * 100 + [100] * 200, [0] * 300], dtype=torch.int32, device=DEVICE)
    attend = lambda *x: attend_near(*x, 30, starts)  # noqa: E731
    assert_same(attend, lambda *x: masked(*x, 30, starts), draw(N + 29))


def test_the_compiler_gives_the_same_result():
    attend, tensors = SlidingAttention(20), draw()
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    assert_same(compiled, attend, tensors)


@pytest.mark.parametrize("first", [1, 5, 120])
def test_a_cache_gives_the_outputs_of_the_whole_sequence_and_stays_small(first):
    window, (q, k, v) = 24, draw()
    want, cache, at, outs = sliding_attention(q, k, v, window), SlidingCache(window, N), 0, []
    for size in (first, 1, 3, 1, 60, *[1] * 60, *[2] * 100):
        part = slice(at, min(at + size, N))
        if part.start < part.stop:
            outs.append(cache(q[:, part], k[:, part], v[:, part]))
        at = part.stop
        assert cache.k.size < 2 * window
    torch.testing.assert_close(torch.cat(outs, 1), want, rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("window", [1, 100, 512])
@pytest.mark.parametrize("name", [name for name in WINDOW_KERNELS if name != "fa4" or INSTALLED["fa4"]])
def test_every_kernel_agrees_with_float32_on_a_gpu(name, window, dim):
    """In bfloat16, and for keys that begin earlier than queries, as with context parallelism."""
    torch.manual_seed(0)
    for earlier in (0, min(window, 512) - 1):
        shapes = (1000, HEADS), (1000 + earlier, GROUPS), (1000 + earlier, GROUPS)
        tensors = [torch.randn(BATCH, *shape, dim, device="cuda").bfloat16() for shape in shapes]
        got = with_gradients(lambda *x: _sliding(*x, window, name, None)[0], tensors)
        want = with_gradients(lambda *x: masked(*x, window), [x.float() for x in tensors])
        for one, other in zip(got, want, strict=True):
            assert one.dtype == torch.bfloat16
            torch.testing.assert_close(one.float(), other, rtol=2e-2, atol=2e-2)


@pytest.mark.gpu
def test_the_operator_is_what_the_compiler_is_told():
    q, k, v = draw(dtype=torch.bfloat16)
    leaves = [torch.cat([x] * 4, -1).requires_grad_() for x in (q, k, v)]  # heads of 64, for all kernels
    kernel = window_kernel_for(leaves[0])
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(_sliding, (*leaves, 40, kernel, None), test_utils=tests)
    starts = torch.zeros(BATCH, N, dtype=torch.int32, device="cuda")
    torch.library.opcheck(_sliding, (*leaves, 40, "ranges", starts), test_utils=tests)


@pytest.mark.gpu
def test_documents_are_kept_apart_in_bfloat16():
    documents = documents_of([[0, 5, 150], [33]], N, 4)
    documents = type(documents)(*(x.to(DEVICE) for x in documents))
    tensors = [torch.cat([x] * 4, -1) for x in draw(dtype=torch.bfloat16)]
    got = with_gradients(lambda *x: sliding_attention(*x, 40, documents), tensors)
    starts = documents.starts.long()
    want = with_gradients(lambda *x: masked(*x, 40, starts), [x.float() for x in tensors])
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one.float(), other, rtol=2e-2, atol=2e-2)


@pytest.mark.gpu
def test_a_compiled_model_with_sliding_layers_gives_the_losses_and_gradients_of_one_that_is_not():
    config = ModelConfig(
        name="t", seq_len=2048, vocab_size=64, dim=128, n_layers=3, n_heads=2, n_kv_heads=1, head_dim=64,
        ffn_dim=256, sliding_window=200, sliding_layers=[0, 2],
    )  # fmt: skip
    tokens = torch.randint(0, 64, (2, 2049), generator=torch.Generator().manual_seed(0)).cuda()

    def losses(dtype, compiled):
        model = GPT(config, dtype).cuda()
        model.init_weights(0)
        if compiled:
            apply(model, ComputeConfig(compile=Compile.on, recompute=Recompute.none), torch.device("cuda"))
        loss = model.loss(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        return loss.item(), {name: one.grad for name, one in model.named_parameters()}

    want, want_grads = losses(torch.float32, False)
    for compiled in (False, True):
        loss, grads = losses(torch.bfloat16, compiled)
        assert loss == pytest.approx(want, rel=1e-3)
        for name, grad in want_grads.items():
            assert (grads[name] - grad).norm() < 0.1 * grad.norm(), name
