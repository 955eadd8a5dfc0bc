"""Values that are derived from others, and the steps of each stage."""

import pickle

import pytest
from hydra import compose, initialize_config_module

from lhtrain.compute.fill import compose_config, filled
from lhtrain.compute.memory import estimate
from lhtrain.compute.rates import H100
from lhtrain.compute.step_time import step_time
from lhtrain.conf.compose import build
from lhtrain.conf.problems import ConfigError, Problem
from lhtrain.conf.resolvers import budget
from lhtrain.conf.schema import Recompute
from lhtrain.stage import stages_of


def config(*overrides):
    with initialize_config_module("lhtrain.conf", version_base="1.3"):
        return filled(build(compose("config", overrides=list(overrides))))


def test_model_sizes_follow_from_each_other():
    model = config("model.n_heads=4").model
    assert (model.n_kv_heads, model.head_dim, model.vocab_size) == (4, 32, 320)


def test_given_sizes_stay():
    model = config("model.n_heads=4", "model.n_kv_heads=2", "model.head_dim=64", "model.vocab_size=999").model
    assert (model.n_kv_heads, model.head_dim, model.vocab_size) == (2, 64, 999)


def test_dense_layers_count_from_either_end():
    assert config("model.dense_layers=[0,1,-2,-1]", "model.n_layers=30").model.dense_layers == [0, 1, 28, 29]
    assert config("model.dense_layers=[0,-1]", "model.n_layers=1", "stage=dense").model.dense_layers == [0]


@pytest.mark.parametrize(("seq_len", "expected"), [(1024, 128), (8192, 128), (16384, 256), (98304, 1536)])
def test_budget_is_a_64th_of_the_sequence_unless_given(seq_len, expected):
    assert budget(None, seq_len) == expected
    assert budget(640, seq_len) == 640


@pytest.mark.parametrize(
    ("overrides", "steps"),
    [
        (["run.steps=160"], [100, 60]),
        (["run.steps=2"], [1, 1]),
        (["run.steps=200", "stages.lighthouse.steps=7"], [7, 193]),
        (["run.steps=200", "stages.recovery.steps=199", "stages.lighthouse.fraction=null"], [1, 199]),
        (["stage=curriculum", "run.steps=10"], [2, 5, 3]),
        # 1/3 of 10 is 3 three times: the last fraction takes the step that rounding lost
        (
            ["run.steps=10", "stage=curriculum"]
            + [f"stages.{name}.fraction=0.33333333" for name in ("short", "lighthouse", "recovery")],
            [3, 3, 4],
        ),
    ],
)
def test_stages_share_the_run(overrides, steps):
    assert [stage.steps for stage in config(*overrides).stages.values()] == steps


def test_the_curriculum_keeps_the_tokens_of_a_step():
    stages = config("stage=curriculum").stages
    assert [stage.seq_len for stage in stages.values()] == [512, 4096, 4096]
    assert {stage.batch_tokens for stage in stages.values()} == {4096}


@pytest.mark.parametrize(
    ("overrides", "remedy"),
    [
        (["stages.recovery.steps=3"], "set run.steps=8, or stages.lighthouse.fraction=null"),
        (
            ["stages.lighthouse.steps=4", "stages.recovery.steps=3"],
            "set run.steps=7, or stages.recovery.steps=null",
        ),
    ],
)
def test_steps_that_were_given_are_never_changed(overrides, remedy):
    """Fractions of all stages add up to the run; if a number of steps replaces one, it is not rounded."""
    with pytest.raises(ConfigError) as error:
        config("run.steps=10", "stages.lighthouse.fraction=0.5", "+stages.recovery.fraction=0.5", *overrides)
    assert remedy in str(error.value)


def test_problems_reach_other_ranks():
    """Ranks send errors to each other as pickles."""
    error = ConfigError([Problem("steps", "4", "must be more", is_here=True)])
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error) and copy.problems == error.problems and copy.status == 1


def test_a_stage_with_a_number_of_tokens_gets_whole_steps_whatever_its_fraction_is():
    made = config("stages.lighthouse.tokens=100000", "run.batch_tokens=8192", "run.steps=20")
    assert [stage.steps for stage in made.stages.values()] == [13, 7]  # 12.2 steps, rounded up
    assert [stage.tokens for stage in made.stages.values()] == [None, None]


def test_sliding_layers_follow_from_the_pattern_or_count_from_either_end():
    window = "model.sliding_window=64"
    assert config(window, "model.sliding_window_pattern=2").model.sliding_layers == [0, 2]
    assert config(window, "model.sliding_window_pattern=3").model.sliding_layers == [0, 1, 3]
    assert config(window, "model.sliding_layers=[-1,1]").model.sliding_layers == [1, 3]


def test_the_dense_layers_of_a_stage_count_from_the_first_layer():
    made = config("model.dense_layers=[-1]", "stages.recovery.dense_layers=[-4,0]")
    assert [stage.dense_layers for stage in made.stages.values()] == [[3], [0]]


SMOL = ["model.dim=576", "model.n_layers=30", "model.n_heads=9", "model.n_kv_heads=3", "model.ffn_dim=1536"]
SMOL += ["model.vocab_size=49152", "model.tie_embeddings=true", "model.dense_layers=[]"]
GPU = 80 * 10**9


def chosen(model, seq_len, *more, n_ranks=1):
    settings = [*model, f"model.seq_len={seq_len}", "stage=dense", *more]
    compute = compose_config(settings, n_ranks, GPU).compute
    return compute.recompute.value + (" and offload" if compute.offload else "")


@pytest.mark.parametrize(
    ("model", "by_length"),
    [
        (SMOL, {98_304: "none", 262_144: "attention", 524_288: "attention", 1_048_576: "full"}),
        (
            ["model=lighthouse_530m"],
            {98_304: "selective", 262_144: "attention", 524_288: "full", 1_048_576: "full and offload"},
        ),
        (["model=gpt_1b"], {32_768: "none", 98_304: "attention", 262_144: "full"}),
    ],
)
def test_recomputation_is_chosen_by_the_memory_that_a_sequence_needs(model, by_length):
    assert {seq_len: chosen(model, seq_len) for seq_len in by_length} == by_length


def test_ranks_that_share_the_weights_leave_room_for_the_results_of_attention():
    assert chosen(["model=gpt_1b"], 262_144, n_ranks=8) == "attention"


def test_attention_is_not_chosen_where_its_memory_was_not_measured():
    more = ["parallel.cp=2", "lighthouse.budget=4096"]
    assert chosen(["model=lighthouse_530m"], 524_288, *more, n_ranks=2) == "full"
    found, peak, _ = micro_batches(
        "attention", "model=lighthouse_530m", "model.seq_len=524288", "stage=dense", *more, n_ranks=2
    )
    assert found == 1 and peak < 0.9 * GPU


def micro_batches(recompute, *settings, n_ranks=1):
    made = compose_config([*settings, f"compute.recompute={recompute}"], n_ranks, GPU)
    (stage,) = stages_of(made).values()
    return stage.grad_accum, estimate(made, stage, n_ranks).total, step_time(made, stage, H100, n_ranks).total


def test_attention_is_not_chosen_if_it_needs_more_micro_batches_than_full_recomputation():
    """Two sequences of 458,752 tokens fit at once only if nothing but the inputs of the blocks is kept."""
    settings = [*SMOL, "model.seq_len=458752", "run.batch_tokens=917504", "stage=dense"]
    kept, full = (micro_batches(recompute, *settings) for recompute in ("attention", "full"))
    assert (kept[0], full[0]) == (2, 1) and max(kept[1], full[1]) < 0.9 * GPU
    assert compose_config(settings, 1, GPU).compute.recompute is Recompute.full


def test_attention_is_not_chosen_if_it_is_not_predicted_to_be_faster(monkeypatch):
    settings = [*SMOL, "model.seq_len=262144", "stage=dense"]
    kept, full = (micro_batches(recompute, *settings) for recompute in ("attention", "full"))
    assert kept[0] == full[0] == 1 and kept[2] < 0.85 * full[2]  # measured: 15.9 s with attention, about 20 s
    monkeypatch.setattr("lhtrain.compute.fill._seconds", lambda config, choice, n_ranks: 1.0)
    assert compose_config(settings, 1, GPU).compute.recompute is Recompute.full
