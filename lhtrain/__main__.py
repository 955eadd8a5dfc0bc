"""The program's entry: what must come before the seconds that imports take."""

import sys

from lhtrain import interrupt
from lhtrain.home import ensure_home
from lhtrain.streams import never_fail, open_closed

TRAIN = ("train", "resume", "extend")  # the commands that train; settings alone do, too


def main() -> None:
    """Entry point of the console script and of `python -m lhtrain`."""
    open_closed()
    ensure_home()
    first = sys.argv[1] if len(sys.argv) > 1 else ""
    if first in TRAIN or not first or "=" in first or first in ("-m", "--multirun"):
        begin_training()
    from lhtrain.cli import main as run

    run()


def begin_training() -> None:
    """From now on a scheduler's signal is remembered, and printing cannot fail."""
    interrupt.watch()
    never_fail()


if __name__ == "__main__":
    main()
