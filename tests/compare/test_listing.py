"""`lhtrain runs`: states, order and JSON."""

import json
import os
from argparse import Namespace

import pytest

from lhtrain.commands.compare import list_runs
from lhtrain.compare.listing import _short, listed
from lhtrain.errors import RunError, UsageError
from tests.compare.made import dense_rows, made_run


@pytest.fixture
def runs(tmp_path):
    stopped = {"finished": False, "ended": {"how": "signal", "reason": "SIGTERM"}, "val_loss": 4.0}
    failed = {"finished": False, "ended": {"how": "error", "reason": "no\nmemory"}, "val_loss": None}
    made_run(tmp_path / "done", dense_rows())
    made_run(tmp_path / "sweep" / "stopped", dense_rows(steps=4), **stopped)
    made_run(tmp_path / "sweep" / "failed", [], **failed)
    for age, name in enumerate(("sweep/failed", "done", "sweep/stopped")):
        os.utime(tmp_path / name / "metrics.jsonl", (10**9 - 60 * age,) * 2)
    (tmp_path / "no_run").mkdir()
    return tmp_path


def names(found):
    return [run.name.split("/")[-1] for run in found]


def test_states_and_numbers(runs):
    found = {run.name: run for run in listed([runs])}
    assert {name: run.state for name, run in found.items()} == {
        "done": "finished",
        "sweep/stopped": "stopped",
        "sweep/failed": "failed",
    }
    assert found["sweep/failed"].detail == "failed: no memory" and found["sweep/failed"].step == 0
    done, stopped = found["done"], found["sweep/stopped"]
    assert (done.step, done.steps, done.val_loss, done.tokens_per_second) == (10, 10, 3.0, 4096.0)
    assert (stopped.step, stopped.stage, stopped.val_loss) == (4, "dense", 4.0)


def test_orders(runs):
    assert names(listed([runs])) == ["failed", "done", "stopped"]
    assert names(listed([runs], "loss")) == ["done", "stopped", "failed"]
    assert names(listed([runs], "step")) == ["done", "stopped", "failed"]
    assert names(listed([runs], "name")) == ["done", "failed", "stopped"]


def test_a_folder_that_is_named_twice_is_listed_once(runs):
    assert len(listed([runs, runs / "done"])) == 3


def test_the_command(runs, capsys, monkeypatch):
    list_runs(Namespace(FOLDER=[str(runs)], sort="name", json=True))
    assert [run["state"] for run in json.loads(capsys.readouterr().out)] == ["finished", "failed", "stopped"]
    list_runs(Namespace(FOLDER=[str(runs)], sort="age", json=False))
    text = capsys.readouterr().out
    assert "failed: no memory" in text and "stopped by SIGTERM" in text and "10/10" in text
    list_runs(Namespace(FOLDER=[str(runs / "no_run")], sort="age", json=False))
    assert "no runs in" in capsys.readouterr().out
    with pytest.raises(RunError, match="no such folder"):
        list_runs(Namespace(FOLDER=[str(runs / "none")], sort="age", json=False))
    with pytest.raises(UsageError, match="must be one of"):
        list_runs(Namespace(FOLDER=[str(runs)], sort="size", json=False))


def test_a_run_that_failed_before_its_first_row_is_listed(runs):
    (runs / "done" / "metrics.jsonl").unlink()
    assert "done" in names(listed([runs]))


def test_ages():
    assert [_short(s) for s in (5, 59, 61, 7300, 200_000)] == ["5 s", "59 s", "1 min", "2 h", "2 d"]
