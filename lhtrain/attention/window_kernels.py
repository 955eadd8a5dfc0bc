"""The kernels of exact local attention: each position attends to the last W tokens, itself included.

B batch, T queries, S keys, H query heads, G key/value heads, D head dim. S >= T: query t is as far from the
end as key S - T + t, so that keys may begin earlier than queries do. Scale 1/sqrt(D).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
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


class _Blocks:
    """Tokens of a sequence as blocks of at least W tokens: a block of queries needs its own block of keys and
    the one before. The first block, which has none before it, is causal attention by itself."""

    def __init__(self, q: Tensor, k: Tensor, window: int):
        self.n_queries, self.n_keys = q.shape[1], k.shape[1]
        self.size = min(max(window, 128), self.n_keys)
        self.n = -(-self.n_keys // self.size)
        query, key = torch.arange(self.size)[:, None], torch.arange(2 * self.size)[None, :] - self.size
        seen = (key > query - window) & (key <= query)
        masks = torch.zeros(2, self.size, 2 * self.size, dtype=q.dtype)
        self.later = masks[0].masked_fill(~seen, -torch.inf)  # [queries, keys of two blocks]
        self.first = self.later[:, self.size :].contiguous()

    def padded(self, x: Tensor) -> Tensor:
        """x (B, T or S, H, D) -> (B, n size, H, D): zeros where queries begin later, and behind the end."""
        return F.pad(x, (0, 0, 0, 0, self.n_keys - x.shape[1], self.n * self.size - self.n_keys))

    def of_queries(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The first block (B, H, size, D), and the others (B (n - 1), H, size, D)."""
        blocks = self.padded(x).unflatten(1, (self.n, self.size)).transpose(2, 3)
        return blocks[:, 0], blocks[:, 1:].flatten(0, 1)

    def of_keys(self, x: Tensor, n_heads: int) -> tuple[Tensor, Tensor]:
        """The first block, and for each other block its keys and those of the block before."""
        blocks = self.padded(x).repeat_interleave(n_heads // x.shape[2], 2)
        blocks = blocks.unflatten(1, (self.n, self.size)).transpose(2, 3)
        return blocks[:, 0], torch.cat([blocks[:, :-1], blocks[:, 1:]], 3).flatten(0, 1)

    def joined(self, first: Tensor, later: Tensor) -> Tensor:
        """The inverse of `of_queries`: (B, T, H, D)."""
        later = later.unflatten(0, (len(first), -1))
        blocks = torch.cat([first.unsqueeze(1), later], 1).transpose(2, 3).flatten(1, 2)
        return blocks[:, self.n_keys - self.n_queries : self.n_keys]

    def summed(self, first: Tensor, later: Tensor, n_groups: int) -> Tensor:
        """The gradients of keys, each the sum over two blocks of queries: (B, S, G, D)."""
        later = later.unflatten(0, (len(first), -1))
        blocks = torch.cat([first.unsqueeze(1), later[:, :, :, self.size :]], 1)
        blocks[:, :-1] += later[:, :, :, : self.size]
        whole = blocks.transpose(2, 3).flatten(1, 2)[:, : self.n_keys]
        return whole.unflatten(2, (n_groups, -1)).sum(3)


def cpu_window_forward(q: Tensor, k: Tensor, v: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """`cpu_window` without gradients."""
    blocks, scale = _Blocks(q, k, window), q.shape[-1] ** -0.5
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    tensors = zip(blocks.of_queries(q), *(blocks.of_keys(x, q.shape[2]) for x in (k, v)), strict=True)
    masks = blocks.first, blocks.later
    parts = [attend(*x, 0.0, False, attn_mask=m, scale=scale) for x, m in zip(tensors, masks, strict=True)]
    outs, lses = zip(*parts, strict=True)
    lse = blocks.joined(*(x.unsqueeze(-1) for x in lses)).squeeze(-1)
    return blocks.joined(*outs), lse.transpose(1, 2)


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
    blocks = _Blocks(q, k, window)
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    keys, values = (blocks.of_keys(x, q.shape[2]) for x in (k, v))
    statistics = blocks.of_queries(lse.transpose(1, 2).unsqueeze(-1))
    found: list[tuple[Tensor, ...]] = []
    for i, mask in enumerate((blocks.first, blocks.later)):
        of_grad, of_q, of_out = (blocks.of_queries(x)[i] for x in (grad, q, out))
        tensors = of_grad, of_q, keys[i], values[i], of_out, statistics[i].squeeze(-1).contiguous()
        scaled = {"attn_mask": mask, "scale": q.shape[-1] ** -0.5 if scale is None else scale}
        found.append(backward(*tensors, 0.0, False, **scaled))
    of_queries, of_keys, of_values = zip(*found, strict=True)
    grad_k, grad_v = (blocks.summed(x[0], x[1], k.shape[2]) for x in (of_keys, of_values))
    return blocks.joined(*of_queries), grad_k, grad_v


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
