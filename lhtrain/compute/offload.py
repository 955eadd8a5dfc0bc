"""Recomputes whole blocks in the backward pass; their inputs are kept in pinned host memory until then."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from lhtrain.attention.where import Where
from lhtrain.model.decoder import Block, RunBlock


class Offloaded:
    """Calls blocks with full recomputation, and keeps their inputs in pinned host memory.

    A separate CUDA stream copies a block's input to the host during the block's forward pass, and back during
    the backward pass of the next block. Host buffers are reused in every step, and in other stages if a
    micro-batch has the same number of tokens, whatever the length of the sequences.
    """

    def __init__(self, run: RunBlock, device: torch.device):
        self.run = run
        self.on_gpu = device.type == "cuda"
        self.copies = torch.cuda.Stream(device) if self.on_gpu else None
        self.buffers: dict[tuple[int, int, torch.dtype], Tensor] = {}  # 1-d; keys: depth, size, dtype
        self.waiting: list[Tensor] = []  # inputs in host memory, in the order of the forward pass
        self.fetched: dict[int, tuple[Tensor, Any]] = {}  # depth -> tensor on the device, event of its copy

    def __call__(self, block: Block, x: Tensor, where: Where) -> Tensor:
        trained = x.requires_grad or any(parameter.requires_grad for parameter in block.parameters())
        if not (torch.is_grad_enabled() and trained):
            return self.run(block, x, where)
        # The first block that is trained has an input without a gradient, but needs its backward pass.
        x = x if x.requires_grad else x.detach().requires_grad_()
        return _OffloadedBlock.apply(x, self, block, where)

    def put(self, x: Tensor) -> int:
        """Start to copy x to the host; return its depth, the number of inputs put before."""
        depth = len(self.waiting)
        key = (depth, x.numel(), x.dtype)
        if key not in self.buffers:
            self.buffers[key] = torch.empty(x.numel(), dtype=x.dtype, pin_memory=self.on_gpu)
        aside = self.buffers[key].view(x.shape)
        if self.copies is None:
            aside.copy_(x)
        else:
            self.copies.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.copies):
                aside.copy_(x, non_blocking=True)
            x.record_stream(self.copies)
        self.waiting.append(aside)
        return depth

    def take(self, depth: int, device: torch.device) -> Tensor:
        """Return the tensor of `depth` on the device, and start to copy the one of depth - 1."""
        self._fetch(depth, device)
        x, event = self.fetched.pop(depth)
        if event is not None:
            torch.cuda.current_stream().wait_event(event)
            x.record_stream(torch.cuda.current_stream())
        del self.waiting[depth:]
        if depth > 0:
            self._fetch(depth - 1, device)
        return x

    def _fetch(self, depth: int, device: torch.device) -> None:
        if depth in self.fetched:
            return
        if self.copies is None:
            self.fetched[depth] = self.waiting[depth].to(device, copy=True), None
            return
        with torch.cuda.stream(self.copies):  # the same stream, so after the copies to the host
            x = self.waiting[depth].to(device, non_blocking=True)
            event = torch.cuda.Event()
            event.record(self.copies)
        self.fetched[depth] = x, event


class _OffloadedBlock(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, offloaded: Offloaded, block: Block, where: Where) -> Tensor:
        ctx.offloaded, ctx.block, ctx.where, ctx.device = offloaded, block, where, x.device
        ctx.depth = offloaded.put(x)
        with torch.no_grad():
            return offloaded.run(block, x, where)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, None]:
        x = ctx.offloaded.take(ctx.depth, ctx.device).requires_grad_()
        with torch.enable_grad():
            # Keep only the edge, so that the block's output can be freed before its backward pass.
            edge = get_gradient_edge(ctx.offloaded.run(ctx.block, x, ctx.where))
        torch.autograd.backward(edge, grads[0])  # adds to the parameters' gradients
        return x.grad, None, None, None
