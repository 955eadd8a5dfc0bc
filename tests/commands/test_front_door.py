"""Commands that do not train import neither PyTorch, which takes seconds, nor what only a run needs."""

import json
import os
import subprocess
import sys

import pytest

HEAVY = ("torch", "triton", "matplotlib", "wandb", "datasets")
WITHOUT_HYDRA = ("--help", "data --help", "slurm submit --help", "trian")
COMMANDS = [
    *WITHOUT_HYDRA,
    "help model.seq_len",
    "model.n_layer=3",
    "--cfg job",
    "estimate model=lighthouse_530m",
    "slurm submit --dry-run cluster.partition=gpu run.dir=run",
    "slurm status .",
    "runs .",
    "compare none",
    "resume none",
    "data prepare data=text data.path=text data.out=out data.workers=1",
    "data verify out",
    "data inspect out",
    "data train-tokenizer text --vocab-size 260 --out out.json",
]
# Runs all commands in one process. Prints the status of each, and the heavy modules imported after it.
PROGRAM = """
import contextlib, io, json, sys
from lhtrain import cli
cli.begin_training = lambda: None  # it would replace the streams
found = {}
lines, heavy = map(json.loads, sys.argv[1:])
for line in lines:
    out, status = io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            cli.main(line.split())
        except SystemExit as end:
            status = end.code
    found[line] = status, [name for name in heavy if name in sys.modules], out.getvalue()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def after(tmp_path_factory):
    folder = tmp_path_factory.mktemp("front")
    (folder / "text").mkdir()
    for number in range(40):
        (folder / "text" / f"{number}.txt").write_text(f"text {number} " * 200)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(COMMANDS), json.dumps([*HEAVY, "hydra"])],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"LHTRAIN_CACHE": str(folder / "cache")},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("line", COMMANDS)
def test_no_command_imports_more_than_it_needs(after, line):
    status, found, out = after[line]
    assert status == {"trian": 2, "model.n_layer=3": 2, "resume none": 1, "compare none": 1}.get(line, 0), out
    assert "Traceback" not in out and out
    assert not set(found) & set(HEAVY)
    if line in WITHOUT_HYDRA:
        assert found == []
