"""Runs a model on token sequences and returns the loss of each scored token, on one rank or several."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from lhtrain.attention.where import Attend
from lhtrain.distributed.mesh import Mesh, RankSlice
from lhtrain.evaluation.attention import At
from lhtrain.model.decoder import GPT, Block, run_plainly
from lhtrain.model.loss import IGNORE

Build = Callable[[int], np.ndarray]  # number of a sequence -> its tokens, (length + 1,) int64
AttentionAt = Callable[[int], At]  # the attention at a sequence length


class Scored(NamedTuple):
    """Measurements of the last tokens of n sequences, on the CPU, the same on every rank."""

    losses: Tensor  # (n, last) float32, in nats
    right: Tensor  # (n, last) bool: whether the token is the most likely one


class Score(Protocol):
    """What the tasks measure with. `Judge` is a model's; tests have others."""

    def __call__(
        self, build: Build, count: int, length: int, last: int | None = None, among: Tensor | None = None
    ) -> Scored:
        """Score the last tokens of `count` sequences.

        Args:
            build: returns the tokens of a sequence, length + 1: the model reads all but the last one, and
                predicts all but the first one.
            count: number of sequences.
            length: tokens that the model reads.
            last: number of predicted tokens to score, from the end; None: all `length`.
            among: (m,) int64; a token counts as right if it is the most likely one of these. None: of all.
        """
        ...


class Judge:
    """The `Score` of a model under one attention.

    Sequences are divided over the data-parallel ranks, and each over the context-parallel ranks.

    Args:
        model: the model, sharded or not.
        attention: the attention at a sequence length.
        device: of the model.
        batch_tokens: most tokens of a forward pass on a data-parallel rank, unless one sequence has more.
        mesh: how ranks share the model; None: a single rank.
    """

    def __init__(
        self,
        model: GPT,
        attention: AttentionAt,
        device: torch.device,
        batch_tokens: int,
        mesh: Mesh | None = None,
    ) -> None:
        self.model, self.attention, self.device = model, attention, device
        self.batch_tokens, self.mesh = batch_tokens, mesh
        self.part = RankSlice() if mesh is None else mesh.slice

    @torch.no_grad()
    def __call__(
        self, build: Build, count: int, length: int, last: int | None = None, among: Tensor | None = None
    ) -> Scored:
        last = length if last is None else last
        out = torch.zeros(2, count, last, device=self.device)
        at = self.attention(length)
        part = self.part if at.shared else replace(self.part, cp_rank=0, cp_size=1)
        # If every context-parallel rank has the whole sequence, the first of them gives the result.
        counts = at.shared or self.part.cp_rank == 0
        positions = part.positions(length)
        among = None if among is None else among.to(self.device)
        with plainly(self.model):
            self.model.attend_with(at.layers, at.dense, at.dense_layers, self._sliding(at.shared))
            for mine in self._batches(count, length):
                rows = torch.from_numpy(np.stack([build(number) for number in mine or (count - 1,)]))
                assert rows.shape[1] == length + 1, f"{rows.shape[1]} tokens instead of {length} + 1"
                found = self._forward(rows[:, :-1], rows[:, 1:], positions, length - last, among)
                if mine and counts:
                    columns = positions[positions >= length - last] - (length - last)
                    out[:, mine[0] : mine[-1] + 1, columns.to(self.device)] = found
        if self.mesh is not None:
            self.mesh.sum(out)  # every value was computed on one rank, and is 0 on the others
        losses, right = out.cpu()
        return Scored(losses, right > 0)

    def _sliding(self, shared: bool) -> Attend | None:
        """Return the attention of the model's sliding layers; None if it has none."""
        one_rank = self.model.sliding
        return self.mesh.attention(one_rank) if shared and self.mesh and one_rank else one_rank

    def _batches(self, count: int, length: int) -> Iterator[range]:
        """Yield the sequences of this rank's next forward pass, maybe none.

        All ranks get the same number of batches, because forward passes of sharded models are collectives.
        """
        at_once, size, rank = max(self.batch_tokens // length, 1), self.part.dp_size, self.part.dp_rank
        done = 0
        while done < count:
            each = min(at_once, -(-(count - done) // size))
            yield range(min(done + rank * each, count), min(done + (rank + 1) * each, count))
            done += each * size

    def _forward(
        self, tokens: Tensor, targets: Tensor, positions: Tensor, begin: int, among: Tensor | None
    ) -> Tensor:
        """Return losses and right answers, (2, B, n) float32, of this rank's positions from `begin` on."""
        scored = positions >= begin
        places = None if len(positions) == tokens.shape[1] else positions.to(self.device)
        tokens, targets = tokens[:, positions], targets[:, positions].where(scored, IGNORE)
        found = self.model.token_losses(tokens.to(self.device), targets.to(self.device), places, among)
        return torch.stack([found.losses, found.right.float()])[:, :, scored.to(self.device)]


@contextmanager
def plainly(model: GPT) -> Iterator[None]:
    """A context in which blocks run without a compiler, and after which the attention is as before.

    A compiler would take longer for the many lengths and batch sizes of an evaluation than the passes.
    """
    blocks = [block for block in model.blocks if isinstance(block, Block)]
    before = [(block, block.run, block.attention.attend) for block in blocks]
    try:
        for block in blocks:
            block.run = run_plainly
        yield
    finally:
        for block, run, attend in before:
            block.run, block.attention.attend = run, attend
