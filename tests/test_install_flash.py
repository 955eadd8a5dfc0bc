"""`make` installs FlashAttention-4 only on machines whose GPU supports it."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def install(tmp_path):
    """Run the script with a fake nvidia-smi that prints `gpu` (None: no such program) and a fake pip."""

    def install(gpu: str | None, pip_status: int = 0, smi_status: int = 0) -> str:
        tools = tmp_path / "bin"
        tools.mkdir()
        for name in ("bash", "dirname", "env", "grep", "paste", "sort"):
            (tools / name).symlink_to(
                next(path for path in ("/bin", "/usr/bin") if Path(path, name).exists()) + f"/{name}"
            )
        programs = {"python": f'echo "$*"; exit {pip_status}'}
        if gpu is not None:
            programs["nvidia-smi"] = f"printf '{gpu}'; exit {smi_status}"
        for name, body in programs.items():
            (tools / name).write_text(f"#!/bin/bash\n{body}\n")
            (tools / name).chmod(0o755)
        command = ["bash", str(ROOT / "scripts/install_flash.sh"), str(tools / "python")]
        return subprocess.run(
            command, env=os.environ | {"PATH": str(tools)}, check=True, capture_output=True, text=True
        ).stdout

    return install


PIP = "-m pip install -q --only-binary=:all: -c constraints.txt -e .[flash]\n"


def test_nothing_without_a_gpu(install):
    assert install(None) == ""


@pytest.mark.parametrize("answer", ["", "No devices were found\\n"])
def test_nothing_where_nvidia_smi_finds_none(install, answer):
    assert install(answer, smi_status=6) == ""


@pytest.mark.parametrize("answer", ["9.0\\n", "10.0\\n9.0\\n", "8.9\\n9.0\\n"])
def test_the_extra_on_hopper_and_blackwell(install, answer):
    assert install(answer) == PIP


@pytest.mark.parametrize("answer", ["8.0\\n8.0\\n", "7.5\\n", "12.0\\n"])
def test_one_line_on_other_gpus(install, answer):
    said = install(answer)
    assert said.count("\n") == 1 and "needs compute capability 9 or 10" in said
    assert f"this GPU has {answer[:-2].split(chr(92))[0]}." in said


def test_one_line_where_there_is_no_wheel(install):
    """The exit status of pip decides; pip's own error is printed above the line."""
    pip, line = install("9.0\\n", pip_status=1).splitlines()
    assert pip + "\n" == PIP and "no wheel for this Python and platform" in line
