"""Every kernel compiles for Hopper: no GPU needed, Triton carries its assembler."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("compile_for_hopper.py")


@pytest.mark.parametrize("sizes", ["3,4,1,128", "4,4,1,128", "2,8,3,80"], ids="L,p,R,D={}".format)
@pytest.mark.slow
def test_kernels_compile_for_hopper(sizes):
    """In a process of its own: this one may have chosen the interpreter."""
    env = os.environ | {"TRITON_INTERPRET": "0"}
    root = SCRIPT.parents[2]
    done = subprocess.run(
        [sys.executable, SCRIPT, sizes], env=env | {"PYTHONPATH": str(root)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    n_kernels = 12 + int(sizes.split(",")[0])  # one of them for each level
    assert len(lines) == n_kernels and all("local 0" in line for line in lines), done.stdout
