#!/usr/bin/env python3
"""Draw the figure of the README from measured speeds: docs/speed.svg.

    python scripts/figures.py

The numbers come from scripts/bench/results/attention.csv (one layer) and train.csv (whole steps).
"""

import csv
from pathlib import Path
from typing import Any

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
        if {"model=lighthouse_530m", "model.dense_layers=[]", recompute} <= set(settings):
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


def draw(path: Path) -> None:
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
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.3), layout="constrained")
        draw_layer(left)
        draw_steps(right)
        for axes in (left, right):
            axes.set_xlabel("tokens of context")
            axes.tick_params(length=0)
        left.legend(frameon=False, loc="upper left")
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(path, transparent=True, metadata=metadata, dpi=110)
        pyplot.close(figure)


if __name__ == "__main__":
    draw(ROOT / "docs" / "speed.svg")
