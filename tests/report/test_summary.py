"""summary.json and the final table, with unusual names and numbers."""

import io
import json
import math

import pytest
from rich.console import Console

from lhtrain.progress import Progress, StageRecord
from lhtrain.report.summary import summarize, switch_lines, table, write

NAMES = ["[/mnt/a]", "[bold]x", "$a_b", "%s", "a\nb", "漢字 :warning:", "x" * 500, "\udcff\x1b[2J", ""]


def a_summary(name="run", stage="dense", losses=(3.0, 2.0), val_loss=2.5, switches=(), average=None):
    record = StageRecord(stage, steps=len(losses), tokens=512, val_loss=val_loss, average_val_loss=average)
    for loss in losses:
        record.take_loss(loss)
    progress = Progress(step=len(losses), stages=[record])
    return summarize(progress, list(switches), True, 1e12, {"name": name, "ended": {"how": "finished"}})


def shown(summary, width=200):
    out = io.StringIO()
    Console(file=out, width=width, markup=False, emoji=False).print(table(summary))
    return out.getvalue()


def test_the_table_shows_the_mean_and_not_the_last_batch():
    text = shown(a_summary(losses=[9.0, *[2.0, 3.0] * 10]))
    assert "2.50 ± 0.11" in text and "9.00" in text and "last 20 logged steps" in text
    assert "3.0000" not in text


def test_the_loss_of_the_average_is_there_if_the_run_has_one():
    assert a_summary(average=2.25)["average_val_loss"] == 2.25 and "2.2500" in shown(a_summary(average=2.25))
    assert "average_val_loss" not in a_summary() and "average" not in shown(a_summary())


def test_a_run_of_one_step_has_no_standard_error():
    text = shown(a_summary(losses=[2.0]))
    assert "2.0000" in text and "±" not in text


def test_a_run_without_a_step():
    summary = summarize(Progress(), [], False, None, {"name": "x", "ended": None})
    assert summary["loss_mean"] is None and "0 steps" in shown(summary)


@pytest.mark.parametrize("name", NAMES)
def test_names_are_not_parsed(name):
    text = shown(a_summary(name=name, stage=name))
    if len(name) < 20 and name.isprintable():
        assert text.count(name) >= 2
    assert "\x1b" not in text and len(text.splitlines()) > 10


@pytest.mark.parametrize("width", [1, 2, 10, 30])
def test_the_table_fits_a_narrow_terminal(width):
    assert max(len(line) for line in shown(a_summary(), width).splitlines()) <= width


def test_the_file_is_strict_json(tmp_path):
    summary = a_summary(losses=[math.nan, 1.0], val_loss=math.inf)
    write(summary, tmp_path / "summary.json", durable=False)
    read = json.loads((tmp_path / "summary.json").read_text(), parse_constant=pytest.fail)
    assert read == summary and read["val_loss"] is None and read["first_loss"] is None
    assert read["loss_mean"] == 1.0
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]
    assert "-" in shown(summary)


@pytest.mark.parametrize(
    ("steps", "above", "words"),
    [
        (0, 0, "not higher than before"),
        (1, 0, "after 1 step"),
        (50, 25, "after 26 to 50 steps"),
        (None, 25, "still higher after 25 steps"),
        (None, 0, "not validated since"),
    ],
)
def test_a_switch_line_describes_the_recovery(steps, above, words):
    switch = {"from": "a", "to": "b", "step": 125, "val_loss_before": 2.0, "val_loss_after": 2.5}
    switch |= {"steps_to_recover": steps, "steps_still_above": above}
    (line,) = switch_lines(a_summary(switches=[switch]))
    assert line.startswith("a -> b after step 125: validation loss 2.0000 -> 2.5000") and line.endswith(words)
    switch["val_loss_before"] = None
    (line,) = switch_lines(a_summary(switches=[switch]))
    assert "- -> 2.5000" in line and line.endswith("not validated just before the switch")
