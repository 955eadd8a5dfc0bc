"""A run that is killed and resumed has the same rows as an uninterrupted run, bit for bit."""

import json
import random
import shutil
import signal

import pytest

from tests.integration.command import Run
from tests.integration.forked import Forked

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("step", [7, 8, 9])
def test_killed_around_the_switch(lhtrain, undisturbed, step):
    """Checkpoints at every step: resumed one step before, at and after the switch at step 8."""
    name = f"killed_{step}"
    killed = lhtrain.kill_after(name, step, "checkpoint.every=1")
    assert killed.status == -signal.SIGKILL
    assert killed.summary["steps"] >= 6 and killed.summary["ended"] is None  # from its last validation
    assert (killed.path / "loss.png").read_bytes().startswith(b"\x89PNG")
    resumed = lhtrain(name, "resume=auto", "checkpoint.every=1")
    assert "continues from step_" in resumed.out
    assert resumed.trace == undisturbed.trace
    assert resumed.summary["finished"]


def test_killed_in_a_recipe_whose_stages_change_rates_rotary_base_dense_layers_and_data(lhtrain):
    recipe = ["stage=curriculum", "stages.short.tokens=2048", "stages.short.rope_theta=5e3"]
    recipe += ["stages.lighthouse.lr=5e-4", "stages.lighthouse.warmup_steps=3", "model.rope_theta=5e5"]
    recipe += ["stages.lighthouse.dense_layers=[0]", "stages.recovery.schedule=cosine", "checkpoint.every=1"]
    own = lhtrain.folder / "text" / "3.txt"  # a part of the run's data, as a source of its own
    recipe += ["stages.lighthouse.data.source=text", f"stages.lighthouse.data.path={own}"]
    alone = lhtrain("recipe_alone", *recipe)
    assert lhtrain.kill_after("recipe_killed", 5, *recipe).status == -signal.SIGKILL
    resumed = lhtrain("recipe_killed", "resume=auto", *recipe)
    assert "continues from step_" in resumed.out
    assert resumed.trace == alone.trace
    other = own.with_name("4.txt")
    refused = lhtrain(
        "recipe_killed", "resume=auto", *recipe, f"stages.lighthouse.data.path={other}", status=1
    )
    assert "stages.lighthouse.data: " in refused.err and "resume=force" in refused.err


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
    assert ": new run" in resumed.out and "rows of an attempt that was killed" in resumed.out
    assert (resumed.path / "metrics.0001.jsonl").exists()
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
    assert "optim.lr: 0.001 -> 0.0001" in refused.err and "run.seed: 0 -> 3" in refused.err
    assert "log_every" not in refused.err and "init_from=" in refused.err


def test_a_truncated_checkpoint_is_renamed_and_the_one_before_is_used(lhtrain, undisturbed):
    run = lhtrain("truncated", "checkpoint.every=8")
    file = run.path / "checkpoints" / "step_00000016" / "rank_00000.bin"
    file.write_bytes(file.read_bytes()[:-10])
    resumed = lhtrain("truncated", "resume=auto", "checkpoint.every=8")
    renamed = "is damaged and was renamed to damaged-step_00000016: rank_00000.bin is truncated"
    assert f"checkpoint step_00000016 {renamed}" in resumed.out
    assert "continues from step_00000008" in resumed.out
    assert resumed.trace == undisturbed.trace
    assert resumed.checkpoints == ["damaged-step_00000016", "step_00000008", "step_00000016"]


def test_other_settings_when_told_so(lhtrain):
    lhtrain.kill_after("forced", 6)
    forced = lhtrain("forced", "resume=force", "optim.lr=1e-4")
    assert forced.rows[-2]["lr"] < 1e-4 and forced.summary["finished"]
    assert "changed optim.lr: 0.001 -> 0.0001" in forced.out and "plan      recovery (dense): " in forced.out
    assert [row["changed"] for row in forced.rows if row["kind"] == "changed"] == [
        ["optim.lr: 0.001 -> 0.0001"]
    ]
    assert "lr: 0.001" in (forced.path / "config.0001.yaml").read_text()
    again = lhtrain.bare("resume", str(forced.path))
    assert again.returncode == 0, "what was accepted once is accepted"
    records = [json.loads(line) for line in (forced.path / "history.jsonl").read_text().splitlines()]
    starts = [record for record in records if record["event"] == "start"]
    assert [record["how"] for record in starts] == ["new run", "resumed", "resumed"]
    assert starts[1]["changed"] == [{"key": "optim.lr", "before": 0.001, "after": 0.0001}]
    assert "resume=force" in starts[1]["command"] and starts[1]["ranks"] == 1


def test_a_longer_plan_names_the_stages_that_really_run(lhtrain):
    """A plan with twice the steps: a Lighthouse stage follows the recovery stage."""
    lhtrain("longer", "run.steps=4")
    run = lhtrain("longer", "run.steps=8", "resume=force", "checkpoint.every=100")
    attention = [(row["step"], row["stage"]) for row in run.rows if row["kind"] == "train"]
    assert attention == [(1, "lighthouse"), (2, "lighthouse"), *((step, "recovery") for step in range(3, 9))]
    assert [(s["name"], s["steps"]) for s in run.summary["stages"]] == [("lighthouse", 2), ("recovery", 6)]

    run = lhtrain("longer", "run.steps=24", "resume=force", "checkpoint.every=100")
    stages = [row["stage"] for row in run.rows if row["kind"] == "train"]
    assert stages[8:] == ["lighthouse"] * 4 + ["recovery"] * 12
    switches = [(row["from"], row["to"], row["step"]) for row in run.rows if row["kind"] == "switch"]
    assert switches[1:] == [("recovery", "lighthouse", 9), ("lighthouse", "recovery", 13)]
    assert [s["attention"] for s in run.summary["stages"]] == ["lighthouse", "dense"] * 2


def test_extended_and_killed_and_resumed_it_is_the_longer_run(lhtrain):
    """The configuration in the directory is sufficient, and a kill in the added steps loses nothing."""
    alone = lhtrain("extended", "stage=dense", "run.steps=6").path
    killed = shutil.copytree(alone, lhtrain.folder / "extended_and_killed")
    refused = lhtrain.bare("resume", str(alone), "run.steps=9", "stages.dense.steps=9")
    assert refused.returncode == 1 and "run.steps: 6 -> 9" in refused.stderr
    assert "lhtrain extend" in refused.stderr

    plan = (alone / "config.yaml").read_bytes()
    refused = lhtrain.bare("extend", str(alone), "steps=+10", "optim.lr=1e-4")
    assert refused.returncode == 1 and "optim.lr: 0.001 -> 0.0001" in refused.stderr
    refused = lhtrain.bare("extend", str(alone), "steps=+x")
    assert refused.returncode == 2 and "steps=+x: must be +N" in refused.stderr
    assert (alone / "config.yaml").read_bytes() == plan  # unchanged, so the command can be repeated

    extended = lhtrain.bare("extend", str(alone), "steps=+10")
    assert extended.returncode == 0, extended.stderr
    assert "planned for 16 steps instead of 6" in extended.stdout
    assert "dense (dense): steps 7 to 16, learning rate 0.001, constant until step 14" in extended.stdout

    process = Forked(["extend", str(killed), "steps=16"], lhtrain.folder, lhtrain.environment)
    for line in process.stdout:
        if line.startswith("step     12/16"):
            process.kill()
    process.wait()
    assert not Run(killed, 0, "", "").summary["finished"]
    resumed = lhtrain.bare("extend", str(killed), "steps=16")  # the same command again
    assert resumed.returncode == 0 and "already planned for 16 steps" in resumed.stdout
    assert "continues from step_00000010" in resumed.stdout
    assert Run(killed, 0, "", "").trace == Run(alone, 0, "", "").trace
    assert (killed / "config.0001.yaml").exists()


def test_fewer_steps_than_done_are_refused(lhtrain, undisturbed):
    fewer = ("run.steps=4", "stages.lighthouse.steps=2", "stages.recovery.steps=2")
    refused = lhtrain.bare("resume", str(undisturbed.path), *fewer, "resume=force")
    assert refused.returncode == 1
    assert "run.steps=4: step_00000016 has already done 16 steps" in refused.stderr


def test_lost_checkpoints_are_no_new_run(lhtrain):
    """If a run's checkpoints are gone, its rows are kept until the user asks to start over."""
    run = lhtrain("lost", "stage=dense", "run.steps=4", "checkpoint.every=2")
    before = (run.path / "metrics.jsonl").read_bytes()
    shutil.rmtree(run.path / "checkpoints")
    for _ in range(2):  # SLURM restarts the job automatically
        refused = lhtrain.bare("resume", str(run.path))
        assert refused.returncode == 1 and "resume=restart" in refused.stderr
        assert (run.path / "metrics.jsonl").read_bytes() == before
    again = lhtrain.bare("resume", str(run.path), "resume=restart")
    assert again.returncode == 0
    assert (run.path / "earlier.0001" / "metrics.jsonl").read_bytes() == before


def test_a_directory_alone_says_what_to_resume(lhtrain, undisturbed):
    again = lhtrain.bare(f"run.dir={undisturbed.path}", "resume=auto")
    assert again.returncode == 0 and "continues from step_00000016" in again.stdout, again.stderr
    assert "lhtrain extend" in again.stdout
    nowhere = lhtrain.bare("resume=auto", "run.steps=4")
    assert nowhere.returncode == 2 and "resume=auto: needs run.dir=DIR" in nowhere.stderr
