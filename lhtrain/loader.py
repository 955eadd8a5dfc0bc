"""Batches for the trainer: tensors on the device, and the position in the data after them."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from lhtrain.attention.documents import Documents, documents_of, positions_in_documents
from lhtrain.data import PADDING, SequenceOrder
from lhtrain.distributed.mesh import RankSlice
from lhtrain.stage import Stage

WHOLE = RankSlice()
MULTIPLE = 16  # of the largest number of documents in a sequence


Split = tuple[Tensor, list[Documents]]  # targets (B, T), and the documents of each micro-batch


class Batch(NamedTuple):
    """The part of a micro-batch on one rank."""

    tokens: Tensor  # (B, T) int64
    targets: Tensor  # (B, T) int64; PADDING (-100) at positions without a target
    # (T,) positions of the tokens in their sequences, or (B, T) in their documents; None: 0 … T - 1
    positions: Tensor | None
    loss_weight: float  # n_targets divided by the number of targets of the step, over all ranks
    n_targets: int  # number of targets in this part
    documents: Documents | None = None  # None: tokens attend to all documents of their sequence


@dataclass(frozen=True)
class Apart:
    """How batches keep documents apart (data.documents=apart).

    most: sequence length -> the largest number of documents in a sequence. It is the same in the whole run,
        for training and validation, so that nothing is compiled again.
        Data that are tokenized during training may need more later, and then the number grows.
    share: sequence length -> the share of pairs of tokens that are of one document, for counting FLOPs.
    restarted: positions count in each document.
    """

    most: dict[int, int]
    share: Mapping[int, float]
    restarted: bool = False

    @classmethod
    def of(cls, orders: Sequence[SequenceOrder], seq_lens: set[int], restarted: bool) -> "Apart":
        """Return the numbers for these orders, of which the first is that of the training data.

        `most` is rounded up, so that a little more data does not change it.
        """
        found = {n: max(order.most_documents(n) for order in orders) for n in seq_lens}
        most = {n: min(-(-count // MULTIPLE) * MULTIPLE, n) for n, count in found.items()}
        return cls(most, {n: orders[0].share_of_pairs(n) for n in seq_lens}, restarted)

    def split(self, rows: Tensor, begins: Sequence[np.ndarray], count: int) -> Split:
        """Return the targets and the documents of rows (B, T + 1), in `count` micro-batches.

        begins: as `SequenceOrder.documents` returns them. The first token of a document is no target.
        """
        seq_len, size = rows.shape[1] - 1, len(rows) // count
        targets = rows[:, 1:].clone()
        for row, begin in zip(targets, begins, strict=True):
            row[torch.from_numpy(begin[1:] - 1)] = PADDING
        inside = [begin[begin < seq_len].tolist() for begin in begins]
        found = max((len({0, *one}) for one in inside), default=0)
        if found > self.most[seq_len]:
            self.most[seq_len] = min(-(-2 * found // MULTIPLE) * MULTIPLE, seq_len)
        parts = (inside[first : first + size] for first in range(0, len(rows), size))
        return targets, [documents_of(part, seq_len, self.most[seq_len]) for part in parts]


class Read(NamedTuple):
    """The part of a step on one rank, in host memory.

    tokens, targets and positions (T,) are as in Batch, for all micro-batches together. n_targets counts all
    ranks. documents: those of each micro-batch; None: not kept apart. Every tensor is contiguous, and pinned
    for a GPU; otherwise the host would wait for the copy to the GPU.
    """

    tokens: Tensor
    targets: Tensor
    positions: Tensor | None
    n_targets: int
    documents: list[Documents] | None = None

    @classmethod
    def of(
        cls,
        rows: Tensor,
        n_targets: int,
        eos: int,
        device: torch.device,
        part: RankSlice = WHOLE,
        apart: "Split | None" = None,
    ) -> "Read":
        """Split rows (B, T + 1) into inputs and targets and return the part of this rank.

        In the inputs, eos replaces PADDING. apart: the targets and documents of these rows, if they differ.
        """
        tokens, targets, positions = rows[:, :-1], rows[:, 1:], None
        documents = None
        if apart is not None:
            targets, documents = apart
        if part.cp_size > 1:
            positions = part.positions(tokens.shape[1])
            tokens, targets = tokens[:, positions], targets[:, positions]
            if documents is not None:
                documents = [Documents(starts[:, positions], bounds) for starts, bounds in documents]
        tokens, targets = tokens.where(tokens != PADDING, eos), targets.contiguous()
        if device.type == "cuda":
            tokens, targets = tokens.pin_memory(), targets.pin_memory()
            positions = None if positions is None else positions.pin_memory()
            if documents is not None:
                documents = [Documents(*(x.pin_memory() for x in one)) for one in documents]
        return cls(tokens, targets, positions, n_targets, documents)


class Loader:
    """Returns the micro-batches of each training step; a thread reads the next step during the current one.

    Reading ahead does not change the data, because `order` is a pure function of the position.

    Args:
        order: gives the sequences of a position.
        eos: the input token at positions without a token.
        device: the device of the batches.
        part: the part of a step that this rank has.
        apart: how documents are kept apart; None: they are not.
        ahead: read the next step on a thread.
    """

    def __init__(
        self,
        order: SequenceOrder,
        eos: int,
        device: torch.device,
        part: RankSlice = WHOLE,
        apart: Apart | None = None,
        ahead: bool = True,
    ) -> None:
        self.order, self.eos, self.device, self.part, self.apart = order, eos, device, part, apart
        self._pool = ThreadPoolExecutor(1, "data") if ahead else None
        self._ahead: tuple[tuple[int, int, int, int], Future[Read]] | None = None

    def use(self, order: SequenceOrder) -> None:
        """Read in another order from now on."""
        self.order, self._ahead = order, None

    def micro_batches(self, position: int, stage: Stage) -> tuple[list[Batch], int]:
        """Return the micro-batches of the step that starts at `position`, and the position after it.

        After a change to longer sequences the step may start at a later position: see SequenceOrder.align.
        """
        position = self.order.align(position, stage.seq_len)
        wanted = (position, stage.n_sequences, stage.seq_len, stage.grad_accum)
        if self._ahead is not None and self._ahead[0] == wanted:
            read = self._ahead[1].result()
        else:  # the first step of a run or of a stage
            read = self._read(self.order, *wanted)
        position += stage.batch_tokens
        if self._pool is not None:
            following = (position, *wanted[1:])
            self._ahead = (following, self._pool.submit(self._read, self.order, *following))
        return batches(read, stage.grad_accum, self.device, self.apart), position

    def close(self) -> None:
        """End the thread, and the processes that tokenize for it."""
        self.order.close()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, order: SequenceOrder, position: int, n_sequences: int, seq_len: int, count: int) -> Read:
        mine = self.part.sequences(n_sequences)
        where = position + mine.start * seq_len, len(mine), seq_len
        rows = torch.from_numpy(order.read(*where))
        total = order.n_targets(position, n_sequences, seq_len)
        kept = None if self.apart is None else self.apart.split(rows, order.documents(*where), count)
        return Read.of(rows, total, self.eos, self.device, self.part, kept)


def validation_batches(
    order: SequenceOrder,
    tokens: int,
    stage: Stage,
    eos: int,
    device: torch.device,
    part: RankSlice = WHOLE,
    apart: Apart | None = None,
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
        begins = [np.zeros(1, dtype=np.int64)] * at_once
        if count > 0:
            where = first * stage.seq_len, count, stage.seq_len
            rows[:count] = order.read(*where)
            begins[:count] = order.documents(*where)
        wanted = torch.from_numpy(rows)
        kept = None if apart is None else apart.split(wanted, begins, 1)
        n_targets = int(((wanted[:, 1:] if kept is None else kept[0]) != PADDING).sum())
        yield from batches(Read.of(wanted, n_targets, eos, device, part, kept), 1, device, apart)


def batches(read: Read, count: int, device: torch.device, apart: Apart | None = None) -> list[Batch]:
    """Divide `read` into `count` micro-batches on `device`. Copies from pinned memory are asynchronous."""
    positions = None if read.positions is None else read.positions.to(device, non_blocking=True)
    of_batches: list[Documents] | list[None] = read.documents or [None] * count
    out = []
    for tokens, targets, documents in zip(
        read.tokens.chunk(count), read.targets.chunk(count), of_batches, strict=True
    ):
        n_targets = int((targets != PADDING).sum())
        tokens, targets = (x.to(device, non_blocking=True) for x in (tokens, targets))
        here = positions
        if documents is not None:
            documents = Documents(*(x.to(device, non_blocking=True) for x in documents))
            if apart is not None and apart.restarted:
                here = positions_in_documents(documents.starts, positions)
        share = n_targets / max(read.n_targets, 1)
        out.append(Batch(tokens, targets, here, share, n_targets, documents))
    return out


def blank_batch(
    stage: Stage, device: torch.device, part: RankSlice = WHOLE, apart: Apart | None = None
) -> Batch:
    """Return a micro-batch of `stage` with the shapes that the loader gives, for passes that compile."""
    n_sequences = stage.n_sequences // stage.grad_accum // part.dp_size
    rows = torch.zeros(n_sequences, stage.seq_len + 1, dtype=torch.int64)
    begins = [np.zeros(1, dtype=np.int64)] * n_sequences
    kept = None if apart is None else apart.split(rows, begins, 1)
    return batches(Read.of(rows, rows[:, 1:].numel(), 0, device, part, kept), 1, device, apart)[0]
