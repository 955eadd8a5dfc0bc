"""Time limits in SLURM's notations, and those that SLURM reads differently from what is meant."""

import pytest

from lhtrain.conf.rules.cluster import time_rule


@pytest.mark.parametrize(
    ("time", "rule"),
    [
        ("86400", "SLURM reads this as minutes: write '60-00:00:00' for 86400 minutes, or '1-00:00:00' for"),
        ("24:00", "SLURM reads this as minutes and seconds: write '1-00:00:00' for hours and minutes, or"),
        ("0:04:00", "must be longer than cluster.signal_seconds=300; it is 00:04:00"),
        ("0", "must be longer than cluster.signal_seconds=300"),
        ("1.5h", "must be MINUTES, HOURS:MINUTES:SECONDS or DAYS-"),
        ("-5", "must be MINUTES, "),
        ("1-", "must be MINUTES, "),
        ("1:2:3:4", "must be MINUTES, "),
        ("24:00:00 ", "must be MINUTES, "),
        ("", "must be MINUTES, "),
    ],
)
def test_time_limits_that_are_refused(time, rule):
    assert time_rule(time, signal_seconds=300).startswith(rule)


@pytest.mark.parametrize(
    "time", ["90", "1440", "24:00:00", "2-00", "1-12:30", "2-00:00:00", "UNLIMITED", "infinite"]
)
def test_time_limits_that_are_accepted(time):
    assert time_rule(time, signal_seconds=300) is None
