"""summary.json and the final table: what each stage did and took."""

import json
from pathlib import Path
from typing import Any

from rich.table import Table

from lhtrain.progress import Progress
from lhtrain.switch import switches


def summarize(
    progress: Progress,
    rows: list[dict[str, Any]],
    finished: bool,
    peak_flops: float | None,
    about: dict[str, Any],
) -> dict[str, Any]:
    """Content of summary.json: totals, a record a stage, a record a switch; `about` is added as it is."""
    stages = [stage.as_summary(peak_flops) for stage in progress.stages]
    total = sum(stage["wall_clock_seconds"]["total"] for stage in stages)
    last = progress.stages[-1] if progress.stages else None
    return {
        "finished": finished,
        "steps": progress.step,
        "tokens": progress.tokens,
        "wall_clock_seconds": round(total, 3),
        "first_loss": progress.stages[0].first_loss if last else None,
        "last_loss": last.last_loss if last else None,
        "val_loss": last.val_loss if last else None,
        "stages": stages,
        "switches": switches(rows),
        **about,
    }


def write(summary: dict[str, Any], path: Path) -> None:
    """Write aside and rename: a reader never sees half a summary."""
    aside = path.with_suffix(".tmp")
    aside.write_text(json.dumps(summary, indent=2) + "\n")
    aside.replace(path)


def table(summary: dict[str, Any]) -> Table:
    """A column a stage, so that it stays legible in a narrow terminal; rows that are empty are left out."""
    out = Table("", title=f"{summary['name']}: {summary['steps']} steps, {summary['tokens']:,} tokens")
    for stage in summary["stages"]:
        out.add_column(stage["name"], justify="right", no_wrap=True)
    columns = [_cells(stage) for stage in summary["stages"]]
    for label in columns[0] if columns else ():
        values = [column[label] for column in columns]
        if any(value != "-" for value in values):
            out.add_row(label, *values)
    return out


def _cells(stage: dict[str, Any]) -> dict[str, str]:
    seconds = stage["wall_clock_seconds"]
    return {
        "steps": f"{stage['steps']:,}",
        "tokens": f"{stage['tokens']:,}",
        "tokens/s": number(stage["tokens_per_second"], ",.0f"),
        "mfu": number(stage["mfu"], ".1%"),
        "peak memory, GB": number(stage["peak_memory_gb"], ".1f"),
        "wall-clock, s": f"{seconds['total']:.1f}",
        **{f"  {part}": f"{seconds[part]:.1f}" for part in seconds if part != "total"},
        "first loss": number(stage["first_loss"], ".4f"),
        "last loss": number(stage["last_loss"], ".4f"),
        "validation loss": number(stage["val_loss"], ".4f"),
    }


def switch_lines(summary: dict[str, Any]) -> list[str]:
    """A sentence for every switch."""
    lines = []
    for switch in summary["switches"]:
        steps = switch["steps_to_recover"]
        back = "not back before the run's end" if steps is None else f"back after {counted(steps, 'step')}"
        # Losses of a stage of which nothing was logged are not there.
        loss, val_loss = (
            f"{number(switch[f'{kind}_before'], '.4f')} -> {number(switch[f'{kind}_after'], '.4f')}"
            for kind in ("loss", "val_loss")
        )
        lines.append(
            f"{switch['from']} -> {switch['to']} at step {switch['step']}: training loss {loss}, {back}; "
            f"validation {val_loss}"
        )
    return lines


def counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
