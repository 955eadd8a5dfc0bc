"""The cost of a stage switch, computed from rows."""

import pytest

from lhtrain.progress import LAST
from lhtrain.report.stage_switch import SwitchWatch

STEP = 10  # last step before the switch


def switch(val_before=2.0, val_after=2.5, step=STEP):
    row = {"kind": "switch", "step": step + 1, "from": "a", "to": "b"}
    row |= {"loss_before": 2.1, "loss_before_stderr": 0.05}
    return row | {"val_loss_before": val_before, "val_loss_after": val_after}


def train(step, loss):
    return {"kind": "train", "step": step, "loss": loss}


def validation(step, loss):
    return {"kind": "validation", "step": step, "val_loss": loss}


def watched(*rows):
    watch = SwitchWatch()
    recovered_at = []
    for row in rows:
        watch.take(row)
        recovered_at += [row["step"]] if watch.recovered else []
    return watch, recovered_at


def test_a_low_training_loss_is_no_recovery():
    """Training losses fall below the old level at once; the validation loss does so only later."""
    noise = [train(STEP + i, 1.5 + i % 2) for i in range(1, 51)]
    rows = [switch(), *noise[:25], validation(35, 2.1), *noise[25:], validation(60, 1.9)]
    watch, recovered_at = watched(validation(STEP, 2.0), *rows)
    (entry,) = watch.begun
    assert (entry["from"], entry["to"], entry["step"]) == ("a", "b", STEP)
    assert (entry["steps_still_above"], entry["steps_to_recover"]) == (25, 50)
    assert recovered_at == [60]


def test_training_losses_are_means_over_the_same_number_of_steps():
    rows = [train(STEP + i, float(i)) for i in range(1, LAST + 30)]
    (entry,) = watched(train(STEP, 9.0), switch(), *rows)[0].begun
    assert (entry["loss_before"], entry["loss_before_stderr"]) == (2.1, 0.05)
    assert entry["loss_after"] == sum(range(1, LAST + 1)) / LAST and entry["loss_after_stderr"] > 0


def test_recovery_is_reported_once():
    rows = [validation(STEP + i, loss) for i, loss in ((5, 2.0), (10, 2.2), (15, 1.8))]
    watch, recovered_at = watched(switch(), train(11, 2.0), *rows)
    assert recovered_at == [15] and watch.switches[0]["steps_to_recover"] == 5


@pytest.mark.parametrize("after", [2.0, 1.5])
def test_a_switch_that_does_not_raise_the_loss_recovers_in_0_steps(after):
    watch, recovered_at = watched(switch(2.0, after), train(11, 2.0), validation(15, 1.5))
    assert watch.switches[0]["steps_to_recover"] == 0 and not recovered_at


@pytest.mark.parametrize(("before", "after"), [(None, 2.0), (2.0, None), (None, None)])
def test_losses_that_are_not_finite_are_no_recovery(before, after):
    watch, _ = watched(switch(before, after), train(11, None), train(12, 2.0), validation(15, None))
    entry = watch.switches[0]
    assert entry["steps_to_recover"] is None and entry["loss_after"] == 2.0


def test_a_validation_belongs_to_the_newest_switch():
    rows = [train(11, 2.2), switch(2.4, 3.0, step=20), train(21, 2.9), validation(25, 2.3)]
    watch, recovered_at = watched(switch(2.0, 2.5), *rows)
    assert [entry["steps_to_recover"] for entry in watch.begun] == [None, 5] and recovered_at == [25]


def test_a_switch_without_a_logged_step_is_omitted():
    watch, _ = watched(train(STEP, 1.0), switch())
    assert watch.begun == [] and len(watch.switches) == 1
