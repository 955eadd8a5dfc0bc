"""Values for `auto`: micro-batches and recomputation that fit a GPU, and one sequence per rank and step."""

from copy import deepcopy

import pytest

from lhtrain.compute.fill import USABLE, compose_config, filled
from lhtrain.compute.memory import estimate
from lhtrain.conf.compose import check_overrides
from lhtrain.conf.problems import ConfigError
from lhtrain.conf.schema import Recompute
from lhtrain.stage import Stage, stages_of

GB = 10**9
MODELS = ["gpt_tiny", "gpt_130m", "gpt_350m", "gpt_1b", "lighthouse_530m", "llama3_8b"]
# Presets with only one of these stages are not listed: if two stages fit, each of them fits.
STAGES = ["two_stage", "curriculum"]
# Weights, gradients and moments of 8 billion parameters take 128 GB before the first token.
TOO_LARGE = {("llama3_8b", 1), ("llama3_8b", 2)}


def peaks(config, n_ranks):
    return [estimate(config, stage, n_ranks).total for stage in stages_of(config).values()]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("n_ranks", [1, 2, 4, 8])
def test_every_preset_starts_as_it_is_on_any_number_of_gpus(model, stage, n_ranks):
    config = compose_config([f"model={model}", f"stage={stage}"], n_ranks, 80 * GB)
    for one in config.stages.values():
        assert one.batch_tokens % (one.seq_len * one.grad_accum * n_ranks) == 0
    assert (max(peaks(config, n_ranks)) <= USABLE * 80 * GB) == ((model, n_ranks) not in TOO_LARGE)


@pytest.mark.parametrize("n_ranks", [1, 2, 4, 8, 16, 32])
def test_the_papers_run_has_the_same_batch_on_any_number_of_gpus(n_ranks):
    config = compose_config(["experiment=paper_98k"], n_ranks, 80 * GB)
    assert {stage.batch_tokens for stage in config.stages.values()} == {32 * 98_304}
    assert {stage.grad_accum for stage in config.stages.values()} == {32 // n_ranks}
    assert max(peaks(config, n_ranks)) <= USABLE * 80 * GB
    assert config.compute.recompute is Recompute.selective


def test_as_few_micro_batches_as_fit():
    """A smaller number of micro-batches would not fit; a larger GPU needs fewer."""
    settings = ["model=gpt_130m", f"run.batch_tokens={32 * 32768}", "compute.recompute=none"]
    counts = {}
    for size in (40, 80, 160):
        config = compose_config(settings, 1, size * GB)
        for name, stage in config.stages.items():
            counts[size, name] = stage.grad_accum
            assert estimate(config, Stage.of(name, stage), 1).total <= USABLE * size * GB
            stage.grad_accum //= 2
            assert estimate(config, Stage.of(name, stage), 1).total > USABLE * size * GB
    assert counts[40, "recovery"] > counts[80, "recovery"] > counts[160, "recovery"]


def test_a_given_number_of_micro_batches_is_kept():
    settings = ["model=gpt_130m", f"run.batch_tokens={32 * 32768}"]
    config = compose_config([*settings, "run.grad_accum=16", "stages.recovery.grad_accum=auto"], 1, 80 * GB)
    assert config.stages["lighthouse"].grad_accum == 16 and config.stages["recovery"].grad_accum < 16
    config = compose_config([*settings, "stages.recovery.grad_accum=32"], 1, 80 * GB)
    assert config.stages["recovery"].grad_accum == 32 and config.stages["lighthouse"].grad_accum < 16


def test_if_nothing_fits_the_choice_with_the_lowest_peak_is_used():
    config = compose_config(["model=gpt_1b", "run.batch_tokens=262144"], 1, 8 * GB)
    assert config.compute.recompute is Recompute.full
    least = peaks(config, 1)
    for recompute in (Recompute.none, Recompute.selective):
        other = deepcopy(config)
        other.compute.recompute, other.compute.offload = recompute, False
        assert all(one <= two for one, two in zip(least, peaks(other, 1), strict=True))


def test_given_recomputation_is_kept():
    for recompute in ("none", "selective", "full"):
        config = compose_config(["model=gpt_1b", f"compute.recompute={recompute}"], 1, 80 * GB)
        assert config.compute.recompute.value == recompute and not config.compute.offload


def test_micro_batches_on_a_cpu():
    assert {stage.grad_accum for stage in compose_config([]).stages.values()} == {1}
    config = compose_config(["run.batch_tokens=98304"])
    assert {stage.grad_accum for stage in config.stages.values()} == {3}
    config = compose_config(["run.batch_tokens=262144", "model.seq_len=65536", "stage=dense"])
    assert config.stages["dense"].grad_accum == 4
    assert config.compute.recompute is Recompute.none


@pytest.mark.parametrize(
    ("settings", "n_ranks", "tokens"),
    [
        ([], None, 4096),
        ([], 8, 32768),
        (["parallel.cp=2", "stage=dense"], 8, 16384),
        (["parallel.dp_replicate=2"], 8, 32768),
        (["stages.recovery.seq_len=8192"], 2, 16384),  # one sequence of the longest stage
        (["run.batch_tokens=65536"], 8, 65536),
        (["run.batch_tokens='65536'"], 8, 65536),  # a text, as from an environment variable
        (["run.batch_tokens=auto"], 4, 16384),
    ],
)
def test_a_step_has_one_sequence_per_rank_by_default(settings, n_ranks, tokens):
    config = compose_config(settings, n_ranks)
    assert config.run.batch_tokens == tokens
    assert {stage.batch_tokens for stage in config.stages.values()} == {tokens}


def test_filling_twice_changes_nothing():
    once = compose_config(["model=gpt_1b", f"run.batch_tokens={65536 * 32}"], 4, 80 * GB)
    assert filled(once, 4, 80 * GB) == once


@pytest.mark.parametrize(
    ("settings", "n_ranks", "expected"),
    [
        (["run.batch_tokens=0"], 1, "run.batch_tokens=0: must be at least 1, or auto"),
        (["run.batch_tokens=lots"], 1, "run.batch_tokens=lots: must be a whole number, or auto"),
        (["run.batch_tokens=1.5"], 1, "run.batch_tokens=1.5: must be a whole number, or auto"),
        (["run.batch_tokens=true"], 1, "run.batch_tokens=True: must be a whole number, or auto"),
        (["run.batch_tokens=null"], 1, "run.batch_tokens=null: must be a whole number, or auto"),
        (["run.grad_accum=-1"], 1, "run.grad_accum=-1: must be at least 1, or auto"),
        (["stages.recovery.grad_accum=[2]"], 1, "stages.recovery.grad_accum=[2]: must be a whole number"),
        (
            ["run.batch_tokens=10000"],
            1,
            "run.batch_tokens=10000: must be a multiple of seq_len = 4096; nearest: 8192 or 12288",
        ),
        (
            ["run.batch_tokens=12288"],
            2,
            "run.batch_tokens=12288: must be a multiple of seq_len * data-parallel ranks = 4096 * 2; "
            "nearest: 8192 or 16384",
        ),
        (
            ["experiment=paper_98k", "run.grad_accum=16"],
            8,
            "run.batch_tokens=3145728: must be a multiple of seq_len * grad_accum * data-parallel ranks = "
            "98304 * 16 * 8; run.grad_accum=auto uses a number that fits; nearest: 12582912",
        ),
        (
            ["run.batch_tokens=8192", "stages.recovery.batch_tokens=4096"],
            2,
            "stages.recovery.batch_tokens=4096: must be a multiple of seq_len * data-parallel ranks = "
            "4096 * 2; nearest: 8192",
        ),
    ],
)
def test_a_number_that_does_not_divide_is_reported_once_with_the_nearest_that_does(
    settings, n_ranks, expected
):
    with pytest.raises(ConfigError) as error:
        check_overrides(settings, n_ranks=n_ranks)
    assert expected in str(error.value) and str(error.value).startswith("1 problem in")
