"""How a block of the decoder is called: plainly, recomputed in the backward pass, offloaded, compiled.

Nothing here changes what is computed. The compiler goes around a block and its selective recomputation;
recomputing whole blocks, and offloading, go around the compiler: they are about what is kept between blocks.
"""

import os
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from lhtrain.conf.schema import Compile, ComputeConfig, Recompute
from lhtrain.data.errors import DataError
from lhtrain.data.store.cache import cache_root
from lhtrain.model.decoder import GPT, Block, Rotation, RunBlock, run_plainly
from lhtrain.model.loss import chunk_grad, chunk_loss

# selective: results worth their memory; all else of a block is cheap to compute again. So is the output of
# scatter_rows, a tensor of the whole sequence made from rows that are kept.
KEPT = ("aten::mm", "aten::addmm", "aten::_scaled_mm", "aten::_scaled_dot_product", "lhtrain::")
CHEAP = ("lhtrain::scatter_rows",)


def prepare(model: GPT, compute: ComputeConfig, device: torch.device) -> None:
    """Have `model` run its blocks and its loss as `compute` says.

    Raises RunError: compute.float8 on a device without it.
    """
    if compute.float8:
        from lhtrain.compute.float8 import use_float8

        use_float8(model, device)
    run = block_runner(compute, device)
    for block in model.blocks:
        assert isinstance(block, Block)
        block.run = run
    if compiles(compute, device):
        model.chunk_grad = torch.compile(chunk_grad, fullgraph=True, dynamic=False)
        model.chunk_loss = torch.compile(chunk_loss, fullgraph=True, dynamic=False)


def block_runner(compute: ComputeConfig, device: torch.device) -> RunBlock:
    """What `Block.run` becomes under `compute`."""
    run: RunBlock = run_plainly
    if compute.recompute is Recompute.selective:
        run = _selective
    if compiles(compute, device):
        run = compiled(run)
    if compute.recompute is Recompute.full:
        run = Offloaded(run, device) if compute.offload else partial(_full, run)
    if compute.recompute in (Recompute.none, Recompute.auto) or compute.recompute_every == 1:
        return run
    return partial(_every, compute.recompute_every, run, block_runner(_without(compute), device))


def compiles(compute: ComputeConfig, device: torch.device) -> bool:
    return compute.compile is Compile.on or (compute.compile is Compile.auto and device.type == "cuda")


def compiled(run: RunBlock) -> RunBlock:
    """One graph for all blocks that attend alike; its code is kept in the user's cache from run to run."""
    with suppress(DataError):  # without a home directory the compilers have caches of their own
        for name, folder in (("TORCHINDUCTOR_CACHE_DIR", "inductor"), ("TRITON_CACHE_DIR", "triton")):
            os.environ.setdefault(name, str(cache_root(None) / "compile" / folder))
    # A graph for each attention, sequence length and gradient mode may well be more than the default limit.
    torch._dynamo.config.recompile_limit = 64
    return torch.compile(run, fullgraph=True, dynamic=False)


def _without(compute: ComputeConfig) -> ComputeConfig:
    return ComputeConfig(precision=compute.precision, compile=compute.compile, recompute=Recompute.none)


def _every(n: int, run: RunBlock, plain: RunBlock, block: Block, x: Tensor, by: Rotation) -> Tensor:
    return run(block, x, by) if block.number % n == 0 else plain(block, x, by)


def _full(run: RunBlock, block: Block, x: Tensor, by: Rotation) -> Tensor:
    return checkpoint(run, block, x, by, use_reentrant=False, preserve_rng_state=False)


def _selective(block: Block, x: Tensor, by: Rotation) -> Tensor:
    contexts = partial(create_selective_checkpoint_contexts, _policy)
    return checkpoint(
        run_plainly, block, x, by, use_reentrant=False, preserve_rng_state=False, context_fn=contexts
    )


def _policy(ctx: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    name = str(op).replace(".", "::", 1)
    keep = name.startswith(KEPT) and not name.startswith(CHEAP)
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE


class Offloaded:
    """Recomputes whole blocks; their inputs wait in pinned host memory.

    A block's input is copied out while the block computes, and back while the block after it does its
    backward: the copies have a stream of their own. Host buffers are kept from step to step, and from stage
    to stage where a micro-batch has as many tokens, whatever its sequences' length.
    """

    def __init__(self, run: RunBlock, device: torch.device):
        self.run = run
        self.on_gpu = device.type == "cuda"
        self.copies = torch.cuda.Stream(device) if self.on_gpu else None
        self.buffers: dict[tuple[int, int, torch.dtype], Tensor] = {}  # flat, by depth, size and dtype
        self.waiting: list[Tensor] = []  # in host memory, in the order of the forward pass
        self.fetched: dict[int, tuple[Tensor, Any]] = {}  # depth -> device tensor, event of its copy

    def __call__(self, block: Block, x: Tensor, by: Rotation) -> Tensor:
        if not (torch.is_grad_enabled() and x.requires_grad):
            return self.run(block, x, by)
        return _OffloadedBlock.apply(x, self, block, by)

    def put(self, x: Tensor) -> int:
        """Start the copy of x to the host; returns its depth."""
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
        """The tensor put at `depth`, back on the device; starts the copy of the one before it."""
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
        with torch.cuda.stream(self.copies):  # behind the copies out, which are in the same stream
            x = self.waiting[depth].to(device, non_blocking=True)
            event = torch.cuda.Event()
            event.record(self.copies)
        self.fetched[depth] = x, event


class _OffloadedBlock(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, offloaded: Offloaded, block: Block, by: Rotation) -> Tensor:
        ctx.offloaded, ctx.block, ctx.by, ctx.device = offloaded, block, by, x.device
        ctx.depth = offloaded.put(x)
        with torch.no_grad():
            return offloaded.run(block, x, by)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, None]:
        x = ctx.offloaded.take(ctx.depth, ctx.device).requires_grad_()
        with torch.enable_grad():
            # The edge alone: the block's output is not held through its backward.
            edge = get_gradient_edge(ctx.offloaded.run(ctx.block, x, ctx.by))
        torch.autograd.backward(edge, grads[0])  # adds to the parameters' gradients
        return x.grad, None, None, None
