"""The kernels of exact local attention: each position attends to the last W tokens, itself included.

B batch, T queries, S keys, H query heads, G key/value heads, D head dim. S >= T: query t is as far from the
end as key S - T + t, so that keys may begin earlier than queries do. Scale 1/sqrt(D).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lhtrain.attention.dense_kernels import Gradients, filled, repeated, summed, with_grad_lse
from lhtrain.attention.flash4 import fa4_runs
from lhtrain.kernels.ranges.naive import attend_ranges

FLASH_DTYPES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class WindowKernel:
    """One kernel.

    runs(q): whether it supports the shape, dtype and device of q.
    forward(q, k, v, window) -> out (B, T, H, D) in q's dtype and lse (B, H, T) float32, of q (B, T, H, D) and
        k, v (B, S, G, D).
    backward(grad, q, k, v, out, lse, window) -> the gradients of q, k and v; out and lse may be those of a
        larger attention of which this one is a part.
    Only the kernel "ranges" has one more argument of both, `starts` of `window_bounds`.
    """

    name: str
    runs: Callable[[Tensor], bool]
    forward: Callable[..., tuple[Tensor, Tensor]]
    backward: Callable[..., Gradients]


def window_kernel_for(q: Tensor) -> str:
    """Return the name of the fastest kernel for q (B, T, H, D)."""
    return next(kernel.name for kernel in WINDOW_KERNELS.values() if kernel.runs(q))


def naive_window(q: Tensor, k: Tensor, v: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Local attention in plain PyTorch, with gradients through both results."""
    return attend_ranges(q, k, v, *window_bounds(q.shape[1], k.shape[1], window, q.device))


def window_bounds(
    n_queries: int, n_keys: int, window: int, device: torch.device, starts: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the keys of each query, as `kernels/ranges` takes them: lo[t] ... hi[t] - 1, int32.

    starts: (B, T) int32, where the document of each query begins, counted from the first query: lo is (B, T).
    """
    hi = torch.arange(n_keys - n_queries + 1, n_keys + 1, device=device, dtype=torch.int32)
    lo = hi - window if starts is None else torch.maximum(hi - window, starts + (n_keys - n_queries))
    return lo.clamp(min=0), hi


class _CpuWindow(torch.autograd.Function):
    """Local attention on a CPU with gradients through both results, by PyTorch's flash kernel."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, window: int) -> tuple[Tensor, Tensor]:
        out, lse = cpu_window_forward(q, k, v, window)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.window = window
        return out, lse

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        tensors = with_grad_lse(grads[0], grads[1], q, k, v, out)
        found = cpu_window_backward(*tensors, lse, ctx.window, scale=q.shape[-1] ** -0.5)
        return *(x[..., : q.shape[-1]] for x in found), None  # the dimension added


def cpu_window(q: Tensor, k: Tensor, v: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """`naive_window` on a CPU, faster: out (B, T, H, D), lse (B, H, T), with gradients through both."""
    return _CpuWindow.apply(q, k, v, window)


def _block_size(window: int) -> int:
    """Return the queries of a block of `_cpu_blocks`: few against the window, but enough for the kernel."""
    return min(max(window // 2, 128), 256)


def _cpu_blocks(q: Tensor, k: Tensor, window: int) -> Iterator[tuple[slice, slice, Tensor]]:
    """Divide the queries into blocks, each with the keys that one of its queries sees.

    q: (B, H, T, D); k: (B, H, S, D). Yields the slices of queries and keys, and the mask of their scores: 0
    if the query sees the key, else -inf. A block of b queries has window + b - 1 keys, fewer at the
    beginning, so that the work hardly exceeds that of the window itself.
    """
    n_queries, earlier = q.shape[2], k.shape[2] - q.shape[2]
    window, size = min(window, k.shape[2]), min(_block_size(window), n_queries)
    query, key = torch.arange(size)[:, None], torch.arange(1 - window, size)[None, :]
    seen = (key > query - window) & (key <= query)
    mask = torch.zeros(seen.shape, dtype=q.dtype).masked_fill_(~seen, -torch.inf)
    for first in range(0, n_queries, size):
        end = min(first + size, n_queries)
        keys = slice(max(earlier + first - window + 1, 0), earlier + end)
        last = window - 1 + end - first  # the column of the mask behind the last key
        part = mask[: end - first, last - (keys.stop - keys.start) : last]
        yield slice(first, end), keys, part


def cpu_window_forward(q: Tensor, k: Tensor, v: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """`cpu_window` without gradients."""
    attend, scale = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu, q.shape[-1] ** -0.5
    q, k, v = (x.transpose(1, 2) for x in (q, repeated(k, q), repeated(v, q)))
    parts = [
        attend(q[:, :, queries], k[:, :, keys], v[:, :, keys], 0.0, False, attn_mask=mask, scale=scale)
        for queries, keys, mask in _cpu_blocks(q, k, window)
    ]
    outs, lses = zip(*parts, strict=True)
    return torch.cat(outs, 2).transpose(1, 2), torch.cat(lses, 2)


def cpu_window_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    window: int,
    scale: float | None = None,
) -> Gradients:
    """Return the gradients of q, k and v. scale: of the scores; None: 1/sqrt(D)."""
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    scale, of = q.shape[-1] ** -0.5 if scale is None else scale, k
    grad, q, k, v, out = (x.transpose(1, 2) for x in (grad, q, repeated(k, q), repeated(v, q), out))
    of_queries, of_keys, of_values = [], torch.zeros_like(k), torch.zeros_like(v)
    for queries, keys, mask in _cpu_blocks(q, k, window):
        grad_here, q_here, out_here = (x[:, :, queries] for x in (grad, q, out))
        tensors = grad_here, q_here, k[:, :, keys], v[:, :, keys], out_here, lse[:, :, queries].contiguous()
        found = backward(*tensors, 0.0, False, attn_mask=mask, scale=scale)
        of_queries.append(found[0])
        of_keys[:, :, keys] += found[1]
        of_values[:, :, keys] += found[2]
    grad_k, grad_v = (summed(x.transpose(1, 2), of) for x in (of_keys, of_values))
    return torch.cat(of_queries, 2).transpose(1, 2), grad_k, grad_v


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
    return tuple(grads[:3])  # type: ignore[return-value]  # three tensors


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


def _ranges_forward(
    q: Tensor, k: Tensor, v: Tensor, window: int, starts: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """starts: as in `window_bounds`."""
    from lhtrain.kernels.ranges import kernel

    return kernel.forward(q, k, v, *window_bounds(q.shape[1], k.shape[1], window, q.device, starts))


def _ranges_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, window: int,
    starts: Tensor | None = None,
) -> Gradients:  # fmt: skip
    from lhtrain.kernels.ranges import kernel

    bounds = window_bounds(q.shape[1], k.shape[1], window, q.device, starts)
    return kernel.backward(grad, None, q, k, v, *bounds, out, lse)


def flash_runs() -> bool:
    """Return whether PyTorch's flash kernel supports this GPU: Ampere or newer."""
    return torch.cuda.get_device_capability()[0] >= 8


# The compiler must not trace it; `flash4.fa4_runs` has the reason why this is not a decorator.
flash_runs._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _takes_flash(q: Tensor) -> bool:
    return q.is_cuda and q.dtype in FLASH_DTYPES and q.shape[-1] <= 256 and flash_runs()


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
