"""Live and plain output: streams that fail, characters that cannot be shown, and times."""

import errno
import io
import os
import sys

import pytest

from lhtrain.report.terminal import Terminal

NAMES = ["dense", "[/mnt/a]", "[bold]", "$a_b", "%s%d", "a\nb", "漢字 :warning:", "x" * 500]
NAMES += ["\udcff\x1b[2J", ""]


def row(step=1, stage="dense", loss=2.0, rate=1000.0, seconds=0.0):
    of_step = {"kind": "train", "step": step, "stage": stage, "seconds": seconds}
    return of_step | {"loss": loss, "tokens_per_second": rate, "lr": 1e-3}


def a_run_prints(name="dense"):
    with Terminal(steps=1, seconds_left=lambda: 37.0) as terminal:
        terminal.print(f"a line about {name}")
        terminal.take(row(stage=name, seconds=57.0))


class FullDisk(io.StringIO):
    def write(self, text):
        raise OSError(errno.ENOSPC, "No space left on device")


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("stream", [FullDisk, closed, lambda: None])
def test_a_stream_that_cannot_be_written_does_not_end_the_run(monkeypatch, stream):
    monkeypatch.setattr(sys, "stdout", stream())
    a_run_prints()


def test_a_closed_pipe_does_not_end_the_run(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    pipe = os.fdopen(writer, "w")
    monkeypatch.setattr(sys, "stdout", pipe)
    a_run_prints()
    with pytest.raises(BrokenPipeError):  # confirms that the pipe was broken
        pipe.close()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
@pytest.mark.parametrize("name", NAMES)
def test_any_name_in_any_encoding(monkeypatch, name, encoding):
    raw = io.BytesIO()
    with io.TextIOWrapper(raw, encoding=encoding) as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        a_run_prints(name)
        with Terminal(1) as terminal:
            terminal.print("3.0 ± 0.1 … 漢")
        stream.flush()
        out = raw.getvalue().decode(encoding)
    assert "elapsed 0:57, 0:37 left" in out and "\x1b" not in out
    if name.isascii() and name.isprintable() and len(name) < 20:
        assert f"a line about {name}\n" in out and f" {name} " in out
    last = out.splitlines()[-1]
    assert last == {"ascii": "3.0 +- 0.1 ... ?", "utf-8": "3.0 ± 0.1 … 漢"}.get(encoding, last)


class Screen:
    """A real pseudo-terminal; `read` returns what was written to it."""

    def __init__(self, encoding="utf-8"):
        self.master, slave = os.openpty()
        self.stream = os.fdopen(slave, "w", encoding=encoding)

    def read(self):
        self.stream.flush()
        os.write(self.stream.fileno(), b"END")
        out = b""
        while not out.endswith(b"END"):
            out += os.read(self.master, 1 << 16)
        return out.removesuffix(b"END").decode(errors="replace")

    def close(self):
        self.stream.close()
        os.close(self.master)


@pytest.fixture
def screen(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    screens = []

    def make(encoding="utf-8", columns=150):
        screens.append(Screen(encoding))
        monkeypatch.setattr(sys, "stdout", screens[-1].stream)
        monkeypatch.setenv("COLUMNS", str(columns))
        return screens[-1]

    yield make
    monkeypatch.undo()
    for each in screens:
        each.close()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_any_name_on_a_live_terminal(screen, name, encoding):
    where = screen(encoding)
    a_run_prints(name)
    out = where.read()
    assert "elapsed 0:57, 0:37 left" in out and "\x1b" in out and "1/1" in out
    assert "\x1b[2J?" not in out
    if name.isascii() and name.isprintable() and len(name) < 20:
        assert f"a line about {name}" in out


@pytest.mark.parametrize("columns", [0, 1, 7, 20])
def test_a_narrow_terminal(screen, columns):
    where = screen(columns=columns)
    a_run_prints()
    assert where.read()


def test_in_eighty_columns_the_numbers_are_complete(screen):
    where = screen(columns=80)
    with Terminal(12_000, seconds_left=lambda: 7200.0) as terminal:
        terminal.take(row(4000, "lighthouse", 2.3456, 18_353.0, seconds=3600.0))
    assert "lighthouse" in (out := where.read())
    assert "loss 2.3456  18,353 tok/s elapsed 1:00:00, 2:00:00 left" in out and "4000/12000" in out


@pytest.mark.parametrize("terminal", ["dumb", "unknown"])
def test_a_terminal_without_a_cursor_gets_plain_lines(screen, monkeypatch, terminal):
    where = screen()
    monkeypatch.setenv("TERM", terminal)
    a_run_prints()
    assert "step      1/1  dense" in where.read()


def test_force_color_makes_no_live_line_in_a_file(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(sys, "stdout", out := io.StringIO())
    a_run_prints()
    assert "\x1b" not in out.getvalue() and "step      1/1  dense" in out.getvalue()


def plain_lines(monkeypatch, steps, rows, done=0):
    monkeypatch.setattr(sys, "stdout", out := io.StringIO())
    with Terminal(steps, done) as terminal:
        for each in rows:
            terminal.take(each)
    return [int(line.split()[1].split("/")[0]) for line in out.getvalue().splitlines()]


@pytest.mark.parametrize("every", [1, 7, 30])
def test_about_twenty_plain_lines_are_printed_for_any_log_every(monkeypatch, every):
    steps = [step for step in range(1, 1001) if step in (1, 1000) or step % every == 0]
    printed = plain_lines(monkeypatch, 1000, [row(step) for step in steps])
    assert printed[0] == 1 and printed[-1] == 1000 and 20 <= len(printed) <= 22


def test_the_first_step_of_a_stage_is_printed(monkeypatch):
    rows = [row(step, "a" if step <= 110 else "b") for step in range(1, 201)]
    assert 111 in plain_lines(monkeypatch, 200, rows)


def test_a_resumed_run_prints_its_first_step(monkeypatch):
    assert plain_lines(monkeypatch, 1000, [row(step) for step in range(512, 552)], done=511) == [512, 550]


def test_numbers_that_are_missing_or_huge(monkeypatch):
    monkeypatch.setattr(sys, "stdout", out := io.StringIO())
    left = iter([1e9, None])
    with Terminal(2, seconds_left=lambda: next(left)) as terminal:
        terminal.take(row(1, loss=3e38, rate=None, seconds=86_400.0))
        terminal.take(row(2, loss=None))
    first, second = out.getvalue().splitlines()
    assert "loss 3.000e+38  - tok/s" in first and "elapsed 1 d 0:00:00, 11574 d 1:46:40 left" in first
    assert "loss -  1,000 tok/s" in second and second.endswith("elapsed 0:00")
