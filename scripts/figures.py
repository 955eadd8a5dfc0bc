#!/usr/bin/env python3
"""Draw the figures from measured numbers: docs/speed.svg, docs/recipes.svg and docs/recipes_262k.svg.

    python scripts/figures.py

The numbers come from scripts/bench/results: attention.csv (one layer), train.csv (whole steps), recipes.csv.
"""

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "scripts" / "bench" / "results"
# Colors that are readable on a light and on a dark page; the background is transparent.
TEXT, GRID, DENSE, LIGHTHOUSE = "#808891", "#8088914d", "#8c95a0", "#2f81f7"
STEPS = {
    98_304: "selective",
    262_144: "full",
    1_048_576: "full",
}  # compute.recompute of the rows in the figure


LAYER_GPU = "NVIDIA H200"  # of the rows of one layer in the figure


def rows(name: str) -> list[dict[str, str]]:
    with (RESULTS / name).open() as file:
        return list(csv.DictReader(file))


def layer_times() -> dict[str, dict[int, float]]:
    """Milliseconds of a layer, forward and backward, by implementation and number of tokens.

    "dense cudnn" is dense attention; "layer" is Lighthouse with the dense kernel that lhtrain chooses itself.
    """
    out: dict[str, dict[int, float]] = {"dense cudnn": {}, "layer": {}}
    for row in rows("attention.csv"):
        drawn = row["gpu"] == LAYER_GPU and row["impl"] in out and row["levels"] == "3"
        if drawn and row["direction"] == "fwd_bwd":
            out[row["impl"]][int(row["seq_len"])] = float(row["ms"])
    return out


def step_speeds() -> dict[str, dict[int, float]]:
    """Tokens/s of whole steps of lighthouse_530m without dense layers, by stage and number of tokens."""
    out: dict[str, dict[int, float]] = {"recovery": {}, "lighthouse": {}}
    for row in rows("train.csv"):
        settings, tokens = row["settings"].split(), int(row["seq_len"])
        recompute = f"compute.recompute={STEPS.get(tokens)}"
        drawn = row["stage"] in out and {"model=lighthouse_530m", "model.dense_layers=[]"} <= set(settings)
        if drawn and recompute in settings:
            # The first row counts: later ones are for windowed layers, or baselines for these on other cards.
            out[row["stage"]].setdefault(tokens, float(row["tokens_per_second"]))
    return out


def draw_layer(axes: Any) -> None:
    times = layer_times()
    dense, layer = times["dense cudnn"], times["layer"]
    axes.loglog(list(dense), list(dense.values()), "o-", color=DENSE, label="full attention (cuDNN)")
    axes.loglog(list(layer), list(layer.values()), "o-", color=LIGHTHOUSE, label="Lighthouse Attention")
    for tokens in sorted(dense.keys() & layer.keys()):
        text = f"{dense[tokens] / layer[tokens]:.0f}×"
        axes.annotate(text, (tokens, layer[tokens]), (4, -12), textcoords="offset points", color=LIGHTHOUSE)
    axes.minorticks_off()
    powers = [tokens for tokens in sorted(dense) if tokens.bit_count() == 1]
    axes.set_xticks(powers, [thousands(tokens) for tokens in powers])
    axes.set_yticks([0.1, 1, 10, 100, 1000], ["0.1", "1", "10", "100", "1,000"])
    axes.set_ylim(bottom=0.08)
    axes.set_title("One layer, forward and backward, 1 × H200")
    axes.set_ylabel("milliseconds")


def draw_steps(axes: Any) -> None:
    speeds = step_speeds()
    for at, tokens in enumerate(STEPS):
        for shift, stage, color in ((-0.2, "recovery", DENSE), (0.2, "lighthouse", LIGHTHOUSE)):
            speed = speeds[stage].get(tokens)
            axes.bar(at + shift, speed or 0, 0.38, color=color)
            text = f"{speed / 1000:.3g}k" if speed else "not\nmeasured"
            place = {"textcoords": "offset points", "ha": "center", "fontsize": 9 if speed else 7}
            axes.annotate(text, (at + shift, speed or 0), (0 if speed else -2, 3), color=color, **place)
    axes.set_xticks(range(len(STEPS)), [thousands(tokens) for tokens in STEPS])
    axes.set_ylim(0, 180_000)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value / 1000:.0f}k")
    axes.set_title("Training steps, 530 M parameters, 1 × H100")
    axes.set_ylabel("tokens per second")


def thousands(tokens: int) -> str:
    return f"{tokens // 1024}K" if tokens < 1 << 20 else "1M"


class Comparison(NamedTuple):
    """A figure of recipes: loss over seconds of training.

    named: recipes that get a line and a label; its text and its place in points from the last point.
    highest: losses above it are left out.
    """

    study: str
    seq_len: int
    named: dict[str, tuple[str, tuple[int, int]]]
    highest: float
    lowest: float
    ticks: list[int]
    seconds: tuple[int, int]


AT_98K = Comparison(
    study="extend",
    seq_len=98_304,
    named={
        "full attention": ("full attention", (6, 3)),
        "ladder": ("ladder", (-34, -9)),
        "windowed, W = 2,048, recovery 30 %": ("windowed, W = 2,048, 30 %", (6, 3)),
        "windowed, W = 8,192, recovery 30 %": ("windowed, W = 8,192, 30 %", (-2, -14)),
        "short, windowed, recovery 20 %": ("short, windowed, 20 %", (-108, -10)),
        "windowed, recovery 10 %": ("windowed, W = 512, 10 %", (6, 3)),
    },
    highest=2.0,
    lowest=1.63,
    ticks=[30, 60, 120, 240, 480],
    seconds=(28, 900),
)
AT_262K = Comparison(
    study="length",
    seq_len=262_144,
    named={
        "full attention": ("full attention", (6, 3)),
        "ladder": ("ladder", (5, 3)),
        "windowed, W = 2,048, recovery 30 %": ("windowed, W = 2,048, 30 %", (4, -13)),
        "windowed, W = 8,192, recovery 10 %": ("windowed, W = 8,192, 10 %", (-130, -9)),
        "own queries, W = 8,192, k = 2,048, recovery 10 %": ("own queries, W = 8,192, 10 %", (-140, -9)),
    },
    highest=1.5,
    lowest=1.05,
    ticks=[75, 150, 300, 600, 1200],
    seconds=(65, 1900),
)


def recipe_points(drawn: Comparison) -> dict[str, tuple[str, list[tuple[float, float]]]]:
    """Kind, and (seconds, loss) in the order of tokens, of each recipe that lengthened a model, seed 0."""
    out: dict[str, tuple[str, list[tuple[float, float]]]] = {}
    for row in sorted(rows("recipes.csv"), key=lambda row: int(row["tokens"])):
        judged_alike = row["judged_with"] == "full attention" and int(row["seq_len"]) == drawn.seq_len
        if row["study"] == drawn.study and row["seed"] == "0" and judged_alike:
            point = float(row["seconds"]), float(row["val_loss"])
            out.setdefault(row["recipe"], (row["kind"], []))[1].append(point)
    return out


def draw_recipes(axes: Any, drawn: Comparison) -> None:
    for name, (kind, points) in recipe_points(drawn).items():
        shown = [(seconds, loss) for seconds, loss in points if loss <= drawn.highest]
        color = DENSE if kind == "dense" else LIGHTHOUSE
        if not shown:
            continue
        style = "o-" if name in drawn.named else "o"
        axes.plot(*zip(*shown, strict=True), style, color=color, markersize=4)
        if name in drawn.named:
            text, place = drawn.named[name]
            axes.annotate(text, shown[-1], place, textcoords="offset points", color=color, fontsize=8)
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.set_xticks(drawn.ticks, [str(tick) for tick in drawn.ticks])
    axes.set_xlim(*drawn.seconds)
    axes.set_ylim(bottom=drawn.lowest)
    axes.set_xlabel("seconds of training, 1 × H100")
    axes.set_ylabel("loss with full attention")
    axes.set_title(f"SmolLM2-135M from 8,192 to {drawn.seq_len:,} tokens of context")


def draw_speed(path: Path) -> None:
    with styled() as pyplot:
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.3), layout="constrained")
        draw_layer(left)
        draw_steps(right)
        for axes in (left, right):
            axes.set_xlabel("tokens of context")
        left.legend(frameon=False, loc="upper left")
        save(figure, path)


def draw_comparison(path: Path, drawn: Comparison) -> None:
    with styled() as pyplot:
        figure, axes = pyplot.subplots(figsize=(7, 3.6), layout="constrained")
        draw_recipes(axes, drawn)
        save(figure, path)


@contextmanager
def styled() -> Iterator[Any]:
    """Give pyplot with the style of all figures, and close them at the end."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    style = {
        **{"svg.fonttype": "none", "svg.hashsalt": "lhtrain", "font.family": "sans-serif", "font.size": 9},
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), TEXT),
        **{
            "axes.edgecolor": GRID,
            "axes.titlesize": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
        },
        **{"axes.grid": True, "axes.grid.axis": "y", "axes.axisbelow": True, "grid.color": GRID},
    }
    with pyplot.rc_context(style):
        yield pyplot
        pyplot.close("all")


def save(figure: Any, path: Path) -> None:
    for axes in figure.axes:
        axes.tick_params(length=0)
    metadata = {"Date": None} if path.suffix == ".svg" else None
    figure.savefig(path, transparent=True, metadata=metadata, dpi=110)


FIGURES = {
    "speed.svg": draw_speed,
    "recipes.svg": partial(draw_comparison, drawn=AT_98K),
    "recipes_262k.svg": partial(draw_comparison, drawn=AT_262K),
}

if __name__ == "__main__":
    for name, draw in FIGURES.items():
        draw(ROOT / "docs" / name)
