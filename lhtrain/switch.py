"""What a stage switch costs: the loss before and after it, and the steps until it is back."""

from collections import deque
from typing import Any

WINDOW = 8  # logged steps: single steps are too noisy to compare


class SwitchWatch:
    """Takes the rows of metrics.jsonl in order; `switches` has an entry for every switch so far.

    An entry: from, to, step (the last of the old stage), and
      loss_before       mean training loss of the last WINDOW logged steps before the switch
      loss_after        training loss of the first logged step after it
      steps_to_recover  steps until the mean of the last WINDOW losses, or of all since the switch while they
                        are fewer, is down to loss_before; null as long as it is not
      val_loss_before, val_loss_after   the same weights, validated with the attention of either stage
    """

    def __init__(self) -> None:
        self.switches: list[dict[str, Any]] = []
        self._before: deque[float] = deque(maxlen=WINDOW)
        self._after: deque[float] = deque(maxlen=WINDOW)

    def take(self, row: dict[str, Any]) -> dict[str, Any] | None:
        """Returns the last switch's entry if this row is the step at which its loss is back."""
        if row["kind"] == "switch":
            self._begin(row)
        if row["kind"] != "train":
            return None
        recovered = self._compare(row) if self.switches else False
        self._before.append(row["loss"])
        return self.switches[-1] if recovered else None

    def _begin(self, row: dict[str, Any]) -> None:
        level = sum(self._before) / len(self._before) if self._before else None
        names = {key: row[key] for key in ("from", "to")}
        validation = {key: row[key] for key in ("val_loss_before", "val_loss_after")}
        measured = {"loss_before": level, "loss_after": None, "steps_to_recover": None}
        self.switches.append({**names, "step": row["step"] - 1, **measured, **validation})
        self._after.clear()

    def _compare(self, row: dict[str, Any]) -> bool:
        entry = self.switches[-1]
        self._after.append(row["loss"])
        if entry["loss_after"] is None:
            entry["loss_after"] = row["loss"]
        level = entry["loss_before"]
        if entry["steps_to_recover"] is not None or level is None:
            return False
        if sum(self._after) / len(self._after) > level:
            return False
        entry["steps_to_recover"] = row["step"] - entry["step"]
        return True


def switches(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The entries of all switches that were followed by a step."""
    watch = SwitchWatch()
    for row in rows:
        watch.take(row)
    return [entry for entry in watch.switches if entry["loss_after"] is not None]
