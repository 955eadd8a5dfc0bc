"""eval.json of runs as tables, heat maps and charts of a report."""

from dataclasses import dataclass
from typing import Any

from lhtrain.compare.run import Run
from lhtrain.conf.rules.evaluation import ATTENTIONS, FULL
from lhtrain.pages.charts import Chart, line
from lhtrain.report.evaluation import NUMBERS, numbers, shown
from lhtrain.report.heat_map import HeatMap, heat_maps
from lhtrain.text import dict_at, dicts_at, number_at


@dataclass(frozen=True)
class Evaluation:
    """titles: the columns of the table. rows: label and texts. maps: heat maps by column title."""

    titles: list[str]
    rows: list[tuple[str, list[str]]]
    maps: dict[str, list[HeatMap]]
    notes: list[str]


def evaluation(runs: list[Run]) -> Evaluation | None:
    """Return the evaluation of runs that have one; None if none has."""
    measured = _measured(runs)
    if not measured:
        return None
    rows = []
    values = [numbers(results) for _, _, results in measured]
    for name, of in NUMBERS.items():
        if any(one.get(name) is not None for one in values):
            rows.append((of.label, [shown(name, one.get(name)) for one in values]))
    maps = {title: found for title, _, results in measured if (found := [*heat_maps(results)])}
    return Evaluation([title for title, _, _ in measured], rows, maps, _notes(runs))


def evaluation_charts(runs: list[Run]) -> dict[str, Chart]:
    """Return loss by position and copy loss by distance, if measured."""
    position, copies = [], []
    for title, color, results in _measured(runs):
        losses = dict_at(results, "loss_by_position")
        beyond = dict_at(losses, "beyond")
        position += _positions(title, color, "line", losses, title)
        position += _positions(f"{title}, beyond the context", color, "dots", beyond, title)
        cells = [
            (length, distance, loss)
            for cell in dicts_at(dict_at(results, "copy"), "cells")
            if (length := number_at(cell, "length")) is not None
            and (distance := number_at(cell, "distance"))
            and (loss := number_at(cell, "loss")) is not None
        ]
        longest = max((length for length, _, _ in cells), default=0)
        pairs = sorted((distance, loss) for length, distance, loss in cells if length == longest)
        copies += [line(title, color, "line", pairs, title)] if pairs else []
    common: dict[str, Any] = {"axes": ["x"], "marks": [], "log": True, "y": "loss, nats per token"}
    found = {
        "position": common | {"x": "position in the sequence, tokens", "series": position},
        "copy": common | {"x": "distance of the copy, tokens", "series": copies},
    }
    return {name: chart for name, chart in found.items() if chart["series"]}


def _positions(name: str, color: int, kind: str, losses: dict[str, Any], group: str) -> list[dict[str, Any]]:
    """Return the series of losses by position; [] without losses."""
    pairs = []
    for bucket in dicts_at(losses, "buckets"):
        begin, end, loss = (number_at(bucket, key) for key in ("begin", "end", "loss"))
        if begin is not None and end is not None and loss is not None:
            pairs.append(((max(begin, 1) * end) ** 0.5, loss))
    return [line(name, color, kind, pairs, group)] if pairs else []


def _measured(runs: list[Run]) -> list[tuple[str, int, dict[str, Any]]]:
    """Return a title, a color and the results for each run and attention that was measured."""
    found: list[tuple[str, int, dict[str, Any]]] = []
    for run in runs:
        for attention in ATTENTIONS:
            results = run.evaluation.get(attention)
            if isinstance(results, dict) and results:
                name = "full attention" if attention == FULL else "Lighthouse attention"
                title = f"{run.label}, {name}" if len(runs) > 1 else name
                found.append((title, len(found), results))
    return found


def _notes(runs: list[Run]) -> list[str]:
    notes = []
    for run in runs:
        if run.evaluation:
            step, stage = run.evaluation.get("step"), run.evaluation.get("stage")
            texts = run.evaluation.get("texts") or "unknown texts"
            notes.append(f"{run.label}: evaluated after step {step} (stage {stage}) on {texts}")
    return notes
