"""The tables and heat maps of an evaluation, for trackers."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lhtrain.conf.rules.evaluation import ATTENTIONS
from lhtrain.text import counted, dict_at, dicts_at, number_at

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Tasks over length and depth: the key of their share from 0 to 1, and a title.
SHARES = {
    "recall": ("exact", "Recall, {pairs}: share that is exact"),
    "passkey": ("accuracy", "Pass key: share that is right"),
}


class Cells(NamedTuple):
    """A table. name: ATTENTION/TASK."""

    name: str
    columns: list[str]
    rows: list[list[Any]]


class HeatMap(NamedTuple):
    """Shares from 0 to 1, a row for each length, a column for each depth. None: not measured.

    name: TASK, or TASK_PAIRS where pairs are hidden.
    """

    name: str
    title: str
    lengths: list[int]
    depths: list[float]
    shares: list[list[float | None]]


def tables(result: dict[str, Any]) -> Iterator[Cells]:
    """Yield the tables in the content of eval.json: a row for each cell or bucket of a task."""
    for attention in ATTENTIONS:
        for task, measured in (result.get(attention) or {}).items():
            rows = measured.get("cells") or measured.get("buckets") if isinstance(measured, dict) else None
            if rows:
                columns = list(rows[0])
                yield Cells(
                    f"{attention}/{task}", columns, [[row.get(key) for key in columns] for row in rows]
                )


def heat_maps(of_attention: dict[str, Any]) -> Iterator[HeatMap]:
    """Yield a heat map for each task over length and depth, one for each number of pairs.

    of_attention: the results under one attention. Cells that are damaged are left out.
    """
    for task, (key, title) in SHARES.items():
        for pairs, cells in _by_pairs(dicts_at(dict_at(of_attention, task), "cells")).items():
            name = task if pairs is None else f"{task}_{pairs:.0f}"
            title_here = title.format(pairs=counted(int(pairs or 0), "pair"))
            if found := _heat_map(name, title_here, cells, key):
                yield found


def _by_pairs(cells: list[dict[str, Any]]) -> dict[float | None, list[dict[str, Any]]]:
    groups: dict[float | None, list[dict[str, Any]]] = {}
    for cell in cells:
        groups.setdefault(number_at(cell, "pairs"), []).append(cell)
    return groups


def _heat_map(name: str, title: str, cells: list[dict[str, Any]], key: str) -> HeatMap | None:
    shares = {}
    for cell in cells:
        length, depth, share = (number_at(cell, of) for of in ("length", "depth", key))
        if length is not None and depth is not None and share is not None:
            shares[int(length), depth] = min(max(share, 0.0), 1.0)
    if not shares:
        return None
    lengths = sorted({length for length, _ in shares})
    depths = sorted({depth for _, depth in shares})
    return HeatMap(name, title, lengths, depths, [[shares.get((n, d)) for d in depths] for n in lengths])


def pictures(result: dict[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the heat maps in the content of eval.json: ATTENTION/NAME, image (height, width, 3) uint8."""
    for attention in ATTENTIONS:
        for heat_map in heat_maps(result.get(attention) or {}):
            yield f"{attention}/{heat_map.name}", picture(heat_map, f"{attention}/{heat_map.name}")


def picture(heat_map: HeatMap, title: str) -> np.ndarray:
    """Draw a heat map; return the image, (height, width, 3) uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(_figure(heat_map, title))
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _figure(heat_map: HeatMap, title: str) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    shares = np.array(heat_map.shares, dtype=float)  # NaN where nothing was measured
    axes.imshow(shares, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
    axes.set(xlabel="depth", ylabel="length in tokens", title=title)
    axes.set_xticks(range(len(heat_map.depths)), [f"{depth:g}" for depth in heat_map.depths])
    axes.set_yticks(range(len(heat_map.lengths)), [f"{length:,}" for length in heat_map.lengths])
    for (y, x), share in np.ndenumerate(shares):
        if np.isfinite(share):
            axes.text(x, y, f"{share:.0%}", ha="center", va="center")
    return figure
