"""The kernels of exact local attention: each position attends to the last W tokens, itself included.

B batch, T queries, S keys, H query heads, G key/value heads, D head dim. S >= T: query t is as far from the
end as key S - T + t, so that keys may begin earlier than queries do. Scale 1/sqrt(D).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lhtrain.attention.dense_kernels import Gradients, filled, repeated, summed
from lhtrain.attention.flash4 import fa4_runs
from lhtrain.kernels.ranges.naive import attend_ranges

FLASH_DTYPES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class WindowKernel:
    """One kernel.

    runs(q): whether it takes such queries, on their device. forward(q, k, v, window) -> out (B, T, H, D) in
    q's dtype and lse (B, H, T) float32, of q (B, T, H, D) and k, v (B, S, G, D). backward(grad, q, k, v, out,
    lse, window) -> the gradients of q, k and v; out and lse may be those of a larger attention of which this
    one is a part.
    """

    name: str
    runs: Callable[[Tensor], bool]
    forward: Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]
    backward: Callable[..., Gradients]


def window_kernel_for(q: Tensor) -> str:
    """The name of the fastest kernel for q (B, T, H, D)."""
    return next(kernel.name for kernel in WINDOW_KERNELS.values() if kernel.runs(q))


def naive_window(q: Tensor, k: Tensor, v: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Local attention in plain PyTorch, with gradients through both results."""
    return attend_ranges(q, k, v, *window_bounds(q.shape[1], k.shape[1], window, q.device))


def window_bounds(n_queries: int, n_keys: int, window: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The keys of each query, as `kernels/ranges` takes them: lo[t] ... hi[t] - 1, int32."""
    hi = torch.arange(n_keys - n_queries + 1, n_keys + 1, device=device, dtype=torch.int32)
    return (hi - window).clamp(min=0), hi


def _fa4_forward(q: Tensor, k: Tensor, v: Tensor, window: int) -> tuple[Tensor, Tensor]:
    from flash_attn.cute.interface import _flash_attn_fwd

    sides = {"window_size_left": window - 1, "window_size_right": 0}
    out, lse = _flash_attn_fwd(q, k, v, return_lse=True, **sides)[:2]
    return out, lse


def _fa4_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, window: int
) -> Gradients:
    from flash_attn.cute.interface import _flash_attn_bwd

    fixed = torch.are_deterministic_algorithms_enabled()
    sides = {"window_size_left": window - 1, "window_size_right": 0}
    grads = _flash_attn_bwd(q, k, v, out, grad, lse, deterministic=fixed, **sides)
    return tuple(grads[:3])  # type: ignore[return-value]  # three


def _flash_forward(q: Tensor, k: Tensor, v: Tensor, window: int) -> tuple[Tensor, Tensor]:
    dim, sides = q.shape[-1], {"window_size_left": window - 1, "window_size_right": 0}
    q, k, v = (filled(x, 8) for x in (q, repeated(k, q), repeated(v, q)))
    lengths = None, None, q.shape[1], k.shape[1]
    forward = torch.ops.aten._flash_attention_forward
    out, lse = forward(q, k, v, *lengths, 0.0, True, False, scale=dim**-0.5, **sides)[:2]
    return out[..., :dim].contiguous(), lse


def _flash_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, window: int
) -> Gradients:
    dim, sides = q.shape[-1], {"window_size_left": window - 1, "window_size_right": 0}
    tensors = [filled(x, 8) for x in (grad, q, repeated(k, q), repeated(v, q), out)]
    lengths = None, None, q.shape[1], k.shape[1]
    seed = torch.zeros(2, dtype=torch.uint64, device=q.device)
    backward = torch.ops.aten._flash_attention_backward
    grads = backward(*tensors, lse, *lengths, 0.0, True, seed, seed[0], scale=dim**-0.5, **sides)
    grad_q, grad_k, grad_v = (x[..., :dim] for x in grads[:3])
    return grad_q, summed(grad_k, k), summed(grad_v, k)


def _ranges_forward(q: Tensor, k: Tensor, v: Tensor, window: int) -> tuple[Tensor, Tensor]:
    from lhtrain.kernels.ranges import kernel

    return kernel.forward(q, k, v, *window_bounds(q.shape[1], k.shape[1], window, q.device))


def _ranges_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, window: int
) -> Gradients:
    from lhtrain.kernels.ranges import kernel

    bounds = window_bounds(q.shape[1], k.shape[1], window, q.device)
    return kernel.backward(grad, None, q, k, v, *bounds, out, lse)


def _takes_flash(q: Tensor) -> bool:
    modern = q.is_cuda and torch.cuda.get_device_capability(q.device)[0] >= 8
    return modern and q.dtype in FLASH_DTYPES and q.shape[-1] <= 256


def _takes_fa4(q: Tensor) -> bool:
    return q.is_cuda and q.dtype in FLASH_DTYPES and q.shape[-1] in (64, 128) and fa4_runs()


# In order of speed. FlashAttention-4 also serves short sequences here, where cuDNN, which takes no window,
# is not an alternative.
WINDOW_KERNELS = {
    kernel.name: kernel
    for kernel in (
        WindowKernel("fa4", _takes_fa4, _fa4_forward, _fa4_backward),
        WindowKernel("flash", _takes_flash, _flash_forward, _flash_backward),
        WindowKernel("ranges", lambda q: True, _ranges_forward, _ranges_backward),
    )
}
