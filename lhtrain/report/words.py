"""The line that is printed for each row of metrics.jsonl, but those of training steps."""

from lhtrain.report.metrics import Row
from lhtrain.report.stage_switch import Entry, Validation
from lhtrain.report.summary import steps_until
from lhtrain.text import number, one_line


def validated(row: Row, before: Validation) -> str:
    """before: the last validation with the same settings."""
    now, change = row["val_loss"], ""
    if now is not None and before.loss is not None:
        change = f" ({now - before.loss:+.4f} since step {before.step:,})"
    return f"validated step {row['step']:,}: validation loss {number(now)}{change}"


def recovered(entry: Entry) -> str:
    """entry: of the switch."""
    before = f"its level before the switch ({number(entry['val_loss_before'])})"
    return f"recovered validation loss is back to {before} {steps_until(entry)}"


def switched(row: Row) -> str:
    losses = f"{number(row['val_loss_before'])} -> {number(row['val_loss_after'])}"
    stages = f"{one_line(row['from'])} -> {one_line(row['to'])}"
    return f"switch    {stages} after step {row['step'] - 1:,}; validation loss of the same weights {losses}"


def skipped(row: Row) -> str:
    return (
        f"skipped   step {row['step']}: loss or gradient not finite, nothing was updated; "
        f"its batch is the data's tokens {row['position']:,} to {row['end']:,}"
    )


def spike(step: int, loss: float, deviations: float) -> str:
    above = f"{number(deviations, '.1f')} standard deviations above the losses before it"
    return f"spike     step {step}: loss {number(loss)}, {above}"


def rewound(row: Row) -> str:
    tokens = f"the data's tokens {row['position']:,} to {row['end']:,} are left out"
    return f"rewound   from step {row['left']} to {row['step']}; {tokens}"
