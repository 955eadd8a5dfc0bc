"""Long real documents, where they are at hand, from a compressed file to sequences."""

import json
import lzma
from pathlib import Path

import numpy as np
import pytest

from lhtrain.data import SequenceOrder, open_corpus
from lhtrain.data.order.sequences import PADDING
from lhtrain.data.prepare.pipeline import prepare
from lhtrain.data.prepare.recipe import Recipe

SAMPLE = Path(__file__).parents[3] / "shared/corpus/sample.jsonl.xz"


@pytest.mark.skipif(not SAMPLE.exists(), reason=f"{SAMPLE} is not here")
def test_they_survive_whole(tmp_path: Path) -> None:
    prepare(Recipe(source="files", path=str(SAMPLE)), tmp_path / "out", 1, progress=False)
    corpus = open_corpus("prepared", path=str(tmp_path / "out"))
    with lzma.open(SAMPLE, "rt") as lines:
        texts = {json.loads(line)["text"] for line in lines}
    splits = (corpus.train, corpus.val)
    found = {corpus.tokenizer.decode(s.document(i)[:-1]) for s in splits for i in range(s.n_documents)}
    assert found == texts and len(texts) == 12
    block_len = 1 << 19  # longer than the longest: each lies in one sequence, beginning to end
    order = SequenceOrder(corpus.train, block_len, seed=0)
    rows = order.read(0, order.n_blocks, block_len)
    inputs = [row[row != PADDING] for row in rows[:, :-1]]
    whole = [part for row in inputs for part in np.split(row, np.flatnonzero(row == 256) + 1) if len(part)]
    assert {corpus.tokenizer.decode(part[:-1]) for part in whole} <= texts
    assert len(whole) == corpus.train.n_documents
