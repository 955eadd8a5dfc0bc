"""Skipped steps, jumps of the loss, and when to rewind."""

import math

import pytest
import torch

from lhtrain.conf.schema import GuardConfig
from lhtrain.health.nonfinite import LEAST, NonFiniteGuard, Skip


def skipped_of(guard, flags):
    for number, flag in enumerate(flags, 1):
        guard.remember(number, 10 * number, 10 * number + 10, torch.tensor(float(flag)))
    return guard.newly_skipped()


def test_skipped_steps_are_returned_with_their_data():
    guard = NonFiniteGuard(GuardConfig())
    assert skipped_of(guard, [0, 1, 0, 1, 1]) == [Skip(2, 20, 30), Skip(4, 40, 50), Skip(5, 50, 60)]
    assert guard.in_a_row == 2 and guard.newly_skipped() == []
    assert guard.skipped() == "2 steps in a row"


def test_only_skips_in_a_row_cause_a_rewind():
    guard = NonFiniteGuard(GuardConfig(max_skips=3))
    skipped_of(guard, [1, 1, 0, 1, 1])
    assert not guard.must_rewind
    skipped_of(guard, [1])
    assert guard.must_rewind
    guard.rewound()
    assert not guard.must_rewind and guard.rewinds == 1


def test_a_jump_of_the_loss_is_reported():
    guard = NonFiniteGuard(GuardConfig(spike=6.0))
    flat = [3.0 + 0.1 * math.sin(i) for i in range(40)]
    assert all(guard.spike(loss) is None for loss in flat)
    assert guard.spike(3.3) is None
    assert guard.spike(6.0) > 6


def test_a_new_stage_is_not_compared_with_the_old_one():
    guard = NonFiniteGuard(GuardConfig())
    for _ in range(40):
        guard.spike(2.0)
    guard.new_stage()
    assert all(guard.spike(3.0) is None for _ in range(LEAST))
    assert guard.spike(6.0) > 6


@pytest.mark.parametrize("config", [GuardConfig(spike=0.0), GuardConfig()])
def test_no_jump_is_reported_without_earlier_losses_or_with_spike_0(config):
    guard = NonFiniteGuard(config)
    n = 100 if config.spike == 0 else LEAST
    assert all(guard.spike(loss) is None for loss in [3.0] * n) or config.spike
    assert NonFiniteGuard(config).spike(100.0) is None
    if config.spike == 0:
        assert guard.spike(1e9) is None


def test_a_loss_that_is_not_finite_is_ignored():
    guard = NonFiniteGuard(GuardConfig())
    for _ in range(LEAST):
        guard.spike(2.0)
    assert guard.spike(math.nan) is None and guard.spike(math.inf) is None
    assert guard.spike(2.01) is None and guard.spike(4.0) > 6
