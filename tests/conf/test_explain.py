"""`lhtrain help KEY` says what every key means, and what every choice does."""

from enum import Enum

import pytest

from lhtrain.conf.explain import explain
from lhtrain.conf.keys import all_keys, type_of


@pytest.mark.parametrize("key", sorted(all_keys()))
def test_every_key_has_a_meaning(key):
    lines = explain(key, None).splitlines()
    assert ": " in lines[0], lines[0]
    kind = type_of(key)
    if isinstance(kind, type) and issubclass(kind, Enum):
        meanings = [line.split(maxsplit=1) for line in lines[lines.index("  choices") + 1 :]]
        assert [len(words) for words in meanings] == [2] * len(kind), lines
