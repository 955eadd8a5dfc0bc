"""summary.json and the table at the end of a run: steps, time and losses of each stage."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from lhtrain.files import write_atomic
from lhtrain.progress import LAST, Progress
from lhtrain.text import counted, finite, number, one_line, to_json, with_width

Summary = dict[str, Any]


@dataclass(frozen=True)
class End:
    """How a run ended."""

    how: str  # "finished", "signal" or "error"
    reason: str | None = None  # name of the signal, or message of the error
    signal: int = 0  # number of the signal that was received; 0 if none

    def as_json(self) -> dict[str, Any]:
        return {"how": self.how} | ({"reason": self.reason} if self.how != "finished" else {})


class SummaryFile:
    """summary.json of a run. about: values that are added unchanged; more may be set while the run trains.

    The value of `ended` is null while the run trains, and if it was killed; otherwise {"how": "finished"},
    {"how": "signal", "reason": "SIGTERM"} or {"how": "error", "reason": message}.
    """

    def __init__(self, path: Path, name: str, peak_flops: float | None, about: dict[str, Any]):
        self.path, self.name, self.peak_flops, self.about = path, name, peak_flops, dict(about)

    def content(
        self,
        progress: Progress,
        switches: list[dict[str, Any]],
        seconds_left: float | None,
        end: End | None = None,
    ) -> Summary:
        """Return the summary of a run at this moment. end: None while the run trains."""
        about: dict[str, Any] = {"name": self.name, "ended": end and end.as_json()}
        about |= {"signal": int(end.signal) if end else 0, **self.about}
        about["seconds_left"] = None if seconds_left is None else round(seconds_left, 1)
        finished = end is not None and end.how == "finished"
        return summarize(progress, switches, finished, self.peak_flops, about)

    def write(self, summary: Summary, durable: bool) -> None:
        """Replace the file. If this raises OSError, the old file is unchanged. durable: sync it to disk."""
        write(summary, self.path, durable)


def summarize(
    progress: Progress,
    switches: list[dict[str, Any]],
    finished: bool,
    peak_flops: float | None,
    about: dict[str, Any],
) -> Summary:
    """Return the content of summary.json: totals, an entry per stage, an entry per switch, and `about`."""
    stages = [stage.as_summary(peak_flops) for stage in progress.stages]
    total = sum(stage["wall_clock_seconds"]["total"] for stage in stages)
    last = stages[-1] if stages else {}
    losses = ("last_loss", "loss_mean", "loss_stderr", "loss_mean_of", "val_loss")
    return finite(
        {
            "finished": finished,
            "steps": progress.step,
            "tokens": progress.tokens,
            "wall_clock_seconds": round(total, 3),
            "first_loss": stages[0]["first_loss"] if stages else None,
            **{key: last.get(key) for key in losses},
            **{key: last[key] for key in ("average_val_loss",) if key in last},
            "stages": stages,
            "switches": switches,
            **about,
        }
    )


def write(summary: Summary, path: Path, durable: bool) -> None:
    """Replace the file. If this raises OSError, the old file is unchanged. durable: sync it to disk."""
    write_atomic(path, to_json(summary, indent=2) + "\n", durable)


def table(summary: Summary) -> Group:
    """Return the final table. Each stage is a column, to fit narrow terminals; empty rows are omitted."""
    title = f"{one_line(summary['name'])}: {counted(summary['steps'], 'step')}, {summary['tokens']:,} tokens"
    many = max((stage["loss_mean_of"] for stage in summary["stages"]), default=0) > 1
    note = f"training loss, end: mean ± standard error over the last {LAST} logged steps of the stage"
    out = Table("")
    for stage in summary["stages"]:
        out.add_column(Text(one_line(stage["name"], 24)), justify="right", no_wrap=True)
    columns = [_cells(stage) for stage in summary["stages"]]
    for label in columns[0] if columns else ():
        values = [column[label] for column in columns]
        if any(value != "-" for value in values):
            out.add_row(label, *values)
    return Group(Text(title), out, *([Text(note)] if many else []))


def _cells(stage: dict[str, Any]) -> dict[str, str]:
    seconds = stage["wall_clock_seconds"]
    return {
        "steps": f"{stage['steps']:,}",
        "tokens": f"{stage['tokens']:,}",
        "tokens/s": number(stage["tokens_per_second"], ",.0f"),
        "mfu": number(stage["mfu"], ".1%"),
        "peak memory, GB": number(stage["peak_memory_gb"], ".1f"),
        "wall-clock time, s": f"{seconds['total']:,.1f}",
        **{f"  {part}": _seconds(part, seconds[part]) for part in seconds if part != "total"},
        "training loss, first": number(stage["first_loss"], ".2f"),
        "training loss, end": with_width(stage["loss_mean"], stage["loss_stderr"]),
        "validation loss": number(stage["val_loss"]),
        "  of the average": number(stage.get("average_val_loss")),
    }


def _seconds(part: str, seconds: float) -> str:
    """Return the time of a part of a stage; "-" for an evaluation that did not take place."""
    return "-" if part == "evaluation" and not seconds else f"{seconds:,.1f}"


def source_lines(summary: Summary) -> list[str]:
    """Return a line with the tokens and epochs of each source of the data, if there are several."""
    sources = summary.get("sources") or {}
    if len(sources) < 2:
        return []
    parts = (
        f"{one_line(name)} {values['tokens']:,} tokens ({number(values['epochs'], '.3g')} epochs)"
        for name, values in sources.items()
    )
    return [f"data read: {', '.join(parts)}"]


def switch_lines(summary: Summary) -> list[str]:
    """Return a line for each switch."""
    return [_switch_line(switch) for switch in summary["switches"]]


def _switch_line(switch: dict[str, Any]) -> str:
    names = f"{one_line(switch['from'])} -> {one_line(switch['to'])} after step {switch['step']:,}"
    losses = f"{number(switch['val_loss_before'])} -> {number(switch['val_loss_after'])}"
    return f"{names}: validation loss {losses} with the same weights; {recovery(switch)}"


def recovery(switch: dict[str, Any]) -> str:
    """Return a phrase on whether the validation loss has come back to its level before the switch."""
    above = switch["steps_still_above"]
    if switch["val_loss_before"] is None:
        return "not validated just before the switch"
    if switch["steps_to_recover"] == 0:
        return "not higher than before"
    if switch["steps_to_recover"] is not None:
        return f"back to its old level {steps_until(switch)}"
    return f"still higher after {counted(above, 'step')}" if above else "not validated since"


def steps_until(switch: dict[str, Any]) -> str:
    """Return "after M to N steps": step N has the first validation that is not above the old level.

    Step M - 1 has the last validation that is above it.
    """
    first, last = switch["steps_still_above"] + 1, switch["steps_to_recover"]
    return f"after {first:,} to {counted(last, 'step')}" if first < last else f"after {counted(last, 'step')}"
