"""The record of a stage: its mean loss and standard error, and checkpoints of earlier versions."""

import json
import math

import pytest

from lhtrain.progress import LAST, PARTS, Losses, Progress, StageClock, StageRecord


def test_the_mean_and_its_standard_error_are_of_the_last_losses():
    losses = Losses()
    assert (losses.mean, losses.stderr) == (None, None)
    losses.take(100.0)
    assert (losses.mean, losses.stderr) == (100.0, None)
    for number in range(LAST):
        losses.take(2.0 + 0.5 * (-1) ** number)
    assert losses.mean == 2.0  # the 100 is no longer among them
    assert losses.stderr == pytest.approx(0.5 * math.sqrt(LAST / (LAST - 1)) / math.sqrt(LAST))


def test_a_summary_holds_the_number_of_losses_in_its_mean():
    record = StageRecord("a")
    for loss in (5.0, 1.0, 3.0):
        record.take_loss(loss)
    shown = record.as_summary(None)
    assert {key: shown[key] for key in ("first_loss", "last_loss", "loss_mean", "loss_mean_of")} == {
        "first_loss": 5.0,
        "last_loss": 3.0,
        "loss_mean": 3.0,
        "loss_mean_of": 3,
    }
    assert StageRecord("b").as_summary(None)["loss_mean"] is None


def test_losses_survive_a_checkpoint_bit_for_bit():
    progress = Progress(step=3, position=7, stages=[StageRecord("a")])
    for loss in (0.1, 1 / 3, 3.4e38):
        progress.stages[0].take_loss(loss)
    saved = json.loads(json.dumps(progress.as_dict()))
    assert Progress.from_dict(saved) == progress


def test_a_checkpoint_holds_no_nan_or_infinity():
    progress = Progress(stages=[StageRecord("a", val_loss=math.nan)])
    progress.stages[0].take_loss(math.inf)
    assert json.loads(json.dumps(progress.as_dict(), allow_nan=False))["stages"][0]["val_loss"] is None
    assert progress.stages[0].losses.last == []


@pytest.mark.parametrize("last", [None, 2.5])
def test_a_checkpoint_of_an_earlier_version_is_read(last):
    seconds = {"total": 1.0, "data": 0.0, "compute": 1.0, "validation": 0.0, "checkpoint": 0.0}
    stage = {"name": "a", "steps": 3, "tokens": 9, "flops": 1, "peak_memory_bytes": 0, "seconds": seconds}
    stage |= {"first_loss": last, "last_loss": last, "val_loss": None}
    (read,) = Progress.from_dict({"step": 3, "position": 9, "stages": [stage]}).stages
    assert read.last_loss == last and read.losses.stderr is None and read.steps == 3


def test_the_clock_counts_how_often_each_part_was_done():
    record = StageRecord("a")
    clock = StageClock(record)
    for part in ("validation", "compute", "validation"):
        with clock.measure(part):
            pass
    assert record.times == dict.fromkeys(PARTS, 0) | {"compute": 1, "validation": 2}
