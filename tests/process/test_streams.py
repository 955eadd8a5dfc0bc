"""Standard streams that are closed, full or not read do not end the program."""

import os
import subprocess
import sys

import pytest

from lhtrain.process import streams

TALK = """
import sys
from lhtrain.process.streams import never_fail, open_closed
open_closed()
never_fail()
data = open(sys.argv[1], "w")
for _ in range(3):
    print("text on stdout")
    print("text on stderr", file=sys.stderr)
sys.stdout.flush()
sys.stdin.read()
data.write(f"{data.fileno() > 2}")
"""


@pytest.mark.parametrize("how", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", ">/dev/full 2>/dev/full"])
def test_closed_and_full_streams(tmp_path, how):
    """Also, no file that the program opens gets the descriptor of a closed stream."""
    out = tmp_path / "data"
    command = ["sh", "-c", f'"$0" -c "$1" "$2" {how}', sys.executable, TALK, str(out)]
    assert subprocess.run(command, stdin=subprocess.DEVNULL, timeout=60).returncode == 0
    assert out.read_text() == "True"


def test_a_reader_that_is_gone(tmp_path):
    out = tmp_path / "data"
    command = ["sh", "-c", '"$0" -c "$1" "$2" </dev/null | true', sys.executable, TALK, str(out)]
    subprocess.run(command, timeout=60)
    assert out.read_text() == "True"


@pytest.fixture
def pipe():
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as read, os.fdopen(writer, "w") as write:
        yield read, streams.Steady(write)


def test_a_reader_that_does_not_read_holds_up_nothing(pipe, monkeypatch):
    monkeypatch.setattr(streams, "PATIENCE", 0.01)
    read, steady = pipe
    steady._patience = 0.01
    for _ in range(200):  # 2 MB; a pipe holds 64 KB
        steady.write("x" * 9_999 + "\n")
    os.set_blocking(read.fileno(), False)
    taken = len(read.read())
    assert 0 < taken < 2_000_000
    steady.write("read again\n")  # written, because the reader reads again
    assert read.read() == b"read again\n"


def test_a_character_that_the_encoding_lacks(tmp_path):
    with (tmp_path / "out").open("w", encoding="ascii") as file:
        streams.Steady(file).write("\u2502 1 \xd7 2\n")
    assert (tmp_path / "out").read_text() == "\\u2502 1 \\xd7 2\n"
