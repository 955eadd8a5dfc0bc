"""The tables and heat maps of an evaluation, for trackers."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ATTENTIONS = ("full", "lighthouse")
SHARES = {
    "recall": "exact",
    "passkey": "accuracy",
}  # tasks over length and depth, and their share from 0 to 1


class Cells(NamedTuple):
    """A table. name: ATTENTION/TASK."""

    name: str
    columns: list[str]
    rows: list[list[Any]]


class HeatMap(NamedTuple):
    """Shares (lengths, depths) from 0 to 1; NaN: not measured. name: ATTENTION/TASK."""

    name: str
    lengths: list[int]
    depths: list[float]
    shares: np.ndarray


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


def heat_maps(result: dict[str, Any]) -> Iterator[HeatMap]:
    """Yield a heat map for each task over length and depth, one for each number of pairs."""
    for attention in ATTENTIONS:
        for task, share in SHARES.items():
            cells = ((result.get(attention) or {}).get(task) or {}).get("cells") or []
            for pairs in dict.fromkeys(cell.get("pairs") for cell in cells):
                name = f"{attention}/{task}" + (f"_{pairs}" if pairs is not None else "")
                yield _heat_map(name, [cell for cell in cells if cell.get("pairs") == pairs], share)


def _heat_map(name: str, cells: list[dict[str, Any]], share: str) -> HeatMap:
    lengths = sorted({cell["length"] for cell in cells})
    depths = sorted({cell["depth"] for cell in cells})
    shares = np.full((len(lengths), len(depths)), np.nan)
    for cell in cells:
        if cell[share] is not None:
            shares[lengths.index(cell["length"]), depths.index(cell["depth"])] = cell[share]
    return HeatMap(name, lengths, depths, shares)


def picture(heat_map: HeatMap) -> np.ndarray:
    """Draw a heat map; returns the image, (height, width, 3) uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(_figure(heat_map))
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _figure(heat_map: HeatMap) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    axes.imshow(heat_map.shares, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
    axes.set(xlabel="depth", ylabel="length in tokens", title=heat_map.name)
    axes.set_xticks(range(len(heat_map.depths)), [f"{depth:g}" for depth in heat_map.depths])
    axes.set_yticks(range(len(heat_map.lengths)), [f"{length:,}" for length in heat_map.lengths])
    for (y, x), share in np.ndenumerate(heat_map.shares):
        if np.isfinite(share):
            axes.text(x, y, f"{share:.0%}", ha="center", va="center")
    return figure
