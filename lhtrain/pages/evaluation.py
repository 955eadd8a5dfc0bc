"""eval.json of runs as tables, heat maps and charts of a report."""

from dataclasses import dataclass
from typing import Any

from lhtrain.compare.curve import value_of
from lhtrain.compare.run import Run
from lhtrain.pages.charts import Chart, line
from lhtrain.text import number

ATTENTIONS = ("full", "lighthouse")
# Rows of the table: label, task, key, format.
MEASURES = (
    ("loss of the last tokens", "loss_by_position", ("last", "loss"), ".4f"),
    ("loss at all positions", "loss_by_position", ("loss",), ".4f"),
    ("gain of context, nats", "gain_of_context", ("gain",), ".4f"),
    ("recall, exact", "recall", ("exact",), ".1%"),
    ("recall, loss", "recall", ("loss",), ".4f"),
    ("recall without the pair, loss", "recall", ("control_loss",), ".4f"),
    ("pass key (chance 10 %)", "passkey", ("accuracy",), ".1%"),
    ("copy loss", "copy", ("loss",), ".4f"),
    ("long-context perplexity", "long_ppl", ("ppl",), ".3f"),
)


@dataclass(frozen=True)
class HeatMap:
    """Shares by length (rows) and depth (columns). cells: text and share from 0 to 1; None: not measured."""

    title: str
    lengths: list[int]
    depths: list[float]
    cells: list[list[tuple[str, float] | None]]


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
    for label, task, path, form in MEASURES:
        texts = [_number(_task(results, task), path, form) for _, _, results in measured]
        if any(text != "-" for text in texts):
            rows.append((label, texts))
    maps = {title: found for title, _, results in measured if (found := _maps(results))}
    return Evaluation([title for title, _, _ in measured], rows, maps, _notes(runs))


def evaluation_charts(runs: list[Run]) -> dict[str, Chart]:
    """Return loss by position and copy loss by distance, if measured."""
    position, copies = [], []
    for title, color, results in _measured(runs):
        pairs = []
        for bucket in _dicts(_task(results, "loss_by_position").get("buckets")):
            begin, end, loss = (value_of(bucket, key) for key in ("begin", "end", "loss"))
            if begin is not None and end is not None and loss is not None:
                pairs.append(((max(begin, 1) * end) ** 0.5, loss))
        position += [line(title, color, "line", pairs, title)] if pairs else []
        cells = [
            (length, distance, loss)
            for cell in _dicts(_task(results, "copy").get("cells"))
            if (length := value_of(cell, "length")) is not None
            and (distance := value_of(cell, "distance"))
            and (loss := value_of(cell, "loss")) is not None
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


def _measured(runs: list[Run]) -> list[tuple[str, int, dict[str, Any]]]:
    """Return a title, a color and the results for each run and attention that was measured."""
    found: list[tuple[str, int, dict[str, Any]]] = []
    for run in runs:
        for attention in ATTENTIONS:
            results = run.evaluation.get(attention)
            if isinstance(results, dict) and results:
                name = "full attention" if attention == "full" else "Lighthouse attention"
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


def _maps(results: dict[str, Any]) -> list[HeatMap]:
    found = []
    recall = _dicts(_task(results, "recall").get("cells"))
    for pairs in dict.fromkeys(cell.get("pairs") for cell in recall):
        cells = [cell for cell in recall if cell.get("pairs") == pairs]
        word = "pair" if pairs == 1 else "pairs"
        found.append(_map(f"Recall, {pairs} {word}: share that is exact", cells, "exact"))
    found.append(
        _map("Pass key: share that is right", _dicts(_task(results, "passkey").get("cells")), "accuracy")
    )
    return [one for one in found if one is not None]


def _map(title: str, cells: list[dict[str, Any]], key: str) -> HeatMap | None:
    """Return a heat map of the cells with length, depth and a share at `key`; None without such cells."""
    shares = {}
    for cell in cells:
        length, depth, share = (value_of(cell, name) for name in ("length", "depth", key))
        if length is not None and depth is not None and share is not None:
            shares[int(length), depth] = share
    if not shares:
        return None
    lengths, depths = (sorted({place[at] for place in shares}) for at in (0, 1))
    rows = [[_cell(shares.get((int(n), d))) for d in depths] for n in lengths]
    return HeatMap(title, [int(n) for n in lengths], depths, rows)


def _cell(share: float | None) -> tuple[str, float] | None:
    return None if share is None else (f"{share:.0%}", min(max(share, 0.0), 1.0))


def _task(results: dict[str, Any], name: str) -> dict[str, Any]:
    task = results.get(name)
    return task if isinstance(task, dict) else {}


def _dicts(values: Any) -> list[dict[str, Any]]:
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []


def _number(task: dict[str, Any], path: tuple[str, ...], form: str) -> str:
    for key in path[:-1]:
        inner = task.get(key)
        task = inner if isinstance(inner, dict) else {}
    return number(value_of(task, path[-1]), form)
