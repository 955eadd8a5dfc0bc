"""`lhtrain compare` and `lhtrain runs`: runs beside each other, and the runs in folders."""

from argparse import Namespace
from pathlib import Path

from rich.console import Console

from lhtrain.compare.comparison import by_loss, compare
from lhtrain.compare.equal import first_difference, read_trace, save_reference
from lhtrain.compare.listing import ORDERS, listed
from lhtrain.compare.listing import table as listing_table
from lhtrain.compare.run import read_runs
from lhtrain.compare.table import comparison_table, sweep_table
from lhtrain.errors import RunError, UsageError
from lhtrain.text import counted, to_json


def compare_runs(arguments: Namespace) -> int | None:
    """Print a comparison; with --assert-equal return 1 if the runs differ. Raises UsageError, RunError."""
    paths = [Path(word).expanduser() for word in arguments.RUN]
    if arguments.assert_equal:
        return _assert_equal(paths)
    if arguments.save_reference:
        if len(paths) != 1:
            raise UsageError(f"compare --save-reference: needs one run, got {len(paths)}")
        trace, out = read_trace(paths[0]), Path(arguments.save_reference).expanduser()
        save_reference(trace, out)
        rows = f"{counted(len(trace.rows), 'row')} of {trace.name}"
        print(f"{out}: {rows}, the last one of step {trace.rows[-1]['step']:,}")
        return None
    runs = read_runs(paths)
    found = compare(runs)
    if arguments.sort == "loss":
        found = compare([runs[at] for at in by_loss(found.runs)])
    if arguments.json:
        print(to_json(found.as_dict(), indent=2))
    else:
        _print(comparison_table(found))
        print(*(f"note: {run.label}: {note}" for run in runs for note in run.notes), sep="\n", end="")
    return None


def _assert_equal(paths: list[Path]) -> int:
    if len(paths) != 2:
        raise UsageError(f"compare --assert-equal: needs two runs or reference files, got {len(paths)}")
    a, b = map(read_trace, paths)
    if difference := first_difference(a, b):
        print(f"different: {a.name} and {b.name}: {difference}")
        for key in ("hardware", "versions"):
            if a.about.get(key) != b.about.get(key) and None not in (a.about.get(key), b.about.get(key)):
                print(f"{key}: {to_json(a.about[key])} and {to_json(b.about[key])}")
        return 1
    compared = (
        "" if a.about.get("data") and b.about.get("data") else "; the data fingerprint was not compared"
    )
    print(f"equal: {counted(len(a.rows), 'row')} until step {a.rows[-1]['step']:,}{compared}")
    return 0


def list_runs(arguments: Namespace) -> None:
    """Print a row for each run in the folders. Raises UsageError, RunError."""
    folders = [Path(word).expanduser() for word in arguments.FOLDER]
    if missing := [str(folder) for folder in folders if not folder.is_dir()]:
        remedy = "name the folder that contains runs: lhtrain runs FOLDER"
        raise RunError(f"no such folder: {', '.join(missing)}; {remedy}")
    if arguments.sort not in ORDERS:
        raise UsageError(f"runs --sort {arguments.sort}: must be one of {', '.join(ORDERS)}")
    found = listed(folders, arguments.sort)
    if arguments.json:
        print(to_json([run.as_dict() for run in found], indent=2))
    elif found:
        _print(listing_table(found))
    else:
        print(f"no runs in {', '.join(map(str, folders))}")


def print_sweep(folders: list[Path]) -> None:
    """Print the runs of a sweep, sorted by validation loss. Raises RunError."""
    _print(sweep_table(compare(read_runs(folders))))


def _print(renderable: object) -> None:
    """Print a table; in a file or a pipe it is wide, so that no line is wrapped."""
    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console = Console(markup=False, emoji=False, highlight=False, width=200)
    console.print(renderable)
