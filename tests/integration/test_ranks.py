"""The real command under torchrun: killed, hung, resumed with other numbers of ranks."""

import json
import os
import signal
import socket
import subprocess
import sys

import pytest
import torch

from tests.integration.command import TINY

pytestmark = pytest.mark.slow

SHARED = ("run.grad_accum=1", "checkpoint.every=2")  # two sequences a step: one for each of two ranks
SMALL_CHUNKS = (*SHARED, "lighthouse.budget=512", "lighthouse.pooling=2")  # required by cp=2


def losses(run):
    """All losses, in order. Gradient norms are not compared: another order of summation changes rounding, so
    the order of two close scores may flip and a layer may select another entry."""
    return torch.tensor([row[key] for row in run.rows for key in ("loss", "val_loss") if key in row])


def assert_same_losses(run, other):
    torch.testing.assert_close(losses(run), losses(other), rtol=5e-4, atol=0)


@pytest.fixture(scope="module")
def two_ranks(lhtrain):
    return lhtrain("two_ranks", *SHARED, ranks=2)


def test_two_ranks_train_what_one_does(undisturbed, two_ranks):
    assert_same_losses(two_ranks, undisturbed)
    assert two_ranks.summary["ranks"] == 2
    assert two_ranks.out.count("step      1/16") == 1, "ranks other than the first are silent"


def test_a_killed_rank_ends_the_run_and_the_same_mesh_resumes_bit_for_bit(lhtrain, two_ranks):
    killed = lhtrain.kill_after("rank_killed", 7, *SHARED, ranks=2, victims=[1])
    assert killed.status not in (0, -signal.SIGKILL), "torchrun must end with the rank, of itself"
    assert "exitcode  : -9" in killed.err and "lhtrain/train.py" not in killed.err
    resumed = lhtrain("rank_killed", *SHARED, "resume=auto", ranks=2)
    assert "continues from step_" in resumed.out
    assert resumed.trace == two_ranks.trace


def test_other_meshes_go_on_with_the_run(lhtrain):
    """One rank, then 2 data-parallel x 2 context-parallel, then FSDP on two; all but the last are killed."""
    alone = lhtrain("meshes_alone", *SMALL_CHUNKS)
    lhtrain.kill_after("meshes", 6, *SMALL_CHUNKS)
    lhtrain.kill_after("meshes", 11, *SMALL_CHUNKS, "parallel.cp=2", "resume=auto", ranks=4)
    resumed = lhtrain("meshes", *SMALL_CHUNKS, "resume=auto", ranks=2)
    assert "continues from step_" in resumed.out
    assert_same_losses(resumed, alone)


def test_a_signal_to_one_rank_stops_all_in_order(lhtrain, two_ranks):
    stopped = lhtrain.kill_after("rank_told", 3, *SHARED, ranks=2, victims=[1], with_signal=signal.SIGINT)
    assert "SIGINT: stopped after step" in stopped.out
    assert not stopped.summary["finished"] and stopped.summary["signal"] == signal.SIGINT
    newest = stopped.checkpoints[-1]
    assert newest == f"step_{stopped.summary['steps']:08d}"
    assert lhtrain("rank_told", *SHARED, "resume=auto", ranks=2).trace == two_ranks.trace


def test_a_hung_rank_is_named_and_the_run_ends(lhtrain):
    name, limits = "hung", ("watchdog.step=10", "run.steps=400", "checkpoint.every=400")
    process = lhtrain.start(name, *SHARED, *limits, ranks=2)
    for line in process.stdout:
        if line.startswith("step"):
            break
    victim = lhtrain.pid(name, 1)
    os.kill(victim, signal.SIGSTOP)
    for line in process.stderr:
        if "more than watchdog" in line:
            break
    os.kill(victim, signal.SIGCONT)  # otherwise torchrun would wait 30 s for it to end
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert "lhtrain: rank 0 spent" in line and "in phase step" in line and "it waits for rank 1" in line
    assert "lhtrain/train.py" in (lhtrain.folder / name / "stalls" / "rank_0.txt").read_text()


def test_a_mesh_that_does_not_fit_is_said_once(lhtrain):
    """By the first rank, and once more at the end of torchrun's report, which hides what is above it."""
    refused = lhtrain("misfit", "parallel.dp_shard=3", ranks=2, status=1)
    ours, _, report = refused.err.partition("lhtrain FAILED")
    for text in (ours, report, report.partition("Root Cause")[2]):
        assert text.count("their product must be the number of ranks, 2") == 1
    assert not (lhtrain.folder / "misfit").exists()


def test_ranks_that_differ_end_with_one_error(lhtrain):
    """Started one by one, as with a wrong command on one of two machines."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    run_dir = lhtrain.folder / "differ"
    mine = [[], ["optim.lr=0.5", "run.steps=8", f"data.path={lhtrain.folder / 'text' / '1.txt'}"]]
    processes = []
    for rank, settings in enumerate(mine):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1"}
        environment = lhtrain.environment | {key: str(value) for key, value in place.items()}
        command = [sys.executable, "-m", "lhtrain", *lhtrain.data, *TINY, *SHARED, f"run.dir={run_dir}"]
        processes.append(
            subprocess.Popen(
                [*command, *settings],
                env=environment | {"MASTER_PORT": str(port)},
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    said = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [1, 1]
    assert said[1] == ""
    first, *differing = said[0].splitlines()
    assert first.startswith("lhtrain: ") and "start all ranks with the same settings, data, code" in first
    assert differing == [
        "  optim.lr: 0.001 on rank 0, 0.5 on rank 1",
        "  run.steps: 16 on rank 0, 8 on rank 1",
    ]
    assert not run_dir.exists()


def test_a_restart_by_torchrun_continues_the_run(lhtrain):
    """Without run.dir: its default contains the time, so every attempt would begin a new run."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launch, "--max-restarts=1", "-m", "lhtrain", *lhtrain.data, *TINY, *SHARED, "stage=dense"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=lhtrain.folder, env=lhtrain.environment, **pipes)
    for line in process.stdout:
        if line.startswith("saved     step_00000004"):
            break
    (run_dir,) = (lhtrain.folder / "runs").iterdir()
    os.kill(json.loads((run_dir / "ranks" / "1.json").read_text())["pid"], signal.SIGKILL)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert "continues from step_" in out and [run_dir] == list((lhtrain.folder / "runs").iterdir())


def test_each_rank_leaves_where_it_is(two_ranks):
    doing = [json.loads((two_ranks.path / "ranks" / f"{rank}.json").read_text()) for rank in range(2)]
    assert [entry["rank"] for entry in doing] == [0, 1] and len({entry["pid"] for entry in doing}) == 2
