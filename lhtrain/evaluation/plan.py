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
LONG = ("loss_by_position", "gain_of_context", "long_ppl")  # tasks on documents as long as the context

Passes = Iterator[tuple[int, int]]  # (sequence length, number of sequences) of forward passes


@dataclass(frozen=True)
class Plan:
    """What is measured.

    context: sequence length of the training. lengths: of recall, passkey and copy. depths: where a sentence
    is hidden, from 0, the beginning of the text, to 1. samples: sequences for each number. longest: a length
    above the context at which the tasks of LONG are measured, too; 0: none.
    """

    tasks: tuple[str, ...]
    context: int
    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    samples: int = 4
    seed: int = 0
    longest: int = 0

    @classmethod
    def of(cls, config: EvalConfig, context: int) -> "Plan":
        """Return everything that the configuration asks for, for a model trained on `context` tokens."""
        lengths = tuple(sorted(set(config.lengths))) or default_lengths(context)
        depths, tasks = tuple(sorted(set(config.depths))), tuple(dict.fromkeys(config.tasks))
        longest = lengths[-1] if lengths[-1] > context else 0
        return cls(tasks, context, lengths, depths, config.samples, config.seed, longest)

    @property
    def beyond(self) -> "Plan | None":
        """The plan of the tasks of LONG for sequences of `longest` tokens; None if there are none."""
        return replace(self, context=self.longest, longest=0) if self.longest else None

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
        yield from self._long_passes()
        if self.beyond:
            yield from self.beyond._long_passes()
        cells = len(self.depths) * self.samples
        for length in self.lengths:
            if "recall" in self.tasks:
                yield length, len(PAIRS) * (cells + self.samples)
            if "passkey" in self.tasks:
                yield length, cells
            if "copy" in self.tasks:
                yield length, self.samples

    def _long_passes(self) -> Passes:
        if set(LONG) & set(self.tasks):
            yield self.context, self.documents
        if "gain_of_context" in self.tasks:
            yield self.short, self.documents
        if "long_ppl" in self.tasks:  # each of these passes scores half of its tokens
            yield self.short, self.documents * 2 * (self.context // self.short)


def default_lengths(context: int) -> tuple[int, ...]:
    """Return 1,024, its doubles below the context, and the context."""
    lengths, length = [], SHORTEST
    while length < context:
        lengths.append(length)
        length *= 2
    return (*lengths, context)


def fitted(plan: Plan, budget: float, cost: Callable[[Plan], float]) -> Plan | None:
    """Return `plan` with as many samples and then as many tasks as `budget` allows; None if nothing fits.

    Lengths beyond the context that only LONG measures are left out first. The first tasks are kept. All
    samples are halved before a task is left out.
    """
    if plan.longest and cost(plan) > budget:
        plan = replace(plan, longest=0)
    for count in range(len(plan.tasks), 0, -1):
        samples = plan.samples
        while samples:
            smaller = replace(plan, tasks=plan.tasks[:count], samples=samples)
            if cost(smaller) <= budget:
                return smaller
            samples //= 2
    return None
