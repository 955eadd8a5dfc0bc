"""The tasks of `eval.tasks` in a run, and `lhtrain eval` on its checkpoints."""

import io
import json
from contextlib import redirect_stderr, redirect_stdout

import pytest

from lhtrain.cli import main
from tests.distributed.ranks import on_ranks

pytestmark = pytest.mark.slow

SMALL = (
    "eval.tasks=[loss_by_position,passkey]",
    "eval.lengths=[1024]",
    "eval.depths=[0.5]",
    "eval.samples=1",
)


@pytest.fixture(scope="session")
def measured(lhtrain):
    """A run that measured its tasks at the end of each stage."""
    return lhtrain("measured", "run.steps=8", *SMALL, "eval.share=1.0")


def evaluation(path):
    return json.loads(path.read_text())


def test_each_stage_ends_with_a_measurement(measured):
    rows = [row for row in measured.rows if row["kind"] == "evaluation"]
    assert [(row["step"], row["attention"]) for row in rows] == [(4, "full"), (4, "lighthouse"), (8, "full")]
    assert all(row["passkey"] in (0, 1) and row["last_loss"] > 0 for row in rows)
    saved = evaluation(measured.path / "eval.json")
    assert saved["step"] == 8 and saved["stage"] == "recovery" and saved["lighthouse"] is None
    assert saved["full"]["loss_by_position"]["loss"] == rows[-1]["position_loss"]
    assert measured.summary["evaluation"]["full"]["position_loss"] == rows[-1]["position_loss"]
    for stage in measured.summary["stages"]:
        assert stage["wall_clock_seconds"]["evaluation"] > 0
    assert "evaluated step 8: full attention" in measured.out


def test_a_short_run_measures_nothing_by_default(lhtrain):
    run = lhtrain("plain", "run.steps=4")
    assert not (run.path / "eval.json").exists()
    assert not [row for row in run.rows if row["kind"] == "evaluation"]


def test_the_command_repeats_what_the_run_measured(lhtrain, measured):
    before = evaluation(measured.path / "eval.json")
    done = lhtrain.bare("eval", str(measured.path), *SMALL)
    assert done.returncode == 0, done.stderr
    now = evaluation(measured.path / "eval.json")
    loss, again = (one["full"]["loss_by_position"] for one in (before, now))
    assert again["loss"] == pytest.approx(loss["loss"], rel=1e-5)
    assert again["last"]["loss"] == pytest.approx(loss["last"]["loss"], rel=1e-5)
    assert now["full"]["passkey"] == before["full"]["passkey"]
    assert "pass key of one digit" in done.stdout and str(measured.path / "eval.json") in done.stdout


def on_rank(words):
    """Run the command on this rank; return its exit status and what it printed."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            status = main(words)
        except SystemExit as end:
            status = end.code
    return status, out.getvalue(), err.getvalue()


def test_two_ranks_measure_what_one_measures(lhtrain, measured, tmp_path):
    """They divide the sequences. An error is that of all ranks, and printed once."""
    words = ["eval", str(measured.path), *SMALL, "eval.samples=2", "device=cpu"]
    words.remove("eval.samples=1")
    alone = lhtrain.bare(*words, f"out={tmp_path / 'one.json'}")
    assert alone.returncode == 0, alone.stderr
    first, second = on_ranks(on_rank, 2, [*words, f"out={tmp_path / 'two.json'}"], folder=tmp_path)
    assert first[0] is second[0] is None, (first, second)
    assert "2 ranks with cpu" in first[1] and second[1] == ""
    one, two = (evaluation(tmp_path / f"{name}.json") for name in ("one", "two"))
    for task in ("loss_by_position", "passkey"):
        assert two["full"][task] == approximately(one["full"][task])
    first, second = on_ranks(on_rank, 2, [*words, "stage=nowhere"], folder=tmp_path)
    assert first[0] == second[0] == 2 and "has no such stage" in first[2] and second[2] == ""


def test_a_folder_that_cannot_be_written_is_refused_before_measuring(measured, monkeypatch, capsys):
    """A long evaluation would be lost at its end."""
    monkeypatch.setattr("lhtrain.commands.eval.os.access", lambda path, mode: path != measured.path)
    before = (measured.path / "eval.json").read_bytes()
    with pytest.raises(SystemExit) as end:
        main(["eval", str(measured.path), *SMALL, "device=cpu"])
    said = capsys.readouterr()
    assert end.value.code == 1 and "must be writable, for eval.json; out=FILE" in said.err
    assert "loss_by_position" not in said.out and (measured.path / "eval.json").read_bytes() == before


def approximately(tree):
    """Return the values, which may differ by rounding."""
    if isinstance(tree, dict):
        return {key: approximately(child) for key, child in tree.items()}
    if isinstance(tree, list):
        return [approximately(child) for child in tree]
    return pytest.approx(tree, rel=1e-5) if isinstance(tree, float) else tree


def test_a_checkpoint_under_the_attention_of_an_earlier_stage(lhtrain, measured):
    path = measured.path / "checkpoints" / measured.checkpoints[-1]
    out = lhtrain.folder / "own.json"
    arguments = ("stage=lighthouse", "attention=lighthouse", f"out={out}", "eval.tasks=[copy]", *SMALL[1:])
    done = lhtrain.bare("eval", str(path), *arguments)
    assert done.returncode == 0, done.stderr
    own = evaluation(out)
    assert own["full"] is None and own["lighthouse"]["copy"]["cells"]
    assert own["settings"]["attention"]["attention"] == "lighthouse"
    assert not (path / "eval.json").exists()


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("eval.tasks=[recal]", "did you mean recall?"),
        ("eval.tasks=recall", "must be a list"),
        ("eval.tasks=recall,copy", "a list is written [A,B]"),
        ("eval.tasks=[]", "must contain at least one of loss_by_position"),
        ("eval.lengths=[8192]", "eval.beyond=2 times the context, 2,048; eval.beyond=4 allows these"),
        ("eval.samples=0", "must be at least 1"),
        ("attention=lighthouse", "stage=lighthouse names one"),
        ("stage=nothing", "the stages that ran are lighthouse, recovery"),
        ("device=tpu", "must be one of auto, cpu, cuda"),
        ("eval.data=/no/such/place", "eval.data='/no/such/place': must exist"),
        ("out=/no/such/place.json", "must be a writable folder"),
        ("out=/", "must be a file"),
        ("out=", "must be a file"),
    ],
)
def test_wrong_settings_are_named(lhtrain, measured, argument, message):
    done = lhtrain.bare("eval", str(measured.path), argument)
    assert done.returncode != 0 and message in done.stderr and "Traceback" not in done.stderr
