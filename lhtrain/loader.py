"""Batches for the trainer: tensors on the device, and the position in the data after them."""

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
    """The part of a micro-batch on one rank."""

    tokens: Tensor  # (B, T) int64
    targets: Tensor  # (B, T) int64; PADDING (-100) at positions without a target
    positions: Tensor | None  # (T,) positions of the tokens in their sequences; None: 0 … T - 1
    loss_weight: float  # n_targets divided by the number of targets of the step, over all ranks
    n_targets: int  # number of targets in this part


class Read(NamedTuple):
    """The part of a step on one rank, in host memory.

    tokens, targets and positions are as in Batch, for all micro-batches together. n_targets counts all ranks.
    Every tensor is contiguous, and pinned for a GPU; otherwise the host would wait for the copy to the GPU.
    """

    tokens: Tensor
    targets: Tensor
    positions: Tensor | None
    n_targets: int

    @classmethod
    def of(
        cls, rows: Tensor, n_targets: int, eos: int, device: torch.device, part: RankSlice = WHOLE
    ) -> "Read":
        """Split rows (B, T + 1) into inputs and targets and return the part of this rank.

        In the inputs, eos replaces PADDING.
        """
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
    """Returns the micro-batches of each training step; a thread reads the next step during the current one.

    Reading ahead does not change the data, because `order` is a pure function of the position.

    Args:
        order: gives the sequences of a position.
        eos: the input token at positions without a token.
        device: the device of the batches.
        part: the part of a step that this rank has.
        ahead: read the next step on a thread.
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
        """Return the micro-batches of the step that starts at `position`, and the position after it.

        After a change to longer sequences the step may start at a later position: see SequenceOrder.align.
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
    """Yield the first `tokens` of a validation split as micro-batches, but at least one longest sequence.

    Every data-parallel rank gets the same number of micro-batches with the same shape, because the model is
    compiled for this shape only. Rows without targets replace missing sequences.
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
    """Divide `read` into `count` micro-batches on `device`. Copies from pinned memory are asynchronous."""
    positions = None if read.positions is None else read.positions.to(device, non_blocking=True)
    out = []
    for tokens, targets in zip(read.tokens.chunk(count), read.targets.chunk(count), strict=True):
        n_targets = int((targets != PADDING).sum())
        tokens, targets = (x.to(device, non_blocking=True) for x in (tokens, targets))
        out.append(Batch(tokens, targets, positions, n_targets / max(read.n_targets, 1), n_targets))
    return out
