"""The choice of kernels, errors for missing packages or devices, and equal results of all kernels."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from lhtrain.attention import DenseAttention, LighthouseAttention, dense, dense_attention, flash4, lighthouse
from lhtrain.attention.dense import SDPA
from lhtrain.attention.flash4 import INSTALLED

SIZES = {"levels": 2, "pooling": 4, "budget": 128}
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def qkv(device="cpu", dtype=torch.float32, heads=2, kv_heads=2, tokens=512, dim=64):
    return [torch.randn(2, tokens, h, dim, device=device, dtype=dtype) for h in (heads, kv_heads, kv_heads)]


def test_auto_on_a_cpu_is_plain_attention():
    q, k, v = qkv(heads=4)
    torch.testing.assert_close(dense_attention(q, k, v), dense_attention(q, k, v, "math"))


@pytest.mark.parametrize("make", [DenseAttention, lambda name: LighthouseAttention(**SIZES, dense=name)])
def test_an_unknown_dense_kernel_is_refused_at_construction(make):
    with pytest.raises(ValueError, match="dense=fa5: must be one of auto, math, flash, cudnn, fa2, fa3, fa4"):
        make("fa5")


@pytest.mark.parametrize("name", ["fa2", "fa3", "fa4"])
def test_the_error_names_a_missing_package_at_construction(name, monkeypatch):
    monkeypatch.setitem(flash4.INSTALLED, name, False)
    with pytest.raises(
        ValueError, match=f"dense={name}: needs the package flash-attn.*, which is not installed"
    ):
        DenseAttention(name)


def test_a_package_without_its_device_is_refused(monkeypatch):
    monkeypatch.setitem(flash4.INSTALLED, "fa4", True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="dense=fa4: needs a CUDA device"):
        DenseAttention("fa4")


def test_the_kernels_need_triton_and_a_device(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="backend=triton: needs a CUDA device, and the tensors are on cpu"):
        lighthouse.lighthouse_attention(*qkv(), **SIZES, backend="triton")
    monkeypatch.setattr(lighthouse, "HAS_TRITON", False)
    with pytest.raises(ValueError, match="backend=triton: needs the package triton, which is not installed"):
        lighthouse.lighthouse_attention(*qkv(), **SIZES, backend="triton")


@pytest.mark.parametrize("fixed", [False, True])
def test_flash_attention_4_follows_pytorchs_deterministic_mode(monkeypatch, fixed):
    told = []

    def backward(q, k, v, out, grad, lse, **settings):
        told.append(settings)
        return q, k, v

    interface = SimpleNamespace(_flash_attn_bwd=backward)
    monkeypatch.setitem(sys.modules, "flash_attn.cute.interface", interface)
    q, k, v = qkv()
    torch.use_deterministic_algorithms(fixed)
    try:
        flash4.fa4_backward(q, q, k, v, q, q[..., 0].transpose(1, 2), causal=True)
    finally:
        torch.use_deterministic_algorithms(False)
    assert told == [{"causal": True, "deterministic": fixed}]


@pytest.mark.parametrize("layout", ["heads first", "as it is", "a slice"])
def test_the_strides_of_flash_attention_4_are_those_of_its_fake_operator(monkeypatch, layout):
    """The package returns contiguous tensors or the layout of its inputs; the operator always the former."""

    def strange(x):
        return x.transpose(1, 2).contiguous().transpose(1, 2)

    def forward(q, k, v, causal, return_lse):
        out = dense_attention(q, k, v, "math")
        lse = torch.zeros(q.shape[0], q.shape[1], q.shape[2]).transpose(1, 2)
        return strange(out), lse

    def backward(q, k, v, out, grad, lse, **settings):
        return strange(q), torch.empty_like(k), strange(v)

    interface = SimpleNamespace(_flash_attn_fwd=forward, _flash_attn_bwd=backward)
    monkeypatch.setitem(sys.modules, "flash_attn.cute.interface", interface)
    tensors = [x.detach() for x in qkv()]
    if layout == "heads first":
        tensors = [strange(x) for x in tensors]
    elif layout == "a slice":
        tensors = [torch.cat([x, x], -1)[..., : x.shape[-1]] for x in tensors]
    torch.library.opcheck(flash4.fa4, tensors, test_utils="test_faketensor")
    out, lse = flash4.fa4(*tensors)
    given = [strange(out), *tensors, out, lse]
    torch.library.opcheck(flash4._fa4_backward, given, test_utils="test_faketensor")


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "dim"), [(torch.float32, 64), (torch.bfloat16, 64), (torch.bfloat16, 320)])
def test_fewer_key_and_value_heads_store_no_full_scores(dtype, dim):
    """4 heads with 8,192 x 8,192 scores would take 1.07 GB in float32."""
    q, k, v = (x[:1].requires_grad_() for x in qkv("cuda", dtype, 4, 2, 8192, dim))
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    dense_attention(q, k, v).sum().backward()
    assert torch.cuda.max_memory_allocated() - before < 0.4e9


def test_tensors_without_a_kernel_for_fewer_key_and_value_heads():
    def found(is_cuda, dtype, dim):
        return dense._shares_no_heads(SimpleNamespace(is_cuda=is_cuda, dtype=dtype, shape=(1, 8, 4, dim)))

    assert found(True, torch.float32, 64) and found(True, torch.bfloat16, 512)
    assert not found(True, torch.bfloat16, 128) and not found(False, torch.float32, 64)


@needs_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("name", ["auto", *SDPA, *(name for name, there in INSTALLED.items() if there)])
def test_every_dense_kernel_agrees_with_float32(name, kv_heads):
    """Outputs and gradients in bf16 are within 1e-2 of float32; "auto" gets a length at which it uses fa4."""
    tokens = flash4.FA4_FROM if name == "auto" else 1000
    tensors = qkv("cuda", torch.bfloat16, 4, kv_heads, tokens, dim=128)
    grad = torch.randn_like(tensors[0])

    def run(attend, tensors):
        leaves = [x.detach().requires_grad_() for x in tensors]
        out = attend(*leaves)
        return out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))

    def reference(q, k, v):  # repeated heads, else PyTorch uses a kernel with quadratic memory
        return dense_attention(q, *(x.repeat_interleave(4 // kv_heads, 2) for x in (k, v)))

    want = run(reference, [x.float() for x in tensors])
    for a, b in zip(run(DenseAttention(name), tensors), want, strict=True):
        assert (a.float() - b).norm() / b.norm() < 1e-2


def test_the_availability_of_flash_attention_4_is_a_constant_to_the_compiler():
    """The mark is set without PyTorch's decorator, which imports the compiler."""

    def marked():
        return True

    assert flash4.fa4_runs.__dict__ == torch.compiler.assume_constant_result(marked).__dict__


def test_attention_is_imported_without_the_compiler():
    code = "import sys, lhtrain.attention; sys.exit('torch._dynamo' in sys.modules or 'hydra' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
