"""scripts/bench/train.py: several variants in one process, and the times of the parts of a step."""

import csv
import importlib.util
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
FOLDER = Path(__file__).parents[2] / "scripts" / "bench"
TINY = ["model.seq_len=512", "model.dim=32", "model.n_layers=2", "model.n_heads=2", "model.ffn_dim=64"]
TINY += ["run.batch_tokens=512", "run.device=cpu", "lighthouse.levels=2", "lighthouse.budget=128"]


@pytest.fixture
def bench(monkeypatch):
    """The script, whose neighbours are modules of their own."""
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("bench_train", FOLDER / "train.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_variants_have_their_rows_and_speeds_relative_to_the_first(bench, tmp_path, monkeypatch, capsys):
    path = tmp_path / "rows.csv"
    variants = ["--with", "optim=adamw", "--with", "optim=muon optim.state=int8", "--csv", str(path)]
    monkeypatch.setattr(sys, "argv", ["train.py", "--warmup", "0", "--steps", "2", *variants, *TINY])
    bench.main()
    rows = list(csv.DictReader(path.open()))
    assert [row["stage"] for row in rows] == ["lighthouse", "recovery"] * 2
    assert [" optim=muon optim.state=int8 " in row["settings"] for row in rows] == [False, False, True, True]
    lines = capsys.readouterr().out.splitlines()
    parts = [line for line in lines if "optimizer" in line]
    assert len(parts) == 4
    for line in parts:
        shares = [float(part.split()[1].rstrip("%")) for part in line.partition(": ")[2].split(", ")]
        assert len(shares) == 4 and 50 < sum(shares) <= 100.1, line
    assert ["x first" in line for line in lines if "tok/s" in line] == [False, False, True, True]
