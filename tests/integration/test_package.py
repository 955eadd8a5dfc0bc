"""The wheel: it has all files and works outside the checkout."""

import os
import subprocess
import sys
import zipfile

import pytest

import lhtrain
from tests.integration.command import ROOT

pytestmark = pytest.mark.slow


def test_a_built_wheel_works_from_another_directory(tmp_path):
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        tmp_path,
        ROOT,
    ]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("lhtrain-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"lhtrain"}
    assert wheel.name.startswith(f"lhtrain-{lhtrain.__version__}-")
    for needed in (
        "py.typed",
        "conf/model/gpt_tiny.yaml",
        "conf/config.yaml",
        "data/order/sequences.py",
        "kernels/__init__.py",
    ):
        assert f"lhtrain/{needed}" in names
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    environment = os.environ | {
        "PYTHONPATH": str(tmp_path / "site"),
        "LHTRAIN_CACHE": str(tmp_path / "cache"),
    }
    where = "import lhtrain, lhtrain.data, lhtrain.conf, lhtrain.kernels; print(lhtrain.data.__file__)"
    options = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True}
    found = subprocess.run([sys.executable, "-c", where], **options)
    assert found.stdout.startswith(str(tmp_path / "site")), found.stderr
    small = ["experiment=smoke", "run.steps=2", "model.dim=32", "model.n_layers=1", "run.device=cpu"]
    run = subprocess.run([sys.executable, "-m", "lhtrain", *small], **options)
    assert run.returncode == 0, run.stderr
    (summary,) = tmp_path.glob("runs/*_gpt_tiny_lighthouse_recovery/summary.json")
    assert summary.exists()
