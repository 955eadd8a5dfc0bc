"""Names and shapes of parameters without a model, and patterns for them."""

import pytest
import torch

from lhtrain.conf.parameters import broken_rule, chosen, matches, shapes
from lhtrain.conf.schema import ModelConfig
from lhtrain.model.decoder import GPT

SIZES = {"dim": 16, "n_layers": 3, "n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "ffn_dim": 24}


def config(**more):
    return ModelConfig(name="t", seq_len=8, vocab_size=32, **SIZES, **more)


@pytest.mark.parametrize("more", [{}, {"tie_embeddings": True, "qkv_bias": True, "qk_norm": True}])
def test_names_shapes_and_order_are_those_of_the_model(more):
    with torch.device("meta"):
        model = GPT(config(**more))
    want = [(name, tuple(parameter.shape)) for name, parameter in model.named_parameters()]
    assert list(shapes(config(**more)).items()) == want


@pytest.mark.parametrize(
    ("pattern", "name", "is_match"),
    [
        ("embedding", "embedding.weight", True),
        ("norm", "norm.weight", True),
        ("norm", "blocks.0.attention_norm.weight", False),
        ("blocks.0-1", "blocks.1.ffn.up.weight", True),
        ("blocks.0-1", "blocks.10.ffn.up.weight", False),
        ("blocks.9-11", "blocks.10.ffn.up.weight", True),
        ("blocks.1", "blocks.11.ffn.up.weight", False),
        ("blocks.*.ffn", "blocks.2.ffn.up.weight", True),
        ("blocks.*.*_norm", "blocks.2.ffn_norm.weight", True),
        ("*.weight", "norm.weight", True),
        ("*.weight", "blocks.2.ffn.up.weight", False),
        ("blocks.1.ffn.up.weight.x", "blocks.1.ffn.up.weight", False),
    ],
)
def test_each_part_of_a_pattern_matches_one_part_of_the_name(pattern, name, is_match):
    assert matches(pattern, name) is is_match


def test_the_parameters_that_any_pattern_matches():
    got = chosen(["blocks.0-1.attention.wq", "norm"], shapes(config()))
    assert got == {"blocks.0.attention.wq.weight", "blocks.1.attention.wq.weight", "norm.weight"}


@pytest.mark.parametrize(
    ("pattern", "parts"),
    [
        ("blocks.*.mlp", ["blocks.*.ffn", "blocks.*.attention"]),
        ("embeding", ["did you mean embedding?"]),
        ("blocks.*.fnf.up", ["did you mean blocks.*.ffn.up?"]),
        ("blocks.0-40", ["blocks.0 to blocks.2"]),
        ("blocks.2-1", ["smaller number"]),
        ("blocks.7", ["blocks.0 to blocks.2"]),
        ("norm.weight.x", ["nothing below norm.weight"]),
        ("", ["embedding, blocks, norm, head"]),
        (3, ["pattern"]),
    ],
)
def test_a_pattern_without_a_match_is_named_with_close_names(pattern, parts):
    rule = broken_rule(pattern, shapes(config()))
    assert rule is not None and all(part in rule for part in parts), rule


def test_a_good_pattern_breaks_no_rule():
    for pattern in ("blocks.0-2", "blocks.*.*.w?", "norm", "head.weight"):
        assert broken_rule(pattern, shapes(config())) is None
