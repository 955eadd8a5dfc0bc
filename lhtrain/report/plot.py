"""loss.png: the loss of all stages over tokens and over wall-clock time, with switches marked."""

import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lhtrain.files import written_aside
from lhtrain.text import one_line

if TYPE_CHECKING:  # matplotlib is imported where it draws: if that fails, the run continues without a plot
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SMOOTH = 50  # the bold line averages over about a 25th of a stage's logged steps
POINTS = 4000  # most points of a line; more cannot be seen
HUGE = 1e38  # larger losses are drawn at this value, because an axis needs room above them
WIDE = 1000  # ratio of the largest to the smallest loss above which the axis is logarithmic
SHARE = 0.02  # largest share of a run's time that drawing may take

Row = dict[str, Any]


class Plot:
    """Draws the rows of a run into `path`, at intervals so that drawing takes at most SHARE of the time.

    matplotlib is imported at the first drawing, which takes about a second longer, so that a run that fails
    early and a rank that draws nothing do not wait for the import.
    """

    def __init__(self, path: Path, title: str):
        self.path, self.title = path, title
        self._due = 0.0

    def renew(self, rows: list[Row]) -> bool:
        """Draw if enough time has passed since the last drawing; return whether it did."""
        began = time.monotonic()
        if began < self._due:
            return False
        try:
            self.draw(rows)
        finally:  # a drawing that fails may take long too
            now = time.monotonic()
            self._due = now + (now - began) / SHARE
        return True

    def draw(self, rows: list[Row]) -> None:
        """Draw now; do nothing if no step was logged."""
        plot_loss(rows, self.path, self.title)


def plot_loss(rows: list[Row], path: Path, title: str) -> None:
    """Draw the rows of metrics.jsonl into the PNG file `path`; do nothing if no step was logged."""
    if not any(row["kind"] == "train" for row in rows):
        return
    import matplotlib.style

    with warnings.catch_warnings(), matplotlib.style.context("default", after_reset=True):
        warnings.simplefilter("ignore")  # such as for a character that the font lacks, or an empty range
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
    right.set(xlabel="wall-clock time, seconds")
    low, high = left.dataLim.intervaly
    if low > 0 and high > WIDE * low:
        left.set_yscale("log")
    handles = left.get_legend_handles_labels()[0]
    if handles:
        legend = left.legend(handles, [f"stage {n}" for n in range(len(handles))])
        # The names are set afterwards: a legend hides labels that begin with "_", and parses "$" as math.
        for text, name in zip(legend.get_texts(), names, strict=True):
            text.set(text=one_line(name, 40), parse_math=False)
    figure.suptitle(one_line(title, 100), parse_math=False)
    return figure


def _draw(axis: "Axes", rows: list[Row], key: str) -> list[str]:
    """Draw the losses over `key`, "tokens" or "seconds".

    Each stage has its own color: a thin line for single steps and a bold line for their running mean.
    Validations are dots. Returns the names for the legend, in its order.
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
    x, loss = _points((row for row in rows if row["kind"] == "validation"), key, "average_val_loss")
    if len(x):
        axis.plot(x, loss, "kx", ms=5, label="average")
        names.append("validation, average of the weights")
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.grid(alpha=0.3)
    return names


def _by_stage(rows: list[Row]) -> list[list[Row]]:
    """Return the rows of training steps, in order, split where a stage begins; a stage may occur twice."""
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
    """Return the positions (`key`) and values (`loss`) of the finite losses in `rows`."""
    points = [(row[key], row[loss]) for row in rows if row.get(loss) is not None]
    x, y = np.array(points, dtype=float).reshape(-1, 2).T
    finite = np.isfinite(y)
    return x[finite], np.clip(y[finite], -HUGE, HUGE)


def _running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Return the means over windows of `width` values; the time does not depend on `width`."""
    scale = np.abs(values).max() or 1.0  # keeps the sums of very large losses finite
    sums = np.cumsum(np.concatenate([[0.0], values / scale]))
    return (sums[width:] - sums[:-width]) / width * scale


def _thinned(values: np.ndarray) -> np.ndarray:
    return values[:: -(-len(values) // POINTS)]


def _extremes(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reduce a line to at most POINTS points: the lowest and the highest of each part, to keep all spikes."""
    if len(x) <= POINTS:
        return x, y
    kept = []
    for part in np.array_split(np.arange(len(x)), POINTS // 2):
        kept += sorted({part[y[part].argmin()], part[y[part].argmax()]})
    return x[kept], y[kept]
