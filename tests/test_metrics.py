"""metrics.jsonl over kills and resumes."""

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


def test_no_file_no_rows(tmp_path):
    assert read(tmp_path / "metrics.jsonl") == []
