"""Tests that a folder is complete or absent, whatever happens during writing."""

import os
import signal
import subprocess
import sys

import pytest

from lhtrain.errors import RunError
from lhtrain.interop.whole_folder import check_empty, staged

KILLED = """
import sys
from pathlib import Path
from lhtrain.interop.whole_folder import staged
with staged(Path(sys.argv[1])) as staging:
    (staging / "weights").write_text("half")
    print("there", flush=True)
    sys.stdin.read()
"""


def test_the_folder_appears_whole(tmp_path):
    for name in ("new", "deep/er", "empty"):
        folder = tmp_path / name
        if name == "empty":
            folder.mkdir()
        with staged(folder) as staging:
            (staging / "config.json").write_text("{}")
            assert not folder.exists() or not any(folder.iterdir())
        assert [path.name for path in folder.iterdir()] == ["config.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "empty", "new"]


def test_a_failure_leaves_nothing(tmp_path):
    with pytest.raises(OSError), staged(tmp_path / "out"):
        raise OSError("no room")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.slow
def test_what_a_killed_export_left_blocks_nothing_and_goes(tmp_path, exists):
    folder = tmp_path / "out"
    if exists:
        folder.mkdir()
        (folder / ".tmpAb12Cd").write_text("temporary file of safetensors")
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "there\n"
    with staged(folder) as staging:  # while another export is running, whose files stay
        (staging / "config.json").write_text("{}")
        assert len([path for path in tmp_path.iterdir() if path.name.startswith(".out.")]) == 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdin.close(), process.stdout.close()
    assert [path.name for path in folder.iterdir()] == ["config.json"]
    (folder / "config.json").unlink()
    with staged(folder):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_where_nothing_can_be_made_beside_it_the_files_are_moved_in(tmp_path, monkeypatch):
    folder = tmp_path / "out"
    folder.mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: True)
    with staged(folder) as staging:
        assert staging.parent == folder
        for name in ("config.json", "weights"):
            (staging / name).write_text(name)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "weights"]


@pytest.mark.parametrize("there", ["file", "full", "link to nowhere"])
def test_what_is_there_is_never_touched(tmp_path, there):
    place = tmp_path / "out"
    if there == "file":
        place.write_text("mine")
    elif there == "full":
        place.mkdir()
        (place / "mine").write_text("mine")
    else:
        place.symlink_to(tmp_path / "nowhere")
    with pytest.raises(RunError, match="must be a new or an empty folder, but it"):
        check_empty(place)


def test_a_link_to_an_empty_folder_is_followed(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    with staged(tmp_path / "out") as staging:
        (staging / "config.json").write_text("{}")
    assert (tmp_path / "disk" / "config.json").exists() and (tmp_path / "out").is_symlink()
