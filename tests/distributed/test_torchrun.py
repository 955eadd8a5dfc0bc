"""Detection of the torchrun that started the ranks, and the time until it kills them."""

import pytest

from lhtrain.distributed import torchrun
from lhtrain.errors import RunError


@pytest.fixture
def restarted(monkeypatch):
    """The environment of a rank that torchrun, this process's parent, restarted once."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    for name in ("GROUP_WORLD_SIZE", torchrun.VARIABLE, "TORCHELASTIC_SIGNALS_TO_HANDLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torchrun, "_has_flag", lambda: True)
    return monkeypatch


def began(run_dir, text=None):
    (run_dir / "ranks").mkdir(parents=True)
    (run_dir / torchrun.BEGAN).write_text(text or torchrun.this_torchrun())
    return run_dir


def test_a_restarted_rank_finds_the_run_of_the_first_attempt(restarted, tmp_path):
    run = began(tmp_path / "2026-01-01_a")
    began(tmp_path / "2026-01-02_b", "another torchrun")
    dated = tmp_path / "2026-01-03_a"
    assert torchrun.earlier_run(dated, is_new=True, is_dated=True) == run
    assert torchrun.earlier_run(dated, is_new=True, is_dated=False) is None
    assert torchrun.earlier_run(run, is_new=True, is_dated=False) == run
    restarted.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    assert torchrun.earlier_run(dated, is_new=True, is_dated=True) is None


def test_a_note_is_for_later_attempts_of_the_same_torchrun(restarted, tmp_path):
    note = tmp_path / "ranks" / "extended"
    torchrun.leave_note(note, "120")
    assert torchrun.note_left(note) == "120"
    restarted.setenv("TORCHELASTIC_RUN_ID", "another")
    assert torchrun.note_left(note) is None
    restarted.delenv("TORCHELASTIC_RUN_ID")
    note.unlink()
    torchrun.leave_note(note)
    assert not note.exists()


def test_restarts_on_several_machines_need_a_directory(restarted, tmp_path):
    restarted.setenv("GROUP_WORLD_SIZE", "2")
    with pytest.raises(
        RunError, match="TORCHELASTIC_RESTART_COUNT=1: on several machines, restarts by torchrun"
    ):
        torchrun.earlier_run(tmp_path / "r", is_new=True, is_dated=False)
    assert torchrun.earlier_run(tmp_path / "r", is_new=False, is_dated=False) is None


@pytest.mark.parametrize(
    ("environment", "limit"),
    [
        ({}, 30.0),
        ({torchrun.VARIABLE: "600"}, 600.0),
        ({"TORCHELASTIC_SIGNALS_TO_HANDLE": "SIGINT,SIGHUP"}, None),
        ({"TORCHELASTIC_SIGNALS_TO_HANDLE": "SIGINT, SIGTERM"}, 30.0),
    ],
)
def test_how_long_torchrun_waits(restarted, environment, limit):
    for name, value in environment.items():
        restarted.setenv(name, value)
    assert torchrun.patience() == limit


@pytest.mark.parametrize(
    "typed", ["--shutdown-timeout=90", "--shutdown_timeout=90", "--shutdown-timeout\x0090"]
)
def test_the_flag_as_it_was_typed(restarted, tmp_path, typed):
    (tmp_path / "cmdline").write_text(f"torchrun\x00{typed}\x00-m\x00lhtrain\x00")
    restarted.setattr(torchrun, "Path", lambda _: tmp_path / "cmdline")
    assert torchrun.patience() == 90.0


def test_a_limit_that_is_too_short_gives_a_warning(restarted):
    assert torchrun.too_short(29.0) is None
    warning = torchrun.too_short(45.0)
    assert "took 45 s" in warning and "kills the ranks 30 s after TERM" in warning
    assert "export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=135" in warning
    restarted.setattr(torchrun, "_has_flag", lambda: False)
    restarted.setenv(torchrun.VARIABLE, "600")
    assert "before PyTorch 2.12" in torchrun.too_short(45.0)
    restarted.delenv("TORCHELASTIC_RUN_ID")
    assert torchrun.too_short(45.0) is None
