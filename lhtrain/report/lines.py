"""The lines that are printed for rows of metrics.jsonl, except those of training steps."""

from typing import Any

from lhtrain.report import evaluation
from lhtrain.report.metrics import Row
from lhtrain.report.stage_switch import Entry, Validation
from lhtrain.report.summary import steps_until
from lhtrain.text import number, one_line, with_width

WIDTH = 120  # most characters of a sample's text


def validated(row: Row, before: Validation) -> str:
    """Return the line for a validation. before: the previous validation with the same attention."""
    now, change = row["val_loss"], ""
    if now is not None and before.loss is not None:
        change = f" ({now - before.loss:+.4f} since step {before.step:,})"
    bits = row.get("val_bits_per_byte")
    per_byte = "" if bits is None else f", {number(bits)} bits per byte"
    of_average = row.get("average_val_loss")
    average = "" if of_average is None else f"; of the average of the weights {number(of_average)}"
    mean = with_width(row.get("loss_mean"), row.get("loss_stderr"))
    training = "" if row.get("loss_mean") is None else f"; training loss {mean}"
    return (
        f"validated step {row['step']:,}: validation loss {number(now)}{change}{per_byte}{average}{training}"
    )


def evaluated(step: int, attention: str, values: dict[str, float | None]) -> str:
    """Return the line for the main numbers of a measurement under one attention."""
    return f"evaluated step {step:,}: {evaluation.line(attention, values)}"


def recovered(entry: Entry) -> str:
    """Return the line for a validation loss that is back to its level before the switch `entry`."""
    before = f"its level before the switch ({number(entry['val_loss_before'])})"
    return f"recovered validation loss is back to {before} {steps_until(entry)}"


def switched(row: Row) -> str:
    """Return the line for a stage switch."""
    losses = f"{number(row['val_loss_before'])} -> {number(row['val_loss_after'])}"
    switch = f"{one_line(row['from'])} -> {one_line(row['to'])} after step {row['step'] - 1:,}"
    return f"switch    {switch}: validation loss {losses} with the same weights"


def sampled(sample: dict[str, Any]) -> str:
    """Return the line for a text that the model wrote."""
    text = sample["text"]
    shown = (
        "no text: the logits are not finite, or a token has no text"
        if text is None
        else one_line(repr(text), WIDTH)
    )
    return f"sample    step {sample['step']:,}: {one_line(repr(sample['prompt']), WIDTH // 2)} -> {shown}"


def skipped(row: Row) -> str:
    """Return the line for a step that updated no weights."""
    return (
        f"skipped   step {row['step']}: the loss or the gradient is not finite, so no weight was updated; "
        f"its batch was tokens {row['position']:,} to {row['end']:,} of the data"
    )


def spike(step: int, loss: float, deviations: float) -> str:
    """Return the line for a jump of the loss."""
    above = f"{number(deviations, '.1f')} standard deviations above the previous losses"
    return f"spike     step {step}: loss {number(loss)}, {above}"


def rewound(row: Row) -> str:
    """Return the line for a return to a checkpoint."""
    tokens = f"tokens {row['position']:,} to {row['end']:,} of the data are skipped"
    return f"rewound   from step {row['left']} to step {row['step']}; {tokens}"
