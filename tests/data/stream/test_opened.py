"""data.prepare=during: validation documents, and sources that it refuses."""

import json

import numpy as np
import pytest

from lhtrain.data import DataError, SequenceOrder, open_corpus
from lhtrain.data.prepare.pipeline import prepare
from lhtrain.data.prepare.recipe import Recipe
from lhtrain.data.stream import opened
from tests.data.stream.test_portions import texts


def during(path, **others):
    settings = {"source": "files", "path": path and str(path), "prepare": "during", "portion": 3000}
    return open_corpus(**settings | {"val_fraction": 0.2, "column": "text"} | others)


@pytest.mark.usefixtures("here")
def test_validation_documents_and_their_copies_are_not_trained_on(source):
    first = during(source)
    validated = texts(first.val)
    [stream] = first.streams
    last = source / f"{stream.job.unit_at(7)}.jsonl"
    with last.open("a") as file:
        file.write("".join(json.dumps({"text": text}) + "\n" for text in validated))
    corpus = during(source)
    [stream] = corpus.streams
    assert texts(corpus.val) == validated and corpus.fingerprint != first.fingerprint
    trained, begin = [], 0
    while begin < 16:
        begin, split = stream.portion(begin)
        trained += texts(split)
    assert len(validated) > 5 and not set(validated) & set(trained)
    everything = {json.loads(line)["text"] for path in source.glob("*") for line in path.open()}
    assert {*trained, *validated} == everything and len(trained) == 2 * len(set(trained))


@pytest.mark.usefixtures("here")
def test_with_texts_for_validation_all_documents_are_trained_on(source, tmp_path):
    (tmp_path / "val.txt").write_text("to validate on")
    corpus = during(source, val_path=str(tmp_path / "val.txt"))
    assert texts(corpus.val) == ["to validate on"]
    [stream] = corpus.streams
    assert stream.portion(0).split.n_documents == 80


@pytest.mark.usefixtures("here")
def test_the_fingerprint_depends_on_the_portion_and_not_on_the_disk_space(source):
    one, other, larger = during(source), during(source, keep_gb=0.1), during(source, portion=4000)
    assert one.fingerprint == other.fingerprint != larger.fingerprint


@pytest.mark.usefixtures("here")
def test_a_mixture_of_a_stream_and_a_prepared_folder(source, tmp_path):
    (tmp_path / "texts").mkdir()
    for number in range(30):
        (tmp_path / "texts" / f"{number}.txt").write_text(f"{number} words " * 40)
    prepare(Recipe("text", str(tmp_path / "texts")), tmp_path / "books", 1, progress=False)
    mix = {"web": {"source": "files", "path": str(source), "weight": 3}}
    mix |= {"books": {"path": str(tmp_path / "books")}}
    settings = {"prepare": "during", "portion": 3000, "val_fraction": 0.2}
    corpus = open_corpus("mix", mix=mix, tokenizer=f"prepared:{tmp_path / 'books'}", **settings)
    web, books = corpus.parts["train"]
    assert (web.weight, web.name, books.weight, books.stream) == (3.0, "web", 1.0, None)
    assert corpus.streams == [web.stream] and web.key == during(source, tokenizer="bytes").fingerprint
    order = SequenceOrder(corpus.parts["train"], 64, seed=0)
    order.read(0, 400, 64)
    assert order.blocks_read(400 * 64) == {web.key: 300, books.key: 100}
    prepare(Recipe("text", str(tmp_path / "texts"), bos=True), tmp_path / "other", 1, progress=False)
    mix["books"]["path"] = str(tmp_path / "other")
    with pytest.raises(DataError, match=r"data.mix.books: .*must have the same tokenizer as data.mix.web"):
        open_corpus("mix", mix=mix, tokenizer="bytes", **settings)


@pytest.mark.usefixtures("here")
def test_a_single_document_cannot_be_split(tmp_path):
    (tmp_path / "one.jsonl").write_text(json.dumps({"text": "word " * 2000}))
    with pytest.raises(DataError, match=r"a single document.*data.val_path"):
        during(tmp_path / "one.jsonl")


def test_the_cache_must_be_a_folder(source, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"data.cache_dir=.*must be a folder"):
        during(source, cache_dir=tmp_path / "file")


@pytest.mark.parametrize("revision", [None, "main"])
def test_a_dataset_of_the_hub_needs_a_commit(monkeypatch, revision):
    monkeypatch.setattr(opened, "commit_of", lambda name, revision: "a" * 40)
    with pytest.raises(DataError, match=rf"data.revision={revision or 'null'}: .* now is data.revision=aaaa"):
        open_corpus("hf", name="owner/name", revision=revision, prepare="during")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_copy_of_a_dataset_of_the_hub(tmp_path, kind, monkeypatch):
    """With the real library and the real processes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    folder = tmp_path / "dataset"
    folder.mkdir()
    for number in range(4):
        rows = [{"text": f"file {number} row {i} " * 9, "n": i} for i in range(30)]
        path, table = folder / f"train-{number}.{kind}", pa.Table.from_pylist(rows)
        if kind == "parquet":
            pq.write_table(table, path)
        else:
            with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
                writer.write_table(table)
    corpus = during(None, source="hf", name=str(folder), filters=["n < 20"], workers=1)
    order = SequenceOrder(corpus.parts["train"], 256, seed=0)
    rows = order.read(0, 60, 256)
    assert corpus.streams[0].n_units == 4
    np.testing.assert_array_equal(rows[50:], order.read(50 * 256, 10, 256))
    order.close()
