"""A sweep as a job array with Hydra's launcher: after submitit's signal the run saves and is requeued."""

import os
import subprocess
import sys

import pytest

from lhtrain.slurm.folder import SlurmFolder
from tests.integration.command import Run
from tests.slurm.cluster import ROOT, STEPS, slurm

pytestmark = pytest.mark.slurm


def test_a_job_array_that_is_signalled(trainer, lhtrain, undisturbed):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs pip install 'lhtrain[slurm]'")
    own = [text for text in trainer.settings if not text.startswith("cluster.")]
    own += [STEPS, "checkpoint.every=1000"]
    launcher = [
        "hydra/launcher=lhtrain_slurm",
        "hydra.launcher.cpus_per_task=1",
        "hydra.launcher.timeout_min=30",
    ]
    sweep = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "lhtrain",
            "-m",
            *launcher,
            *own,
            "run.dir=sw",
            "resume=auto",
            "optim.lr=2e-3,1e-3",
        ],
        cwd=lhtrain.folder,
        env=lhtrain.environment | {"PATH": f"{ROOT}/tests/slurm/bin:{os.environ['PATH']}"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    run_dir = lhtrain.folder / "sw_sweep" / "lr_0.001"
    while len(SlurmFolder(run_dir).train_rows()) < 5:
        assert sweep.poll() is None, sweep.stderr.read()
    (job,) = {path.name.split("_")[0] for path in run_dir.parent.glob(".submitit/*_1")}
    slurm("scancel", "-s", "USR2", f"{job}_1")
    _, errors = sweep.communicate(timeout=90)
    assert sweep.returncode == 0, errors
    printed = "".join(path.read_text() for path in run_dir.parent.glob(f".submitit/{job}_1/*.out"))
    assert "SIGUSR2: stopped after step" in printed and "continues from step_" in printed
    assert Run(run_dir, 0, "", "").trace == undisturbed.trace
    assert SlurmFolder(run_dir.parent / "lr_0.002").finished()
