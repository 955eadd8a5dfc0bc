"""What the tasks share: how to score, the texts, the plan, and losses on long documents."""

from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean, stdev

import torch
from torch import Tensor

from lhtrain.evaluation.judge import Score
from lhtrain.evaluation.plan import Plan
from lhtrain.evaluation.texts import Passages, Texts


@dataclass
class Trial:
    """The measurement of a model under one attention.

    chooser: the trial that chooses the tokens of long_ppl. None: this one. chosen_by: its name, for readers.
    """

    score: Score
    texts: Texts
    plan: Plan
    chooser: "Trial | None" = None
    chosen_by: str = ""

    @cached_property
    def documents(self) -> Passages | None:
        """Documents that are one token longer than the context, or None if the texts are too short."""
        return self.texts.passages(self.plan.context + 1, self.plan.documents)

    @cached_property
    def beyond(self) -> "Trial | None":
        """The same measurement at a length beyond the context; None if the plan has none."""
        if self.plan.beyond is None:
            return None
        return replace(self, plan=self.plan.beyond, chooser=self.chooser and self.chooser.beyond)

    @cached_property
    def losses(self) -> Tensor:
        """Losses of `documents`, (n, context), each with all tokens before it as its context."""
        assert self.documents is not None
        return self.score(self.documents.build, self.documents.n, self.plan.context).losses


def mean(values: Tensor) -> float:
    """Return the mean of all values, summed in float64."""
    return float(values.double().mean())


def stderr(per_document: Tensor) -> float | None:
    """Return the standard error of the mean of (n,) values; None for fewer than two."""
    values = per_document.double().tolist()
    return stdev(values) / len(values) ** 0.5 if len(values) > 1 else None


def mean_of(rows: list[dict], key: str) -> float | None:
    """Return the mean of a value of result rows, each row weighted equally; None without rows."""
    return fmean(row[key] for row in rows) if rows else None


def grouped(values: Tensor, size: int) -> list[Tensor]:
    """Split (n * size, ...) values into n groups of `size`."""
    return list(torch.split(values, size))
