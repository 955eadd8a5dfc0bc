"""Bounds of keys: every value is checked against them, and help shows them."""

import math

import pytest

from lhtrain.conf.bounds import above, at_least, at_most, below, between, one_of, positive, seconds_or_null
from lhtrain.conf.compose import check_overrides
from lhtrain.conf.keys import all_keys, limit_of, type_of
from lhtrain.conf.problems import ConfigError
from lhtrain.registry import Registry


@pytest.mark.parametrize(
    ("limit", "inside", "outside"),
    [
        (at_least(1), [1, 2**31 - 1, None, "auto", True], [0, -1, 2**31, math.nan, math.inf]),
        (at_most(64), [-5, 64], [65]),
        (positive(), [1e-300, 1e30], [0.0, -1.0, math.nan, math.inf, 1e31]),
        (positive(1e-37, "why"), [1e-37], [1e-38, 0.0, math.inf]),
        (between(0, 1), [0, 1, 0.5], [-0.1, 1.1, math.nan, math.inf]),
        (above(0, at_most=1), [0.1, 1], [0, 1.1]),
        (below(1, at_least=0), [0, 0.9, [0.9, 0.99]], [1, -1, [0.9, 1.0]]),
        (below(1, above=0), [0.1], [0, 1]),
        (seconds_or_null(), [0.1, None], [0, -1, math.inf]),
    ],
)
def test_values_inside_and_outside(limit, inside, outside):
    assert [value for value in inside if limit.broken_rule(value)] == []
    assert [value for value in outside if not limit.broken_rule(value)] == []


def test_names_can_be_added_to_a_registry_later():
    registry = Registry("thing", {"ours": "json:dumps"})
    limit = one_of("none", registry)
    assert limit.broken_rule("csv") == "must be one of none, ours"
    registry.add("csv")(object)
    assert limit.broken_rule("csv") is None


def test_every_number_is_bounded():
    """A number without bounds has probably been forgotten. Lists of numbers have their own rules."""
    numbers = [key for key in all_keys() if type_of(key) in (int, float)]
    assert len(numbers) > 50
    # Those of a stage are copies of lighthouse.*, held to the rules of the pyramid.
    assert [key for key in numbers if limit_of(key) is None and not key.startswith("stages.")] == []


def test_a_wrong_value_is_not_reported_again_for_the_stages_that_copy_it():
    with pytest.raises(ConfigError) as caught:
        check_overrides(["model.seq_len=0", "lighthouse.scorer=other"])
    keys = {problem.key for problem in caught.value.problems}
    assert {"model.seq_len", "lighthouse.scorer"} <= keys
    assert not {key for key in keys if key.endswith((".recovery.seq_len", ".recovery.scorer"))}


def test_bounds_as_text():
    assert str(limit_of("model.dim")) == "at least 1, at most 16,777,216"
    assert str(limit_of("optim.warmup_fraction")) == "between 0 and 1"
    assert str(limit_of("run.steps")) == "at least 1"  # nobody needs to know the largest 32-bit number
