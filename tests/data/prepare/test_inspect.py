"""`lhtrain data inspect`: the numbers that it prints are those of the documents."""

import json
from pathlib import Path

import numpy as np
import pytest

from lhtrain.data.prepare.inspect import histogram, inspect
from lhtrain.data.prepare.pipeline import prepare
from lhtrain.data.prepare.recipe import Recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty texts of 600 bytes: ten exact copies of one, five near copies of another."""
    folder = tmp_path_factory.mktemp("inspected")
    random = np.random.default_rng(0)
    texts = ["".join(map(chr, random.integers(97, 123, 600))) for _ in range(27)]
    texts += [texts[0]] * 10 + [texts[1][:-3] + f"{number:03d}" for number in range(3)]
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    prepare(Recipe(source="files", path=str(folder / "rows.jsonl")), folder / "out", 1, progress=False)
    return folder / "out"


def test_copies_and_lengths(folder: Path) -> None:
    report = inspect(folder)
    assert "shortest 601, p10 601, median 601, p90 601, p99 601, longest 601, mean 601" in report
    assert "exact: 25.00% of the documents, 25.00% of the tokens" in report
    assert "near: 32.50% of all documents" in report
    assert "sequences " not in report


def test_a_sample_is_named_and_may_be_empty(folder: Path) -> None:
    assert "of a sample of 20 documents" in inspect(folder, compared=20)
    assert "near" not in inspect(folder, compared=0)


def test_sequences(folder: Path) -> None:
    """601 of 1,000 tokens are in each sequence; 25 sequences hold all tokens if documents are cut."""
    report = inspect(folder, seq_len=1000)
    assert "sequences   of 1,000: 0.0% of the documents are longer, with 0.0% of the tokens" in report
    assert "data.packing=spread: 39.9% padding\n" in report
    assert "data.packing=best_fit: 3.8% padding, 37.5% of the documents cut although they fit" in report
    assert "of 256: 100.0% of the documents are longer, with 100.0% of the tokens" in inspect(
        folder, seq_len=256
    )


def test_the_histogram_counts_tokens_in_longer_documents() -> None:
    lines = [line.split()[:4] for line in histogram(np.array([1, 2, 3, 4, 10]))]
    assert lines[1:] == [
        ["1", "1", "5.0%", "100.0%"],
        ["2", "2", "25.0%", "95.0%"],
        ["4", "1", "20.0%", "70.0%"],
        ["8", "1", "50.0%", "50.0%"],
    ]
