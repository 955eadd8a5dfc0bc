"""`lhtrain env`: all sections print, whatever is missing, and nothing private is printed."""

import sys

import pytest

from lhtrain.cli import main
from lhtrain.commands import env


def test_it_names_versions_kernels_and_missing_packages(capsys, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "a-secret")
    monkeypatch.setenv("WORLD_SIZE", "1")
    there = env.installed
    monkeypatch.setattr(env, "installed", lambda package: None if package == "wandb" else there(package))
    main(["env"])
    out = capsys.readouterr().out
    assert "torch 2." in out and "hydra-core 1." in out
    assert "pip install 'lhtrain[wandb]'" in out
    assert (
        "recovery (dense), 32,768 rows: " in out and "lighthouse (lighthouse), 6,144 rows of 32,768: " in out
    )
    assert "WORLD_SIZE=1" in out and "a-secret" not in out
    assert "unknown:" not in out


def test_it_prints_without_pytorch(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    main(["env"])
    out = capsys.readouterr().out
    assert out.count("unknown: ModuleNotFoundError") >= 2  # the GPUs, the kernels
    assert "packages    " in out and "caches      " in out and "extras      " in out


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/ada/.cache/lhtrain: 1 GB", "~/.cache/lhtrain: 1 GB"),
        ("/tmp/torchinductor_ada: 1 GB", "/tmp/torchinductor_~: 1 GB"),
        ("/scratch/ada/cache", "/scratch/~/cache"),
        ("adapter", "adapter"),
    ],
)
def test_paths_do_not_name_the_user(monkeypatch, text, shown):
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setenv("LOGNAME", "ada")
    assert env._without_user(text) == shown
