"""One optimizer step: forward and backward over the micro-batches, clip, update."""

from typing import NamedTuple

import torch
from torch import Tensor

from lhtrain.compute.graphs import Inputs, Passes, plain_passes
from lhtrain.conf.schema import OptimConfig
from lhtrain.distributed.mesh import Mesh, clip_grad_norm
from lhtrain.loader import Batch
from lhtrain.model.decoder import GPT
from lhtrain.model.optimizer import Optimizer
from lhtrain.profiler import Span, no_span


class Measured(NamedTuple):
    """The results of a step: float scalars that stay on the device."""

    loss: Tensor  # mean over the targets of all ranks, with z-loss
    grad_norm: Tensor  # before clipping
    skipped: Tensor  # 1.0 if the loss or a gradient was not finite, so that nothing was updated; else 0.0


def update(
    model: GPT,
    optimizer: Optimizer,
    batches: list[Batch],
    lr: float,
    optim: OptimConfig,
    mesh: Mesh,
    span: Span = no_span,
    passes: Passes = plain_passes,
) -> Measured:
    """Do one step. The host does not wait for the device, which decides whether to skip the update.

    span: marks the parts of the step in a trace. passes: the forward and backward pass of a micro-batch.
    """
    total = torch.zeros((), device=batches[0].tokens.device)
    for number, batch in enumerate(batches, 1):
        mesh.accumulates(model, last=number == len(batches))
        inputs = Inputs(batch.tokens, batch.targets, batch.positions, batch.documents)
        # The step's loss is a sum over the loss ranks, but gradients are averaged: hence this factor.
        total += passes(model, inputs, batch.loss_weight * mesh.n_loss_ranks, optim.z_loss, span)
    with span("clip"):
        total = mesh.mean(total)
        grad_norm = clip_grad_norm(model.parameters(), optim.clip_norm)
    with span("optimizer"):
        skipped = (~(total.isfinite() & grad_norm.isfinite())).float()
        optimizer.step(lr, skipped)
        optimizer.zero_grad()
    return Measured(total, grad_norm, skipped)
