"""The table and the heat maps of an evaluation, and its numbers for metrics.jsonl."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from rich.console import Group
from rich.table import Table
from rich.text import Text

from lhtrain.conf.rules.evaluation import ATTENTIONS
from lhtrain.text import counted, number, number_at

Result = dict[str, Any]


class Number(NamedTuple):
    """A main number of an evaluation. path: its place in the results under one attention."""

    label: str
    path: tuple[str, ...]
    form: str = ".4f"


# Name in metrics.jsonl and summary.json -> the number.
NUMBERS = {
    "position_loss": Number("loss of long documents", ("loss_by_position", "loss")),
    "last_loss": Number("loss of their last tokens", ("loss_by_position", "last", "loss")),
    "gain_of_context": Number("gain of context", ("gain_of_context", "gain")),
    "recall_exact": Number("recall, exact", ("recall", "exact"), ".0%"),
    "recall_loss": Number("recall, loss", ("recall", "loss")),
    "recall_control_loss": Number("recall, loss without the pair", ("recall", "control_loss")),
    "passkey": Number("pass key, one digit", ("passkey", "accuracy"), ".0%"),
    "copy_loss": Number("copy, loss", ("copy", "loss")),
    "long_ppl": Number("LongPPL", ("long_ppl", "ppl")),
}


def numbers(of_attention: Result) -> dict[str, float | None]:
    """Return the main numbers of the tasks that were measured under one attention.

    None: the task gave no number. The results may be those of a damaged file.
    """
    return {name: _at(of_attention, of.path) for name, of in NUMBERS.items() if of.path[0] in of_attention}


def _at(results: Any, path: tuple[str, ...]) -> float | None:
    for key in path[:-1]:
        results = results.get(key) if isinstance(results, dict) else None
    return number_at(results, path[-1]) if isinstance(results, dict) else None


def shown(name: str, value: float | None) -> str:
    """Return a main number as text; shares in percent."""
    return number(value, NUMBERS[name].form)


def line(attention: str, values: dict[str, float | None]) -> str:
    """Return the main numbers as text for one line."""
    parts = [
        f"{NUMBERS[name].label} {shown(name, value)}" for name, value in values.items() if name in NUMBERS
    ]
    return f"{attention} attention: {', '.join(parts)}"


def tables(result: Result) -> Group:
    """Return the tables of the content of eval.json: main numbers, losses by position, and heat maps."""
    measured = {name: result[name] for name in ATTENTIONS if result[name] is not None}
    parts = [_main(measured), *_positions(measured)]
    for name, of in measured.items():
        if of.get("recall"):
            parts += [Text(f"\nrecall, exact match in %, by depth: {name} attention"), _recall(of["recall"])]
        if of.get("passkey"):
            parts += [Text(f"\npass key of one digit, % right, by depth: {name} attention")]
            parts += [_passkey(of["passkey"])]
        if of.get("copy"):
            parts += [Text(f"\nloss of a repeated random string: {name} attention"), _copy(of["copy"])]
    return Group(*parts)


def _main(measured: Result) -> Table:
    out = Table("attention", *measured)
    values = {name: numbers(of) for name, of in measured.items()}
    for key in next(iter(values.values())):
        out.add_row(NUMBERS[key].label, *(shown(key, of[key]) for of in values.values()))
    return out


def _positions(measured: Result) -> Iterator[Text | Table]:
    """Yield the losses by position up to the context, and those beyond it if they were measured."""
    found = {name: of["loss_by_position"] for name, of in measured.items() if of.get("loss_by_position")}
    yield from _of_length(found, "loss by position")
    beyond = {name: of["beyond"] for name, of in found.items() if of.get("beyond")}
    if beyond:
        length = next(iter(beyond.values()))["length"]
        yield from _of_length(beyond, f"loss by position, sequences of {length:,} tokens, beyond the context")


def _of_length(found: Result, title: str) -> Iterator[Text | Table]:
    if not found:
        return
    one = next(iter(found.values()))
    texts = counted(one["documents"], "joined document" if one["joined"] else "document")
    why = ": none is long enough" if one["joined"] else ""
    yield Text(f"\n{title}, mean of {texts}{why}")
    out = Table("positions", *found)
    for index, bucket in enumerate(one["buckets"]):
        losses = (number(of["buckets"][index]["loss"]) for of in found.values())
        out.add_row(f"{bucket['begin']:,} to {bucket['end']:,}", *losses)
    out.add_row(f"the last {one['last']['tokens']:,}", *(number(of["last"]["loss"]) for of in found.values()))
    yield out


def _recall(result: Result) -> Table:
    out = Table("pairs", "length", *(f"{depth:g}" for depth in result["depths"]), "loss", "without the pair")
    for control in result["control"]:
        pairs, length = control["pairs"], control["length"]
        cells = [one for one in result["cells"] if (one["pairs"], one["length"]) == (pairs, length)]
        loss = sum(cell["loss"] for cell in cells) / len(cells)
        heat = (_heat(cell["exact"]) for cell in cells)
        out.add_row(f"{pairs}", f"{length:,}", *heat, number(loss), number(control["loss"]))
    return out


def _passkey(result: Result) -> Table:
    out = Table("length", *(f"{depth:g}" for depth in result["depths"]), "mean")
    for length in result["lengths"]:
        cells = [cell["accuracy"] for cell in result["cells"] if cell["length"] == length]
        if cells:
            out.add_row(f"{length:,}", *map(_heat, cells), _heat(sum(cells) / len(cells)))
    return out


def _copy(result: Result) -> Table:
    out = Table("length", "distance", "loss", "right", "loss when it is new")
    for cell in result["cells"]:
        share, new = number(cell["exact"], ".0%"), number(cell["first_loss"])
        out.add_row(f"{cell['length']:,}", f"{cell['distance']:,}", number(cell["loss"]), share, new)
    return out


def _heat(share: float) -> Text:
    """Return a share in percent, on green if it is high, on red if it is low."""
    red, green = round(200 * (1 - share)), round(160 * share)
    return Text(f"{100 * share:.0f}", style=f"white on rgb({red},{green},0)", justify="right")
