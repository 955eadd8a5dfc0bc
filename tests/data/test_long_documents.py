"""Long real documents from a compressed file to sequences, if the file is on this machine."""

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


@pytest.mark.skipif(not SAMPLE.exists(), reason=f"{SAMPLE} does not exist")
def test_long_documents_are_not_cut(tmp_path: Path) -> None:
    prepare(Recipe(source="files", path=str(SAMPLE)), tmp_path / "out", 1, progress=False)
    corpus = open_corpus("prepared", path=str(tmp_path / "out"))
    with lzma.open(SAMPLE, "rt") as lines:
        texts = {json.loads(line)["text"] for line in lines}
    splits = (corpus.train, corpus.val)
    found = {corpus.tokenizer.decode(s.document(i)[:-1]) for s in splits for i in range(s.n_documents)}
    assert found == texts and len(texts) == 12
    block_len = 1 << 19  # longer than the longest document: each is in one sequence
    order = SequenceOrder(corpus.train, block_len, seed=0)
    sequences = order.read(0, order.n_blocks, block_len)
    inputs = [one[one != PADDING] for one in sequences[:, :-1]]
    whole = [part for one in inputs for part in np.split(one, np.flatnonzero(one == 256) + 1) if len(part)]
    assert {corpus.tokenizer.decode(part[:-1]) for part in whole} <= texts
    assert len(whole) == corpus.train.n_documents
