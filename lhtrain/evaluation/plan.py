"""What is measured: tasks, sequence lengths and numbers of sequences. Does not import torch."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from lhtrain.conf.schema import EvalConfig

SHORTEST = 1024  # the shortest length by default
SHORT = 4096  # tokens of a short context
TAIL = 1024  # last tokens of a document, with which contexts are compared
LAST = 2048  # last tokens of a document whose loss is shown; a quarter of a shorter document
PAIRS = (1, 4, 16)  # numbers of hidden pairs of key and value
DOCUMENTS = 4  # long documents per sample

Passes = Iterator[tuple[int, int]]  # (sequence length, number of sequences) of forward passes


@dataclass(frozen=True)
class Plan:
    """What is measured.

    context: sequence length of the training. lengths: of recall, passkey and copy. depths: where a sentence
    is hidden, from 0, the beginning of the text, to 1. samples: sequences for each number.
    """

    tasks: tuple[str, ...]
    context: int
    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    samples: int = 4
    seed: int = 0

    @classmethod
    def of(cls, config: EvalConfig, context: int) -> "Plan":
        """Return everything that the configuration asks for, for a model trained on `context` tokens."""
        lengths = tuple(sorted(set(config.lengths))) or default_lengths(context)
        depths = tuple(sorted(set(config.depths)))
        return cls(tuple(dict.fromkeys(config.tasks)), context, lengths, depths, config.samples, config.seed)

    @property
    def short(self) -> int:
        """Tokens of a short context: 4,096, or half of a context that is not twice as long."""
        return min(SHORT, self.context // 2)

    @property
    def tail(self) -> int:
        """Last tokens, with which contexts are compared: 1,024, or a quarter of a shorter short context."""
        return min(TAIL, self.short // 4)

    @property
    def documents(self) -> int:
        return DOCUMENTS * self.samples

    def passes(self) -> Passes:
        """Yield all forward passes under one attention."""
        cells = len(self.depths) * self.samples
        if {"loss_by_position", "gain_of_context", "long_ppl"} & set(self.tasks):
            yield self.context, self.documents
        if "gain_of_context" in self.tasks:
            yield self.short, self.documents
        if "long_ppl" in self.tasks:  # each of these passes scores half of its tokens
            yield self.short, self.documents * 2 * (self.context // self.short)
        for length in self.lengths:
            if "recall" in self.tasks:
                yield length, len(PAIRS) * (cells + self.samples)
            if "passkey" in self.tasks:
                yield length, cells
            if "copy" in self.tasks:
                yield length, self.samples


def default_lengths(context: int) -> tuple[int, ...]:
    """Return 1,024, its doubles below the context, and the context."""
    lengths, length = [], SHORTEST
    while length < context:
        lengths.append(length)
        length *= 2
    return (*lengths, context)


def fitted(plan: Plan, budget: float, cost: Callable[[Plan], float]) -> Plan | None:
    """Return `plan` with as many samples and then as many tasks as `budget` allows; None if nothing fits.

    The first tasks are kept. All samples are halved before a task is left out.
    """
    for count in range(len(plan.tasks), 0, -1):
        samples = plan.samples
        while samples:
            smaller = replace(plan, tasks=plan.tasks[:count], samples=samples)
            if cost(smaller) <= budget:
                return smaller
            samples //= 2
    return None
