"""metrics.jsonl over kills and resumes."""

import errno

from lhtrain.metrics import MetricsFile, read


def write(path, steps, keep_until=0):
    file = MetricsFile(path)
    file.open(keep_until)
    for step in steps:
        file.write({"kind": "train", "step": step})
    file.close()
    return [row["step"] for row in read(path)]


def test_a_resume_cuts_the_rows_after_its_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert write(path, [1, 2, 3, 4, 5]) == [1, 2, 3, 4, 5]
    assert write(path, [4], keep_until=3) == [1, 2, 3, 4]
    assert write(path, [1]) == [1]


def test_rows_are_on_disk_at_once_and_a_torn_line_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path)
    file.open(0)
    file.write({"kind": "train", "step": 1})
    assert [row["step"] for row in read(path)] == [1]
    with path.open("a") as other:
        other.write('{"kind": "train", "st')
    assert write(path, [2], keep_until=9) == [1, 2]


def test_rows_that_a_full_disk_refuses_wait_for_room(tmp_path, monkeypatch):
    told = []
    file = MetricsFile(tmp_path / "metrics.jsonl", told.append)
    file.open(0)
    disk = Disk(file._file, room=40)
    monkeypatch.setattr(file, "_file", disk)
    for step in range(1, 5):
        file.write({"kind": "train", "step": step})
    assert [row["step"] for row in read(file.path)] == [1] and len(file.rows) == 4
    assert len(told) == 1 and "No space left on device" in told[0]
    disk.room = 1000
    file.write({"kind": "train", "step": 5})
    assert [row["step"] for row in read(file.path)] == [1, 2, 3, 4, 5]
    disk.room = 0
    file.write({"kind": "train", "step": 6})
    assert len(told) == 2
    file.open(keep_until=6)
    assert [row["step"] for row in read(file.path)] == [1, 2, 3, 4, 5, 6]


class Disk:
    """A file with room for so many more bytes: the last write that finds some is cut short."""

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


def test_no_file_no_rows(tmp_path):
    assert read(tmp_path / "metrics.jsonl") == []
