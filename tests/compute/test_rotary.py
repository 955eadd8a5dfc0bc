"""Warnings about rotary bases that are too low for a stage."""

import pytest

from lhtrain.compute.fill import compose_config
from lhtrain.compute.rotary import low_bases

YARN = "{rope_type:yarn,factor:16,original_max_position_embeddings:2048}"


def lines(*overrides):
    return low_bases(compose_config(["stage=curriculum", "model.seq_len=32768", *overrides]))


def test_a_fitting_base_gives_no_warning():
    assert lines() == []
    assert lines("model.seq_len=2048", "model.rope_theta=1e4") == []
    assert lines("stage=dense", "model.seq_len=1024", "model.rope_theta=5e3") == []


def test_a_low_base_is_named_once_with_its_remedy():
    """All three stages have the base of the model; the longest counts."""
    (line,) = lines("model.rope_theta=1e4")
    assert line.startswith("model.rope_theta=10000: ") and "951," in line and "seq_len=32768" in line
    assert line.endswith("set model.rope_theta=960000")
    (line,) = lines("model.rope_theta=960000", "model.seq_len=65536", "stages.recovery.rope_theta=3e6")
    assert line.endswith("set model.rope_theta=3000000, or stages.lighthouse.rope_theta=3000000")


def test_a_base_of_a_stage_is_named_by_its_own_key():
    assert lines("model.rope_theta=960000", "stages.short.rope_theta=4e4") == []
    (line,) = lines("stages.recovery.rope_theta=4e4")
    assert line.startswith("stages.recovery.rope_theta=40000: ")
    assert line.endswith("set stages.recovery.rope_theta=960000")
    assert len(lines("model.rope_theta=1e4", "stages.recovery.rope_theta=2e4")) == 2


@pytest.mark.parametrize("base", ["1e4", "2e3"])
def test_a_scaling_counts(base):
    """1e4 reaches 2,048 tokens, and YaRN stretches them by 16."""
    found = lines(f"model.rope_theta={base}", f"model.rope_scaling={YARN}")
    assert len(found) == (base == "2e3") and all("rope_type=yarn" in line for line in found)
