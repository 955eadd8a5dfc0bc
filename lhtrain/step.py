"""One optimizer step: forward and backward over the micro-batches, clip, AdamW."""

from typing import NamedTuple

import torch
from torch import Tensor

from lhtrain.conf.schema import OptimConfig
from lhtrain.distributed.mesh import Parallel, clip_grad_norm
from lhtrain.loader import Batch
from lhtrain.model.decoder import GPT


class Measured(NamedTuple):
    """What a step measured, scalars left on the device. loss: mean over the step's targets, of all ranks,
    with its z-loss. grad_norm: before clipping. skipped: 1.0 where something was not finite, so that nothing
    was updated."""

    loss: Tensor
    grad_norm: Tensor
    skipped: Tensor


def update(
    model: GPT,
    optimizer: torch.optim.Optimizer,
    batches: list[Batch],
    lr: float,
    optim: OptimConfig,
    parallel: Parallel,
) -> Measured:
    """Take one step. Waits for nothing: whether to leave the update out is decided on the device."""
    world = parallel.world
    total = torch.zeros((), device=batches[0].tokens.device)
    for number, batch in enumerate(batches, 1):
        parallel.accumulates(model, last=number == len(batches))
        loss = model.loss(batch.tokens, batch.targets, batch.positions, z_loss=optim.z_loss)
        # Gradients are averaged over ranks, where the step's loss is a sum over them.
        loss = loss * (batch.share * world.size)
        loss.backward()
        total += loss.detach()
    total = world.mean(total)
    grad_norm = clip_grad_norm(model.parameters(), optim.clip_norm)
    skipped = (~(total.isfinite() & grad_norm.isfinite())).float()
    optimizer.found_inf = skipped  # type: ignore[attr-defined]  # as torch.amp.GradScaler hands it over
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return Measured(total, grad_norm, skipped)
