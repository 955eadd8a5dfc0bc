"""Tests for a user without HOME and without an entry in the password file."""

import os
import pwd

import pytest

from lhtrain.process import home


@pytest.fixture
def nobody(monkeypatch, tmp_path):
    """The environment of a user that the system does not know; returns the folder for temporary files."""

    def unknown(number):
        raise KeyError(number)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(home.tempfile, "tempdir", str(tmp_path))
    for name in ("HOME", "LHTRAIN_CACHE", "RANK", *home.USER_NAMES):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(name, "")  # so that monkeypatch restores what ensure_home sets
    return tmp_path


def test_caches_go_to_a_private_folder_which_is_reported(nobody, capsys):
    home.ensure_home()
    folder = nobody / f"lhtrain-{os.getuid()}"
    assert os.environ["HOME"] == str(folder) and folder.stat().st_mode & 0o777 == 0o700
    assert os.environ["USER"] == f"user{os.getuid()}"
    assert "HOME is not set" in capsys.readouterr().err
    os.environ["HOME"] = ""
    home.ensure_home()  # the next run uses the same folder
    assert os.environ["HOME"] == str(folder)


def test_a_folder_that_somebody_else_made_is_not_used(nobody):
    planted = nobody / f"lhtrain-{os.getuid()}"
    planted.symlink_to("/")
    home.ensure_home()
    assert os.environ["HOME"].startswith(f"{planted}-")


def test_a_home_that_is_set_stays(nobody, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    home.ensure_home()
    assert os.environ["HOME"] == "/home/me"
