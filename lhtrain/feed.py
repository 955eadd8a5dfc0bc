"""Batches for the trainer: tensors on the device, and the position in the data they come from."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from lhtrain.conf.schema import StageConfig
from lhtrain.data import PADDING, SequenceOrder


class Batch(NamedTuple):
    """A micro-batch. tokens and targets (B, T) int64; targets are PADDING, -100, where there is none.

    share: of the step's targets that count, those that are in this micro-batch; n_targets: their number.
    """

    tokens: Tensor
    targets: Tensor
    share: float
    n_targets: int


class Feed:
    """The micro-batches of a training step, read ahead on a thread while the step before computes.

    order: where the sequences come from. eos: what stands where a sequence has no token.
    What is read does not depend on whether it was read ahead: `order` is a pure function of the position.
    """

    def __init__(self, order: SequenceOrder, eos: int, device: torch.device, ahead: bool = True) -> None:
        self.order, self.eos, self.device = order, eos, device
        self._pool = ThreadPoolExecutor(1, "data") if ahead else None
        self._ahead: tuple[tuple[int, int, int], Future[Tensor]] | None = None

    def micro_batches(self, position: int, stage: StageConfig) -> tuple[list[Batch], int]:
        """The micro-batches of the step that starts at `position`, and the position after it.

        A stage of longer sequences than the one before may start further on: see SequenceOrder.align.
        """
        position = self.order.align(position, stage.seq_len)
        wanted = (position, stage.batch_tokens // stage.seq_len, stage.seq_len)
        if self._ahead is not None and self._ahead[0] == wanted:
            rows = self._ahead[1].result()
        else:  # the first step of a run or of a stage
            rows = self._read(*wanted)
        position += stage.batch_tokens
        if self._pool is not None:
            following = (position, *wanted[1:])
            self._ahead = (following, self._pool.submit(self._read, *following))
        return batches(rows, stage.grad_accum, self.eos, self.device), position

    def close(self) -> None:
        """End the thread."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _read(self, position: int, n_sequences: int, seq_len: int) -> Tensor:
        rows = torch.from_numpy(self.order.read(position, n_sequences, seq_len))
        return rows.pin_memory() if self.device.type == "cuda" else rows


def validation_batches(
    order: SequenceOrder, tokens: int, stage: StageConfig, eos: int, device: torch.device
) -> Iterator[Batch]:
    """The first `tokens` of a validation split, one sequence of the longest stage or more, by micro-batch."""
    longest = order.block_len
    n_sequences = max(min(tokens, order.tokens_per_epoch) // longest, 1) * longest // stage.seq_len
    at_once = stage.batch_tokens // stage.seq_len // stage.grad_accum
    for start in range(0, n_sequences, at_once):
        count = min(at_once, n_sequences - start)
        rows = torch.from_numpy(order.read(start * stage.seq_len, count, stage.seq_len))
        yield from batches(rows, 1, eos, device)


def batches(rows: Tensor, count: int, eos: int, device: torch.device) -> list[Batch]:
    """Sequences (B, T + 1) -> `count` micro-batches on `device`, the inputs without PADDING."""
    out = []
    total = max(int((rows[:, 1:] != PADDING).sum()), 1)
    for part in rows.chunk(count):
        n_targets = int((part[:, 1:] != PADDING).sum())
        part = part.to(device, non_blocking=True)
        tokens, targets = part[:, :-1], part[:, 1:]
        tokens = torch.where(tokens == PADDING, eos, tokens)
        out.append(Batch(tokens, targets, n_targets / total, n_targets))
    return out
