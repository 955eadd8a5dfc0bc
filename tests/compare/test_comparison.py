"""Speed-ups and losses at equal time on runs whose right values are known, and settings that differ."""

import json

import pytest
import yaml

from lhtrain.compare.comparison import by_loss, compare
from lhtrain.compare.curve import Point, comparable
from lhtrain.compare.measures import Reached, SpeedUp, loss_at, reached, speed_up
from lhtrain.compare.run import read_runs, state_of
from lhtrain.compare.table import comparison_table, grouped, letter_of
from lhtrain.errors import RunError
from tests.compare.made import DENSE, dense_rows, made_run, two_stage_rows, two_stages


def curve(*values, pace=1.0):
    return [Point(n, n, pace * n, None, "dense", value) for n, value in enumerate(values, 1)]


def test_a_loss_between_two_validations_is_reached_between_them():
    assert reached(curve(5, 4, 3), 3.5, "seconds") == Reached(2.5)
    assert reached(curve(5, 4, 3), 5, "seconds") == Reached(1.0, at_most=True)
    assert reached(curve(5, 4, 3), 2, "seconds") is None
    assert reached(curve(5, 3, 4, 2), 3, "step") == Reached(2)


def test_speed_up_is_at_the_lowest_loss_that_both_reached():
    slow, fast = curve(5, 4, 3, 2), curve(5, 4, 3, pace=0.5)
    assert speed_up(slow, fast) == SpeedUp(3, 2.0)
    assert speed_up(fast, slow) == SpeedUp(3, 0.5)
    assert speed_up(slow, fast, "tokens") == SpeedUp(3, 1.0)
    assert speed_up(slow, curve(2.5, 3.5)) == SpeedUp(2.5, 3.5, at_least=True)
    assert speed_up(curve(2, 3), slow) is None, "when the baseline reached 2 is not known"
    assert speed_up([], slow) is None and speed_up(slow, []) is None


def test_loss_at_a_time_is_linear_between_validations():
    assert loss_at(curve(5, 4, 3), 1.5) == 4.5
    assert loss_at(curve(5, 4, 3), 3) == 3 and loss_at(curve(5), 1) == 5
    assert loss_at(curve(5, 4, 3), 0.5) is None and loss_at(curve(5, 4, 3), 4) is None


def test_only_validations_under_the_last_attention_count(tmp_path):
    (run,) = read_runs([made_run(tmp_path / "b", two_stage_rows(), two_stages())])
    assert [(point.step, round(point.value, 6)) for point in comparable(run)][:2] == [(5, 4.0), (6, 3.8)]


def test_a_two_stage_run_beside_a_dense_one(tmp_path):
    made_run(tmp_path / "a", dense_rows())
    made_run(tmp_path / "b", two_stage_rows(), two_stages())
    found = compare(read_runs([tmp_path / "a", tmp_path / "b"]))
    dense, both = found.runs
    assert dense.speed_up is None and dense.stages == "dense" and both.stages == "lighthouse -> recovery"
    # Both reach 3.0: the dense run after 10 s, the other after 6 s.
    assert both.speed_up.loss == pytest.approx(3.0) and both.speed_up.factor == pytest.approx(10 / 6)
    assert both.loss_at_equal_time == pytest.approx((3.0, 3.8))
    assert both.device_hours == pytest.approx(2 * 6 / 3600)
    assert found.notes == []
    text = drawn(comparison_table(found))
    assert "1.67x" in text and "3.0000 / 3.8000" in text and "stages.recovery" in text


def test_time_is_that_of_training(tmp_path):
    """Two runs whose steps take equally long, one of which validates for 3 s after every second step."""
    rows = dense_rows()
    for row in rows:
        row["seconds"] += 3 * (row["step"] // 2)
    logged = [row for row in rows if row["kind"] != "train" or row["step"] in (1, 4, 8, 10)]
    made_run(tmp_path / "a", dense_rows())
    made_run(tmp_path / "b", rows)
    made_run(tmp_path / "c", logged)
    made_run(tmp_path / "d", [row for row in logged if row["step"] < 10])
    a, b, c, d = compare(read_runs([tmp_path])).runs
    assert [run.seconds for run in (a, b, c, d)] == [10, 10, 10, 8]
    assert (a.wall_clock_seconds, b.wall_clock_seconds) == (10, 25)
    assert [run.speed_up.factor for run in (b, c, d)] == pytest.approx([1, 1, 1])
    assert b.loss_at_equal_time == pytest.approx((3.0, 3.0))
    assert b.tokens_per_second == 4096 and b.device_hours == pytest.approx(2 * 25 / 3600)


def test_time_of_a_run_without_rows_is_in_its_summary(tmp_path):
    made_run(tmp_path / "a", [])
    assert compare(read_runs([tmp_path])).runs[0].seconds == pytest.approx(9.5)


def test_evaluations_are_compared(tmp_path):
    made_run(tmp_path / "a", dense_rows())
    results = {"recall": {"exact": 0.25, "loss": 1.5}, "passkey": None, "copy": 3}
    for name, samples in (("b", 4), ("c", 8)):
        run = made_run(tmp_path / name, dense_rows())
        result = {"step": 10, "full": results, "lighthouse": None, "settings": {"samples": samples}}
        (run / "eval.json").write_text(json.dumps(result))
    found = compare(read_runs([tmp_path]))
    expected = {"recall_exact": 0.25, "recall_loss": 1.5, "recall_control_loss": None}
    expected |= {"passkey": None, "copy_loss": None}
    assert [run.evaluation for run in found.runs] == [{}, {"full": expected}, {"full": expected}]
    assert [run.evaluated_after for run in found.runs] == [None, 10, 10]
    assert [note for note in found.notes if "eval.samples" in note]
    lines = drawn(comparison_table(found)).split("evaluation, full attention")[1].splitlines()
    assert [line.split() for line in lines[2:4]] == [[name, "10", "25%", "1.5000"] for name in "BC"]


def test_validations_with_different_attention_are_noted(tmp_path):
    made_run(tmp_path / "a", dense_rows())
    made_run(tmp_path / "b", two_stage_rows()[:6], two_stages())
    assert any("different attention" in note for note in compare(read_runs([tmp_path])).notes)


def test_different_data_and_validation_tokens_are_noted(tmp_path):
    made_run(tmp_path / "a", dense_rows())
    b = made_run(tmp_path / "b", dense_rows(), data="other")
    config = yaml.safe_load((b / "config.yaml").read_text())
    config["eval"]["tokens"] = 8192
    (b / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    found = compare(read_runs([tmp_path]))
    assert any("different data" in note for note in found.notes)
    assert any("eval.tokens" in note for note in found.notes)
    assert [one.key for one in found.settings] == ["eval.tokens"]


def test_settings_that_differ_are_grouped_by_value(tmp_path):
    for name, lr in zip("abcde", (1, 2, 1, 1, 3), strict=True):
        run = made_run(tmp_path / name, dense_rows())
        config = yaml.safe_load((run / "config.yaml").read_text())
        config["optim"]["lr"] = lr
        (run / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    found = compare(read_runs([tmp_path]))
    assert [grouped(one, list("ABCDE")) for one in found.settings] == [["1.0: A C D", "2.0: B", "3.0: E"]]
    assert "1.0: A C D" in drawn(comparison_table(found))


def test_keys_that_only_one_run_names_are_settings(tmp_path):
    """Groups of parameters and scalings; a key that a version does not have is left out."""
    for name, groups, scaling in (("a", {}, None), ("b", {"blocks.0": 0.5}, {"rope_type": "linear"})):
        run = made_run(tmp_path / name, dense_rows())
        config = yaml.safe_load((run / "config.yaml").read_text())
        config.setdefault("optim", {})["groups"] = groups
        config.setdefault("model", {})["rope_scaling"] = scaling
        config["optim"] |= {"of_a_later_version": 1} if name == "b" else {}
        (run / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    found = compare(read_runs([tmp_path])).settings
    assert {one.key: one.values for one in found} == {
        "optim.groups.blocks.0": ("-", "0.5"),
        "model.rope_scaling.rope_type": ("-", "linear"),
    }


def test_runs_without_validation_sort_last(tmp_path):
    made_run(tmp_path / "a", [])
    made_run(tmp_path / "b", dense_rows())
    made_run(tmp_path / "c", dense_rows(steps=4))
    assert by_loss(compare(read_runs([tmp_path])).runs) == [1, 2, 0]


def test_damaged_and_missing_files_are_noted_and_do_not_fail(tmp_path):
    run = made_run(tmp_path / "a", dense_rows())
    rows = (run / "metrics.jsonl").read_text().splitlines()
    rows[3] = '{"kind": "train", "step"'
    rows += [
        '{"kind": "train", "step": 11}',
        '{"kind": "validation", "step": 11, "stage": 3, "tokens": "x", "seconds": null, "val_loss": true}',
        '{"kind": "switch", "step": 12}',
        '{"kind": "new kind", "step": 12}',
        '{"kind": "train", "step": 1',
    ]
    (run / "metrics.jsonl").write_text("\n".join(rows))
    (run / "summary.json").write_text("{")
    (run / "config.yaml").unlink()
    (run / "history.jsonl").write_text("[]\n\x00\n")
    (run / "eval.json").write_text("[1]")
    (run / "samples.jsonl").write_text('3\n{"text": "a"}\n{"te')
    (found,) = read_runs([run])
    assert found.samples == [{"text": "a"}] and found.evaluation == {}
    assert [note.split()[0] for note in found.notes] == ["metrics.jsonl:", "config.yaml", "summary.json"]
    comparison = compare([found, found])
    assert comparison.runs[0].val_loss == pytest.approx(3.0)
    drawn(comparison_table(comparison))


@pytest.mark.parametrize("config", ["stages: 3\n", "stages: {dense: 3}\nmodel: [1]\n", "a: {\n", ""])
def test_configurations_of_another_version(tmp_path, config):
    run = made_run(tmp_path / "a", dense_rows())
    (run / "config.yaml").write_text(config)
    made_run(tmp_path / "b", dense_rows())
    drawn(comparison_table(compare(read_runs([tmp_path]))))


def test_a_folder_without_runs_is_an_error(tmp_path):
    with pytest.raises(RunError, match="contains no run"):
        read_runs([tmp_path])
    with pytest.raises(RunError, match="does not exist"):
        read_runs([tmp_path / "none"])


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("finished", "finished"),
        ("running on host", "running"),
        ("RUNNING", "running"),
        ("PENDING Resources", "waiting"),
        ("stopped by SIGTERM", "stopped"),
        ("failed: out of memory", "failed"),
        ("not running", "stopped"),
        ("", "stopped"),
    ],
)
def test_states(text, state):
    assert state_of(text)[0] == state


def test_letters():
    assert [letter_of(number) for number in (0, 25, 26, 27, 52)] == ["A", "Z", "AA", "AB", "BA"]


def test_stages_of_a_run_are_settings(tmp_path):
    made_run(tmp_path / "a", dense_rows())
    made_run(tmp_path / "b", dense_rows(), {"dense": DENSE | {"steps": 20}})
    assert [one.key for one in compare(read_runs([tmp_path])).settings] == ["stages.dense.steps"]


def drawn(renderable) -> str:
    from rich.console import Console

    console = Console(width=160, markup=False, record=True)
    console.print(renderable)
    return console.export_text()
