"""Where output cannot go."""

import errno
import io
import os
import sys

from lhtrain.terminal import Terminal


def a_run_prints():
    with Terminal(steps=1) as terminal:
        terminal.print("a line")
        terminal.step({"step": 1, "stage": "dense", "loss": 2.0, "tokens_per_second": 1.0, "lr": 1e-3})


class FullDisk(io.StringIO):
    def write(self, text):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_output_that_a_full_disk_refuses_does_not_end_the_run(monkeypatch):
    monkeypatch.setattr(sys, "stdout", FullDisk())
    a_run_prints()


def test_a_reader_that_is_gone_does_not_end_the_run(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        a_run_prints()
