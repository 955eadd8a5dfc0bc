"""Comparison of values between ranks."""

import pytest

from lhtrain.distributed import agreement
from lhtrain.distributed.agreement import differences


def test_many_differences_are_cut_and_counted():
    class Everyone:
        def exchange(self, mine, timeout):
            return [{f"key{number}": rank for number in range(50)} for rank in range(2)]

    with pytest.raises(agreement.Disagreement) as found:
        agreement.agree(Everyone(), {})
    lines = str(found.value).splitlines()
    assert len(lines) == 1 + agreement.MOST_LINES + 1 and lines[-1].strip() == "and 30 more"


def test_long_values_are_cut_but_compared_whole():
    long = "x" * 500
    (line,) = differences([{"key": f"{long}a"}, {"key": f"{long}b"}])
    assert len(line) < 400
