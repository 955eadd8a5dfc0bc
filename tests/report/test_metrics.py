"""metrics.jsonl after kills, resumes and full disks."""

import errno

from lhtrain.report.metrics import MetricsFile
from lhtrain.runs.metrics_file import read


def write(path, steps, keep_until=0):
    file = MetricsFile(path)
    file.open(keep_until)
    for step in steps:
        file.take({"kind": "train", "step": step})
    file.close()
    return [row["step"] for row in read(path)]


def test_a_resume_drops_the_rows_after_its_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert write(path, [1, 2, 3, 4, 5]) == [1, 2, 3, 4, 5]
    assert write(path, [4], keep_until=3) == [1, 2, 3, 4]
    assert write(path, [1]) == [1]


def test_rows_are_written_at_once_and_an_incomplete_line_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path)
    file.open(0)
    file.take({"kind": "train", "step": 1})
    assert [row["step"] for row in read(path)] == [1]
    with path.open("a") as other:
        other.write('{"kind": "train", "st')
    assert write(path, [2], keep_until=9) == [1, 2]


def test_rows_are_buffered_while_the_disk_is_full(tmp_path, monkeypatch):
    printed = []
    file = MetricsFile(tmp_path / "metrics.jsonl", printed.append)
    file.open(0)
    disk = Disk(file._file, room=40)
    monkeypatch.setattr(file, "_file", disk)
    for step in range(1, 5):
        file.take({"kind": "train", "step": step})
    assert [row["step"] for row in read(file.path)] == [1] and len(file.rows) == 4
    assert len(printed) == 1 and "No space left on device" in printed[0]
    disk.room = 1000
    file.take({"kind": "train", "step": 5})
    assert [row["step"] for row in read(file.path)] == [1, 2, 3, 4, 5]
    disk.room = 0
    file.take({"kind": "train", "step": 6})
    assert len(printed) == 2
    file.open(keep_until=6)
    assert [row["step"] for row in read(file.path)] == [1, 2, 3, 4, 5, 6]


class Disk:
    """A file with room for `room` more bytes; a longer write is cut short."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def write(self, content):
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = self.file.write(content[: self.room])
        self.room -= written
        return written

    def close(self):
        self.file.close()


def test_a_missing_file_has_no_rows(tmp_path):
    assert read(tmp_path / "metrics.jsonl") == []


def test_damaged_lines_in_the_middle_are_dropped_and_reported(tmp_path):
    path, printed = tmp_path / "metrics.jsonl", []
    good = [b'{"kind": "train", "step": %d}' % step for step in (1, 2, 3)]
    bad = [b"\xff\x00", b"[1, 2]", b'{"step": "3", "kind": "train"}', b'{"kind": "train"}', b"[" * 10**5]
    path.write_bytes(b"\n".join([good[0], *bad, *good[1:], b'{"kind": "tr']))
    file = MetricsFile(path, printed.append)
    file.open(keep_until=9)
    file.close()
    assert [row["step"] for row in read(path)] == [1, 2, 3]
    assert len(printed) == 1 and "lines 2, 3, 4, 5, 6 are not JSON rows" in printed[0]
    assert b"\xff\x00" in (tmp_path / "metrics.0001.jsonl").read_bytes()


def test_numbers_that_are_not_finite_become_null(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.open(0)
    file.take({"kind": "train", "step": 1, "loss": float("nan"), "of": [float("inf"), {"a": float("-inf")}]})
    assert read(file.path) == [{"kind": "train", "step": 1, "loss": None, "of": [None, {"a": None}]}]
    (tmp_path / "old.jsonl").write_text('{"kind": "train", "step": 1, "loss": NaN}\n')
    old = MetricsFile(tmp_path / "old.jsonl")
    old.open(1)
    assert "NaN" not in old.path.read_text()


def test_a_symbolic_link_is_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious\n")
    (tmp_path / "metrics.jsonl").symlink_to(victim)
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.open(0)
    file.take({"kind": "train", "step": 1})
    assert victim.read_text() == "precious\n" and not file.path.is_symlink()
