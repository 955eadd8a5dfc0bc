"""One optimizer step: forward and backward over the micro-batches, clip, update."""

from typing import NamedTuple

import torch
from torch import Tensor

from lhtrain.conf.schema import OptimConfig
from lhtrain.distributed.mesh import Mesh, clip_grad_norm
from lhtrain.loader import Batch
from lhtrain.model.decoder import GPT
from lhtrain.model.optimizer import Optimizer


class Measured(NamedTuple):
    """The results of a step, scalars left on the device. loss: mean over the step's targets, of all ranks,
    with its z-loss. grad_norm: before clipping. skipped: 1.0 where something was not finite, so that nothing
    was updated."""

    loss: Tensor
    grad_norm: Tensor
    skipped: Tensor


def update(
    model: GPT, optimizer: Optimizer, batches: list[Batch], lr: float, optim: OptimConfig, mesh: Mesh
) -> Measured:
    """Take one step. The host waits for nothing: the device decides whether the update is skipped."""
    total = torch.zeros((), device=batches[0].tokens.device)
    for number, batch in enumerate(batches, 1):
        mesh.accumulates(model, last=number == len(batches))
        loss = model.loss(batch.tokens, batch.targets, batch.positions, z_loss=optim.z_loss)
        # Gradients are averaged over the loss ranks, where the step's loss is a sum over them.
        loss = loss * (batch.loss_weight * mesh.n_loss_ranks)
        loss.backward()
        total += loss.detach()
    total = mesh.mean(total)
    grad_norm = clip_grad_norm(model.parameters(), optim.clip_norm)
    skipped = (~(total.isfinite() & grad_norm.isfinite())).float()
    optimizer.step(lr, skipped)
    optimizer.zero_grad()
    return Measured(total, grad_norm, skipped)
