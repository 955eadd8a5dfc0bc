"""The program's entry: what must come before the seconds that imports take."""

import atexit
import os
import sys
from contextlib import suppress
from typing import NoReturn

from lhtrain.process.home import ensure_home
from lhtrain.process.streams import open_closed


def main() -> None:
    """Entry point of the console script and of `python -m lhtrain`."""
    open_closed()
    ensure_home()
    try:
        from lhtrain.cli import main as run  # after the streams and the home that its imports may use

        run()
    except SystemExit as error:
        _leave(error)
    except KeyboardInterrupt:  # while the imports took their seconds
        print("lhtrain: interrupted", file=sys.stderr)
        _leave(SystemExit(130))
    _leave(SystemExit(0))


def _leave(end: SystemExit) -> NoReturn:
    """End the process as `end` says, without the interpreter's own teardown.

    By then the work is done and written. Threads of PyTorch's libraries that are still running when the
    interpreter is taken apart now and then abort the process, which would count as a crash of the run.
    """
    if isinstance(end.code, str):
        print(end.code, file=sys.stderr)
    status = end.code if isinstance(end.code, int) else int(end.code is not None)
    atexit._run_exitfuncs()  # what libraries still have to close
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
