"""The cost of a stage switch: losses before and after it, and the steps to come back to the old loss."""

from typing import Any, NamedTuple

from lhtrain.progress import LAST, Losses

Entry = dict[str, Any]


class Validation(NamedTuple):
    """The step and loss of a validation; the loss is None if it was not finite or there was no validation."""

    step: int = 0
    loss: float | None = None


def last_validation(rows: list[dict[str, Any]]) -> Validation:
    """Return the last validation with the current stage's attention, which may be the one at its switch."""
    for row in reversed(rows):
        if row["kind"] == "validation":
            return Validation(row["step"], row["val_loss"])
        if row["kind"] == "switch":
            return Validation(row["step"] - 1, row["val_loss_after"])
    return Validation()


class SwitchWatch:
    """Reads the rows of metrics.jsonl in order; `switches` has an entry for every switch so far.

    An entry has from, to, step (the last step of the old stage), and
      val_loss_before, val_loss_after   validation loss of the same weights with the settings of the old and
                                        of the new stage
      steps_to_recover   steps of the new stage until a validation first reached val_loss_before; 0 if the
                         switch did not raise the loss, null if no validation has reached it yet
      steps_still_above  steps of the new stage at the last validation that was still above val_loss_before
                         (0: the validation at the switch). The loss recovered between this and
                         steps_to_recover.
      loss_before, loss_before_stderr   mean training loss of the old stage's last LAST logged steps, and its
                                        standard error
      loss_after, loss_after_stderr     the same for the new stage's first LAST logged steps

    Recovery is measured by validations because they all use the same tokens; the training loss varies more
    between batches than at a switch.
    """

    def __init__(self) -> None:
        self.switches: list[Entry] = []
        self.recovered: Entry | None = None  # entry of the last switch, if the last row is its recovery
        self._after = Losses()

    def take(self, row: dict[str, Any]) -> None:
        """Process the next row; sets `recovered` if the row is a validation that reached the old level."""
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
        """The entries of the switches after which a step was logged."""
        return [entry for entry in self.switches if entry["loss_after"] is not None]
