"""Collectives as PyTorch operators: differentiable, and opaque to the compiler.

A group goes by its name, which PyTorch resolves: an operator takes tensors, numbers and strings.
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import ProcessGroup, _resolve_process_group


def group_of(name: str) -> ProcessGroup:
    """Return the process group of a name: operators cannot have groups as arguments."""
    return _resolve_process_group(name)  # type: ignore[arg-type]  # a str, by another name since 2.12


@torch.library.custom_op("lhtrain::all_to_all", mutates_args=())
def all_to_all(x: Tensor, group: str) -> Tensor:
    """Part i of x (W, ...) goes to rank i; returns (W, ...), part i from rank i."""
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    dist.all_to_all_single(out, x.contiguous(), group=group_of(group))
    return out


@all_to_all.register_fake
def _(x, group):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _all_to_all_context(ctx, inputs, output):
    ctx.group = inputs[1]


def _all_to_all_backward(ctx, grad):
    return all_to_all(grad, ctx.group), None


all_to_all.register_autograd(_all_to_all_backward, setup_context=_all_to_all_context)


@torch.library.custom_op("lhtrain::all_gather", mutates_args=())
def all_gather(x: Tensor, group: str, rank: int, size: int) -> Tensor:
    """x (...) of every rank, (W, ...). For small tensors: its gradient is summed over all ranks at once."""
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(size)]
    dist.all_gather(parts, x.contiguous(), group=group_of(group))
    return torch.stack(parts)


@all_gather.register_fake
def _(x, group, rank, size):
    return x.new_empty(size, *x.shape)


@torch.library.custom_op("lhtrain::all_gather_backward", mutates_args=())
def _all_gather_grad(grad: Tensor, group: str, rank: int) -> Tensor:
    total = grad.float()
    total = total.clone() if total is grad else total
    dist.all_reduce(total, group=group_of(group))
    return total[rank].to(grad.dtype)


@_all_gather_grad.register_fake
def _(grad, group, rank):
    return grad.new_empty(grad.shape[1:])


def _all_gather_context(ctx, inputs, output):
    _, ctx.group, ctx.rank, _ = inputs


def _all_gather_backward(ctx, grad):
    return _all_gather_grad(grad.contiguous(), ctx.group, ctx.rank), None, None, None


all_gather.register_autograd(_all_gather_backward, setup_context=_all_gather_context)
