"""FlashAttention-4: a check that it runs here, its two passes, and an operator for the compiler.

Shapes: B batch, T tokens, H query heads, Hkv key/value heads, D head dim.
"""

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

# On Hopper its kernel is faster than cuDNN at every length. But its host code takes 0.3 ms per call, so with
# fewer tokens than this the device would wait for the host (not if captured in a CUDA graph).
FA4_FROM = 12_288
PACKAGES = {"fa2": "flash-attn", "fa3": "flash-attn-3", "fa4": "flash-attn-4"}


def _installed(backend: str) -> bool:
    """Return whether the package of "fa2", "fa3" or "fa4" is installed, without importing it."""
    if backend == "fa3":
        return find_spec("flash_attn_interface") is not None
    spec = find_spec("flash_attn")
    inside = {"fa2": "flash_attn_interface.py", "fa4": "cute/interface.py"}[backend]
    folders = spec.submodule_search_locations or () if spec else ()
    return any((Path(folder) / inside).exists() for folder in folders)


INSTALLED = {backend: _installed(backend) for backend in PACKAGES}


def fa4_runs() -> bool:
    """Return whether FlashAttention-4 is installed and this GPU is supported: Hopper or Blackwell."""
    return INSTALLED["fa4"] and torch.cuda.get_device_capability()[0] in (9, 10)


# The same as torch.compiler.assume_constant_result. The decorator would import torch._dynamo, which takes a
# sixth of the start time of a run on a CPU. A test compares the two.
fa4_runs._dynamo_marked_constant = True  # type: ignore[attr-defined]


def fa4_forward(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """-> out (B, T, H, D), logsumexp (B, H, T) float32."""
    from flash_attn.cute.interface import _flash_attn_fwd

    out, lse = _flash_attn_fwd(q, k, v, causal=causal, return_lse=True)[:2]
    return out, lse


def fa4_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    causal: bool,
    grad_lse: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v in their shapes; deterministic if PyTorch is set so."""
    from flash_attn.cute.interface import _flash_attn_bwd

    fixed = torch.are_deterministic_algorithms_enabled()
    further = {} if grad_lse is None else {"dlse": grad_lse}
    grads = _flash_attn_bwd(q, k, v, out, grad, lse, causal=causal, deterministic=fixed, **further)
    return tuple(grads[:3])  # type: ignore[return-value]


# An operator, so that the compiler neither breaks the graph here nor traces the code inside. The package
# offers only an autograd function, so the operator calls the two functions behind it.
@torch.library.custom_op("lhtrain::fa4", mutates_args=())
def fa4(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """-> out (B, T, H, D), logsumexp (B, H, T) float32."""
    out, lse = fa4_forward(q, k, v, causal=True)
    return out.contiguous(), lse.contiguous()  # the fake operator below promises contiguous outputs


@fa4.register_fake
def _(q, k, v):
    batch, tokens, heads, _ = q.shape
    return q.new_empty(q.shape), q.new_empty(batch, heads, tokens, dtype=torch.float32)


@torch.library.custom_op("lhtrain::fa4_backward", mutates_args=())
def _fa4_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    grads = fa4_backward(grad.contiguous(), q, k, v, out, lse, causal=True)
    return tuple(x.contiguous() for x in grads)  # type: ignore[return-value]


@_fa4_backward.register_fake
def _(grad, q, k, v, out, lse):
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _fa4_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs, *output)


def _fa4_autograd(ctx, grad, _lse):
    return _fa4_backward(grad, *ctx.saved_tensors)


fa4.register_autograd(_fa4_autograd, setup_context=_fa4_context)
