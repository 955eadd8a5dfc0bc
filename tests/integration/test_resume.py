"""A run that is killed and resumed is the run that was not: the same rows, bit for bit."""

import random
import signal

import pytest


@pytest.mark.parametrize("step", [7, 8, 9])
def test_killed_around_the_switch(lhtrain, undisturbed, step):
    """Checkpoints at every step: resumed one before, at and after the switch at step 8."""
    name = f"killed_{step}"
    killed = lhtrain.kill_after(name, step, "checkpoint.every=1")
    assert killed.status == -signal.SIGKILL
    resumed = lhtrain(name, "resume=auto", "checkpoint.every=1")
    assert "going on from step_" in resumed.out
    assert resumed.trace == undisturbed.trace
    assert resumed.summary["finished"]


def test_killed_at_random_steps_and_resumed_twice(lhtrain, undisturbed):
    first, second = sorted(random.sample(range(1, 16), 2))
    print(f"killed at {first} and {second}")
    assert lhtrain.kill_after("twice", first).status == -signal.SIGKILL
    lhtrain.kill_after("twice", second, "resume=auto")
    resumed = lhtrain("twice", "resume=auto")
    assert resumed.trace == undisturbed.trace
    strip = ("wall_clock_seconds", "tokens_per_second", "mfu", "data_wait_share")
    stages = [
        [{k: v for k, v in stage.items() if k not in strip} for stage in run.summary["stages"]]
        for run in (resumed, undisturbed)
    ]
    assert stages[0] == stages[1]


def test_resume_without_a_checkpoint_starts_afresh(lhtrain, undisturbed):
    assert lhtrain.kill_after("early", 2).status == -signal.SIGKILL
    resumed = lhtrain("early", "resume=auto")
    assert "a fresh start" in resumed.out
    assert resumed.trace == undisturbed.trace


def test_resuming_a_finished_run_changes_nothing(lhtrain, undisturbed):
    done = lhtrain("finished")
    again = lhtrain("finished", "resume=auto")
    assert again.trace == done.trace
    assert again.summary["stages"] == done.summary["stages"]


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_leaves(lhtrain, undisturbed, which):
    name = which.name
    stopped = lhtrain.kill_after(name, 3, with_signal=which)
    assert stopped.status == 128 + which
    assert f"{which.name}: stopped after step" in stopped.out
    assert "; to continue: " in stopped.out and f"resume {name}\n" in stopped.out
    assert stopped.summary["ended"] == {"how": "signal", "reason": which.name}
    assert not stopped.summary["finished"] and stopped.checkpoints
    assert "Traceback" not in stopped.err
    assert lhtrain(name, "resume=auto").trace == undisturbed.trace


def test_other_settings_are_refused_and_named(lhtrain):
    lhtrain.kill_after("changed", 6)
    refused = lhtrain("changed", "resume=auto", "optim.lr=1e-4", "run.seed=3", "run.log_every=2", status=1)
    assert "optim.lr: 0.002 -> 0.0001" in refused.err and "run.seed: 0 -> 3" in refused.err
    assert "log_every" not in refused.err and "init_from=" in refused.err


def test_a_truncated_checkpoint_is_put_aside_for_the_one_before(lhtrain, undisturbed):
    run = lhtrain("truncated", "checkpoint.every=8")
    file = run.path / "checkpoints" / "step_00000016" / "__0_0.distcp"
    file.write_bytes(file.read_bytes()[:-10])
    resumed = lhtrain("truncated", "resume=auto", "checkpoint.every=8")
    assert "checkpoint step_00000016 is damaged and was put aside: __0_0.distcp is truncated" in resumed.out
    assert "going on from step_00000008" in resumed.out
    assert resumed.trace == undisturbed.trace
    assert resumed.checkpoints == ["damaged-step_00000016", "step_00000008", "step_00000016"]


def test_other_settings_when_told_so(lhtrain):
    lhtrain.kill_after("forced", 6)
    forced = lhtrain("forced", "resume=force", "optim.lr=1e-4")
    assert forced.rows[-2]["lr"] < 1e-4 and forced.summary["finished"]
