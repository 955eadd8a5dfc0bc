"""Which torchrun started the ranks, and how long it waits before it kills."""

import pytest

from lhtrain.distributed import torchrun as of_torchrun
from lhtrain.errors import RunError


@pytest.fixture
def torchrun(monkeypatch):
    """The environment of a rank that torchrun, this process's parent, restarted once."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    for name in ("GROUP_WORLD_SIZE", of_torchrun.VARIABLE, "TORCHELASTIC_SIGNALS_TO_HANDLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(of_torchrun, "_has_flag", lambda: True)
    return monkeypatch


def began(run_dir, text=None):
    (run_dir / "ranks").mkdir(parents=True)
    (run_dir / of_torchrun.BEGAN).write_text(text or of_torchrun.this_torchrun())
    return run_dir


def test_a_restarted_rank_finds_the_run_of_the_first_attempt(torchrun, tmp_path):
    run = began(tmp_path / "2026-01-01_a")
    began(tmp_path / "2026-01-02_b", "another torchrun")
    dated = tmp_path / "2026-01-03_a"
    assert of_torchrun.earlier_run(dated, is_new=True, is_dated=True) == run
    assert of_torchrun.earlier_run(dated, is_new=True, is_dated=False) is None
    assert of_torchrun.earlier_run(run, is_new=True, is_dated=False) == run
    torchrun.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    assert of_torchrun.earlier_run(dated, is_new=True, is_dated=True) is None


def test_a_note_is_for_later_attempts_of_the_same_torchrun(torchrun, tmp_path):
    note = tmp_path / "ranks" / "extended"
    of_torchrun.leave_note(note, "120")
    assert of_torchrun.note_left(note) == "120"
    torchrun.setenv("TORCHELASTIC_RUN_ID", "another")
    assert of_torchrun.note_left(note) is None
    torchrun.delenv("TORCHELASTIC_RUN_ID")
    note.unlink()
    of_torchrun.leave_note(note)
    assert not note.exists()


def test_restarts_on_several_machines_need_a_directory(torchrun, tmp_path):
    torchrun.setenv("GROUP_WORLD_SIZE", "2")
    with pytest.raises(
        RunError, match="TORCHELASTIC_RESTART_COUNT=1: on several machines, restarts by torchru"
    ):
        of_torchrun.earlier_run(tmp_path / "r", is_new=True, is_dated=False)
    assert of_torchrun.earlier_run(tmp_path / "r", is_new=False, is_dated=False) is None


@pytest.mark.parametrize(
    ("environment", "limit"),
    [
        ({}, 30.0),
        ({of_torchrun.VARIABLE: "600"}, 600.0),
        ({"TORCHELASTIC_SIGNALS_TO_HANDLE": "SIGINT,SIGHUP"}, None),
        ({"TORCHELASTIC_SIGNALS_TO_HANDLE": "SIGINT, SIGTERM"}, 30.0),
    ],
)
def test_how_long_torchrun_waits(torchrun, environment, limit):
    for name, value in environment.items():
        torchrun.setenv(name, value)
    assert of_torchrun.patience() == limit


@pytest.mark.parametrize(
    "typed", ["--shutdown-timeout=90", "--shutdown_timeout=90", "--shutdown-timeout\x0090"]
)
def test_the_flag_as_it_was_typed(torchrun, tmp_path, typed):
    (tmp_path / "cmdline").write_text(f"torchrun\x00{typed}\x00-m\x00lhtrain\x00")
    torchrun.setattr(of_torchrun, "Path", lambda _: tmp_path / "cmdline")
    assert of_torchrun.patience() == 90.0


def test_a_limit_that_is_too_short_is_said(torchrun):
    assert of_torchrun.too_short(29.0) is None
    assert of_torchrun.too_short(45.0) == (
        "a step and a save took 45 s, but torchrun kills the ranks 30 s after TERM or Ctrl-C: "
        "export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=135 before torchrun"
    )
    torchrun.setattr(of_torchrun, "_has_flag", lambda: False)
    torchrun.setenv(of_torchrun.VARIABLE, "600")
    assert "whose limit is fixed before PyTorch 2.12" in of_torchrun.too_short(45.0)
    torchrun.delenv("TORCHELASTIC_RUN_ID")
    assert of_torchrun.too_short(45.0) is None
