"""Settings and code that must be the same on all ranks, and the folder that all ranks must share."""

import json

import pytest
import torch

from lhtrain.conf.compose import check_overrides
from lhtrain.distributed.agreement import differences
from lhtrain.distributed.torchrun import earlier_run
from lhtrain.distributed.world import Ranks, World
from lhtrain.runs import launch
from lhtrain.runs.launch import same_folder, settings


def said(*overrides):
    """Return the settings that a rank sends to the others, after JSON."""
    return json.loads(
        json.dumps(settings(check_overrides(["stage=dense", "run.dir=d", "run.name=n", *overrides])))
    )


@pytest.mark.parametrize(
    "override",
    [
        *("optim.lr=0.5", "optim.betas=[0.8,0.9]", "optim.z_loss=0.1", "run.steps=7", "run.seed=7"),
        *("run.batch_tokens=131072", "run.log_every=7", "eval.every=7", "eval.tokens=65536"),
        *("checkpoint.every=7", "checkpoint.keep=7", "parallel.reduce_always=true", "parallel.timeout=700"),
        *("model.n_layers=7", "compute.precision=bfloat16", "guard.max_skips=7", "watchdog.step=7"),
        *("data.val_fraction=0.2", "resume=auto", "init_from=a", "stages.dense.lr_scale=2"),
    ],
)
def test_settings_that_must_be_equal_are_compared(override):
    lines = differences([said(), said(override)])  # several lines if other keys copy this one
    assert any(line.startswith(f"{override.partition('=')[0]}: ") for line in lines)
    assert all(line.endswith(" on rank 1") for line in lines)


@pytest.mark.parametrize(
    "override",
    [
        *("run.dir=e", "run.name=m", "data.cache_dir=c", "data.workers=2"),
        *("logger.mode=online", "cluster.partition=p"),
    ],
)
def test_settings_of_rank_0_and_data_paths_may_differ(override):
    assert differences([said(), said(override)]) == []


def test_changed_code_is_found(tmp_path, monkeypatch):
    """The version is the same, but a file was edited on one machine."""
    (tmp_path / "top").mkdir()
    (tmp_path / "data").symlink_to("top")  # some folders of the package are links too
    (tmp_path / "__init__.py").write_text("")
    (tmp_path / "data" / "a.py").write_text("a = 1\n")
    monkeypatch.setattr(launch.lhtrain, "__file__", str(tmp_path / "__init__.py"))
    digest = launch.code_digest.__wrapped__
    before = digest()
    (tmp_path / "notes.txt").write_text("no code")
    assert digest() == before
    (tmp_path / "data" / "a.py").write_text("a = 2\n")
    assert digest() != before


def test_a_single_rank_under_torchrun_notes_its_run_too(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    monkeypatch.delenv("GROUP_WORLD_SIZE", raising=False)
    same_folder(tmp_path / "run", World(Ranks(), torch.device("cpu")))
    assert earlier_run(tmp_path / "run", is_new=True, is_dated=False) == tmp_path / "run"


@pytest.mark.parametrize(("machine", "found"), [("another", True), ("the same", False)])
def test_another_machine_may_see_the_folder_later(tmp_path, monkeypatch, machine, found):
    """An NFS client caches for a while that a file does not exist."""
    world = World(Ranks(1, 1, 0), torch.device("cpu"))
    world.is_distributed, world._leader, said = True, int(machine == "another"), []
    world.agree = lambda mine: said.extend(mine.values())
    world.on_main = lambda write: None
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)

    def later(seconds):
        (tmp_path / "ranks").mkdir()
        (tmp_path / "ranks" / "attempt").write_text(world.attempt)

    monkeypatch.setattr(launch.time, "sleep", later)
    same_folder(tmp_path, world)
    assert said == [found]
