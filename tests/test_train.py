"""Times that the trainer reports for a device that works asynchronously, with a clock set by the test."""

import json
import time

import pytest
import torch

from lhtrain import checkpoint, train
from lhtrain.compute.fill import compose_config
from lhtrain.conf.schema import Resume
from lhtrain.distributed.world import Ranks, World
from lhtrain.errors import RunError
from lhtrain.health import nonfinite
from lhtrain.health.hang import Watchdog
from tests.checkpoint.made import flip, rewrite

SETTINGS = [
    *("model.seq_len=512", "model.dim=16", "model.n_layers=1", "model.n_heads=2", "model.ffn_dim=32"),
    *("lighthouse.levels=2", "lighthouse.pooling=2", "lighthouse.budget=128", "model.dense_layers=[]"),
    *("run.steps=8", "run.batch_tokens=512", "run.device=cpu", "run.name=t", "compute.compile=off"),
    *("stages.lighthouse.fraction=0.5", "run.log_every=3", "parallel.compare_every=3"),
    *("eval.tokens=512", "eval.every=7", "checkpoint.every=100"),
]
READING = {"lighthouse": 0.25, "recovery": 1.0}  # seconds to read the data of a step


class Device:
    """A device with one second of work per step; the clock advances when the host waits for it."""

    def __init__(self, monkeypatch):
        self.now, self.waiting = 0.0, 0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def item(self):
        self.now, self.waiting = self.now + self.waiting, 0
        return 0.0


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    (tmp_path / "text").mkdir()
    for number in range(10):
        (tmp_path / "text" / f"{number}.txt").write_text(f"{number} and some more, " * 300)
    data = ["data=text", f"data.path={tmp_path / 'text'}", f"data.cache_dir={tmp_path / 'cache'}"]
    config = compose_config([*data, *SETTINGS, f"run.dir={tmp_path / 'run'}"])
    device, world = Device(monkeypatch), World(Ranks(), torch.device("cpu"))
    trainer = train.Trainer(config, tmp_path / "run", world, Watchdog(config.watchdog, tmp_path / "run", 0))
    trainer.on = device
    update, read = train.update, trainer.data.loader.micro_batches

    def update_later(*arguments):
        device.waiting += 1
        return update(*arguments)._replace(skipped=device)

    def read_slowly(position, stage):
        device.now += READING[trainer.record.name]
        return read(position, stage)

    monkeypatch.setattr(train, "update", update_later)
    monkeypatch.setattr(trainer.data.loader, "micro_batches", read_slowly)
    return trainer


def test_the_time_of_a_logged_step_is_a_mean_and_not_the_time_of_the_wait(trainer):
    trainer.run()
    lines = [json.loads(line) for line in trainer.dir.metrics.read_text().splitlines()]
    rows = [row for row in lines if row["kind"] == "train"]
    assert [row["step"] for row in rows] == [1, 3, 4, 5, 6, 8]
    for row in rows:
        assert row["step_seconds"] == pytest.approx(1 + READING[row["stage"]]), row["step"]
        assert row["tokens_per_second"] == pytest.approx(512 / row["step_seconds"])


def test_no_steps_are_left_to_do_when_validation_begins(trainer, monkeypatch):
    left, validate = [], train.validation_loss

    def noting(*arguments):
        left.append(trainer.on.waiting)
        return validate(*arguments)

    monkeypatch.setattr(train, "validation_loss", noting)
    trainer.run()
    assert left == [0] * 4  # both ends, the switch, and step 7, which is not logged


def test_the_wait_for_data_counts_from_the_start_of_the_stage(trainer, monkeypatch):
    """Ranks compare the wait per step; after a switch, the first comparison starts at the switch."""
    found = []
    monkeypatch.setattr(trainer.stragglers, "compare", lambda waited: found.append(waited) or [])
    trainer.run()
    assert found == pytest.approx([3 * 0.25 / 3, 2 * 1.0 / 3])


def test_a_switch_is_no_spike(trainer, monkeypatch):
    """Full attention starts far above Lighthouse's losses; this is reported as a switch, not as a spike."""
    monkeypatch.setattr(nonfinite, "LEAST", 2)
    losses, update = {"lighthouse": 3.0, "recovery": 30.0}, train.update

    def update_with_loss(*arguments):
        return update(*arguments)._replace(loss=torch.tensor(losses[trainer.record.name]))

    monkeypatch.setattr(train, "update", update_with_loss)
    trainer.run()
    rows = [json.loads(line) for line in trainer.dir.metrics.read_text().splitlines()]
    assert [row["loss"] for row in rows if row["kind"] == "train"] == [3.0] * 3 + [30.0] * 3
    assert "spike" not in {row["kind"] for row in rows}
    (switch,) = (row for row in rows if row["kind"] == "switch")
    assert switch["loss_before"] == 3.0 and switch["loss_before_stderr"] == 0.0


def test_the_error_for_an_invalid_saved_guard_names_the_checkpoint(trainer):
    trainer.run()
    (path,) = checkpoint.complete(trainer.dir.checkpoints)[-1:]
    rewrite(path, lambda tree: tree.update(guard={"losses": []}), "state.json")
    trainer.config.resume = Resume.auto
    with pytest.raises(RunError, match=f"{path.name}: state.json must be as lhtrain writes it .*in_a_row"):
        train.Trainer(trainer.config, trainer.dir.path, trainer.world, trainer.watchdog)


def test_a_run_continues_from_an_older_checkpoint_if_loading_finds_damage(trainer):
    trainer.run()
    older, newest = checkpoint.complete(trainer.dir.checkpoints)[-2:]
    flip(newest)
    trainer.config.resume = Resume.auto
    again = train.Trainer(trainer.config, trainer.dir.path, trainer.world, trainer.watchdog)
    assert again.start.path == older and again.progress.step == int(older.name[5:])
    (note,) = again.start.notes
    assert f"{newest.name} is damaged and was renamed" in note and again.start_note.endswith(older.name)
