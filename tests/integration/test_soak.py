"""A short run of the soak script, which kills, resumes and compares runs."""

import os
import subprocess
import sys

import pytest

from tests.integration.command import ROOT

pytestmark = pytest.mark.slow


def test_killed_twice_and_equal_in_the_end(tmp_path):
    command = [sys.executable, str(ROOT / "scripts" / "soak.py"), "--kills", "2", "--seed", "3"]
    environment = os.environ | {"TMPDIR": str(tmp_path), "LHTRAIN_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "equal, bit for bit, after 2 kills" in done.stdout
