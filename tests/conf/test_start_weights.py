"""What `init_from` brings: the shape of the model, and the tokenizer of imported weights."""

import json

import pytest
from hydra import compose

from lhtrain.conf.compose import check_overrides, checked, hydra, search_path
from lhtrain.conf.problems import ConfigError
from lhtrain.conf.typed.sweep import sweep_of
from lhtrain.interop import bpe

SHAPE = {
    "name": "someone/small",
    "seq_len": 4096,
    "vocab_size": 320,
    "dim": 32,
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": 2,
    "head_dim": 16,
    "ffn_dim": 80,
    "rope_theta": 1e6,
    "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    "qkv_bias": True,
    "norm_eps": 1e-6,
    "tie_embeddings": True,
}


@pytest.fixture
def weights(tmp_path):
    """The state of imported weights, with their tokenizer."""
    (tmp_path / "tokenizer.json").write_text(json.dumps(bpe.of_bytes("<|endoftext|>", 256)))
    data = {"tokenizer": "elsewhere/tokenizer.json", "bos": True, "eos": None}
    state = {"config": {"model": SHAPE, "data": data}, "imported": {"family": "qwen2"}}
    (tmp_path / "state.json").write_text(json.dumps(state))
    return tmp_path


def test_the_shape_and_the_tokenizer_come_with_the_weights(weights):
    config = check_overrides([f"init_from={weights}"])
    assert {key: getattr(config.model, key) for key in SHAPE} == SHAPE
    assert config.data.tokenizer == str(weights / "tokenizer.json") and config.data.bos
    assert config.data.documents.name == "apart"


def test_typed_settings_come_first(weights):
    typed = [
        "model.seq_len=8192",
        "model.rope_theta=2e6",
        "model.rope_scaling=null",
        "data.documents=together",
    ]
    config = check_overrides([f"init_from={weights}", *typed])
    assert (config.model.seq_len, config.model.rope_theta, config.model.rope_scaling) == (8192, 2e6, None)
    assert config.data.documents.name == "together" and config.model.dim == 32


def test_keys_in_a_file_of_the_user_count_as_typed(weights, tmp_path):
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    text = "# @package _global_\nmodel:\n  seq_len: 2048\n"
    (tmp_path / "own" / "experiment" / "mine.yaml").write_text(text)
    search = f"hydra.searchpath=[file://{tmp_path / 'own'}]"
    config = check_overrides([search, "experiment=mine", f"init_from={weights}"])
    assert config.model.seq_len == 2048 and config.model.n_layers == 2


@pytest.mark.parametrize("typed", ["model.dim=64", "model.qkv_bias=false"])
def test_settings_that_contradict_the_weights_are_named(weights, typed):
    with pytest.raises(ConfigError, match=r"the weights of init_from=.* have .*; leave this setting out"):
        check_overrides([f"init_from={weights}", typed])


@pytest.mark.parametrize(
    "typed", [["data.tokenizer=gpt2"], ["data=text", "data.path=.", "data.tokenizer=gpt2"]]
)
def test_a_tokenizer_that_is_too_large_for_the_weights_is_named(weights, typed):
    with pytest.raises(ConfigError, match=r"data\.tokenizer=gpt2: .*50257 tokens.*use the tokenizer of that"):
        check_overrides([f"init_from={weights}", *typed])


def test_a_preset_that_contradicts_the_weights_is_named_once(weights):
    with pytest.raises(ConfigError) as refused:
        check_overrides([f"init_from={weights}", "model=gpt_130m"])
    (problem,) = refused.value.problems
    assert (problem.key, problem.value) == ("model", "gpt_130m")
    assert f"init_from={weights} brings the shape" in problem.rule and "dim 768, not 32" in problem.rule
    assert "leave model=gpt_130m out" in problem.rule


def test_a_key_of_the_scaling_that_comes_with_the_weights_can_be_changed(weights):
    typed = [f"init_from={weights}", "model.rope_scaling.factor=8"]
    found = checked(typed)
    assert found.config.model.rope_scaling == {"rope_type": "linear", "factor": 8}
    assert found.config.stages["recovery"].rope_scaling["factor"] == 8
    with hydra():  # as training composes them
        assert compose("config", overrides=[*found.brought, *typed]).model.rope_scaling.factor == 8
    swept = sweep_of([typed[0], "model.rope_scaling.factor=8,16"])
    factors = [check_overrides(job).model.rope_scaling["factor"] for job in swept.jobs]
    assert factors == [8, 16]


@pytest.mark.slow
def test_a_sweep_keeps_a_changed_key_of_the_scaling(weights):
    (one,) = sweep_of([f"init_from={weights}", "model.rope_scaling.factor=8", "run.seed=1"]).jobs
    assert check_overrides(one).model.rope_scaling["factor"] == 8


def test_a_key_of_a_scaling_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match=r"model\.rope_scaling is not set, so it has no factor to change"):
        check_overrides(["model.rope_scaling.factor=8"])


def test_training_gets_the_same_settings(weights):
    found = checked([f"init_from={weights}"])
    assert "model.dim=32" in found.brought and "model.qkv_bias=true" in found.brought


def test_the_checkpoint_of_a_run_brings_its_shape_alone(weights):
    state = json.loads((weights / "state.json").read_text()) | {"imported": None}
    (weights / "state.json").write_text(json.dumps(state))
    config = check_overrides([f"init_from={weights}"])
    assert config.model.dim == 32 and config.data.tokenizer == "bytes"
    assert config.data.documents.name == "together"


def test_a_stage_fits_the_base_that_comes_with_the_weights(weights, tmp_path):
    """A recipe may raise the base where the length needs it, starting from that of init_from."""
    (tmp_path / "own" / "stage").mkdir(parents=True)
    text = """# @package stages
short: {attention: dense, fraction: 0.5, seq_len: 4096}
long: {attention: dense, rope_theta: "${fit_rope:${model.rope_theta},${model.seq_len}}"}
"""
    (tmp_path / "own" / "stage" / "mine.yaml").write_text(text)
    typed = [search_path(str(tmp_path / "own")), "stage=mine", f"init_from={weights}"]

    def bases(*more):
        return [stage.rope_theta for stage in check_overrides([*typed, *more]).stages.values()]

    assert bases() == [1e6, 1e6]
    assert bases("model.seq_len=98304") == [1e6, 1.9e6]  # as 49,152 tokens: their scaling is kept
    assert bases("model.seq_len=98304", "model.rope_scaling=null") == [1e6, 5.7e6]
    assert bases("model.seq_len=98304", "model.rope_theta=8e6") == [8e6, 8e6]


def test_without_a_readable_state_nothing_comes(tmp_path):
    (tmp_path / "state.json").write_text("[]")
    assert checked([f"init_from={tmp_path}"]).brought == ()
