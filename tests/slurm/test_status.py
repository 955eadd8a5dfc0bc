"""The list of runs, from their files and the queue."""

import json
import os
from pathlib import Path

import pytest
from rich.console import Console

from lhtrain.slurm.folder import Attempts, SlurmFolder
from lhtrain.slurm.queue import Queued
from lhtrain.slurm.status import find_runs, status_of, statuses, table
from tests.slurm.cluster import command


def make_run(path: Path, step=0, job="7", finished=False, stage="recovery", **attempts):
    folder = SlurmFolder(path)
    folder.path.mkdir(parents=True)
    folder.config.write_text("run: {steps: 100}\n")
    folder.job.write_text(f"{job}\n")
    folder.write_attempts(Attempts(job, **attempts))
    rows = [
        {"kind": "train", "step": number, "stage": stage, "loss": 9 - number / 10, "step_seconds": 2.0}
        for number in range(1, step + 1)
    ]
    rows.append({"kind": "validation", "step": step, "val_loss": 1.0})
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"kind": "tra')
    if finished:
        (path / "summary.json").write_text('{"finished": true}')
    return path


def test_a_running_run(tmp_path):
    run = make_run(tmp_path / "a", step=40, count=3, restarts=1)
    found = status_of(run, {"7": Queued("RUNNING", "1:02:03", "node0")})
    assert (found.state, found.step, found.steps, found.stage, found.loss) == (
        "RUNNING",
        40,
        100,
        "recovery",
        5.0,
    )
    assert (found.restarts, found.run_left, found.job_left) == (1, 120.0, "1:02:03")


@pytest.mark.parametrize(
    ("summary", "left"),
    [
        ({"wall_clock_seconds": 80.0, "seconds_left": 500.0}, 496.0),  # 4 s since the last validation
        ({"wall_clock_seconds": 80.0, "seconds_left": 1.0}, 0.0),
        ({"wall_clock_seconds": 0, "seconds_left": None}, 120.0),  # no validation yet
        ({}, 120.0),
    ],
)
def test_the_time_left_is_the_runs_own_estimate(tmp_path, summary, left):
    """The stages to come may be slower than the steps of late."""
    run = make_run(tmp_path / "a", step=40)
    with (run / "metrics.jsonl").open("w") as file:
        row = {"kind": "train", "step": 40, "stage": "lighthouse", "loss": 2.0, "step_seconds": 2.0}
        file.write(json.dumps(row | {"seconds": 84.0}) + "\n")
    (run / "summary.json").write_text(json.dumps({"finished": False, **summary}))
    assert status_of(run, {}).run_left == left


def test_the_state_is_finished_or_the_jobs_or_how_the_last_attempt_ended(tmp_path):
    pending = {"7": Queued("PENDING", "1:00", "(Priority)")}
    assert status_of(make_run(tmp_path / "a", finished=True), {}).state == "finished"
    assert status_of(make_run(tmp_path / "b"), pending).state == "PENDING (Priority)"
    assert status_of(make_run(tmp_path / "c", outcome="crashed with status 1"), {}).state.startswith(
        "crashed"
    )
    assert status_of(make_run(tmp_path / "d"), {}).state == "not running"
    assert status_of(make_run(tmp_path / "e"), None).state == "unknown: no SLURM here"


def test_runs_are_found_in_folders_in_sweeps_and_by_themselves(tmp_path):
    runs = [make_run(tmp_path / name) for name in ("a", "b_sweep/0", "b_sweep/1")]
    assert find_runs([tmp_path]) == runs
    assert find_runs([runs[0], tmp_path / "b_sweep"]) == runs
    (tmp_path / "c" / "metrics.jsonl").parent.mkdir()
    (tmp_path / "c" / "metrics.jsonl").write_text("")  # a run without a job
    assert find_runs([tmp_path])[-1] == tmp_path / "c"


def test_names_cannot_break_the_table(tmp_path):
    make_run(tmp_path / "two\nlines \x1b[31m[red]", step=1, stage="[/x]")
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table(statuses([tmp_path])))
    assert "two lines ?[31m[red]" in (out := console.export_text()) and " [/x] " in out


def test_the_command_lists_runs_where_there_is_no_slurm(tmp_path):
    make_run(tmp_path / "runs" / "mine", step=3, finished=True)
    done = command("status", cwd=tmp_path, env=os.environ | {"PATH": "/nonexistent"})
    assert done.returncode == 0, done.stderr
    assert "mine" in done.stdout and "finished" in done.stdout and "3/100" in done.stdout


def test_names_are_there_in_a_narrow_terminal(tmp_path):
    make_run(tmp_path / "runs" / "a_name_of_some_length", step=3)
    terminal = os.environ | {"PATH": "/nonexistent", "FORCE_COLOR": "1", "COLUMNS": "60"}
    assert "a_name_of_some_length" in command("status", cwd=tmp_path, env=terminal).stdout


@pytest.mark.parametrize("arguments", [[], ["elsewhere"]])
def test_no_such_folder(tmp_path, arguments):
    done = command("status", *arguments, cwd=tmp_path)
    assert done.returncode == 1 and "no such folder" in done.stderr
