"""Warnings about programs that read an exported model in another way; families that cannot be exported."""

import pytest

from lhtrain.conf.schema import ModelConfig
from lhtrain.errors import RunError
from lhtrain.interop import config_json
from lhtrain.interop.readers import readers_that_differ
from tests.interop.made import FULL

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 32}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, []),
        ({"rope_scaling": YARN}, []),
        ({"rope_scaling": YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}}, ["mscale, mscale_all_dim", "vLLM"]),
        ({"rope_scaling": YARN | {"attention_factor": 1.0}}, ["vLLM"]),
        ({"rope_scaling": DYNAMIC}, ["rope_type=dynamic"]),
        ({"rope_scaling": LLAMA3}, []),
        ({"rope_scaling": LLAMA3, "qk_norm": True}, ["rope_type=llama3 in Qwen3ForCausalLM"]),
    ],
)
def test_what_other_programs_read_differently(changes, words):
    lines = readers_that_differ(config_json(ModelConfig(**FULL | changes)))
    assert len(lines) == len(words)
    assert all(word in line for word, line in zip(words, lines, strict=True))


def test_an_imported_ministral_is_unknown_to_others():
    imported = {"family": "ministral", "config": {"model_type": "ministral", "sliding_window": 4096}}
    config = config_json(ModelConfig(**FULL), imported=imported)
    assert config["layer_types"] == ["full_attention"] * 3 and config["sliding_window"] == 4096
    assert "does not know MinistralForCausalLM" in readers_that_differ(config)[0]


def test_lengths_that_belong_to_a_scaling():
    longest = {"dynamic": 32, "yarn": 64, "llama3": 48}
    for scaling in (DYNAMIC, YARN, LLAMA3):
        config = config_json(ModelConfig(**FULL | {"rope_scaling": scaling}), longest=48)
        assert config["max_position_embeddings"] == longest[scaling["rope_type"]]


def test_no_family_has_biases_and_normed_heads():
    with pytest.raises(RunError, match=r"qkv_bias=true and model\.qk_norm=true"):
        config_json(ModelConfig(**FULL | {"qkv_bias": True, "qk_norm": True}))
