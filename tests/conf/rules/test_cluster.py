"""Time limits: SLURM's notations, and what it would read otherwise than it is meant."""

import pytest

from lhtrain.conf.rules.cluster import time_rule


@pytest.mark.parametrize(
    ("time", "rule"),
    [
        ("86400", "is minutes to SLURM, 60-00:00:00: write '60-00:00:00' if that is meant, '1-00:00:00' for"),
        ("24:00", "is minutes and seconds to SLURM: write '1-00:00:00' for hours and minutes, '00:24:00' if"),
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
def test_time_limits_that_slurm_would_read_otherwise(time, rule):
    assert time_rule(time, signal_seconds=300).startswith(rule)


@pytest.mark.parametrize(
    "time", ["90", "1440", "24:00:00", "2-00", "1-12:30", "2-00:00:00", "UNLIMITED", "infinite"]
)
def test_time_limits_of_slurm(time):
    assert time_rule(time, signal_seconds=300) is None
