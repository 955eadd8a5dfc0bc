"""A comparison as text: a row for each run, the settings that differ, and notes."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lhtrain.compare.comparison import Compared, Comparison, by_loss
from lhtrain.compare.settings import Difference
from lhtrain.conf.rules.evaluation import ATTENTIONS
from lhtrain.report.evaluation import NUMBERS, shown
from lhtrain.text import duration, number, one_line

COLUMNS = 4  # most runs whose settings are printed in columns


def comparison_table(found: Comparison) -> Group:
    """Return the tables of `lhtrain compare`. Each run has a letter, by which other tables name it."""
    letters = [letter_of(at) for at in range(len(found.runs))]
    parts: list[RenderableType] = [runs_table(found.runs, letters)]
    if len(found.runs) > 1:
        first = letters[0]
        reached = f"speed-up: how many times sooner than {first} the run reached the lowest validation loss"
        equal = f"at equal time: validation loss of the run and of {first} when the shorter of the two ended"
        time = "time: of training, without validation, evaluation and checkpoints"
        parts.append(Text(f"{time}\n{reached} that both reached\n{equal}"))
    parts += evaluation_tables(found.runs, letters)
    if found.settings:
        parts += [Text(""), settings_table(found.settings, letters)]
    parts += [Text(f"note: {note}") for note in found.notes]
    return Group(*parts)


def letter_of(number: int) -> str:
    """Return A, B, … Z, AA, AB …"""
    return (letter_of(number // 26 - 1) if number >= 26 else "") + chr(ord("A") + number % 26)


def runs_table(runs: list[Compared], letters: list[str]) -> Table:
    """Return a table with a row for each run."""
    out = Table("", "run", "state", "stages", box=None, pad_edge=False)
    for column in ("val loss", "time", "tokens/s", "speed-up", "at equal time"):
        out.add_column(column, justify="right", no_wrap=True)
    for letter, run in zip(letters, runs, strict=True):
        out.add_row(
            letter,
            Text(run.label, overflow="fold"),
            run.state if run.state == "finished" else f"{run.state}, step {run.step:,}",
            Text(one_line(run.stages, 60)),
            number(run.val_loss),
            "-" if run.seconds is None else duration(run.seconds),
            number(run.tokens_per_second, ",.0f"),
            speed_up_text(run),
            equal_time_text(run),
        )
    return out


def evaluation_tables(runs: list[Compared], letters: list[str]) -> list[RenderableType]:
    """Return for each attention a title and a table: the runs that were evaluated, and their numbers."""
    parts: list[RenderableType] = []
    for attention in ATTENTIONS:
        rows = [run.evaluation.get(attention, {}) for run in runs]
        names = [name for name in NUMBERS if any(values.get(name) is not None for values in rows)]
        if not names:
            continue
        out = Table("", box=None, pad_edge=False)
        for column in ("step", *(NUMBERS[name].label for name in names)):
            out.add_column(column, justify="right")
        for letter, run, values in zip(letters, runs, rows, strict=True):
            if values:
                texts = (shown(name, values.get(name)) for name in names)
                out.add_row(letter, number(run.evaluated_after, ",.0f"), *texts)
        parts += [Text(f"\nevaluation, {attention} attention"), out]
    return parts


def speed_up_text(run: Compared) -> str:
    if run.speed_up is None:
        return "-"
    return f"{'≥ ' if run.speed_up.at_least else ''}{run.speed_up.factor:.2f}x"


def equal_time_text(run: Compared) -> str:
    if run.loss_at_equal_time is None:
        return "-"
    return " / ".join(number(loss) for loss in run.loss_at_equal_time)


def sweep_table(found: Comparison) -> Table:
    """Return a table of the runs of a sweep: those with the lowest validation loss first."""
    settings = [one for one in found.settings if not one.key.startswith("stages.")] or found.settings
    settings = settings[:COLUMNS]
    out = Table("run", "state", *(one.key for one in settings), box=None, pad_edge=False)
    for column in ("val loss", "time", "tokens/s"):
        out.add_column(column, justify="right", no_wrap=True)
    for at in by_loss(found.runs):
        run = found.runs[at]
        out.add_row(
            Text(run.label, overflow="fold"),
            run.state if run.state == "finished" else f"{run.state}, step {run.step:,}",
            *(Text(one_line(one.values[at], 40)) for one in settings),
            number(run.val_loss),
            "-" if run.seconds is None else duration(run.seconds),
            number(run.tokens_per_second, ",.0f"),
        )
    return out


def settings_table(settings: list[Difference], letters: list[str]) -> Table:
    """Return a table with a row for each setting: a column for each run, or the runs of each value."""
    if len(letters) <= COLUMNS:
        out = Table("setting", *letters, box=None, pad_edge=False)
        for one in settings:
            out.add_row(Text(one.key), *(Text(one_line(value, 60)) for value in one.values))
        return out
    out = Table("setting", "values and their runs", box=None, pad_edge=False)
    for one in settings:
        out.add_row(Text(one.key), Text("\n".join(grouped(one, letters))))
    return out


def grouped(difference: Difference, letters: list[str]) -> list[str]:
    """Return "VALUE: A C" for each value."""
    of_value: dict[str, list[str]] = {}
    for letter, value in zip(letters, difference.values, strict=True):
        of_value.setdefault(value, []).append(letter)
    return [f"{one_line(value, 60)}: {' '.join(runs)}" for value, runs in of_value.items()]
