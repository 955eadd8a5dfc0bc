"""The least rotary base for a length."""

import math

import pytest
import torch

from lhtrain.compute.fill import compose_config
from lhtrain.compute.rotary import low_bases
from lhtrain.conf.compose import search_path
from lhtrain.conf.problems import ConfigError
from lhtrain.conf.rope_scaling import fitting_base, least_base, least_scaled_base, rounded_up
from lhtrain.model.rope import Rope

HEAD = 128


@pytest.mark.parametrize(
    ("seq_len", "least", "fitting"),
    [
        (512, 1_091, 10_000),
        (2048, 10_000, 10_000),
        (8192, 99_627, 100_000),
        (32_768, 951_800, 960_000),
        (98_304, 5_692_000, 5_700_000),
    ],
)
def test_the_least_base_grows_with_the_length(seq_len, least, fitting):
    assert least_base(seq_len) == pytest.approx(least, rel=1e-3)
    assert fitting_base(10_000, seq_len) == fitting
    assert fitting_base(7.7e6, seq_len) == 7.7e6


YARN = "{rope_type: yarn, factor: 4, original_max_position_embeddings: 8192}"
DYNAMIC = "{rope_type: dynamic, factor: 4, original_max_position_embeddings: 8192}"


@pytest.mark.parametrize("scaling", [YARN, DYNAMIC, "null"])
def test_a_fitting_base_knows_the_scaling(scaling):
    """The presets, and the stages of a recipe, for which the start would otherwise warn."""
    typed = ["model=gpt_130m", "model.seq_len=98304", "stage=ladder", f"model.rope_scaling={scaling}"]
    config = compose_config(typed)
    model, (*_, long) = config.model, config.stages.values()
    assert model.rope_theta == long.rope_theta
    least = least_scaled_base(98_304, model.rope_scaling, model.head_dim)
    assert (
        model.rope_theta == fitting_base(0, 98_304, model.rope_scaling, model.head_dim) == rounded_up(least)
    )
    assert (model.rope_theta < 5.7e6) == (scaling != "null")
    assert low_bases(config) == []
    own = compose_config([*typed, "stages.long.rope_scaling=null"]).stages
    assert own["long"].rope_theta == 5.7e6 and own["short"].rope_theta == model.rope_theta


def test_a_scaling_that_is_refused_is_named_once():
    with pytest.raises(ConfigError) as refused:
        compose_config(["model=gpt_130m", "model.rope_scaling={rope_type: yarn}"])
    assert {problem.key for problem in refused.value.problems} == {"model.rope_scaling"}


def test_rounding_up_keeps_two_digits():
    assert [rounded_up(base) for base in (10_001, 951_800, 99_627, 9.0, 2.61e8)] == [
        *(11_000, 960_000, 100_000, 9, 2.7e8)
    ]


def test_a_scaling_lowers_the_least_base():
    """Published models reach their length with these: Llama 3.1 and Qwen2.5 with YaRN."""
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    llama3["original_max_position_embeddings"] = 8192
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768}
    assert least_scaled_base(131_072, llama3, HEAD) < 5e5 < least_base(131_072)
    assert least_scaled_base(131_072, yarn, HEAD) < 1e6 < least_base(131_072)
    assert least_scaled_base(131_072, {"rope_type": "linear", "factor": 2.0}, HEAD) == least_base(65_536)
    assert least_scaled_base(131_072, None, HEAD) == least_base(131_072)


def reach(rope):
    """The first distance at which similar tokens get less attention than random ones: sum of cosines < 0."""
    distances = torch.arange(0, 100_000, 10, dtype=torch.float64)
    cosines = torch.outer(distances, rope.frequencies(HEAD).double()).cos().sum(1)
    return distances[cosines < 0][0].item()


@pytest.mark.parametrize("kind", ["linear", "dynamic", "llama3", "yarn"])
def test_a_scaling_reaches_as_far_as_the_least_base_says(kind):
    """With a scaling, base 1e5 reaches further by the ratio that the least base allows, within 2."""
    scaling = {"rope_type": kind, "factor": 4.0, "original_max_position_embeddings": 8192}
    scaling |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    length = 32_768
    least = least_scaled_base(length, scaling, HEAD)
    gain = (least_base(length) / least) ** (1 / 1.628)  # of the length that a base reaches
    measured = reach(Rope(1e5, scaling, length)) / reach(Rope(1e5))
    assert abs(math.log(measured / gain)) < math.log(2)
    assert least < least_base(length)


@pytest.mark.parametrize("model", ["gpt_tiny", "gpt_130m", "gpt_350m", "gpt_1b", "lighthouse_530m"])
def test_presets_fit_their_length(model):
    def config(*typed):
        return compose_config([f"model={model}", "stage=dense", *typed])

    assert config().model.rope_theta == fitting_base(0, config().model.seq_len)
    assert config("model.seq_len=1048576").model.rope_theta == 2.7e8
    assert config("model.seq_len=1024").model.rope_theta == 10_000
    assert config("model.rope_theta=5e4").model.rope_theta == 5e4


def test_a_stage_keeps_the_base_of_the_model_unless_it_sets_one(tmp_path):
    typed = ["stage=curriculum", "model=gpt_130m"]
    stages = compose_config(typed).stages
    assert {stage.rope_theta for stage in stages.values()} == {960_000}
    (tmp_path / "stage").mkdir()
    own = "# @package stages\ndefaults: [curriculum]\nshort:\n  rope_theta: ${fit_rope:10000,${.seq_len}}\n"
    (tmp_path / "stage" / "own.yaml").write_text(own)
    stages = compose_config([search_path(str(tmp_path)), "stage=own", *typed[1:]]).stages
    assert (stages["short"].rope_theta, stages["recovery"].rope_theta) == (33_000, 960_000)


def test_the_run_of_the_paper_keeps_its_base():
    assert compose_config(["experiment=paper_98k"]).model.rope_theta == 10_000
    assert compose_config(["model=llama3_8b"]).model.rope_theta == 500_000


def test_a_length_that_is_refused_is_named():
    with pytest.raises(ConfigError, match=r"model\.seq_len=0"):
        compose_config(["model.seq_len=0"])
