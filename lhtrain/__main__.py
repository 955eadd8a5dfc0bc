"""Entry of the program. Checks streams and the home folder before the imports, which take seconds."""

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
        from lhtrain.cli import main as run  # only now: its imports may use the streams and the home folder

        run()
    except SystemExit as error:
        _leave(error)
    except KeyboardInterrupt:  # during the imports
        print("lhtrain: interrupted", file=sys.stderr)
        _leave(SystemExit(130))
    _leave(SystemExit(0))


def _leave(end: SystemExit) -> NoReturn:
    """End the process with the message and status of `end`, without the interpreter's shutdown.

    All work is done and written by now. During the interpreter's shutdown, threads of PyTorch's libraries
    sometimes abort the process, which would look like a crash of the run.
    """
    if isinstance(end.code, str):
        print(end.code, file=sys.stderr)
    status = end.code if isinstance(end.code, int) else int(end.code is not None)
    atexit._run_exitfuncs()  # os._exit skips the exit functions of libraries
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
