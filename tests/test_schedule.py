"""The stages and learning rates of a run, without training."""

from dataclasses import replace

import pytest

from lhtrain.conf.schema import LrSchedule, OptimConfig
from lhtrain.kernels.pyramid import Pyramid
from lhtrain.schedule import Schedule, lr_factor
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
    optim = OptimConfig(**settings)
    return [lr_factor(step, steps, optim) for step in range(steps)]


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
    stage = Stage("s", "lighthouse", 1024, 1024, 1, pyramid=Pyramid(1024, 2, 4, 128))
    assert stage.attention_settings() == saved_attention_settings(saved) == saved
    windowed = replace(stage, window=256).attention_settings()
    assert windowed == saved | {"window": 256} == saved_attention_settings(saved | {"window": 256})


def test_no_decay_is_constant():
    assert factors(5, warmup_fraction=0, decay_fraction=0, schedule=LrSchedule.wsd) == [1.0] * 5
