"""What a switch cost, from rows."""

from lhtrain.switch import WINDOW, SwitchWatch, switches


def rows(before, after, step=10):
    out = [{"kind": "train", "step": step - len(before) + i + 1, "loss": x} for i, x in enumerate(before)]
    out.append({"kind": "switch", "step": step + 1, "from": "a", "to": "b"})
    out[-1] |= {"val_loss_before": 1.0, "val_loss_after": 2.0}
    return out + [{"kind": "train", "step": step + 1 + i, "loss": x} for i, x in enumerate(after)]


def test_a_jump_and_its_recovery():
    (found,) = switches(rows([9.0] + [1.0] * WINDOW, [3.0, 2.0, 1.0] + [0.5] * 20))
    assert (found["from"], found["to"], found["step"]) == ("a", "b", 10)
    assert (found["loss_before"], found["loss_after"]) == (1.0, 3.0)
    # mean of the last 8: (3 + 2 + 1 + 5 * 0.5) / 8 = 1.06 after 8 steps, (2 + 1 + 6 * 0.5) / 8 = 0.75 after 9
    assert found["steps_to_recover"] == 9
    assert (found["val_loss_before"], found["val_loss_after"]) == (1.0, 2.0)


def test_no_jump_and_no_recovery():
    assert switches(rows([2.0], [1.5]))[0]["steps_to_recover"] == 1
    assert switches(rows([2.0], [3.0] * 30))[0]["steps_to_recover"] is None


def test_a_switch_before_its_first_step_is_left_out():
    assert switches(rows([1.0], [])) == []
    assert switches(rows([], [1.0]))[0]["steps_to_recover"] is None


def test_recovery_is_told_once_when_it_happens():
    watch = SwitchWatch()
    told = [row["step"] for row in rows([1.0], [2.0, 0.5, 0.4, 0.3]) if watch.take(row)]
    assert told == [13]  # means 2.0, 1.25, 0.97, ...: the third step after step 10
