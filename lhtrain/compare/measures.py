"""How much faster one run reaches a loss than another, and which loss each has at the same time."""

from itertools import pairwise
from typing import NamedTuple

from lhtrain.compare.curve import Point


class Reached(NamedTuple):
    """Where on an axis a run reached a loss. at_most: there or before, at its first validation."""

    x: float
    at_most: bool = False


class SpeedUp(NamedTuple):
    """How many times sooner than the baseline a run reached `loss`. at_least: the factor may be larger."""

    loss: float
    factor: float
    at_least: bool = False


def reached(points: list[Point], loss: float, axis: str) -> Reached | None:
    """Return where the loss of `points` is first at or below `loss`; None if it never is.

    Between two validations the loss is taken to be linear.
    """
    for number, point in enumerate(points):
        if point.value > loss:
            continue
        x = getattr(point, axis)
        if number == 0:
            return Reached(x, at_most=True)
        before = points[number - 1]
        share = (before.value - loss) / (before.value - point.value)
        return Reached(getattr(before, axis) + share * (x - getattr(before, axis)))
    return None


def speed_up(baseline: list[Point], other: list[Point], axis: str = "seconds") -> SpeedUp | None:
    """Return how many times sooner `other` reached the lowest loss that both reached.

    None if one of them has no validation, or if the baseline's first validation already has that loss: then
    the time that the baseline needed is not known.
    """
    if not baseline or not other:
        return None
    loss = max(min(point.value for point in points) for points in (baseline, other))
    first, second = reached(baseline, loss, axis), reached(other, loss, axis)
    if first is None or second is None or first.at_most or second.x <= 0:
        return None
    return SpeedUp(loss, first.x / second.x, second.at_most)


def loss_at(points: list[Point], x: float, axis: str = "seconds") -> float | None:
    """Return the loss at `x`, linear between two validations; None before the first and after the last."""
    for before, after in pairwise(points):
        low, high = getattr(before, axis), getattr(after, axis)
        if low <= x <= high and high > low:
            return before.value + (x - low) / (high - low) * (after.value - before.value)
    return points[-1].value if points and getattr(points[-1], axis) == x else None
