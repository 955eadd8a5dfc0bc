"""The tasks of `eval.tasks` in a run, and `lhtrain eval` on its checkpoints."""

import json

import pytest

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
