"""The stages and learning rates of a run, without training."""

from dataclasses import replace

import pytest

from lhtrain.conf.schema import LrSchedule, OptimConfig
from lhtrain.kernels.pyramid import Pyramid
from lhtrain.schedule import Schedule
from lhtrain.stage import Stage, saved_attention_settings


def schedule(**changes):
    stage = {"attention": "dense", "seq_len": 8, "batch_tokens": 8, "grad_accum": 1}
    stages = {
        "short": Stage("short", steps=3, **stage),
        "long": Stage("long", steps=5, lr_scale=0.5, **stage),
        "last": Stage("last", steps=2, **stage),
    }
    return Schedule(stages, OptimConfig(**({"lr": 1.0, "warmup_fraction": 0, "decay_fraction": 0} | changes)))


def test_lookup_gives_the_stage_and_its_learning_rate():
    plan = schedule()
    places = [plan.lookup(step) for step in range(plan.steps)]
    assert [place.stage for place in places] == [0] * 3 + [1] * 5 + [2] * 2
    assert [place.step_in_stage for place in places] == [0, 1, 2, 0, 1, 2, 3, 4, 0, 1]
    assert [place.lr for place in places] == [1.0] * 3 + [0.5] * 5 + [1.0] * 2


@pytest.mark.parametrize("step", [-1, 10])
def test_lookup_outside_the_run_is_an_error(step):
    with pytest.raises(ValueError, match=f"step={step}: must be at least 0 and below the run's 10 steps"):
        schedule().lookup(step)


def factors(steps, **settings):
    plan = Schedule({"s": Stage("s", "dense", 8, 8, 1, steps)}, OptimConfig(**{"lr": 1.0} | settings))
    return [plan.lookup(step).lr for step in range(steps)]


def rates(*stages, **optim):
    """The learning rates of stages, each (steps, its settings); optim.lr is 1, without warm-up and decay."""
    made = {str(n): Stage(str(n), "dense", 8, 8, 1, steps, **own) for n, (steps, own) in enumerate(stages)}
    settings = {"lr": 1.0, "warmup_fraction": 0, "decay_fraction": 0} | optim
    plan = Schedule(made, OptimConfig(**settings))
    return [plan.lookup(step).lr for step in range(plan.steps)]


def test_wsd_warms_up_stays_and_decays():
    got = factors(10, warmup_fraction=0.4, decay_fraction=0.3, schedule=LrSchedule.wsd)
    assert got == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 2 / 3, 1 / 3])


def test_linear_and_cosine_decay_from_the_warmup_on():
    linear = factors(8, warmup_fraction=0.5, schedule=LrSchedule.linear, final_lr_ratio=0.2)
    assert linear == pytest.approx([0.25, 0.5, 0.75, 1, 1, 0.8, 0.6, 0.4])
    cosine = factors(8, warmup_fraction=0.5, schedule=LrSchedule.cosine)
    assert cosine[4:] == pytest.approx([1, 0.853553, 0.5, 0.146447], abs=1e-6)


@pytest.mark.parametrize("kind", list(LrSchedule))
@pytest.mark.parametrize("warmup", [0.0, 1.0])
def test_no_step_is_without_a_learning_rate(kind, warmup):
    got = factors(7, warmup_fraction=warmup, decay_fraction=1 - warmup, schedule=kind)
    assert all(0 < factor <= 1 for factor in got)


def test_settings_of_attention_are_those_of_checkpoints_from_before_windows():
    """Resuming such a checkpoint must not count as a stage switch, but adding a window must."""
    saved = {"attention": "lighthouse", "seq_len": 1024, "levels": 2, "pooling": 4, "budget": 128}
    saved |= {"scorer": "norm", "cover_prefix": True}
    model = {"rope_theta": 5e5, "dense_layers": [0]}
    stage = Stage("s", "lighthouse", 1024, 1024, 1, pyramid=Pyramid(1024, 2, 4, 128))
    stage = replace(stage, rope_theta=5e5, dense_layers=(0,))
    assert stage.attention_settings() == saved_attention_settings(saved, model) == saved | model
    windowed = replace(stage, window=256).attention_settings()
    assert (
        windowed
        == saved | model | {"window": 256}
        == saved_attention_settings(saved | {"window": 256}, model)
    )
    own = replace(stage, window=256, own_queries=True, pyramid=Pyramid.of(1024, 2, 4, 128, None, True))
    settings = {"window": 256, "queries": "own"}  # and the tile that is the default with own queries
    assert own.attention_settings() == saved_attention_settings(saved | settings, model)


def test_no_decay_is_constant():
    assert factors(5, warmup_fraction=0, decay_fraction=0, schedule=LrSchedule.wsd) == [1.0] * 5


def test_a_stage_has_its_own_peak():
    assert rates((2, {}), (2, {"lr": 0.3}), (1, {"lr_scale": 0.5})) == [1.0, 1.0, 0.3, 0.3, 0.5]


def test_the_warmup_of_a_stage_begins_at_the_rate_before_or_at_zero():
    got = rates((3, {"warmup_steps": 2, "lr": 0.4}), (5, {"warmup_steps": 4, "lr": 1.2}))
    assert got == pytest.approx([0.2, 0.4, 0.4, 0.6, 0.8, 1.0, 1.2, 1.2])
    falling = rates((1, {}), (3, {"warmup_steps": 2, "lr": 0.5}))
    assert falling == pytest.approx([1.0, 0.75, 0.5, 0.5])


def test_a_stage_with_its_own_warmup_is_not_part_of_the_run_wide_one():
    assert rates((2, {"warmup_steps": 0}), (2, {}), warmup_fraction=1) == [1.0, 1.0, 0.75, 1.0]


def test_a_stage_with_its_own_decay_falls_within_itself():
    got = rates((4, {"decay_fraction": 0.5, "final_lr_ratio": 0.2}), (2, {}))
    assert got == pytest.approx([1.0, 1.0, 1.0, 0.6, 1.0, 1.0])
    linear = rates((2, {}), (4, {"schedule": LrSchedule.linear, "warmup_steps": 1}), (1, {}))
    assert linear == pytest.approx([1, 1, 1, 1, 2 / 3, 1 / 3, 1])
    after_the_runs_warmup = rates((4, {"schedule": LrSchedule.linear}), (4, {}), warmup_fraction=0.25)
    assert after_the_runs_warmup == pytest.approx([0.5, 1, 1, 0.5, 1, 1, 1, 1])


def test_rates_that_differ_by_rounding_are_constant():
    optim = OptimConfig(lr=3e-4, warmup_fraction=0, decay_fraction=0)
    second = Stage("second", "dense", 8, 8, 1, steps=2, lr=1e-5, warmup_steps=1)
    schedule = Schedule({"first": Stage("first", "dense", 8, 8, 1, steps=4), "second": second}, optim)
    assert schedule.lookup(4).lr != schedule.lookup(5).lr
    assert schedule.course(1, 4) == "1e-05"


def test_the_plan_describes_rates_that_fall_and_rise_again():
    optim = OptimConfig(lr=1.0, warmup_fraction=0, decay_fraction=0)
    first = Stage("first", "dense", 8, 8, 1, steps=10, warmup_steps=2, decay_fraction=0.5)
    second = Stage("second", "dense", 8, 8, 1, steps=6, lr=0.5, warmup_steps=3)
    third = Stage("third", "dense", 8, 8, 1, steps=4, lr=0.5)
    plan = Schedule({"first": first, "second": second, "third": third}, optim)
    assert plan.plan(0) == [
        "first (dense): steps 1 to 10, learning rate 0.5, up to 1 at step 2, constant until step 6, "
        "down to 0.2 at step 10",
        "second (dense): steps 11 to 16, learning rate 0.3, up to 0.5 at step 13",
        "third (dense): steps 17 to 20, learning rate 0.5",
    ]
