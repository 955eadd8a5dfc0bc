"""Reads from a checkpoint's state.json which stages ran and the longest sequences."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Trained:
    """A stage that ran. None means that the checkpoint does not record it."""

    name: str
    attention: str | None
    seq_len: int | None
    steps: int
    tokens: int
    loss: float | None  # mean training loss of its last logged steps
    val_loss: float | None  # of the weights, or of their moving average


def stages(state: dict[str, Any], average: bool = False) -> list[Trained]:
    """Return the stages that did at least one step before the checkpoint, in order.

    average: with the validation losses of the moving average of the weights. If no stage did a
    step, the last stage is returned. Imported weights have no stages.
    """
    out = []
    for record in state["progress"]["stages"]:
        # Prefer the recorded settings: the configuration may have changed since the stage ran.
        settings = record.get("settings") or state["config"]["stages"].get(record["name"], {})
        losses = (record.get("losses") or {}).get("last") or [record.get("last_loss")]
        out.append(
            Trained(
                name=record["name"],
                attention=settings.get("attention"),
                seq_len=settings.get("seq_len"),
                steps=record.get("steps", 0),
                tokens=record.get("tokens", 0),
                loss=None if None in losses else sum(losses) / len(losses),
                val_loss=record.get("average_val_loss" if average else "val_loss"),
            )
        )
    return [stage for stage in out if stage.steps] or out[-1:]


def longest(state: dict[str, Any], depth: int = 16) -> int:
    """Return the length in tokens of the longest sequences that the weights were trained on.

    This includes the runs before init_from if their checkpoints still exist; at most `depth` runs. Imported
    weights have the context of the published model.
    """
    lengths = [stage.seq_len for stage in stages(state) if stage.seq_len]
    if imported := state.get("imported"):
        lengths.append(imported["context"])
    source = state["config"].get("init_from")
    if source and depth:
        try:
            before = json.loads((Path(source).expanduser() / "state.json").read_text())
            lengths.append(longest(before, depth - 1))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass  # the earlier checkpoint is gone; the model card mentions init_from
    return max(lengths, default=state["config"]["model"]["seq_len"])
