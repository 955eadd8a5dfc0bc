"""Each dense kernel compared with plain attention, including the logsumexp and its gradient."""

from dataclasses import replace

import pytest
import torch

from lhtrain.attention import dense_kernels
from lhtrain.attention.dense_kernels import DENSE_KERNELS, attend_with_lse, backward_of, kernel_for

KERNELS = ["cpu", pytest.param("flash", marks=pytest.mark.gpu), pytest.param("fa4", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("dim", [64, 12, 2])
@pytest.mark.parametrize("n_kv", [4, 2])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_part_of_the_keys_equals_the_naive_kernel(kernel, causal, n_kv, dim):
    """Some of the head dims need padding for "flash"."""
    kernel, naive = DENSE_KERNELS[kernel], DENSE_KERNELS["naive"]
    on_gpu = kernel.name != "cpu"
    if kernel.name == "fa4" and dim != 64:
        pytest.skip("fa4 is used only for head dims of 64 and 128")
    torch.manual_seed(0)
    device, dtype = ("cuda", torch.bfloat16) if on_gpu else ("cpu", torch.float32)
    keys = 96 if causal else 160
    q, grad = (torch.randn(2, 96, 4, dim, device=device, dtype=dtype) for _ in range(2))
    k, v = (torch.randn(2, keys, n_kv, dim, device=device, dtype=dtype) for _ in range(2))
    got = kernel.forward(q, k, v, causal)
    want = naive.forward(q, k, v, causal)
    # As after a merge with other parts: the backward pass must use the given lse and output.
    out, lse = want[0] * 0.5, want[1] + 0.7
    got += kernel.backward(grad, q, k, v, out, lse, causal)
    want += naive.backward(grad, q, k, v, out, lse, causal)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2 if on_gpu else 1e-5, atol=2e-2 if on_gpu else 1e-5)


@pytest.mark.parametrize("causal", [True, False])
def test_the_naive_kernel_stores_the_scores_of_a_part_of_the_queries(causal, monkeypatch):
    """All scores would take 77 GB if two ranks share 98,304 tokens in float32 on a GPU."""
    torch.manual_seed(0)
    keys = 50 if causal else 70
    q, grad = (torch.randn(2, 50, 4, 8) for _ in range(2))
    k, v = (torch.randn(2, keys, 2, 8) for _ in range(2))
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    want = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in leaves), is_causal=causal, enable_gqa=True
    ).transpose(1, 2)
    naive = DENSE_KERNELS["naive"]
    monkeypatch.setattr(dense_kernels, "NAIVE_SCORES", 7 * 2 * 4 * keys)
    out, lse = naive.forward(q, k, v, causal)
    assert len(dense_kernels._query_chunks(q, k)) == 8
    grads = naive.backward(grad, q, k, v, out, lse, causal)
    expected = (want, *torch.autograd.grad(want, leaves, grad))
    for one, other in zip((out, *grads), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize(("dim", "kernel"), [(64, "flash"), (12, "flash"), (256, "flash"), (264, "naive")])
def test_every_head_dim_has_a_kernel_on_a_gpu(dim, kernel):
    q = torch.zeros(1, 256, 2, dim, device="cuda", dtype=torch.bfloat16)
    assert kernel_for(q).name == kernel
    out, lse = kernel_for(q).forward(q, q, q, True)
    grads = kernel_for(q).backward(q, q, q, q, out, lse, True)
    assert out.shape == q.shape and all(grad.shape == q.shape for grad in grads)


def explicit(q, k, v, causal):
    """Plain attention and logsumexp, with gradients by autograd."""
    scores = torch.einsum("bthd,bshd->bhts", q, k.repeat_interleave(q.shape[2] // k.shape[2], 2))
    scores = scores * q.shape[-1] ** -0.5
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    values = v.repeat_interleave(q.shape[2] // v.shape[2], 2)
    return torch.einsum("bhts,bshd->bthd", scores.softmax(-1), values), scores.logsumexp(-1)


@pytest.mark.parametrize("n_kv", [4, 2])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kernel", ["naive", *KERNELS])
def test_gradients_flow_through_the_output_and_the_logsumexp(kernel, causal, n_kv):
    """A merge of partial results needs both. "cpu" and "flash" do not take the logsumexp's gradient."""
    torch.manual_seed(0)
    on_gpu = kernel in ("flash", "fa4")
    device, dtype = ("cuda", torch.bfloat16) if on_gpu else ("cpu", torch.float32)
    keys = 96 if causal else 160
    tensors = [
        torch.randn(2, *size, 64, device=device, dtype=dtype)
        for size in ((96, 4), (keys, n_kv), (keys, n_kv))
    ]
    grad = torch.randn(2, 96, 4, 64, device=device, dtype=dtype)
    grad_lse = torch.randn(2, 4, 96, device=device)
    leaves = [x.clone().requires_grad_() for x in tensors]
    out, lse = attend_with_lse(*leaves, causal=causal, kernel=DENSE_KERNELS[kernel])
    torch.autograd.backward((out, lse), (grad, grad_lse))
    exact = [x.float().requires_grad_() for x in tensors]
    want, want_lse = explicit(*exact, causal)
    torch.autograd.backward((want, want_lse), (grad.float(), grad_lse))
    bound = 3e-2 if on_gpu else 2e-5
    for got, expected in [
        (out, want),
        (lse, want_lse),
        *((a.grad, b.grad) for a, b in zip(leaves, exact, strict=True)),
    ]:
        assert ((got.float() - expected).norm() / expected.norm()).item() < bound


def test_the_reference_runs_everywhere_and_the_fastest_comes_first():
    q = torch.zeros(1, 8, 2, 16)
    assert kernel_for(q).name == "cpu" and DENSE_KERNELS["naive"].runs(q)
    assert list(DENSE_KERNELS) == ["fa4", "flash", "cpu", "naive"]


@pytest.mark.parametrize("used", [0, 1])
@pytest.mark.parametrize("kernel", ["cpu", "naive"])
def test_one_of_the_two_results_may_be_unused(kernel, used):
    torch.manual_seed(0)
    tensors = [torch.randn(2, 24, n, 8) for n in (4, 2, 2)]
    leaves, exact = ([x.clone().requires_grad_() for x in tensors] for _ in range(2))
    attend_with_lse(*leaves, kernel=DENSE_KERNELS[kernel])[used].square().sum().backward()
    explicit(*exact, True)[used].square().sum().backward()
    for mine, plain in zip(leaves, exact, strict=True):
        want = torch.zeros_like(mine) if plain.grad is None else plain.grad
        torch.testing.assert_close(mine.grad, want, rtol=1e-4, atol=1e-5)


def test_a_logsumexp_that_is_unused_costs_no_further_pass():
    passes, cpu = [], DENSE_KERNELS["cpu"]

    def counted(name, function):
        return lambda *arguments: passes.append(name) or function(*arguments)

    forward, backward = counted("forward", cpu.forward), counted("backward", cpu.backward)
    q = torch.randn(1, 8, 2, 8, requires_grad=True)
    attend_with_lse(q, q, q, kernel=replace(cpu, forward=forward, backward=backward))[0].sum().backward()
    assert passes == ["forward", "backward"]


@pytest.mark.parametrize("n_kv", [4, 2])
@pytest.mark.parametrize("kernel", ["naive", *KERNELS])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dim", [64, 128])
def test_two_parts_of_the_keys_have_the_gradients_of_the_whole(kernel, dtype, dim, n_kv):
    """The gradient of the logsumexp of all keys, which the ring over ranks needs. On a CPU in float32."""
    on_gpu = kernel in ("flash", "fa4")
    device, dtype = ("cuda", dtype) if on_gpu else ("cpu", torch.float32)
    kernel = DENSE_KERNELS[kernel]
    torch.manual_seed(0)
    shapes = [(2, 96, 4, dim), (2, 160, n_kv, dim), (2, 160, n_kv, dim), (2, 96, 4, dim)]
    q, k, v, grad = (torch.randn(shape, device=device).to(dtype) for shape in shapes)
    if on_gpu and kernel.name == "fa4" and not dense_kernels.fa4_runs():
        pytest.skip("FlashAttention-4 does not run here")
    grad_lse = torch.randn(2, 4, 96, device=device)
    exact = [x.float().requires_grad_() for x in (q, k, v)]
    want, want_lse = explicit(*exact, False)
    torch.autograd.backward((want, want_lse), (grad.float(), grad_lse))
    out, lse = want.detach().to(dtype), want_lse.detach()
    parts = [
        backward_of(kernel, grad, grad_lse, q, k[:, keys], v[:, keys], out, lse, False)
        for keys in (slice(64), slice(64, None))
    ]
    of_q, *of_keys = zip(*parts, strict=True)
    got = [sum(x.float() for x in of_q), *(torch.cat(pair, 1) for pair in of_keys)]
    for one, leaf in zip(got, exact, strict=True):
        assert (one.float() - leaf.grad).norm() <= (2e-2 if on_gpu else 2e-5) * leaf.grad.norm()


@pytest.mark.parametrize("kernel", KERNELS)
def test_both_gradients_in_half_precision(kernel):
    device = "cpu" if kernel == "cpu" else "cuda"
    torch.manual_seed(0)
    q, k, v, grad = (torch.randn(1, 96, n, 64, device=device) for n in (4, 2, 2, 4))
    grad_lse, results = torch.randn(1, 4, 96, device=device), []
    for name, dtype in ((kernel, torch.bfloat16), ("naive", torch.float32)):
        leaves = [x.to(dtype).requires_grad_() for x in (q, k, v)]
        pair = attend_with_lse(*leaves, kernel=DENSE_KERNELS[name])
        torch.autograd.backward(pair, [grad.to(dtype), grad_lse])
        results.append([*(x.detach().float() for x in pair), *(x.grad.float() for x in leaves)])
    for got, want in zip(*results, strict=True):
        assert (got - want).norm() <= 2e-2 * want.norm()
