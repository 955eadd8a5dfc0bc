"""Where output cannot go."""

import errno
import io
import sys

from lhtrain.terminal import Terminal


class FullDisk(io.StringIO):
    def write(self, text):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_output_that_a_full_disk_refuses_does_not_end_the_run(monkeypatch):
    monkeypatch.setattr(sys, "stdout", FullDisk())
    with Terminal(steps=1) as terminal:
        terminal.print("a line")
        terminal.step({"step": 1, "stage": "dense", "loss": 2.0, "tokens_per_second": 1.0, "lr": 1e-3})
