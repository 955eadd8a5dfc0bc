"""Tests of the list of runs, from their files and the queue."""

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from lhtrain.conf.schema import WatchdogConfig
from lhtrain.health.hang import Watchdog
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
    assert (found.state, found.step, found.steps, found.stage) == ("RUNNING", 40, 100, "recovery")
    assert found.loss == pytest.approx(9 - 3.05)  # the mean of steps 21 to 40
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
    """Later stages may be slower than the recent steps."""
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
    assert status_of(make_run(tmp_path / "e"), None).state.startswith("unknown: squeue")


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


@pytest.fixture
def process():
    """A process on this machine, in place of a rank."""
    started = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield started
    started.communicate()


def beat(run, pid, host=None, age=0.0, **more):
    (run / "ranks").mkdir(exist_ok=True)
    file = run / "ranks" / "0.json"
    file.write_text(json.dumps({"rank": 0, "pid": pid, "host": host or platform.node()} | more))
    now = time.time()
    os.utime(file, (now - age, now - age))


def test_a_run_without_a_job_shows_that_it_is_alive(tmp_path, process):
    run = make_run(tmp_path / "a", step=3, job="", outcome="crashed with status 1")
    here = platform.node()
    assert status_of(run, None).state == "crashed with status 1"
    beat(run, process.pid)
    assert status_of(run, None).state == f"running on {here}"
    beat(run, process.pid, age=-1000)  # a clock that differs
    assert status_of(run, None).state == f"running on {here}"
    beat(run, 0, host="node7")
    assert status_of(run, {}).state == "running on node7"
    (run / "ranks" / "1.json").write_text("{")
    beat(run, 0, host="node7", age=600)
    assert status_of(run, {}).state == "crashed with status 1"


def test_a_process_that_is_gone_or_another_is_not_the_run(tmp_path, process):
    run = make_run(tmp_path / "a", step=3, job="")
    process.communicate()
    beat(run, process.pid)
    assert status_of(run, None).state == "not running"
    beat(run, os.getpid(), age=7 * 86400)  # this process has its number now
    assert status_of(run, None).state == "not running"


def test_a_run_that_has_ended_is_not_running_although_its_process_is(tmp_path, process):
    """So it is in a sweep, whose next run has the same process."""
    run = make_run(tmp_path / "a", step=3, job="")
    beat(run, process.pid, phase="step")
    assert status_of(run, None).state == f"running on {platform.node()}"
    with Watchdog(WatchdogConfig(), run, rank=0, beat=0.01):
        assert status_of(run, None).state == f"running on {platform.node()}"
    assert status_of(run, None).state == "not running"


def test_a_process_that_is_stopped_does_not_respond(tmp_path):
    run = make_run(tmp_path / "a", step=3, job="")
    beat(run, 1, age=0.0)
    assert "not responding" not in status_of(run, None).state
    beat(run, 1, age=90.0)  # process 1 is older than that
    assert status_of(run, None).state.startswith(f"running on {platform.node()}, but not responding for 1:3")


@pytest.mark.parametrize(
    ("ended", "state"),
    [
        ({"how": "signal", "reason": "SIGTERM"}, "stopped by SIGTERM"),
        ({"how": "error", "reason": "the loss\nis not finite"}, "failed: the loss is not finite"),
        (None, "not running"),
        ("odd", "not running"),
    ],
)
def test_how_a_run_ended(tmp_path, ended, state):
    run = make_run(tmp_path / "a", step=3, job="")
    (run / "summary.json").write_text(json.dumps({"finished": False, "ended": ended}))
    assert status_of(run, None).state == state


def test_a_finished_run_that_was_lengthened_is_not_finished(tmp_path):
    run = make_run(tmp_path / "a", step=100)
    (run / "summary.json").write_text(json.dumps({"finished": True, "steps": 100}))
    assert status_of(run, None).state == "finished"
    SlurmFolder(run).config.write_text("run: {steps: 150}\n")
    assert status_of(run, {}).state == "not running" and status_of(run, {}).steps == 150


def test_pipes_and_damaged_files_neither_hang_nor_end_the_list(tmp_path):
    """Opening a pipe would block for ever, and the files may contain any JSON values."""
    run = make_run(tmp_path / "a", step=4)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('\n{"kind": "train", "step": "x"}\n{"kind": "train", "step": 5, "loss": "x"}\n')
    for path in (run / "config.yaml", run / "summary.json", run / "slurm" / "attempts.json"):
        path.unlink(missing_ok=True)
        os.mkfifo(path)
    (run / "slurm" / "job").write_bytes(b"\xff\n")
    (run / "ranks").mkdir()
    os.mkfifo(run / "ranks" / "0.json")
    for number, pid in enumerate(("1e999", "99999999999999999999"), 1):
        (run / "ranks" / f"{number}.json").write_text(f'{{"host": "{platform.node()}", "pid": {pid}}}')
    found = status_of(run, {})
    assert (found.step, found.steps, found.state) == (4, 100, "not running")
    Console(quiet=True).print(table([found]))
