"""`lhtrain report`: write a page about runs, which a browser opens without a network."""

import math
from argparse import Namespace
from pathlib import Path

from lhtrain.compare.run import read_runs
from lhtrain.errors import RunError, UsageError
from lhtrain.files import write_atomic
from lhtrain.pages.page import render


def report(arguments: Namespace) -> None:
    """Write the page and print its path. Raises UsageError, RunError."""
    price = _price(arguments.price)
    if arguments.out == "":
        raise UsageError("report out=: must be the path of a file, such as report.html")
    runs = read_runs(Path(word).expanduser() for word in arguments.RUN)
    beside = runs[0].path / "report.html" if len(runs) == 1 else Path("report.html")
    out = Path(arguments.out).expanduser() if arguments.out else beside
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        page = render(runs, price).encode(errors="backslashreplace")  # names of folders may not be UTF-8
        write_atomic(out, page)
    except OSError as error:
        raise RunError(f"{error}; out=FILE names another file") from error
    print(f"{out}: {len(runs)} run{'' if len(runs) == 1 else 's'}, {out.stat().st_size / 1e6:.1f} MB")


def _price(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        price = float(text)
    except ValueError:
        price = math.nan
    if not (math.isfinite(price) and price >= 0):
        raise UsageError(f"report price={text}: must be a number, the price of a GPU for an hour")
    return price
