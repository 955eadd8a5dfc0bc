"""loss.png: the loss of all stages against tokens and against wall-clock, switches marked."""

import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lhtrain.files import written_aside
from lhtrain.text import one_line

if TYPE_CHECKING:  # importing matplotlib may fail, and a run without a plot is still a run
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SMOOTH = 50  # the bold line averages over about a 25th of a stage's logged steps
POINTS = 4000  # of a line; more cannot be seen
HUGE = 1e38  # losses beyond are drawn there: an axis needs room above them
WIDE = 1000  # between the largest and the smallest loss: then a logarithmic axis shows both
SHARE = 0.02  # of a run's time that drawing may take

Row = dict[str, Any]


class Plot:
    """Draws the rows of a run into `path`, so rarely that drawing takes at most SHARE of its time.

    matplotlib is imported by the first drawing, which takes about a second longer: a run that fails early, or
    a rank that draws nothing, does not pay for it.
    """

    def __init__(self, path: Path, title: str):
        self.path, self.title = path, title
        self._due = 0.0

    def renew(self, rows: list[Row]) -> bool:
        """Draw, if enough time has passed since the last time; returns whether it did."""
        began = time.monotonic()
        if began < self._due:
            return False
        try:
            self.draw(rows)
        finally:  # a drawing that fails may be slow too
            now = time.monotonic()
            self._due = now + (now - began) / SHARE
        return True

    def draw(self, rows: list[Row]) -> None:
        """Draw now; nothing if no step was logged."""
        plot_loss(rows, self.path, self.title)


def plot_loss(rows: list[Row], path: Path, title: str) -> None:
    """Draw the rows of metrics.jsonl into `path`; nothing if no step was logged."""
    if not any(row["kind"] == "train" for row in rows):
        return
    import matplotlib.style

    with warnings.catch_warnings(), matplotlib.style.context("default", after_reset=True):
        warnings.simplefilter("ignore")  # a character that the font lacks, a range of one point
        figure = _figure(rows, title)
        with written_aside(path, durable=False) as stream:
            figure.savefig(stream, format="png", dpi=110)


def _figure(rows: list[Row], title: str) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    names = _draw(left, rows, "tokens")
    _draw(right, rows, "seconds")
    left.set(xlabel="tokens", ylabel="loss, nats per token")
    right.set(xlabel="wall-clock, seconds")
    low, high = left.dataLim.intervaly
    if low > 0 and high > WIDE * low:
        left.set_yscale("log")
    handles = left.get_legend_handles_labels()[0]
    if handles:
        legend = left.legend(handles, [f"stage {n}" for n in range(len(handles))])
        # Set afterwards: a legend hides labels that begin with "_", and reads "$" as mathematics.
        for text, name in zip(legend.get_texts(), names, strict=True):
            text.set(text=one_line(name, 40), parse_math=False)
    figure.suptitle(one_line(title, 100), parse_math=False)
    return figure


def _draw(axis: "Axes", rows: list[Row], key: str) -> list[str]:
    """Each stage in its colour: single steps thin, their running mean bold; validations as dots.

    Returns the names of what was drawn, in the legend's order.
    """
    from matplotlib.ticker import EngFormatter

    names = []
    for number, train in enumerate(_by_stage(rows)):
        x, loss = _points(train, key, "loss")
        if not len(x):
            continue
        color = f"C{number % 10}"
        axis.plot(*_extremes(x, loss), lw=0.6, alpha=0.4, color=color)
        width = 2 * (len(x) // SMOOTH) + 1
        mean = [_thinned(_running_mean(values, width)) for values in (x, loss)]
        axis.plot(*mean, lw=1.4, color=color, label="stage", marker="" if len(x) > 1 else ".")
        names.append(str(train[0]["stage"]))
        if number:
            axis.axvline(x[0], color="0.4", lw=0.8, ls="--")
    x, loss = _points((row for row in rows if row["kind"] == "validation"), key, "val_loss")
    if len(x):
        axis.plot(x, loss, "k.", ms=5, label="validation")
        names.append("validation")
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.grid(alpha=0.3)
    return names


def _by_stage(rows: list[Row]) -> list[list[Row]]:
    """The rows of training steps, in order, split where a stage begins; a stage may come twice."""
    stages: list[list[Row]] = []
    switched = True
    for row in rows:
        if row["kind"] == "switch":
            switched = True
        if row["kind"] == "train":
            if switched or row["stage"] != stages[-1][-1]["stage"]:
                stages.append([])
            stages[-1].append(row)
            switched = False
    return stages


def _points(rows: Iterable[Row], key: str, loss: str) -> tuple[np.ndarray, np.ndarray]:
    """The finite losses of `rows` and where they lie."""
    points = [(row[key], row[loss]) for row in rows if row.get(loss) is not None]
    x, y = np.array(points, dtype=float).reshape(-1, 2).T
    finite = np.isfinite(y)
    return x[finite], np.clip(y[finite], -HUGE, HUGE)


def _running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Over windows of `width` values, in time that does not depend on it."""
    scale = np.abs(values).max() or 1.0  # keeps sums of huge losses finite
    sums = np.cumsum(np.concatenate([[0.0], values / scale]))
    return (sums[width:] - sums[:-width]) / width * scale


def _thinned(values: np.ndarray) -> np.ndarray:
    return values[:: -(-len(values) // POINTS)]


def _extremes(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most POINTS points: of each stretch the lowest and the highest, so that a spike is never lost."""
    if len(x) <= POINTS:
        return x, y
    kept = []
    for part in np.array_split(np.arange(len(x)), POINTS // 2):
        kept += sorted({part[y[part].argmin()], part[y[part].argmax()]})
    return x[kept], y[kept]
