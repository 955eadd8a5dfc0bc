"""A checkpoint's training by its records: the stages that ran, and the longest sequences."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Trained:
    """A stage that ran. None: the checkpoint does not say."""

    name: str
    attention: str | None
    seq_len: int | None
    steps: int
    tokens: int
    loss: float | None  # mean training loss of its last logged steps
    val_loss: float | None


def stages(state: dict[str, Any]) -> list[Trained]:
    """Stages that did at least one step before the checkpoint, in their order."""
    out = []
    for record in state["progress"]["stages"]:
        # The settings in the record count: the configuration may have changed since that stage.
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
                val_loss=record.get("val_loss"),
            )
        )
    return [stage for stage in out if stage.steps] or out[-1:]


def longest(state: dict[str, Any], depth: int = 16) -> int:
    """Tokens of the longest sequences that the weights were trained on, also before init_from where that
    checkpoint is still there."""
    lengths = [stage.seq_len for stage in stages(state) if stage.seq_len]
    source = state["config"].get("init_from")
    if source and depth:
        try:
            before = json.loads((Path(source).expanduser() / "state.json").read_text())
            lengths.append(longest(before, depth - 1))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass  # it is a hint alone; the card names init_from
    return max(lengths, default=state["config"]["model"]["seq_len"])
