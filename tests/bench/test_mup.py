"""scripts/bench/mup.py: a row for each width, rate and seed, which a second start does not compute again."""

import csv
import importlib.util
import sys
from pathlib import Path

PATH = Path(__file__).parents[2] / "scripts" / "bench" / "mup.py"
SPEC = importlib.util.spec_from_file_location("bench_mup", PATH)
mup = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(mup)


def test_rows_have_their_seed_and_are_computed_once(tmp_path, monkeypatch):
    text, out = tmp_path / "text.txt", tmp_path / "mup.csv"
    text.write_text("some words of a text, " * 100)
    settings = [
        *(str(text), "--out", str(out), "--steps", "10", "--layers", "1", "--batch", "1"),
        *("--widths", "32", "--rates", "0.01", "--kinds", "mup"),
    ]
    for seeds in (["0"], ["0", "1"]):
        monkeypatch.setattr(sys, "argv", ["mup.py", *settings, "--seeds", *seeds])
        mup.main()
    rows = list(csv.DictReader(out.open()))
    assert [row["seed"] for row in rows] == ["0", "1"]
    assert {(row["kind"], row["width"], row["tokens_per_step"]) for row in rows} == {("mup", "32", "128")}
    assert rows[0]["loss"] != rows[1]["loss"]
