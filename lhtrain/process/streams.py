"""Standard streams that never end a run: with closed streams, full disks, readers that do not read."""

import os
import select
import sys
from typing import Any, TextIO

PATIENCE = 5.0  # seconds to wait for a reader before output is dropped
AT_ONCE = 4096  # bytes that a pipe accepts at once if it accepts any: PIPE_BUF


def open_closed() -> None:
    """Open /dev/null in place of each standard stream that is closed (`>&-`).

    Otherwise the first file that the program opens, a checkpoint for instance, would become its output.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115


def never_fail() -> None:
    """Make writes to stdout and stderr raise nothing and never wait long for a reader."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, Steady):
            continue
        try:
            stream.flush()
            stream.fileno()
        except (OSError, ValueError, AttributeError):
            if not hasattr(stream, "fileno"):
                continue
        setattr(sys, name, Steady(stream))


class Steady:
    """A text stream over the file descriptor of `stream`; text that cannot be written is dropped."""

    def __init__(self, stream: TextIO):
        self._stream = stream
        self._encoding = stream.encoding or "utf-8"
        self._patience = PATIENCE
        self._is_gone = False

    def write(self, text: str) -> int:
        """Write `text`, with an escape for each character that the stream's encoding lacks."""
        data = text.encode(self._encoding, "backslashreplace")
        while data and not self._is_gone:
            try:
                number = self._stream.fileno()
                if not select.select([], [number], [], self._patience)[1]:
                    self._patience = 0.0  # nobody reads: later writes do not wait until somebody reads again
                    break
                self._patience = PATIENCE
                data = data[os.write(number, data[:AT_ONCE]) :]
            except BlockingIOError:
                break
            except (BrokenPipeError, ValueError):
                self._is_gone = True
            except OSError:  # for example a full disk, which may have room again later
                break
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Nothing is buffered."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
