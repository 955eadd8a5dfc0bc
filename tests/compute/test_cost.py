"""What a run says that it will cost."""

import pytest

from lhtrain.compute.cost import ASSUMED_MFU, cost, repeats
from lhtrain.compute.fill import compose_config
from lhtrain.compute.flops import step_flops
from lhtrain.stage import stages_of


def test_the_papers_run():
    config = compose_config(["experiment=paper_98k"], 8, 80 * 10**9)
    tokens, checkpoints, time = cost(config, 530_117_632, 50_949_000_000, 989e12, 8)
    assert tokens == "50,331,648,000 tokens to read, 0.99 epochs of the data"
    # Every 1,000 of 16,000 steps; the first stage's end is one of them.
    assert checkpoints == "16 checkpoints of 6.36 GB; 3 kept: 19.1 GB on disk"
    flops = 10_000 * step_flops(config.model, stages_of(config)["lighthouse"])
    flops += 6_000 * step_flops(config.model, stages_of(config)["recovery"])
    hours = flops / (989e12 * 8 * ASSUMED_MFU) / 3600
    assert time == f"about {hours:.0f} hours: an estimate, at 50% of the FLOP/s of 8 such GPUs"
    # One H100 took 93.2k and 26.3k tokens/s (multi_gpu.csv): 11.7 and 24.9 hours with eight.
    assert hours == pytest.approx(11.7 + 24.9, rel=0.1)
    assert repeats(config, 50_949_000_000) is None


def test_what_is_left_after_a_resume():
    config = compose_config(["run.steps=160", "checkpoint.every=30"])  # 100 + 60
    whole, rest = cost(config, 1000, 40_960), cost(config, 1000, 40_960, done=120)
    assert whole[0] == "655,360 tokens to read, 16 epochs of the data"
    assert rest[0] == "163,840 tokens to read, 4 epochs of the data"
    # 30, 60, 90, 100, 120, 150, 160
    assert whole[1].startswith("7 checkpoints of 12 kB; 3 kept: 36 kB")
    assert rest[1].startswith("2 checkpoints of 12 kB; 2 kept: 24 kB")
    assert len(whole) == 2  # no estimate of the time where no data sheet is known
    assert cost(config, 1000, 40_960, done=160)[1].startswith("0 checkpoints")


def test_data_that_are_read_too_often_are_a_warning():
    config = compose_config(["run.steps=160"])
    assert repeats(config, 655_360 // 4) is None
    said = repeats(config, 655)
    assert (
        said is not None
        and "1,001 times, 655 tokens each time" in said
        and "more data or fewer steps" in said
    )


@pytest.mark.parametrize(("steps", "unit"), [(1, "seconds"), (50_000, "minutes"), (10**9, "days")])
def test_a_time_in_a_unit_that_suits_it(steps, unit):
    config = compose_config([f"run.steps={steps}", "stage=dense"])
    assert f" {unit}: an estimate" in cost(config, 1000, 4096, 989e10)[2]
