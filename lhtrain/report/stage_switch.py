"""The cost of a stage switch: losses before and after it, and the steps until the old loss is reached."""

from typing import Any, NamedTuple

from lhtrain.progress import LAST, Losses

Entry = dict[str, Any]


class Validation(NamedTuple):
    """Its step and its loss, None if that was not finite or there was no validation."""

    step: int = 0
    loss: float | None = None


def last_validation(rows: list[dict[str, Any]]) -> Validation:
    """The last validation with the current stage's attention, or that of its switch."""
    for row in reversed(rows):
        if row["kind"] == "validation":
            return Validation(row["step"], row["val_loss"])
        if row["kind"] == "switch":
            return Validation(row["step"] - 1, row["val_loss_after"])
    return Validation()


class SwitchWatch:
    """Takes the rows of metrics.jsonl in order; `switches` has an entry for every switch so far.

    An entry: from, to, step (the last of the old stage), and
      val_loss_before, val_loss_after   the same weights, validated with the settings of either stage
      steps_to_recover   steps of the new stage after which a validation was first down to val_loss_before;
                         0 where the switch cost nothing, null as long as none was
      steps_still_above  steps of the new stage after which the last validation before that was still above
                         (0: the one at the switch): the model was as good again somewhere between the two
      loss_before, loss_before_stderr   mean training loss of the old stage's last LAST logged steps, and its
                                        standard error
      loss_after, loss_after_stderr     the same of the new stage's first LAST logged steps

    Validations are compared because all of them have the same tokens: the training loss of single batches
    varies by more than a switch costs.
    """

    def __init__(self) -> None:
        self.switches: list[Entry] = []
        self.recovered: Entry | None = None  # of the last switch, if the last row is its recovery
        self._after = Losses()

    def take(self, row: dict[str, Any]) -> None:
        """The next row. `recovered` is set if it is the validation that is down to the old level."""
        self.recovered, kind = None, row["kind"]
        if kind == "switch":
            self._begin(row)
        elif kind == "train" and self.switches:
            self._train(row)
        elif kind == "validation" and self.switches:
            self.recovered = self._validated(row)

    def _begin(self, row: dict[str, Any]) -> None:
        entry: Entry = {"from": row["from"], "to": row["to"], "step": row["step"] - 1}
        before, after = row.get("val_loss_before"), row.get("val_loss_after")
        entry |= {"val_loss_before": before, "val_loss_after": after}
        free = before is not None and after is not None and after <= before
        entry |= {"steps_to_recover": 0 if free else None, "steps_still_above": 0}
        for key in ("loss_before", "loss_before_stderr"):
            entry[key] = row.get(key)
        entry |= {"loss_after": None, "loss_after_stderr": None}
        self.switches.append(entry)
        self._after = Losses()

    def _train(self, row: dict[str, Any]) -> None:
        if row["loss"] is None or len(self._after.last) == LAST:
            return
        self._after.take(row["loss"])
        entry = self.switches[-1]
        entry["loss_after"], entry["loss_after_stderr"] = self._after.mean, self._after.stderr

    def _validated(self, row: dict[str, Any]) -> Entry | None:
        entry, loss = self.switches[-1], row["val_loss"]
        level, steps = entry["val_loss_before"], row["step"] - entry["step"]
        if entry["steps_to_recover"] is not None or level is None or steps <= 0:
            return None
        if loss is None or loss > level:
            entry["steps_still_above"] = steps
            return None
        entry["steps_to_recover"] = steps
        return entry

    @property
    def begun(self) -> list[Entry]:
        """The entries of the switches that were followed by a logged step."""
        return [entry for entry in self.switches if entry["loss_after"] is not None]
