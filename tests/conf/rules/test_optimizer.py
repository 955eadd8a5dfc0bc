"""Rules on which parameters a stage trains, and on the rates of groups of parameters."""

import pytest

from lhtrain.conf.compose import check_overrides
from lhtrain.conf.problems import ConfigError

BASE = ["data=text", "data.path=.", "stage=dense", "model.tie_embeddings=false"]


def refused(*overrides):
    with pytest.raises(ConfigError) as found:
        check_overrides([*BASE, *overrides])
    return str(found.value)


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("stages.dense.frozen=[blocks.*.mlp]", ["stages.dense.frozen", "blocks.*.mlp", "blocks.*.ffn"]),
        ("stages.dense.frozen=[embedding,embeding]", ["embeding", "did you mean embedding?"]),
        ("stages.dense.frozen=[blocks.0-4]", ["blocks.0 to blocks.3"]),
        ("stages.dense.frozen=[embedding,blocks,norm,head]", ["freezes every parameter"]),
        ("stages.dense.frozen=['*']", ["freezes every parameter"]),
        ("optim.groups={blocks.9: 0.5}", ["optim.groups.blocks.9", "blocks.0 to blocks.3"]),
        ("optim.groups={norm: -1}", ["optim.groups.norm.lr_scale=-1", "at least 0"]),
        ("optim.groups={norm: fast}", ["optim.groups.norm.lr_scale=fast", "number"]),
        ("optim.groups={norm: true}", ["optim.groups.norm.lr_scale", "number"]),
        ("optim.groups={norm: {weight_decay: -1}}", ["optim.groups.norm.weight_decay=-1"]),
        ("optim.groups={norm: {rate: 2}}", ["optim.groups.norm", "lr_scale: FACTOR"]),
        ("optim.groups={norm: {}}", ["optim.groups.norm", "lr_scale: FACTOR"]),
    ],
)
def test_a_wrong_pattern_or_setting_is_named_with_a_remedy(override, parts):
    message = refused(override)
    assert "1 problem" in message and all(part in message for part in parts), message


def test_the_head_of_tied_embeddings_is_the_embedding():
    tied = ["model.tie_embeddings=true", "stages.dense.frozen=[head]"]
    assert "name the embedding" in refused(*tied)
    check_overrides([*BASE, "model.tie_embeddings=true", "stages.dense.frozen=[embedding]"])


def test_good_settings_break_no_rule():
    groups = "optim.groups={blocks.*.ffn: {lr_scale: 0.5, weight_decay: 0}, embedding: 0.1, head: 0}"
    config = check_overrides([*BASE, groups, "stages.dense.frozen=[blocks.0-3.attention,norm]"])
    assert list(config.optim.groups) == ["blocks.*.ffn", "embedding", "head"]
