"""The validation loss, and the warm-up passes that compile the model."""

import time
from collections.abc import Iterable

import torch

from lhtrain.build import Engine
from lhtrain.data import SequenceOrder
from lhtrain.loader import Apart, blank_batch, validation_batches
from lhtrain.stage import Stage


@torch.no_grad()
def validation_loss(
    engine: Engine, order: SequenceOrder, tokens: int, stage: Stage, eos: int, apart: Apart | None = None
) -> float:
    """Return the mean loss in nats over the first `tokens` of a validation split, over all ranks.

    Sequences have the length of `stage`. The model uses the attention that is set now. apart: how documents
    are kept apart; None: they are not.
    """
    mesh, device = engine.mesh, engine.mesh.world.device
    # Sum of losses and number of targets; float64, because float32 cannot count so many targets exactly.
    sums = torch.zeros(2, device=device, dtype=torch.float64)
    for batch in validation_batches(order, tokens, stage, eos, device, mesh.slice, apart):
        loss = engine.model.loss(batch.tokens, batch.targets, batch.positions, documents=batch.documents)
        sums += sums.new_tensor([loss.item() * batch.n_targets, batch.n_targets])
    loss, count = mesh.mean(sums).tolist()
    return loss / count


def warm_up(engine: Engine, stages: Iterable[Stage], z_loss: float, apart: Apart | None = None) -> float:
    """Compile the passes of `stages` by running them without an update; return the seconds that it took."""
    began = time.perf_counter()
    part, device = engine.mesh.slice, engine.mesh.world.device
    for stage in stages:
        engine.enter(stage)
        batch = blank_batch(stage, device, part, apart)
        inputs = batch.tokens, batch.targets, batch.positions
        engine.model.loss(*inputs, z_loss=z_loss, documents=batch.documents).backward()
        with torch.no_grad():
            engine.model.loss(*inputs, documents=batch.documents).item()
    engine.optimizer.zero_grad()
    return time.perf_counter() - began
