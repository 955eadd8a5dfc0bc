"""Faults on one machine: a full disk, losses that are not finite."""

import json
import os
import resource

import pytest

pytestmark = pytest.mark.slow


def test_a_full_disk_costs_only_what_it_refuses(lhtrain, undisturbed):
    """Simulated by a limit on the file size, set during the run: checkpoints and rows cannot be written."""
    full = lhtrain.start("disk", "checkpoint.every=4")
    printed = []
    for line in full.stdout:
        printed.append(line)
        if line.startswith("step      9/"):
            resource.prlimit(full.pid, resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    out, err = "".join(printed), full.stderr.read()
    assert full.wait() == 1 and "Traceback" not in err
    assert "warning   a checkpoint was not written: " in out and "older ones are kept" in out
    assert out.count("metrics.jsonl was not written: ") == out.count("summary.json was not written: ") == 1
    assert "step     16/16" in out, "the run went on"
    assert "the last checkpoint was not written: " in err and "the newest one is " in err
    resumed = lhtrain("disk", "resume=auto", "checkpoint.every=4")
    assert "continues from step_" in resumed.out and resumed.trace == undisturbed.trace


def test_numbers_that_stay_wrong_end_the_run_at_its_checkpoint(lhtrain):
    """A learning rate that ruins the weights at once: later steps are skipped, then the run rewinds."""
    lhtrain("spoilt", "stage=dense", "run.steps=4", "checkpoint.every=2")
    settings = ("resume=force", "stage=dense", "run.steps=12", "optim.lr=1e30", "optim.clip_norm=1e30")
    limits = ("guard.max_skips=2", "guard.max_rewinds=1", "checkpoint.every=100")
    ended = lhtrain("spoilt", *settings, *limits, status=1)
    assert "2 steps in a row" in ended.err and "after guard.max_rewinds=1 rewinds" in ended.err
    assert "Traceback" not in ended.err
    assert ended.summary["ended"]["how"] == "error" and "2 steps in a row" in ended.summary["ended"]["reason"]
    assert (ended.path / "loss.png").exists() and "training loss, end" in ended.out
    assert "; to continue: " in ended.out
    kinds = [row["kind"] for row in ended.rows]
    assert kinds.count("rewound") == 1 and kinds.count("skipped") == 2
    rewound = next(row for row in ended.rows if row["kind"] == "rewound")
    assert rewound["step"] == 4 and rewound["end"] > rewound["position"]
    assert json.dumps(ended.rows, allow_nan=False)


def test_files_follow_the_umask_and_hold_no_secrets(lhtrain, monkeypatch):
    secrets = {"WANDB_API_KEY": "0123456789abcdef" * 2 + "01234567", "HF_TOKEN": "hf_notforanyoneselseseyes"}
    monkeypatch.setattr(lhtrain, "environment", lhtrain.environment | secrets)
    before = os.umask(0o027)
    try:
        run = lhtrain("private", "logger=wandb", "run.steps=4", "checkpoint.every=2")
    finally:
        os.umask(before)
    files = [path for path in run.path.rglob("*") if path.is_file()]
    assert len(files) > 10
    for path in files:
        content = path.read_bytes()
        assert not any(secret.encode() in content for secret in secrets.values()), path
        if "wandb" not in path.relative_to(run.path).parts:
            assert path.stat().st_mode & 0o777 == 0o640, f"{path}: {path.stat().st_mode:o}"
    assert not any(secret in run.out + run.err for secret in secrets.values())
