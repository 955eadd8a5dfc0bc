"""The memory estimate, compared with peaks measured on GPUs."""

import csv
from pathlib import Path

import pytest

from lhtrain.compute.fill import compose_config
from lhtrain.compute.memory import estimate, parameters
from lhtrain.conf.schema import Recompute
from lhtrain.model.decoder import GPT
from lhtrain.stage import stages_of

RESULTS = Path(__file__).parents[2] / "scripts" / "bench" / "results"


# The first rows of each file were measured when selective recomputation still saved the Lighthouse outputs.
KEPT_OUTPUTS = {"train.csv": 20, "multi_gpu.csv": 13}


def measured():
    rows = []
    for name, first in KEPT_OUTPUTS.items():
        with (RESULTS / name).open() as file:
            rows += [
                row | {"kept_outputs": number < first}
                for number, row in enumerate(csv.DictReader(file))
                if row["peak_gb"]  # a peak without the memory of CUDA graphs was not kept
            ]
    return rows


def outputs(config, stage, ranks):
    """Bytes of the Lighthouse layers' outputs, which earlier code saved and which are now recomputed."""
    if config.compute.recompute is not Recompute.selective or stage.pyramid is None:
        return 0
    layers = set(range(0, config.model.n_layers, config.compute.recompute_every)) - {
        *config.model.dense_layers
    }
    tokens = stage.batch_tokens // ranks
    return 2 * tokens * config.model.n_heads * config.model.head_dim * len(layers)


@pytest.mark.parametrize(
    "row", measured(), ids=lambda row: f"{row['stage']}-{row['seq_len']}-{row['ranks']}-{row['peak_gb']}"
)
def test_within_a_twentieth_of_every_measured_peak(row):
    # --documents is an option of the benchmark, behind the settings.
    ranks, settings = int(row["ranks"]), row["settings"].partition(" --documents ")[0].split()
    config = compose_config(["run.grad_accum=1", *settings], ranks)
    stage = stages_of(config)[row["stage"]]
    peak = 1e9 * float(row["peak_gb"]) - row["kept_outputs"] * outputs(config, stage, ranks)
    assert estimate(config, stage, ranks).total == pytest.approx(peak, rel=0.05)


@pytest.mark.parametrize("settings", [[], ["qkv_bias=true", "tie_embeddings=true"], ["qk_norm=true"]])
def test_counts_the_parameters_of_the_model(settings):
    model = compose_config([f"model.{setting}" for setting in settings]).model
    assert sum(parameters(model)) == GPT(model).n_parameters()[0]


def peak(*overrides):
    config = compose_config(["model=lighthouse_530m", "run.grad_accum=1", *overrides])
    return {name: estimate(config, stage).total for name, stage in stages_of(config).items()}


def test_settings_reduce_memory_in_the_expected_order():
    levels = [
        peak(*settings)["recovery"]
        for settings in (
            [],
            ["compute.recompute=selective"],
            ["compute.recompute=full", "compute.recompute_every=2"],
            ["compute.recompute=attention"],
            ["compute.recompute=full"],
            ["compute.recompute=full", "compute.offload=true"],
        )
    ]
    assert levels == sorted(levels, reverse=True)
    assert len(set(levels)) == len(levels)


def test_selective_recomputation_does_not_keep_the_outputs_of_lighthouse_layers():
    """26 layers, 98,304 positions, 1,024 values of 2 bytes: 5.2 GB."""
    config = compose_config(["model=lighthouse_530m", "compute.recompute=selective"])
    assert outputs(config, stages_of(config)["lighthouse"], 1) == pytest.approx(5.2e9, rel=0.01)
    assert outputs(config, stages_of(config)["recovery"], 1) == 0


def test_recomputation_of_all_but_attention_keeps_inputs_and_results_of_attention():
    """98,304 tokens, 30 layers of 1,024: two bfloat16 tensors and one logsumexp of 8 heads per layer."""
    config = compose_config(["model=lighthouse_530m", "compute.recompute=attention", "run.grad_accum=1"])
    found = estimate(config, stages_of(config)["recovery"]).activations
    full = compose_config(["model=lighthouse_530m", "compute.recompute=full", "run.grad_accum=1"])
    more = found - estimate(full, stages_of(full)["recovery"]).activations
    assert more == pytest.approx(30 * 98_304 * (2 * 1024 + 4 * 8), rel=0.05)


@pytest.mark.parametrize(
    ("stage", "more", "measured"),
    [
        ("dense", [], 26.08),
        ("lighthouse", ["lighthouse.window=2048"], 30.79),
        ("lighthouse", ["lighthouse.window=8192"], 30.79),
    ],
)
def test_recomputation_of_all_but_attention_agrees_with_measured_peaks(stage, more, measured):
    """SmolLM2-135M at 262,144 tokens: peak_memory_gb of the runs of docs/recipes.md."""
    smol = [
        "model.dim=576",
        "model.n_layers=30",
        "model.n_heads=9",
        "model.n_kv_heads=3",
        "model.ffn_dim=1536",
    ]
    smol += ["model.vocab_size=49152", "model.tie_embeddings=true", "model.dense_layers=[]"]
    smol += ["model.seq_len=262144", "run.batch_tokens=262144", "compute.recompute=attention"]
    config = compose_config([*smol, f"stage={stage}", "run.grad_accum=1", *more])
    (only,) = stages_of(config).values()
    assert estimate(config, only).total == pytest.approx(measured * 1e9, rel=0.05)


def test_float32_takes_twice_the_activations_and_no_casts():
    parts = {}
    for precision in ("auto", "bfloat16", "float32"):
        config = compose_config(
            ["model=lighthouse_530m", "run.grad_accum=1", f"compute.precision={precision}"]
        )
        parts[precision] = estimate(config, stages_of(config)["recovery"])
    low, high = parts["bfloat16"], parts["float32"]
    assert parts["auto"] == low
    assert high.casts == 0 < low.casts
    assert (high.weights, high.optimizer) == (low.weights, low.optimizer)
    assert high.activations == pytest.approx(2 * low.activations, rel=0.01)
    config = compose_config(["model=lighthouse_530m", "compute.precision=float32"], 2)
    assert estimate(config, stages_of(config)["recovery"], 2).casts > low.casts / 4


def test_lighthouse_keeps_less_than_full_attention():
    both = peak()
    assert both["lighthouse"] < both["recovery"]


def test_a_window_keeps_its_own_queries_keys_values_and_statistics():
    """98,304 tokens, 30 layers, 8 heads of 128: three more bfloat16 tensors and one logsumexp per layer."""
    settings = ["model=lighthouse_530m", "model.dense_layers=[]", "run.grad_accum=1", "stage=lighthouse"]
    settings += ["compute.recompute=none"]
    published, windowed, whole = (
        compose_config([*settings, *more])
        for more in ([], ["lighthouse.window=512"], ["lighthouse.window=98304"])
    )
    parts = [estimate(config, stages_of(config)["lighthouse"]) for config in (published, windowed, whole)]
    more = 30 * 98_304 * (3 * 2 * 8 * 128 + 4 * 8)
    assert parts[1].activations - parts[0].activations == pytest.approx(more, rel=0.01)
    dense = compose_config([*settings, "stage=dense"])
    assert parts[2] == estimate(dense, stages_of(dense)["dense"])


def test_a_sliding_layer_needs_what_full_attention_needs():
    settings = ["model=lighthouse_530m", "run.grad_accum=1", "stage=lighthouse", "compute.recompute=none"]
    sliding = ["model.dense_layers=[]", "model.sliding_window=1024", "model.sliding_layers=[0,1,28,29]"]
    configs = [compose_config([*settings, *more]) for more in ([], sliding)]
    plain, slides = (estimate(config, stages_of(config)["lighthouse"]) for config in configs)
    assert plain == slides


def test_more_micro_batches_need_no_more_activations():
    once = peak("run.batch_tokens=393216")
    parts = peak("run.batch_tokens=393216", "run.grad_accum=4")
    gradients = 4 * 530_117_632  # of earlier micro-batches, present during the whole backward pass
    assert parts == {name: one + gradients for name, one in peak().items()}
    assert once["recovery"] > 3 * parts["recovery"]


def test_a_wider_model_with_fewer_layers():
    """Not all of its gradients exist at the peak. Measured on an H100: 48.2 GB (scripts/bench/NOTES.md)."""
    settings = ["model=llama3_8b", "model.n_layers=4", "model.dense_layers=[0]", "stage=lighthouse"]
    config = compose_config(settings)
    assert estimate(config, stages_of(config)["lighthouse"]).total == pytest.approx(48.2e9, rel=0.05)


def test_gradients_of_several_micro_batches_are_whole_until_they_are_reduced():
    sharded = ["parallel.dp_shard=8", "run.batch_tokens=1572864"]
    once, parts, reduced = (
        peak(*sharded, *more)["lighthouse"]
        for more in (
            ["compute.recompute=full"],
            ["compute.recompute=full", "run.grad_accum=2"],
            ["compute.recompute=full", "run.grad_accum=2", "parallel.reduce_always=true"],
        )
    )
    assert reduced < parts - 3 * 530_117_632 and reduced < once


def parts(*overrides):
    config = compose_config(
        ["model=lighthouse_530m", "stage=dense", "run.grad_accum=1", "compute.recompute=full", *overrides]
    )
    return config, estimate(config, stages_of(config)["dense"])


def test_frozen_parameters_have_no_gradient_no_state_and_below_them_no_activations():
    config, whole = parts()
    _, some = parts("stages.dense.frozen=[embedding,blocks.0-11]")
    inner, embeddings = parameters(config.model)
    assert some.weights == whole.weights
    assert whole.optimizer == 8 * (inner + embeddings)
    left = inner * (config.model.n_layers - 12) / config.model.n_layers + embeddings / 2
    assert some.optimizer == pytest.approx(8 * left, rel=1e-3)
    assert some.activations < 0.7 * whole.activations
    assert some.total < whole.total


@pytest.mark.parametrize(
    ("settings", "matrices", "rest"),
    [
        (["optim=muon"], 4, 8),
        (["optim.state=bfloat16"], 4, 4),
        (["optim=muon", "optim.state=bfloat16"], 2, 4),
        (["optim=muon", "optim.state=int8"], 1 + 4 / 256, 2 + 8 / 256),
    ],
)
def test_the_state_of_each_optimizer(settings, matrices, rest):
    """Of the matrices of the blocks, and of the embeddings; vectors hardly count."""
    config, memory = parts(*settings)
    inner, embeddings = parameters(config.model)
    assert memory.optimizer == pytest.approx(matrices * inner + rest * embeddings, rel=1e-2)
