"""The files and lines that a run writes; a failure of reporting does not end the run."""

import inspect
import json
import math
import subprocess
import sys
from functools import cached_property

import pytest
import torch.distributed as dist

from lhtrain.compute.fill import compose_config
from lhtrain.errors import RunError
from lhtrain.health.nonfinite import Skip
from lhtrain.progress import Progress, StageRecord
from lhtrain.report import reporter as module
from lhtrain.report.events import Events
from lhtrain.report.reporter import Reporter
from lhtrain.report.scalars import scalars
from lhtrain.runs.changes import as_container
from lhtrain.runs.run_dir import RunDir

SETTINGS = ["data=text", "data.path=.", "run.steps=20", "stages.lighthouse.fraction=0.5"]


class Run:
    """A reporter whose events are sent by the test instead of a trainer."""

    def __init__(self, folder, name="name", done=None):
        self.config = compose_config(SETTINGS)
        self.config.run.name = name
        self.dir, self.progress = RunDir(folder), done or Progress()

    @cached_property
    def reporter(self):
        """Made inside the test, because fixtures have another standard output."""
        about, settings = {"data": "abc"}, as_container(self.config)
        return Reporter(self.config, self.dir, self.progress, 1e12, about, settings, self.has_checkpoint)

    def has_checkpoint(self):
        return False

    def train(self, steps, stage="lighthouse", loss=3.0, seconds=0.1):
        if not self.progress.stages or self.progress.stages[-1].name != stage:
            self.progress.stages.append(StageRecord(stage))
        record = self.progress.stages[-1]
        for _ in range(steps):
            self.progress.step += 1
            record.steps += 1
            record.tokens += 512
            record.seconds["compute"] += seconds
            record.take_loss(loss)
            self.reporter.train_step(1e-3, 1.0, 512, 1000, seconds)

    def validate(self, loss):
        self.progress.stages[-1].val_loss = loss
        self.reporter.validation()

    @property
    def summary(self):
        return json.loads(self.dir.summary.read_text(), parse_constant=pytest.fail)

    @property
    def rows(self):
        lines = self.dir.metrics.read_text().splitlines()
        return [json.loads(line, parse_constant=pytest.fail) for line in lines]


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


def test_the_start_replaces_an_earlier_summary(run):
    run.dir.summary.write_text('{"finished": true, "ended": {"how": "finished"}}')
    with run.reporter:
        assert run.summary["finished"] is False and run.summary["ended"] is None
        run.reporter.finish(0)


def test_summary_and_plot_are_written_at_every_validation(run, capsys):
    with run.reporter:
        run.train(5)
        run.validate(2.5)
        assert run.summary["steps"] == 5 and run.summary["val_loss"] == 2.5 and not run.summary["finished"]
        assert run.summary["ended"] is None and run.summary["data"] == "abc"
        assert run.dir.plot.read_bytes().startswith(b"\x89PNG")
        run.train(5)
        run.validate(2.25)
        assert run.summary["steps"] == 10
        run.reporter.finish(15)
    out = capsys.readouterr().out
    assert "validated step 5: validation loss 2.5000; training loss 3.0000\n" in out
    assert "validated step 10: validation loss 2.2500 (-0.2500 since step 5); training" in out


def test_a_validation_has_bits_per_byte_and_the_mean_training_loss(run, capsys):
    """A token of 4 bytes with a loss of ln 16 nats has 4 bits: 1 bit for each byte."""
    with run.reporter as reporter:
        reporter.bytes_per_token = 4.0
        for loss in (3.0, 3.2):
            run.train(1, loss=loss)
        run.validate(math.log(16))
        run.validate(math.nan)
        reporter.finish(15)
    first, second = (row for row in run.rows if row["kind"] == "validation")
    assert first["val_bits_per_byte"] == pytest.approx(1.0) and second["val_bits_per_byte"] is None
    assert first["loss_mean"] == pytest.approx(3.1) and first["loss_stderr"] == pytest.approx(0.1)
    out = capsys.readouterr().out
    assert "validation loss 2.7726, 1.0000 bits per byte; training loss 3.10 ± 0.10\n" in out


def test_tokens_and_epochs_of_the_sources(run, capsys):
    with run.reporter as reporter:
        reporter.sources = lambda progress: {
            name: {"tokens": 100 * progress.step, "epochs": progress.step / 8} for name in ("web", "code")
        }
        run.train(4)
        run.validate(2.0)
        run.train(16)
        reporter.finish(0)
    (row,) = (row for row in run.rows if row["kind"] == "validation")
    assert row["sources"]["web"] == {"tokens": 400, "epochs": 0.5}
    assert scalars(row)["data/code/epochs"] == 0.5
    assert run.summary["sources"]["code"] == {"tokens": 2000, "epochs": 2.5}
    line = "data read: web 2,000 tokens (2.5 epochs), code 2,000 tokens (2.5 epochs)"
    assert line in " ".join(capsys.readouterr().out.split())


def test_a_finished_run(run):
    with run.reporter:
        run.train(20)
        result = run.reporter.finish(0)
    assert run.summary == result and result["finished"] and result["ended"] == {"how": "finished"}


def test_a_run_stops_at_a_signal_even_if_its_checkpoints_cannot_be_listed(run, capsys, monkeypatch):
    def unreadable():
        raise RunError("checkpoints cannot be read: [Errno 5] Input/output error")

    monkeypatch.setattr(run, "has_checkpoint", unreadable)
    with run.reporter:
        run.train(3)
        run.reporter.finish(15)
    assert run.summary["ended"] == {"how": "signal", "reason": "SIGTERM"}
    assert "SIGTERM: stopped after step 3; cannot tell whether" in capsys.readouterr().out


def test_a_run_that_a_signal_stops_prints_how_to_continue(run, capsys, monkeypatch):
    monkeypatch.setattr(run, "has_checkpoint", lambda: True)
    with run.reporter:
        run.train(3)
        run.reporter.finish(15)
    assert run.summary["ended"] == {"how": "signal", "reason": "SIGTERM"} and run.summary["signal"] == 15
    out = capsys.readouterr().out
    assert "SIGTERM: stopped after step 3; to continue: " in out and f" resume {run.dir.path}\n" in out


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RunError("10 steps in a row had a loss that was not finite"), "10 steps in a row had a loss"),
        (MemoryError(), "MemoryError"),
        (RuntimeError("[/x] $y_z %s \ud800"), "RuntimeError: [/x] $y_z %s"),
        (OSError(28, "No space left on device"), "[Errno 28] No space left"),
        (SystemExit(3), "SystemExit: 3"),
        (dist.DistBackendError("NCCL error in: ..."), "lost contact with another rank"),
    ],
)
def test_an_error_still_writes_summary_plot_and_table(run, capsys, error, reason):
    with pytest.raises(type(error)), run.reporter:
        run.train(3)
        raise error
    assert run.summary["ended"]["how"] == "error" and run.summary["ended"]["reason"].startswith(reason)
    assert run.summary["steps"] == 3 and not run.summary["finished"]
    assert run.dir.plot.exists()
    out = capsys.readouterr().out
    assert "training loss, end" in out and "stopped   by an error after step 3\n" in out


def test_a_second_ctrl_c_writes_only_the_summary(run, monkeypatch):
    monkeypatch.setattr(run.reporter.plot, "draw", pytest.fail)
    with pytest.raises(KeyboardInterrupt), run.reporter:
        run.train(3)
        raise KeyboardInterrupt
    assert run.summary["ended"] == {"how": "signal", "reason": "SIGINT"} and run.summary["signal"] == 2


def test_an_error_before_the_first_step(run):
    with pytest.raises(RunError), run.reporter:
        raise RunError("no")
    assert run.summary["ended"] == {"how": "error", "reason": "no"} and run.summary["steps"] == 0


def test_an_error_after_the_end_does_not_change_the_summary(run):
    with pytest.raises(RunError), run.reporter:
        run.train(20)
        run.reporter.finish(0)
        raise RunError("later")
    assert run.summary["finished"]


def fail(*_, **__):
    raise RuntimeError("$broken_ [/x]")


@pytest.mark.parametrize(
    ("what", "where"),
    [
        ("summary.json was not written", (module.SummaryFile, "write")),
        ("loss.png was not drawn", ("lhtrain.report.plot", "plot_loss")),
        ("the table was not printed", (module.summary, "table")),
    ],
)
def test_a_failure_of_reporting_is_reported_once_and_the_run_finishes(run, capsys, monkeypatch, what, where):
    owner = sys.modules[where[0]] if isinstance(where[0], str) else where[0]
    monkeypatch.setattr(owner, where[1], fail)
    with run.reporter:
        run.train(10)
        run.validate(2.5)
        run.train(10)
        run.validate(2.5)
        assert run.reporter.finish(0)["finished"]
    assert capsys.readouterr().out.count(f"warning   {what}: RuntimeError: $broken_ [/x]") == 1


def test_a_run_finishes_if_matplotlib_cannot_be_imported(run, capsys, monkeypatch):
    for name in ("matplotlib", "matplotlib.style", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    with run.reporter:
        run.train(20)
        run.validate(2.5)
        assert run.reporter.finish(0)["finished"]
    assert "warning   loss.png" in capsys.readouterr().out and run.summary["finished"]


@pytest.mark.parametrize("name", ["exp_$SLURM_JOB_ID_$USER", "val[/mnt/a]", "a\nb", "%s", "x" * 1000, "漢字"])
def test_unusual_names_cause_no_warning(tmp_path, capsys, name):
    run = Run(tmp_path, name=name)
    with run.reporter:
        run.train(10, stage=name)
        run.validate(2.5)
        run.train(10, stage="other")
        run.reporter.finish(0)
    out = capsys.readouterr().out
    assert "warning" not in out and run.summary["name"] == name and run.dir.plot.exists()


def test_numbers_that_are_not_finite_are_null(run):
    with run.reporter:
        run.train(3, loss=math.nan)
        run.validate(math.inf)
        run.progress.stages.append(StageRecord("recovery"))
        run.reporter.switch(math.nan)
        run.train(1, stage="recovery", loss=2.0)
        run.validate(math.nan)
        run.reporter.spike(3e38, math.inf)
        run.reporter.finish(2)
    assert run.rows[3]["val_loss"] is None and run.summary["switches"][0]["steps_to_recover"] is None


def test_a_step_that_took_no_time(run):
    with run.reporter:
        run.train(2, seconds=0.0)
        run.reporter.finish(2)
    assert run.rows[0]["tokens_per_second"] is None and run.rows[0]["mfu"] is None


def test_recovery_is_measured_by_validations_and_not_by_single_batches(run, capsys):
    with run.reporter:
        run.train(10, loss=3.0)
        run.validate(2.5)
        run.progress.stages.append(StageRecord("recovery"))
        run.reporter.switch(2.9)
        run.train(4, "recovery", loss=1.0)
        run.validate(2.6)
        run.train(4, "recovery", loss=1.0)
        run.validate(2.4)
        run.train(2, "recovery")
        result = run.reporter.finish(0)
    (switch,) = result["switches"]
    assert (switch["steps_still_above"], switch["steps_to_recover"]) == (4, 8)
    (row,) = (row for row in run.rows if row["kind"] == "recovered")
    assert (row["step"], row["steps"], row["val_loss_before"]) == (18, 8, 2.5)
    (row,) = (row for row in run.rows if row["kind"] == "switch")
    assert row["loss_before"] == switch["loss_before"] == 3.0
    out = capsys.readouterr().out
    assert "validation loss is back to its level before the switch (2.5000) after 5 to 8 steps" in out
    assert "(-0.3000 since step 10)" in out  # compared with the validation at the switch


def test_a_switch_without_a_validation_before_it_has_no_recovery(run, capsys):
    """This can happen if the plan is changed on resume: the last validation is of older weights."""
    with run.reporter:
        run.train(4)
        run.validate(2.0)
        run.train(3)
        run.progress.stages.append(StageRecord("recovery"))
        run.reporter.switch(2.9)
        run.train(1, "recovery")
        run.validate(1.5)
        (switch,) = run.reporter.finish(2)["switches"]
    assert switch["val_loss_before"] is None and switch["steps_to_recover"] is None
    assert "validation loss - -> 2.9000" in capsys.readouterr().out


def test_a_resume_continues_the_rows_and_the_recovery_count(tmp_path):
    first = Run(tmp_path)
    with first.reporter:
        first.train(10)
        first.validate(2.5)
        first.progress.stages.append(StageRecord("recovery"))
        first.reporter.switch(2.9)
        first.train(2, "recovery")
        saved = json.loads(json.dumps(first.progress.as_dict()))
        first.train(3, "recovery")
    again = Run(tmp_path, done=Progress.from_dict(saved))
    with again.reporter:
        again.train(4, "recovery")
        again.validate(2.4)
        result = again.reporter.finish(2)
    assert result["switches"][0]["steps_to_recover"] == 6
    assert [row["step"] for row in again.rows if row["kind"] == "train"] == list(range(1, 17))


def test_a_rewind_drops_a_later_switch(run):
    with run.reporter:
        run.train(10)
        run.validate(2.5)
        saved = run.progress.as_dict()
        run.progress.stages.append(StageRecord("recovery"))
        run.reporter.switch(2.9)
        run.train(1, "recovery")
        run.validate(2.4)
        run.progress = Progress.from_dict(saved)
        run.reporter.rewound(run.progress, left=11, skipped_to=9999)
        assert run.reporter.finish(2)["switches"] == []
    assert [row["kind"] for row in run.rows[-2:]] == ["validation", "rewound"]


def test_a_skipped_step_and_a_slow_rank_are_printed(run, capsys):
    with run.reporter:
        run.train(1)
        run.reporter.skipped(Skip(2, 512, 1024))
        run.reporter.behind("rank 1 is slow")
        run.reporter.finish(2)
    out = capsys.readouterr().out
    assert "skipped   step 2" in out and "slow      step 1: rank 1 is slow" in out


def public(kind):
    return {
        name: inspect.signature(method)
        for name, method in inspect.getmembers(kind, inspect.isfunction)
        if name[0] != "_"
    }


def test_the_reporter_implements_exactly_the_events():
    """Ranks other than the first must accept every call that the loop makes."""
    assert {name: s.parameters.keys() for name, s in public(Reporter).items()} == {
        name: s.parameters.keys() for name, s in public(Events).items()
    }
    assert all(name in vars(Reporter) for name in public(Events))


def test_the_other_ranks_print_nothing(capsys):
    with Events() as events:
        for name, signature in public(Events).items():
            assert getattr(events, name)(*range(len(signature.parameters) - 1)) in (None, {})
    assert not capsys.readouterr().out


def test_compiling_and_saving_are_in_the_summary(run, capsys):
    with run.reporter:
        run.reporter.compiled(2.5)
        run.train(20)
        run.reporter.saved({"count": 2})
        run.reporter.finish(0)
    assert run.summary["compile_seconds"] == 2.5 and run.summary["checkpoints"] == {"count": 2}
    assert "compile   2.5 s" in capsys.readouterr().out


def test_matplotlib_is_not_imported_before_the_first_plot():
    code = "import sys, lhtrain.report.reporter; print([m for m in sys.modules if 'matplotlib' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_samples_go_to_their_file_the_terminal_and_trackers(run, capsys, monkeypatch):
    sent = []
    with run.reporter as reporter:
        monkeypatch.setattr(reporter.tracker, "sampled", lambda step, rows: sent.append((step, rows)))
        run.train(3)
        reporter.sampled([{"prompt": "a\n", "text": "b\x1b"}, {"prompt": "c", "text": None}])
        reporter.finish(15)
    rows = [json.loads(line) for line in run.dir.samples.read_text().splitlines()]
    assert [(row["step"], row["stage"], row["text"]) for row in rows] == [
        (3, "lighthouse", "b\x1b"),
        (3, "lighthouse", None),
    ]
    assert sent == [(3, rows)]
    out = capsys.readouterr().out
    assert r"sample    step 3: 'a\n' -> 'b\x1b'" in out and "'c' -> no text" in out


def test_an_evaluation_reaches_trackers_whole(run, monkeypatch):
    sent = []
    result = {"step": 3, "full": {"passkey": {"accuracy": 0.5}}, "lighthouse": None}
    with run.reporter as reporter:
        monkeypatch.setattr(reporter.tracker, "evaluated", lambda *call: sent.append(call))
        run.train(3)
        reporter.evaluated(result)
        reporter.finish(15)
    assert sent == [(3, result)]
