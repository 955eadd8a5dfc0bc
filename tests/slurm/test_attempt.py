"""Tests of the decisions at the start and end of an attempt, from the files in the run directory."""

import json
import os

import pytest

from lhtrain.slurm.attempt import By, End, Next, begin, decide, end
from lhtrain.slurm.folder import SlurmFolder

CRASH = End(status=1, by=By.ranks, finished=False, orderly=False, saved=False)


@pytest.fixture
def run_dir(tmp_path):
    (tmp_path / "slurm").mkdir()
    return tmp_path


def save(run_dir, step):
    (run_dir / "checkpoints" / f"step_{step:08d}").mkdir(parents=True)


def summarize(run_dir, finished=False, how="signal"):
    """Write summary.json. how: None while the run is training, as after each validation."""
    before = SlurmFolder(run_dir).summary_time()
    ended = {"how": "finished" if finished else how} if how else None
    (run_dir / "summary.json").write_text(json.dumps({"finished": finished, "ended": ended}))
    os.utime(run_dir / "summary.json", ns=(before + 10**9, before + 10**9))


def restarts(run_dir):
    return SlurmFolder(run_dir).read_attempts().restarts


@pytest.mark.parametrize("status", [0, 1, 138, 143])
def test_a_finished_run_does_not_requeue(run_dir, status):
    assert begin(run_dir, "7", 3)[0] is Next.run
    summarize(run_dir, finished=True)
    assert end(run_dir, status, By.ranks, 3) == (Next.finished, "finished")
    assert begin(run_dir, "7", 3)[0] is Next.finished


@pytest.mark.parametrize("status", [1, 138, 143])  # torchrun's, a rank's after USR1 and after TERM
def test_a_signal_that_saved_requeues_without_counting(run_dir, status):
    for step in range(1, 6):
        assert begin(run_dir, "7", 1)[0] is Next.run
        save(run_dir, step)
        summarize(run_dir)
        assert end(run_dir, status, By.ranks, 1)[0] is Next.requeue
    assert restarts(run_dir) == 0 and SlurmFolder(run_dir).read_attempts().count == 5


def test_crashes_are_limited_also_where_they_saved(run_dir):
    answers = []
    for step in range(1, 5):
        assert begin(run_dir, "7", 2)[0] is Next.run
        save(run_dir, step)
        answers.append(end(run_dir, 1, By.ranks, 2))
    assert [answer for answer, _ in answers[:3]] == [Next.requeue, Next.requeue, Next.stop]
    assert answers[0][1] == "crashed with status 1, restart 1 of 2"
    assert "cluster.max_restarts=2 is reached" in answers[2][1]


def test_an_old_summary_does_not_make_a_crash_orderly(run_dir):
    summarize(run_dir)
    begin(run_dir, "7", 3)
    save(run_dir, 5)
    assert end(run_dir, 1, By.ranks, 3)[1].startswith("crashed with status 1")


@pytest.mark.parametrize("how", [None, "error"])
def test_a_summary_that_is_renewed_while_the_run_goes_on_does_not_make_a_crash_orderly(run_dir, how):
    begin(run_dir, "7", 3)
    save(run_dir, 5)
    summarize(run_dir, how=how)
    assert end(run_dir, 1, By.ranks, 3)[1].startswith("crashed with status 1")


@pytest.mark.parametrize("content", ["[]", "3", '{"finished": false, "ended": "signal"}'])
def test_a_summary_of_another_shape_is_none(run_dir, content):
    begin(run_dir, "7", 3)
    (run_dir / "summary.json").write_text(content)
    assert end(run_dir, 1, By.ranks, 3)[1].startswith("crashed with status 1")


def test_signals_before_the_first_step_are_limited(run_dir):
    """Otherwise a job whose time limit is shorter than its start would requeue for ever."""
    for _ in range(2):
        begin(run_dir, "7", 2)
        summarize(run_dir)
        answer, why = end(run_dir, 138, By.ranks, 2)
        assert answer is Next.requeue and "signal before a checkpoint" in why
    begin(run_dir, "7", 2)
    assert end(run_dir, 138, By.ranks, 2)[0] is Next.stop


def test_attempts_that_were_killed_are_limited(run_dir):
    assert [begin(run_dir, "7", 2)[0] for _ in range(4)] == [Next.run, Next.run, Next.run, Next.stop]


def test_a_killed_attempt_that_saved_does_not_count(run_dir):
    begin(run_dir, "7", 0)
    save(run_dir, 5)
    assert begin(run_dir, "7", 0)[0] is Next.run


def test_submitting_again_counts_afresh(run_dir):
    begin(run_dir, "7", 1)
    end(run_dir, 1, By.ranks, 1)
    assert restarts(run_dir) == 1
    begin(run_dir, "8", 1)
    assert restarts(run_dir) == 0 and SlurmFolder(run_dir).read_job() == "8"


def test_what_slurm_decided_stays():
    assert decide(End(143, By.slurm, False, True, True), 0, 3)[:2] == (Next.leave, False)
    assert decide(End(143, By.limit, False, True, True), 0, 3)[:2] == (Next.leave, False)
    assert decide(End(143, By.limit, False, False, False), 0, 3)[:2] == (Next.leave, True)


def test_a_configuration_error_stops():
    assert decide(End(2, By.ranks, False, False, False), 0, 3)[0] is Next.stop
    assert decide(CRASH, 0, 3)[0] is Next.requeue


def test_unreadable_files_are_none(run_dir):
    folder = SlurmFolder(run_dir)
    folder.attempts.write_text("{")
    (run_dir / "summary.json").write_text("")
    assert begin(run_dir, "7", 3)[0] is Next.run


def test_preemption_before_a_step_is_no_crash(run_dir):
    for status in (1, 138, 143):  # torchrun's, a rank's
        assert begin(run_dir, "7", 0)[0] is Next.run
        answer, why = end(run_dir, status, By.ranks, 0, preempted=True)
        assert answer is Next.requeue and "preempted before it could save" in why
    assert restarts(run_dir) == 0
    begin(run_dir, "7", 0)
    answer, why = end(run_dir, 2, By.ranks, 0, preempted=True)
    assert answer is Next.stop and "error in the settings" in why


@pytest.mark.parametrize(("by", "counted"), [("slurm", 0), ("limit", 1), (None, 1)])
def test_an_attempt_that_slurm_killed_counts_by_the_scripts_note(run_dir, by, counted):
    begin(run_dir, "7", 3)
    if by:
        SlurmFolder(run_dir).ended_by.write_text(f"{by}\n")
    assert begin(run_dir, "7", 3)[0] is Next.run
    assert restarts(run_dir) == counted and not SlurmFolder(run_dir).ended_by.exists()


def started(run_dir, job):
    (run_dir / "history.jsonl").write_text(json.dumps({"event": "start", "job": job}) + "\n")


def test_force_is_for_the_attempts_until_one_has_started(run_dir):
    started(run_dir, "6")  # another job
    assert begin(run_dir, "7", 3, "force")[0] is Next.run
    assert begin(run_dir, "7", 3, "force")[0] is Next.run
    started(run_dir, "7")
    assert begin(run_dir, "7", 3, "force")[0] is Next.continue_
    assert begin(run_dir, "8", 3, "force")[0] is Next.run


def test_restart_is_for_the_attempts_until_one_has_saved(run_dir):
    save(run_dir, 9)
    summarize(run_dir, finished=True)
    assert begin(run_dir, "7", 3, "restart")[0] is Next.run
    (run_dir / "checkpoints" / "step_00000009").rename(run_dir / "earlier")
    (run_dir / "summary.json").unlink()
    started(run_dir, "7")
    assert begin(run_dir, "7", 3, "restart")[0] is Next.run
    save(run_dir, 2)
    (run_dir / "checkpoints" / "step_00000002" / "manifest.json").touch()
    assert begin(run_dir, "7", 3, "restart")[0] is Next.continue_


def test_a_run_that_is_longer_now_is_not_finished(run_dir):
    (run_dir / "summary.json").write_text('{"finished": true, "steps": 40}')
    (run_dir / "config.yaml").write_text("run: {steps: 40}")
    assert begin(run_dir, "7", 3)[0] is Next.finished
    SlurmFolder(run_dir).config.write_text("run: {steps: 60}")
    os.utime(run_dir / "config.yaml", (1, 1))
    assert begin(run_dir, "7", 3)[0] is Next.run


@pytest.mark.parametrize("rows", [True, False])
def test_what_cannot_be_continued_stops(run_dir, rows):
    """A new run would overwrite the rows, and another attempt would find the same files."""
    (run_dir / "checkpoints" / "damaged-step_00000009").mkdir(parents=True)
    if rows:
        (run_dir / "metrics.jsonl").write_text('{"kind": "train", "step": 9, "loss": 1.0}\n')
    answer, why = begin(run_dir, "7", 3)
    assert answer is Next.stop
    assert "no undamaged checkpoint is left, only damaged-step_00000009; resume=restart" in why
    assert SlurmFolder(run_dir).read_attempts().outcome == why
    assert begin(run_dir, "8", 3, "restart")[0] is Next.run


def test_rows_whose_checkpoints_are_gone_stop(run_dir):
    (run_dir / "metrics.jsonl").write_text('{"kind": "train", "step": 9, "loss": 1.0}\n')
    (run_dir / "history.jsonl").write_text('{"event": "checkpoint"}\n')
    answer, why = begin(run_dir, "7", 3)
    assert answer is Next.stop and "has no checkpoint any more" in why


def test_a_kill_before_the_first_checkpoint_is_no_loss(run_dir):
    (run_dir / "metrics.jsonl").write_text('{"kind": "train", "step": 9, "loss": 1.0}\n')
    started(run_dir, "7")
    assert begin(run_dir, "7", 3)[0] is Next.run
