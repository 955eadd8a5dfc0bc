"""Comparison of values that must be the same on all ranks, before the first step.

Without it, ranks with different learning rates, data or code would train without an error, each updating its
shards differently. If the number of steps differed, some ranks would wait forever.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from lhtrain.distributed.meeting import Meeting, meet
from lhtrain.distributed.ranks import Ranks
from lhtrain.errors import RunError

REFUSAL = 30.0  # seconds that a rank that cannot start waits for the others to join
MOST_LINES = 20
MOST_CHARACTERS = 100  # of a value in the message

PROBLEM = "problem"  # the key with which a rank reports why it cannot start


class Disagreement(RunError):
    """Values differ between ranks, or a rank cannot start. All ranks raise this; only rank 0 prints it."""

    def __init__(self, message: str, of_settings: bool = False):
        super().__init__(message)
        self.of_settings = of_settings  # the settings are wrong: the exit status is 2


def agree(meeting: Meeting, mine: Mapping[str, Any], timeout: float | None = None) -> None:
    """Compare the values of all ranks by key. All ranks must call this.

    A rank that cannot start passes {PROBLEM: why} instead.

    Raises:
        Disagreement: on every rank; names the ranks, keys and values that differ, or the problems.
        PeerFailed, RunError: as `Meeting.exchange`.
    """
    everyones: list[Mapping[str, Any]] = meeting.exchange(mine, timeout)
    problems = {rank: one[PROBLEM] for rank, one in enumerate(everyones) if PROBLEM in one}
    if len(problems) == len(everyones) and len(set(problems.values())) == 1:
        raise Disagreement(problems[0], of_settings=True)
    if problems:
        found = [f"on {_names(ranks)}: {text}" for text, ranks in _by_value(problems).items()]
        raise Disagreement("\n".join(found), of_settings=True)
    if lines := differences(everyones):
        more = [f"and {len(lines) - MOST_LINES} more"] if len(lines) > MOST_LINES else []
        listed = "".join(f"\n  {line}" for line in lines[:MOST_LINES] + more)
        rule = "start all ranks with the same settings, data, code and versions"
        raise Disagreement(f"values differ between the ranks of this run; {rule}:{listed}")


def refuse(ranks: Ranks, problem: str) -> None:
    """Report to the other ranks why this rank cannot start.

    Raises Disagreement on every rank. Returns if there is only one rank, or if the others do not join.
    """
    if ranks.size == 1:
        return
    try:
        agree(meet(ranks, REFUSAL), {PROBLEM: problem}, REFUSAL)
    except Disagreement:
        raise
    except (RuntimeError, RunError):
        return


def differences(everyones: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line for each key that differs between ranks, with each value and its ranks."""
    keys = {key: None for one in everyones for key in one}
    lines = []
    for key in keys:
        values = {rank: str(one[key]) if key in one else "missing" for rank, one in enumerate(everyones)}
        if len(set(values.values())) > 1:
            parts = (f"{_text(value)} on {_names(ranks)}" for value, ranks in _by_value(values).items())
            lines.append(f"{key}: {', '.join(parts)}")
    return lines


def _by_value(values: Mapping[int, str]) -> dict[str, list[int]]:
    out: dict[str, list[int]] = {}
    for rank, value in values.items():
        out.setdefault(value, []).append(rank)
    return out


def _names(ranks: Sequence[int]) -> str:
    """[0, 2, 3, 4] -> 'ranks 0, 2-4'."""
    spans: list[list[int]] = []
    for rank in ranks:
        if spans and spans[-1][1] == rank - 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    texts = [str(first) if first == last else f"{first}-{last}" for first, last in spans]
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(texts)}"


def _text(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}…"
