"""loss.png: the loss of all stages against tokens and against wall-clock, switches marked."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

SMOOTH = 50  # the bold line averages over about a 25th of a stage's logged steps


def plot_loss(rows: list[dict[str, Any]], path: Path, title: str) -> None:
    """Draw the rows of metrics.jsonl into `path`; nothing if no step was logged."""
    if not any(row["kind"] == "train" for row in rows):
        return
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _draw(left, rows, "tokens")
    _draw(right, rows, "seconds")
    left.set(xlabel="tokens", ylabel="loss, nats per token")
    right.set(xlabel="wall-clock, seconds")
    left.legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=110)


def _draw(axis: Axes, rows: list[dict[str, Any]], key: str) -> None:
    """Each stage in its colour: single steps thin, their running mean bold; validations as dots."""
    for number, stage in enumerate(dict.fromkeys(row["stage"] for row in rows)):
        points = [(row[key], row["loss"]) for row in rows if row["kind"] == "train" and row["stage"] == stage]
        if not points:  # stopped right after the switch
            continue
        x, loss = np.array(points).T
        color = f"C{number}"
        axis.plot(x, loss, lw=0.6, alpha=0.4, color=color)
        width = 2 * (len(x) // SMOOTH) + 1
        mean = [np.convolve(values, np.full(width, 1 / width), "valid") for values in (x, loss)]
        axis.plot(*mean, lw=1.4, color=color, label=stage)
        if number:
            axis.axvline(x[0], color="0.4", lw=0.8, ls="--")
    validation = [(row[key], row["val_loss"]) for row in rows if row["kind"] == "validation"]
    if validation:
        axis.plot(*np.array(validation).T, "k.", ms=5, label="validation")
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.grid(alpha=0.3)
