"""The estimate of a run's remaining time."""

import pytest

from lhtrain.compute.fill import compose_config
from lhtrain.compute.flops import step_flops
from lhtrain.progress import Progress, StageRecord
from lhtrain.report.remaining import Remaining, _times
from lhtrain.stage import stages_of

SETTINGS = [
    *("data=text", "data.path=.", "model.seq_len=2048", "run.batch_tokens=2048", "run.steps=100"),
    *("stages.lighthouse.fraction=0.6", "eval.every=1000", "eval.tokens=6144", "checkpoint.every=1000"),
]


@pytest.fixture(scope="module")
def config():
    return compose_config(SETTINGS)


def record(name, steps, seconds_a_step, validations=0, validation=0.0, saves=0, save=0.0):
    out = StageRecord(name, steps=steps)
    out.seconds["compute"] = steps * seconds_a_step
    out.seconds |= {"validation": validations * validation, "checkpoint": saves * save}
    out.times |= {"validation": validations, "checkpoint": saves}
    return out


def step(stage, seconds):
    return {"kind": "train", "stage": stage, "step_seconds": seconds}


def ratio(config):
    lighthouse, recovery = (step_flops(config.model, stage) for stage in stages_of(config).values())
    return recovery / lighthouse


def test_nothing_is_known_before_the_first_step(config):
    assert Remaining(config)(Progress()) is None


def test_a_future_stage_is_estimated_by_its_flops(config):
    remaining = Remaining(config)
    remaining.take(step("lighthouse", 1.0))
    progress = Progress(step=10, stages=[record("lighthouse", 10, 1.0, validations=1, validation=2.0)])
    # 50 and 40 steps; there is a validation at the end of each stage and at the switch
    expected = 50 + 2.0 + ratio(config) * (40 + 2 * 2.0)
    assert ratio(config) > 1.2 and remaining(progress) == pytest.approx(expected)


def test_without_a_measured_validation_its_time_follows_from_its_tokens(config):
    remaining = Remaining(config)
    remaining.take(step("lighthouse", 1.0))
    progress = Progress(step=10, stages=[record("lighthouse", 10, 1.0)])
    # A forward pass over 6144 tokens has as many FLOPs as a step of 2048 tokens
    assert remaining(progress) == pytest.approx(50 + 1.0 + ratio(config) * (40 + 2 * 1.0))


def test_each_stage_has_its_own_measured_speed(config):
    remaining = Remaining(config)
    remaining.take(step("lighthouse", 1.0))
    remaining.take(step("recovery", 7.0))
    stages = [record("lighthouse", 60, 1.0, 1, 2.0, saves=1, save=0.5), record("recovery", 10, 7.0, 1, 3.0)]
    # 30 steps, the validation and the save at the end
    assert remaining(Progress(step=70, stages=stages)) == pytest.approx(30 * 7.0 + 3.0 + 0.5)
    assert remaining(Progress(step=100, stages=stages)) == 0


def test_a_resumed_run_uses_its_record_until_a_step_is_measured(config):
    """The new machine is five times as fast as the old one."""
    remaining = Remaining(config)
    stages = [record("lighthouse", 60, 1.0, 1, 2.0), record("recovery", 10, 5.0, 1, 0.0)]
    progress = Progress(step=70, stages=stages)
    assert remaining(progress) == pytest.approx(30 * 5.0)
    remaining.take(step("recovery", 1.0))
    assert remaining(progress) == pytest.approx(30 * 1.0)


def test_one_slow_step_is_ignored(config):
    """Such as the first step, which fills caches."""
    remaining = Remaining(config)
    for seconds in (60.0, 1.0, 1.0):
        remaining.take(step("recovery", seconds))
    stages = [record("lighthouse", 60, 1.0), record("recovery", 3, 20.0, 1, 0.0)]
    assert remaining(Progress(step=63, stages=stages)) == pytest.approx(37.0)


@pytest.mark.parametrize(
    ("begin", "end", "times"), [(0, 10, 2), (0, 12, 3), (4, 5, 1), (5, 5, 0), (5, 6, 1), (7, 3, 0), (0, 1, 1)]
)
def test_validations_are_counted_at_multiples_and_at_the_end(begin, end, times):
    assert _times(5, begin, end) == times
