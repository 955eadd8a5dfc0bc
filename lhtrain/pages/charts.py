"""The charts of a report as plain values, which page.js draws.

A chart has "y" (its label), "axes", "series" and "marks" (vertical lines), and optionally "x" (the label
of an axis of its own), "log" (x is logarithmic), "percent" (y is a percentage), "zero" (y begins at 0)
and "late" (y need not fit the first 5 % of x). A series has "name", "group" (what its legend hides),
"color" (a number), "kind" (faint, line or dots), "x" (by axis) and "y".
"""

from itertools import accumulate
from typing import Any

from lhtrain.compare.curve import AXES, Point, points, switches, validations
from lhtrain.compare.run import Run

Chart = dict[str, Any]

MOST = 4000  # points of all lines of a chart; more cannot be seen, and make the page large
SMOOTH = 50  # the line averages over about a 25th of a stage's logged steps
LATE = 50  # points of a line above which y need not fit the first 5 % of x, where losses are high
CLOSE = 40  # steps on each side of a switch in its close-up, at least

SPEEDS = {  # charts of training rows by name: the key of the rows, and the label
    "speed": ("tokens_per_second", "tokens/s"),
    "mfu": ("mfu", "model FLOPs utilization"),
    "memory": ("peak_memory_gb", "peak GPU memory, GB"),
    "lr": ("lr", "learning rate"),
    "grad_norm": ("grad_norm", "gradient norm"),
}


def charts(runs: list[Run]) -> dict[str, Chart]:
    """Return the charts of the training, by name; charts without points are left out."""
    found = {"loss": loss_chart(runs)}
    for name, (key, label) in SPEEDS.items():
        found[name] = _chart(
            label, [one for at, run in enumerate(runs) for one in _lines(runs, at, run, key)]
        )
        found[name] |= {"percent": name == "mfu", "zero": name in ("speed", "mfu", "memory")}
    for at, run in enumerate(runs):
        for number, step in enumerate(switch_steps(run)):
            found[f"switch-{at}-{number}"] = close_up(run, step)
    for chart in found.values():
        chart["marks"] = chart.get("marks") or _marks(runs, chart)
    return {name: chart for name, chart in found.items() if chart["series"]}


def loss_chart(runs: list[Run]) -> Chart:
    """Return the training loss, averaged, and the validation losses of all runs.

    The moving average of the weights (optim.ema) has validations of its own.
    """
    series = []
    for at, run in enumerate(runs):
        series += _lines(runs, at, run, "loss")
        for number, part in enumerate(_parts(validations(run))):
            color, name = (at, run.label) if len(runs) > 1 else (number, "validation")
            series.append(_series(name, color, "dots", part, group=name))
        for number, part in enumerate(_parts(points(run, "validation", "average_val_loss"))):
            color, group = (at, run.label) if len(runs) > 1 else (number, "validation of the average")
            name = f"{run.label}, average of the weights" if len(runs) > 1 else group
            series.append(_series(name, color, "dots", part, group=group))
    chart = _chart("loss, nats per token", series)
    chart["late"] = any(len(one["y"]) > LATE for one in series)
    return chart


def close_up(run: Run, step: int) -> Chart:
    """Return the losses around the switch after `step`, without averaging."""
    last = run.rows[-1]["step"]
    around = max(CLOSE, last // 50)
    near = range(step - around, step + around + 1)
    series = []
    for number, part in enumerate(_parts([p for p in points(run, "train", "loss") if p.step in near])):
        series.append(_series(f"training, {part[0].stage}", number, "line", part))
    for number, part in enumerate(_parts([p for p in validations(run) if p.step in near])):
        series.append(_series(f"validation, {part[0].stage}", number, "dots", part))
    chart = _chart("loss, nats per token", series)
    chart["axes"] = [axis for axis in chart["axes"] if axis == "step"]
    chart["marks"] = [{"x": {"step": step}, "text": "switch", "color": 0}]
    return chart


def switch_steps(run: Run) -> list[int]:
    """Return the last step before each switch."""
    return [row["step"] - 1 for row in run.rows if row["kind"] == "switch"]


def _lines(runs: list[Run], at: int, run: Run, key: str) -> list[dict[str, Any]]:
    """Return the lines of one run: one for each stage, so that no average crosses a switch."""
    series = []
    many = len(runs) > 1
    for number, part in enumerate(_parts(points(run, "train", key))):
        color, name = (at, run.label) if many else (number, part[0].stage)
        if not many and key == "loss":
            series.append(_series(name, color, "faint", _thinned(part, MOST // 4), group=name))
        smooth = part if key == "lr" else _averaged(part)
        series.append(_series(name, color, "line", _thinned(smooth, MOST // 2 // len(runs)), group=name))
    return series


def _chart(y: str, series: list[dict[str, Any]]) -> Chart:
    usable = [axis for axis in AXES if all(one["x"].get(axis) is not None for one in series)]
    return {"y": y, "axes": usable, "series": series}


def _series(name: str, color: int, kind: str, part: list[Point], group: str | None = None) -> dict[str, Any]:
    x = {axis: [getattr(point, axis) for point in part] for axis in AXES}
    known = {axis: values if None not in values else None for axis, values in x.items()}
    y = [float(f"{point.value:.6g}") for point in part]
    return {"name": name, "group": group or name, "color": color, "kind": kind, "x": known, "y": y}


def _parts(found: list[Point]) -> list[list[Point]]:
    """Split points where the stage changes."""
    parts: list[list[Point]] = []
    for point in found:
        if not parts or parts[-1][-1].stage != point.stage:
            parts.append([])
        parts[-1].append(point)
    return parts


def _averaged(part: list[Point]) -> list[Point]:
    """Return the running means of the values, each at the place in the middle of its window."""
    half = len(part) // SMOOTH
    if not half:
        return part
    sums = [0.0, *accumulate(point.value for point in part)]
    out = []
    for at, point in enumerate(part):
        low, high = max(at - half, 0), min(at + half + 1, len(part))
        out.append(point._replace(value=(sums[high] - sums[low]) / (high - low)))
    return out


def _thinned(part: list[Point], most: int) -> list[Point]:
    """Return at most about `most` points: the lowest and the highest of each group, so that spikes stay."""
    size = -(-2 * len(part) // max(most, 2))
    if size <= 2:
        return part
    out = []
    for begin in range(0, len(part), size):
        group = part[begin : begin + size]
        ends = {min(group, key=lambda point: point.value), max(group, key=lambda point: point.value)}
        out += sorted(ends, key=lambda point: point.step)
    return out


def _marks(runs: list[Run], chart: Chart) -> list[dict[str, Any]]:
    """Return a mark for each switch."""
    marks = []
    for at, run in enumerate(runs) if chart["series"] else ():
        for number, point in enumerate(switches(run), 1):
            x = {axis: getattr(point, axis) for axis in AXES}
            marks.append({"x": x, "text": point.stage, "color": at if len(runs) > 1 else number})
    return marks


def line(name: str, color: int, kind: str, pairs: list[tuple[float, float]], group: str) -> dict[str, Any]:
    """Return a series of a chart whose x axis is none of AXES."""
    x, y = ([pair[at] for pair in pairs] for at in (0, 1))
    return {"name": name, "group": group, "color": color, "kind": kind, "x": {"x": x}, "y": y}
