"""The versions, the commit, and the command that resumes a run."""

import shlex
import sys
import threading
from pathlib import Path

import pytest

import lhtrain
from lhtrain import provenance
from lhtrain.provenance import code_version, resume_command

NAMES = ["run", "my run", "it's", "a=b", "-x", "$(x)", "a;b", "ü\n", "a/-b"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("environment", [{}, {"TORCHELASTIC_RUN_ID": "1", "LOCAL_WORLD_SIZE": "2"}])
def test_a_shell_reads_back_the_folder(here, name, environment):
    words = shlex.split(resume_command(here / name, environment))
    assert words[-2] == "resume" and Path(words[-1]).absolute() == here / name
    assert not words[-1].startswith("-") and "=" not in words[-1].split("/")[0]


def test_a_folder_elsewhere_has_an_absolute_path(here):
    assert resume_command(Path("/data/my run"), {}).endswith(" resume '/data/my run'")
    assert resume_command(here, {}).endswith(f" resume {here}")


def test_the_command_uses_the_same_launcher(here, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(sys, "executable", str(here / ".venv" / "bin" / "python"))
    assert resume_command(here / "r", {}) == ".venv/bin/python -m lhtrain resume r"
    two = {"TORCHELASTIC_RUN_ID": "1", "LOCAL_WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "1"}
    assert resume_command(here / "r", two) == "torchrun --nproc-per-node=2 -m lhtrain resume r"
    two["GROUP_WORLD_SIZE"] = "3"
    assert resume_command(here / "r", two) == "torchrun --nproc-per-node=2 --nnodes=3 ... -m lhtrain resume r"
    of_srun = {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "4"}
    assert resume_command(here / "r", of_srun) == "srun --ntasks=4 .venv/bin/python -m lhtrain resume r"


def test_if_git_hangs_only_the_commit_is_missing(monkeypatch):
    free = threading.Event()
    monkeypatch.setattr(provenance, "_git", lambda *_: free.wait() and "")
    monkeypatch.setattr(provenance, "PATIENCE", 0.01)
    found = code_version()
    free.set()
    assert found.keys() == {"lhtrain", "torch"} and found["lhtrain"] == lhtrain.__version__


def test_a_working_copy_names_its_commit(monkeypatch):
    answers = {"ls-files": "lhtrain/__init__.py", "status": " M lhtrain/train.py", "rev-parse": "a" * 40}
    monkeypatch.setattr(provenance, "_git", lambda _, command, *__: answers[command])
    found = code_version()
    assert (found["commit"], found["uncommitted_changes"]) == ("a" * 40, True)
    monkeypatch.setattr(provenance, "_git", lambda *_: None)  # no git, or no working copy
    assert "commit" not in code_version()
