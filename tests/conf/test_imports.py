"""Checking a configuration does not import PyTorch, which takes seconds."""

import subprocess
import sys

import pytest

SLOW = ("torch", "torch._dynamo", "triton", "matplotlib")
PROGRAM = """
import sys
from lhtrain.conf.compose import check_overrides
from lhtrain.conf.problems import ConfigError
try:
    check_overrides(sys.argv[2:])
except ConfigError as error:
    print(error)
print("imported:", [name for name in sys.argv[1].split(",") if name in sys.modules])
"""


@pytest.mark.parametrize(
    ("overrides", "printed"),
    [
        ([], ""),
        (["optim.lrr=1"], "did you mean optim.lr?"),
        (
            ["stage=curriculum", "lighthouse.budget=100", "parallel.cp=2"],
            "must be a positive multiple of 128",
        ),
    ],
)
def test_no_slow_package_is_imported(overrides, printed):
    command = [sys.executable, "-c", PROGRAM, ",".join(SLOW), *overrides]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert printed in done.stdout
    assert done.stdout.endswith("imported: []\n")
