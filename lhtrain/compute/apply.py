"""Wraps the call of each decoder block: recomputation in the backward pass, offloading, compilation.

The results do not change. The compiler wraps a block together with its selective recomputation. Full
recomputation and offloading wrap the compiled block, because they handle tensors between blocks.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from lhtrain.attention.where import Where
from lhtrain.compute.offload import Offloaded
from lhtrain.conf.schema import Compile, ComputeConfig, Recompute
from lhtrain.data.errors import DataError
from lhtrain.data.store.cache import cache_root
from lhtrain.model.decoder import GPT, Block, RunBlock, run_plainly
from lhtrain.model.loss import chunk_grad, chunk_loss

# Selective recomputation saves the results of KEPT; the rest of a block is cheap to recompute. So is the
# output of scatter_rows: it has the length of the whole sequence, but is made from rows that are saved.
KEPT = ("aten::mm", "aten::addmm", "aten::_scaled_mm", "aten::_scaled_dot_product", "lhtrain::")
CHEAP = ("lhtrain::scatter_rows",)
# With compute.recompute=attention, products of matrices are recomputed too.
ATTENTION = ("aten::_scaled_dot_product", "lhtrain::")


def apply(model: GPT, compute: ComputeConfig, device: torch.device) -> None:
    """Set up recomputation, offloading and compilation of the blocks, and compilation of the loss."""
    run = block_runner(compute, device)
    for block in model.blocks:
        assert isinstance(block, Block)
        block.run = run
    if compiles(compute, device):
        model.chunk_grad = torch.compile(chunk_grad, fullgraph=True, dynamic=False)
        model.chunk_loss = torch.compile(chunk_loss, fullgraph=True, dynamic=False)


def block_runner(compute: ComputeConfig, device: torch.device) -> RunBlock:
    """Return the function to assign to `Block.run`."""
    run: RunBlock = run_plainly
    if compute.recompute is Recompute.selective:
        run = _selective
    if compute.recompute is Recompute.attention:
        run = _all_but_attention
    if compiles(compute, device):
        run = compiled(run)
    if compute.recompute is Recompute.full:
        run = Offloaded(run, device) if compute.offload else partial(_full, run)
    if compute.recompute in (Recompute.none, Recompute.auto) or compute.recompute_every == 1:
        return run
    return partial(_every, compute.recompute_every, run, block_runner(_without(compute), device))


def compiles(compute: ComputeConfig, device: torch.device) -> bool:
    """Return whether the blocks are compiled."""
    return compute.compile is Compile.on or (compute.compile is Compile.auto and device.type == "cuda")


def compiled(run: RunBlock) -> RunBlock:
    """Compile `run`: blocks with the same attention share a graph. Its code is cached for later runs."""
    with suppress(DataError):  # without a home directory the compilers use their own caches
        for name, folder in (("TORCHINDUCTOR_CACHE_DIR", "inductor"), ("TRITON_CACHE_DIR", "triton")):
            os.environ.setdefault(name, str(cache_root(None) / "compile" / folder))
    # One graph per attention, sequence length and gradient mode can exceed the default limit.
    torch._dynamo.config.recompile_limit = 64
    return torch.compile(run, fullgraph=True, dynamic=False)


def _without(compute: ComputeConfig) -> ComputeConfig:
    return ComputeConfig(precision=compute.precision, compile=compute.compile, recompute=Recompute.none)


def _every(n: int, run: RunBlock, plain: RunBlock, block: Block, x: Tensor, where: Where) -> Tensor:
    return run(block, x, where) if block.number % n == 0 else plain(block, x, where)


def _full(run: RunBlock, block: Block, x: Tensor, where: Where) -> Tensor:
    return checkpoint(run, block, x, where, use_reentrant=False, preserve_rng_state=False)


def _selective(block: Block, x: Tensor, where: Where) -> Tensor:
    return _recomputed(_policy, block, x, where)


def _all_but_attention(block: Block, x: Tensor, where: Where) -> Tensor:
    return _recomputed(_attention_policy, block, x, where)


def _recomputed(policy: Callable[..., CheckpointPolicy], block: Block, x: Tensor, where: Where) -> Tensor:
    contexts = partial(create_selective_checkpoint_contexts, policy)
    return checkpoint(
        run_plainly, block, x, where, use_reentrant=False, preserve_rng_state=False, context_fn=contexts
    )


def _policy(ctx: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    name = str(op).replace(".", "::", 1)
    keep = (name.startswith(KEPT) and not name.startswith(CHEAP)) or _is_rotated(name, args, kwargs)
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE


def _attention_policy(ctx: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    name = str(op).replace(".", "::", 1)
    keep = name.startswith(ATTENTION) and not name.startswith(CHEAP)
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE


def _is_rotated(name: str, args: tuple, kwargs: dict[str, Any]) -> bool:
    """Return whether the result is the rotated queries or keys, which attention saves anyway.

    They are the only tensors with four dimensions that a block casts to half precision. If they are saved,
    the products before the rotation need not be.
    """
    half = kwargs.get("dtype") in (torch.bfloat16, torch.float16)
    return name.startswith("aten::_to_copy") and half and args[0].dim() == 4
