"""The rotary embedding compared with transformers' for every kind of scaling."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from lhtrain.conf.rope_scaling import ORIGINAL, broken_rules
from lhtrain.model.rope import Rope, rotate

SCALINGS = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0, ORIGINAL: 128},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        ORIGINAL: 512,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, ORIGINAL: 256},
    "yarn, untruncated": {
        **{"rope_type": "yarn", "factor": 16.0, ORIGINAL: 256, "truncate": False},
        **{"beta_fast": 16.0, "beta_slow": 2.0, "mscale": 0.7, "mscale_all_dim": 1.3},
    },
    "yarn, own factor": {"rope_type": "yarn", "factor": 2.0, ORIGINAL: 64, "attention_factor": 1.25},
}


@pytest.mark.parametrize("dim", [32, 64, 128])
@pytest.mark.parametrize("theta", [1e4, 5e5])
@pytest.mark.parametrize("name", SCALINGS)
def test_frequencies_are_those_of_transformers(name, theta, dim):
    """To the last bit, because the error of an angle grows with the position."""
    scaling = SCALINGS[name]
    longest = 128 if scaling["rope_type"] == "dynamic" else 1024
    config = LlamaConfig(
        hidden_size=2 * dim,
        num_attention_heads=2,
        head_dim=dim,
        max_position_embeddings=longest,
        rope_theta=theta,
        rope_parameters=scaling | {"rope_theta": theta},
    )
    frequencies, factor = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config, "cpu", seq_len=500)
    rope = Rope(theta, scaling, seq_len=500)
    assert torch.equal(rope.frequencies(dim), frequencies)
    assert rope.attention_factor == pytest.approx(factor)


@pytest.mark.parametrize("name", [None, "llama3", "yarn", "yarn, own factor"])
def test_cosines_and_sines_are_those_of_transformers(name):
    scaling, positions = SCALINGS.get(name), torch.tensor([0, 1, 77, 99_999])
    config = LlamaConfig(
        hidden_size=256,
        num_attention_heads=2,
        rope_parameters=(scaling or {"rope_type": "default"}) | {"rope_theta": 5e5},
    )
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), positions[None])
    ours = Rope(5e5, scaling).rotation(positions, 128)
    assert torch.equal(ours[0], cos[0]) and torch.equal(ours[1], sin[0])


def test_dynamic_scaling_changes_nothing_up_to_the_original_length():
    plain = Rope(1e4).frequencies(64)
    torch.testing.assert_close(Rope(1e4, SCALINGS["dynamic"], seq_len=128).frequencies(64), plain)
    assert not torch.equal(Rope(1e4, SCALINGS["dynamic"], seq_len=129).frequencies(64), plain)


def test_positions_of_each_sequence_rotate_it_alone():
    x = torch.randn(2, 5, 3, 8)
    positions = torch.tensor([[0, 1, 2, 0, 1], [0, 0, 1, 2, 3]])
    rope = Rope(1e4, SCALINGS["yarn"])
    together = rotate(x, rope.rotation(positions, 8))
    for one, its_positions, rotated in zip(x, positions, together, strict=True):
        torch.testing.assert_close(rotate(one[None], rope.rotation(its_positions, 8))[0], rotated)


@pytest.mark.parametrize(
    ("scaling", "words"),
    [
        (5, "must be null or a mapping"),
        ({"factor": 2.0}, "TYPE one of linear, dynamic, llama3, yarn"),
        ({"rope_type": "longrope"}, "TYPE one of"),
        ({"rope_type": "linear"}, "needs factor"),
        ({"rope_type": "linear", "factor": 0.5}, "must be at least 1"),
        ({"rope_type": "linear", "factor": "4"}, "must be a number above 0"),
        ({"rope_type": "linear", "factor": 4, "beta_fast": 3}, "has no key beta_fast"),
        ({"rope_type": "yarn", "factor": 4, ORIGINAL: 64, "truncate": 1}, "must be true or false"),
        (SCALINGS["llama3"] | {"high_freq_factor": 1.0}, "must be above low_freq_factor=1.0"),
        (SCALINGS["yarn"] | {"beta_fast": 1}, "must be above beta_slow=1"),
        (SCALINGS["yarn"] | {ORIGINAL: 64.5}, "must be a whole number"),
    ],
)
def test_a_scaling_that_breaks_a_rule(scaling, words):
    assert any(words in rule for rule in broken_rules(scaling))


@pytest.mark.parametrize("scaling", [None, *SCALINGS.values()])
def test_scalings_that_break_no_rule(scaling):
    assert not list(broken_rules(scaling))
