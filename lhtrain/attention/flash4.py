"""FlashAttention-4: whether it runs here, its two passes, and the operator that the compiler sees.

B batch, T tokens, H query heads, Hkv key/value heads, D head dim.
"""

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

# It beats cuDNN on Hopper at every length, but its host code takes 0.3 ms a call, so that below this many
# tokens the device would wait for it. Captured into a CUDA graph it is faster there too.
FA4_FROM = 12_288
PACKAGES = {"fa2": "flash-attn", "fa3": "flash-attn-3", "fa4": "flash-attn-4"}


def _installed(backend: str) -> bool:
    """Is the FlashAttention package behind "fa2", "fa3" or "fa4" there? Looks at files, imports nothing."""
    if backend == "fa3":
        return find_spec("flash_attn_interface") is not None
    spec = find_spec("flash_attn")
    inside = {"fa2": "flash_attn_interface.py", "fa4": "cute/interface.py"}[backend]
    folders = spec.submodule_search_locations or () if spec else ()
    return any((Path(folder) / inside).exists() for folder in folders)


INSTALLED = {backend: _installed(backend) for backend in PACKAGES}


def fa4_runs() -> bool:
    """Whether FlashAttention-4 is installed, and this GPU one that it is written for: Hopper or Blackwell."""
    return INSTALLED["fa4"] and torch.cuda.get_device_capability()[0] in (9, 10)


# All that torch.compiler.assume_constant_result does. The decorator would import torch._dynamo, which takes a
# sixth of the time in which a run on a CPU starts. A test compares the two.
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
    """FlashAttention-4's gradients of q, k and v, in their shapes; deterministic where PyTorch is to be."""
    from flash_attn.cute.interface import _flash_attn_bwd

    fixed = torch.are_deterministic_algorithms_enabled()
    further = {} if grad_lse is None else {"dlse": grad_lse}
    grads = _flash_attn_bwd(q, k, v, out, grad, lse, causal=causal, deterministic=fixed, **further)
    return tuple(grads[:3])  # type: ignore[return-value]  # three


# FlashAttention-4 as an operator, so that the compiler neither breaks at it nor looks inside: the package
# offers an autograd function alone, and these are the two functions it calls.
@torch.library.custom_op("lhtrain::fa4", mutates_args=())
def fa4(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """-> out (B, T, H, D), logsumexp (B, H, T) float32."""
    out, lse = fa4_forward(q, k, v, causal=True)
    return out.contiguous(), lse.contiguous()  # as the compiler is told, whatever the strides of q


@fa4.register_fake
def _(q, k, v):
    batch, tokens, heads, _ = q.shape
    return q.new_empty(q.shape), q.new_empty(batch, heads, tokens, dtype=torch.float32)


@torch.library.custom_op("lhtrain::fa4_backward", mutates_args=())
def _fa4_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    grads = fa4_backward(grad.contiguous(), q, k, v, out, lse, causal=True)
    return tuple(x.contiguous() for x in grads)  # type: ignore[return-value]  # three


@_fa4_backward.register_fake
def _(grad, q, k, v, out, lse):
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _fa4_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs, *output)


def _fa4_autograd(ctx, grad, _lse):
    return _fa4_backward(grad, *ctx.saved_tensors)


fa4.register_autograd(_fa4_autograd, setup_context=_fa4_context)
