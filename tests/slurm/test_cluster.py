"""Jobs on a real SLURM: all ways in which a job is stopped, and how its run continues."""

import json

import pytest

from tests.integration.command import Run
from tests.slurm.cluster import STEPS, SlurmRun, command, slurm

pytestmark = pytest.mark.slurm

TWO_NODES = ("cluster.nodes=2", "run.batch_tokens=8192")  # a sequence for each


def trace(run):
    return Run(run.path, 0, "", "").trace


def test_signal_save_requeue_resume_finish(trainer, undisturbed):
    """After USR1 and an administrator's requeue, the losses equal those of an undisturbed run."""
    run = trainer.submit("signalled", STEPS, "checkpoint.every=1000")
    run.until_step(12)
    slurm("scancel", "-s", "USR1", run.job)
    run.until_requeued(1)
    assert "SIGUSR1: stopped after step" in run.out and "saved after a signal, requeued" in run.out
    saved = json.loads((run.path / "summary.json").read_text())["steps"]
    assert 12 <= saved < 60 and not (run.path / "checkpoints" / f"step_{saved - 1:08d}").exists()
    run.until_printed(f"continues from step_{saved:08d}")
    run.until_step(saved + 8)
    slurm("scontrol", "requeue", run.job)
    run.until_requeued(2)
    assert "SIGTERM: stopped after step" in run.out
    run.until_over("COMPLETED")
    assert trace(run) == undisturbed.trace
    assert run.fields["Restarts"] == "2"
    status = command("status", str(run.path), cwd=run.path).stdout
    assert "finished" in status and "60/60" in status
    again = command("submit", *trainer.settings, STEPS, "run.dir=signalled", cwd=trainer.folder)
    assert again.returncode == 1 and "is finished" in again.stderr


def test_a_node_that_goes_down(trainer, undisturbed):
    """The job continues on another node, after the time that SLURM gives the old one to end."""
    run = trainer.submit("node_down", STEPS)
    run.until_step(12)
    node = f"NodeName={run.fields['NodeList']}"
    slurm("scontrol", "update", node, "State=DOWN", "Reason=test")
    try:
        run.until_over("COMPLETED")
    finally:
        slurm("scontrol", "update", node, "State=RESUME", check=False)  # the node may have come back
    assert run.fields["Restarts"] == "1" and "continues from step_" in run.out
    assert trace(run) == undisturbed.trace


def test_preemption(stand_in):
    """A job of a partition with priority preempts the run, which saves and requeues in the grace time."""
    run = stand_in("wait").submit("preempted", "cluster.extra_args=['--exclusive','--nodelist=node0']")
    run.until_printed("rank 0 on node0: wait")
    options = ("-p", "high", "--exclusive", "-w", "node0")
    first = slurm("sbatch", "--parsable", *options, "--output=/dev/null", "--wrap=sleep 1").strip()
    run.until("requeue", lambda: run.fields.get("Restarts") == "1")
    assert "saved after a signal, requeued" in run.out
    run.until_requeued(1)
    run.until("second attempt", lambda: run.out.count("an attempt begins") == 2)
    assert "JobState=COMPLETED" in slurm("scontrol", "show", "job", first)
    slurm("scancel", run.job)
    run.until_over("CANCELLED")


def test_preemption_before_the_first_step_is_no_crash(stand_in):
    """The signal stays pending until the rank has a handler, and does not count for max_restarts."""
    options = ("cluster.extra_args=['--exclusive','--nodelist=node0']", "cluster.max_restarts=0")
    run = stand_in("start", *options).submit("preempted_early")
    run.until_printed("rank 0 on node0: start")
    first = ("-p", "high", "--exclusive", "-w", "node0", "--output=/dev/null", "--wrap=sleep 1")
    slurm("sbatch", *first)
    run.until_requeued(1)
    assert "preempted before it could save, requeued" in run.out
    run.until("second attempt", lambda: run.out.count("an attempt begins") == 2)
    slurm("scancel", run.job)
    run.until_over("CANCELLED")


def test_a_finished_run_is_lengthened(trainer):
    """`slurm extend` submits a job with the run's own configuration; `resume` then finds it finished."""
    run = trainer.submit("lengthened", "run.steps=16")
    run.until_over("COMPLETED")
    done = command("extend", "lengthened", "steps=+4", cwd=trainer.folder)
    assert done.returncode == 0, done.stderr
    assert "is now planned for 20 steps instead of 16" in done.stdout
    longer = SlurmRun(run.path, done.stdout.split("job ")[1].split()[0])
    longer.until_over("COMPLETED")
    assert json.loads((run.path / "summary.json").read_text())["steps"] == 20
    again = command("resume", "lengthened", cwd=trainer.folder)
    assert again.returncode == 1 and "is finished, with 20 steps" in again.stderr


def test_a_cancelled_job_stays_cancelled(stand_in):
    run = stand_in("wait").submit("cancelled")
    run.until_printed("wait")
    assert "RUNNING" in command("status", str(run.path), cwd=run.path).stdout
    again = command("submit", "run.dir=cancelled", cwd=run.path.parent)
    assert again.returncode == 1 and f"already has job {run.job}" in again.stderr
    slurm("scancel", run.job)
    run.until_over("CANCELLED")
    run.until_printed("cancelled, preempted or requeued")  # the ranks had time to save
    assert (run.path / "summary.json").exists()
    assert run.fields["Restarts"] == "0"


def test_crashes_restart_until_the_limit(stand_in):
    run = stand_in("crash", "cluster.max_restarts=1").submit("crashed")
    run.until_requeued(1)
    run.until_over("FAILED")
    assert "crashed with status 1, restart 1 of 1" in run.out
    assert "stopped: crashed with status 1, and cluster.max_restarts=1 is reached" in run.out
    assert run.out.count("rank 0 on") == 2
    status = command("status", str(run.path), cwd=run.path).stdout
    assert "stopped: crashed" in status


@pytest.mark.parametrize("launch", ["torchrun", "srun"])
def test_two_nodes_meet(stand_in, launch):
    run = stand_in("meet").submit(f"meet_{launch}", *TWO_NODES, f"cluster.launch={launch}")
    run.until_over("COMPLETED")
    for rank in (0, 1):
        assert f"rank {rank} of 2: sum 3" in run.out
    assert "on node0" in run.out and "on node1" in run.out


def test_a_signal_on_two_nodes_under_torchrun(stand_in):
    """torchrun survives the signal and exits with 1; summary.json tells that it was a signal."""
    run = stand_in("wait").submit("two_signalled", *TWO_NODES)
    run.until("both ranks", lambda: run.out.count(": wait") == 2)
    slurm("scancel", "-s", "USR1", run.job)
    run.until_requeued(1)
    assert "saved after a signal, requeued" in run.out
    slurm("scancel", run.job)
    run.until_over("CANCELLED")


def test_two_nodes_train(trainer, lhtrain):
    """After USR1 and a requeue, the losses equal those of two undisturbed ranks on one machine."""
    run = trainer.submit("two_nodes", STEPS, "run.grad_accum=1", "cluster.nodes=2")
    run.until_step(12)
    slurm("scancel", "-s", "USR1", run.job)
    run.until_requeued(1)
    assert "saved after a signal, requeued" in run.out
    run.until_over("COMPLETED")
    assert trace(run) == lhtrain("two_alone", STEPS, "run.grad_accum=1", ranks=2).trace


def test_hostile_names(stand_in):
    from lhtrain.quote import override

    names = ["two words", "it's $(touch x); touch y", 'line\n"-k"']
    runs = []
    for name in names:
        cluster = stand_in("finish", "cluster.max_restarts=0", "run.name=" + override(name))
        run_dir = cluster.folder / "hostile" / name
        runs.append(cluster.submit_to(run_dir, "run.dir=" + override(f"hostile/{name}")))
    for run in runs:
        run.until_over("COMPLETED")
        assert (run.path / "summary.json").exists() and "finish" in run.out
        found = {path.name for folder in (cluster.folder, run.path / "slurm") for path in folder.iterdir()}
        assert not found & {"x", "y"}
