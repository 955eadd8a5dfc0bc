"""Batches for the trainer: tensors on the device, and the position in the data they come from."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lhtrain.data import PADDING, SequenceOrder
from lhtrain.distributed.mesh import RankSlice
from lhtrain.stage import Stage

WHOLE = RankSlice()


class Batch(NamedTuple):
    """A micro-batch, as one rank has it. tokens and targets (B, T) int64; targets are PADDING, -100, where
    there is none. positions: (T,), where in their sequences the tokens stand; None: 0 … T - 1.

    loss_weight: the fraction of the step's targets, over all ranks, that are in this micro-batch; n_targets:
    their number.
    """

    tokens: Tensor
    targets: Tensor
    positions: Tensor | None
    loss_weight: float
    n_targets: int


class Read(NamedTuple):
    """What one rank has of a step, in host memory. tokens, targets, positions: as Batch has them, of all its
    micro-batches. n_targets: of all ranks.

    Every tensor is contiguous, and pinned for a GPU: only then a copy to the GPU does not make the host wait.
    """

    tokens: Tensor
    targets: Tensor
    positions: Tensor | None
    n_targets: int

    @classmethod
    def of(
        cls, rows: Tensor, n_targets: int, eos: int, device: torch.device, part: RankSlice = WHOLE
    ) -> "Read":
        """The rank's part of its sequences, rows (B, T + 1), with eos for PADDING in the inputs."""
        tokens, targets, positions = rows[:, :-1], rows[:, 1:], None
        if part.cp_size > 1:
            positions = part.positions(tokens.shape[1])
            tokens, targets = tokens[:, positions], targets[:, positions]
        tokens, targets = tokens.where(tokens != PADDING, eos), targets.contiguous()
        if device.type == "cuda":
            tokens, targets = tokens.pin_memory(), targets.pin_memory()
            positions = None if positions is None else positions.pin_memory()
        return cls(tokens, targets, positions, n_targets)


class Loader:
    """The micro-batches of a training step, read ahead on a thread while the step before computes.

    order: where the sequences come from. eos: the input where a sequence has no token. part: what this rank
    has of a step. What is read does not depend on whether it was read ahead: `order` is a pure function of
    the position.
    """

    def __init__(
        self,
        order: SequenceOrder,
        eos: int,
        device: torch.device,
        part: RankSlice = WHOLE,
        ahead: bool = True,
    ) -> None:
        self.order, self.eos, self.device, self.part = order, eos, device, part
        self._pool = ThreadPoolExecutor(1, "data") if ahead else None
        self._ahead: tuple[tuple[int, int, int], Future[Read]] | None = None

    def micro_batches(self, position: int, stage: Stage) -> tuple[list[Batch], int]:
        """The micro-batches of the step that starts at `position`, and the position after it.

        A stage of longer sequences than the one before may start further on: see SequenceOrder.align.
        """
        position = self.order.align(position, stage.seq_len)
        wanted = (position, stage.n_sequences, stage.seq_len)
        if self._ahead is not None and self._ahead[0] == wanted:
            read = self._ahead[1].result()
        else:  # the first step of a run or of a stage
            read = self._read(*wanted)
        position += stage.batch_tokens
        if self._pool is not None:
            following = (position, *wanted[1:])
            self._ahead = (following, self._pool.submit(self._read, *following))
        return batches(read, stage.grad_accum, self.device), position

    def close(self) -> None:
        """End the thread."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _read(self, position: int, n_sequences: int, seq_len: int) -> Read:
        mine = self.part.sequences(n_sequences)
        rows = torch.from_numpy(self.order.read(position + mine.start * seq_len, len(mine), seq_len))
        total = self.order.n_targets(position, n_sequences, seq_len)
        return Read.of(rows, total, self.eos, self.device, self.part)


def validation_batches(
    order: SequenceOrder,
    tokens: int,
    stage: Stage,
    eos: int,
    device: torch.device,
    part: RankSlice = WHOLE,
) -> Iterator[Batch]:
    """The first `tokens` of a validation split, one sequence of the longest stage or more, by micro-batch.

    Every data-parallel rank gets as many micro-batches, all of one shape, the only one for which the model is
    compiled: where sequences are missing there are rows without targets.
    """
    longest = order.block_len
    n_sequences = max(min(tokens, order.tokens_per_epoch) // longest, 1) * longest // stage.seq_len
    at_once = stage.n_sequences // stage.grad_accum // part.dp_size
    for start in range(0, n_sequences, at_once * part.dp_size):
        first = start + part.dp_rank * at_once
        count = max(min(at_once, n_sequences - first), 0)
        rows = np.full((at_once, stage.seq_len + 1), PADDING, dtype=np.int64)
        if count > 0:
            rows[:count] = order.read(first * stage.seq_len, count, stage.seq_len)
        n_targets = int((rows[:, 1:] != PADDING).sum())
        yield from batches(Read.of(torch.from_numpy(rows), n_targets, eos, device, part), 1, device)


def batches(read: Read, count: int, device: torch.device) -> list[Batch]:
    """`count` micro-batches on `device`. Copies from pinned memory are only begun."""
    positions = None if read.positions is None else read.positions.to(device, non_blocking=True)
    out = []
    for tokens, targets in zip(read.tokens.chunk(count), read.targets.chunk(count), strict=True):
        n_targets = int((targets != PADDING).sum())
        tokens, targets = (x.to(device, non_blocking=True) for x in (tokens, targets))
        out.append(Batch(tokens, targets, positions, n_targets / max(read.n_targets, 1), n_targets))
    return out
