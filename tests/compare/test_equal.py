"""--assert-equal finds the first difference, and reference files are accepted in place of runs."""

import json
from argparse import Namespace

import pytest

from lhtrain.commands.compare import compare_runs
from lhtrain.compare.equal import first_difference, read_trace, save_reference
from lhtrain.errors import RunError, UsageError
from tests.compare.made import dense_rows, made_run


def changed(rows, number, **values):
    return [row | values if at == number else row for at, row in enumerate(rows)]


def compared(*paths, save=None):
    words = {"RUN": list(map(str, paths)), "json": False, "sort": "given", "save_reference": save}
    return compare_runs(Namespace(assert_equal=save is None, **words))


def test_equal_runs_may_differ_in_times(tmp_path, capsys):
    a, b = made_run(tmp_path / "a", dense_rows()), made_run(tmp_path / "b", dense_rows(pace=3))
    assert compared(a, b) == 0
    assert "equal: 15 rows until step 10" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rows", "difference"),
    [
        (changed(dense_rows(), 3, loss=4.400000001), "step 3, train: loss is 4.4 and 4.400000001"),
        (changed(dense_rows(), 2, val_loss=None), "step 2, validation: val_loss is 4.6 and null"),
        (changed(dense_rows(), 3, tokens=1), "step 3, train: tokens is 12288 and 1"),
        (changed(dense_rows(), 3, lr=2e-3), "step 3, train: lr is 0.001 and 0.002"),
        (dense_rows()[:-1], "step 10: only A has a row of kind validation"),
        (dense_rows()[1:], "step 1, train: the other run has step 2, train in its place"),
        (
            [row for row in dense_rows() if row["kind"] == "train"],
            "step 2, validation: the other run has step 3",
        ),
    ],
)
def test_the_first_difference(tmp_path, capsys, rows, difference):
    a, b = made_run(tmp_path / "a", dense_rows()), made_run(tmp_path / "b", rows)
    assert compared(a, b) == 1
    assert difference.replace("A", str(a)) in capsys.readouterr().out


def test_other_data_are_a_difference(tmp_path, capsys):
    a, b = made_run(tmp_path / "a", dense_rows()), made_run(tmp_path / "b", dense_rows(), data="xyz")
    assert compared(a, b) == 1 and "abc and xyz" in capsys.readouterr().out


def test_a_value_of_another_version_is_not_a_difference_but_a_missing_loss_is(tmp_path):
    newer = [row | {"bits_per_byte": 1.0} for row in dense_rows()]
    a, b = made_run(tmp_path / "a", dense_rows()), made_run(tmp_path / "b", newer)
    assert compared(a, b) == 0
    without = [{key: value for key, value in row.items() if key != "loss"} for row in dense_rows()]
    assert "only one of the runs has loss" in first_difference(
        read_trace(a), read_trace(made_run(tmp_path / "c", without))
    )


def test_a_resumed_run_equals_one_that_was_not(tmp_path):
    rows = dense_rows()
    rows.insert(4, {"kind": "changed", "step": 3, "changed": ["run.log_every: 1 -> 2"]})
    assert compared(made_run(tmp_path / "a", dense_rows()), made_run(tmp_path / "b", rows)) == 0


def test_a_reference_file_takes_the_place_of_a_run(tmp_path, capsys):
    a = made_run(tmp_path / "a", dense_rows())
    b = made_run(tmp_path / "b", changed(dense_rows(), 3, loss=1.0), hardware={"device": "H100"})
    reference = tmp_path / "golden" / "cpu.jsonl"
    compared(a, save=str(reference))
    assert "seconds" not in reference.read_text()
    assert json.loads(reference.read_text().splitlines()[0])["data"] == "abc"
    assert compared(reference, a) == 0 and compared(a, reference) == 0
    assert compared(a / "metrics.jsonl", reference) == 0
    capsys.readouterr()
    assert compared(reference, b) == 1
    assert "hardware" in capsys.readouterr().out


def test_what_cannot_be_compared_is_an_error(tmp_path):
    a, empty = made_run(tmp_path / "a", dense_rows()), made_run(tmp_path / "b", [])
    with pytest.raises(RunError, match="no rows of steps"):
        compared(a, empty)
    with pytest.raises(RunError, match="does not exist"):
        compared(a, tmp_path / "none")
    (empty / "metrics.jsonl").write_text("{\n" + json.dumps(dense_rows()[0]) + "\n")
    with pytest.raises(RunError, match="line 1 is not a JSON row"):
        compared(a, empty)
    with pytest.raises(UsageError, match="needs two"):
        compared(a)
    with pytest.raises(UsageError, match="needs one run"):
        compared(a, a, save="x")
    with pytest.raises(RunError):
        save_reference(read_trace(a), a / "metrics.jsonl" / "x")
