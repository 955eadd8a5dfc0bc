"""Folders that commit 3ee40e6 prepared give the same tokens in the same order as with that commit."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from lhtrain.data import Corpus, Part, SequenceOrder, Split, open_corpus
from lhtrain.data.store.verify import verify

FOLDER = Path(__file__).parents[2] / "fixtures/prepared-3ee40e6"
EXPECTED = json.loads((FOLDER / "expected.json").read_text())


def digest(arrays: list[np.ndarray]) -> str:
    return hashlib.sha256(b"".join(np.asarray(array, "<i8").tobytes() for array in arrays)).hexdigest()


def documents(split: Split) -> list[np.ndarray]:
    return [split.document(i) for i in range(split.n_documents)]


@pytest.fixture(params=EXPECTED)
def opened(request: pytest.FixtureRequest) -> tuple[Corpus, dict]:
    corpus = open_corpus("prepared", path=str(FOLDER / request.param), val_fraction=0.2)
    return corpus, EXPECTED[request.param]


def test_tokens(opened: tuple[Corpus, dict]) -> None:
    corpus, expected = opened
    assert corpus.fingerprint == expected["fingerprint"]
    assert [store.dtype for store in corpus.train.stores] == [expected["dtype"]] * expected["shards"]
    for name, split in (("train", corpus.train), ("val", corpus.val)):
        assert digest(documents(split)) == expected["tokens"][name]


@pytest.mark.parametrize("seq_lens, long_fraction", [([64], None), ([32, 128], None), ([64], 0.75)])
def test_order(opened: tuple[Corpus, dict], seq_lens: list[int], long_fraction: float | None) -> None:
    corpus, expected = opened
    order = SequenceOrder(corpus.train, seq_lens, seed=7, long_fraction=long_fraction)
    rows = order.read(0, 3 * order.n_blocks, max(seq_lens))
    assert digest([rows]) == expected["orders"][f"{seq_lens} {long_fraction}"] and order.notes == []


def test_order_of_a_mixture(opened: tuple[Corpus, dict]) -> None:
    corpus, expected = opened
    order = SequenceOrder([Part(corpus.train, 3.0), Part(corpus.val, 1.0)], 64, seed=7)
    assert digest([order.read(0, 5000, 64)]) == expected["orders"]["mix"]


@pytest.mark.parametrize("name", EXPECTED)
def test_verify_finds_no_damage(name: str, tmp_path: Path) -> None:
    assert verify(FOLDER / name)[1] == []
    assert verify(Path(shutil.copytree(FOLDER / name, tmp_path / "copy")))[1] == []
