"""Hub datasets with the real `datasets` library, from a local copy; errors without a network."""

import json
import os

import pytest

from lhtrain.data.errors import DataError
from lhtrain.data.prepare.pipeline import prepare
from lhtrain.data.prepare.recipe import Recipe
from lhtrain.data.sources import hub
from lhtrain.data.sources.filters import Filters


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """A dataset of two files, like a clone of a hub repository."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    hub.load.cache_clear()
    folder = tmp_path / "dataset"
    folder.mkdir()
    for part in range(2):
        lines = (json.dumps({"text": f"part {part} row {i} " * 20, "n": i}) for i in range(50))
        (folder / f"train-{part}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.parametrize("streaming", [True, False])
def test_streamed_and_downloaded_give_the_same_tokens(dataset, tmp_path, streaming):
    recipe = Recipe(source="hf", name=str(dataset), streaming=streaming, filters=["n < 40"])
    manifest = prepare(recipe, tmp_path / "out", workers=1, progress=False)
    assert manifest.documents == 80 and manifest.skipped == {"filtered": 20}
    texts = [f"part {part} row {i} " * 20 for part in range(2) for i in range(40)]
    stores = manifest.open_stores(tmp_path / "out")
    tokens = b"".join(
        bytes(store.document(i)[:-1].astype("u1")) for store in stores for i in range(store.n_documents)
    )
    assert tokens.decode() == "".join(texts)


def test_progress_is_reported_row_by_row(dataset):
    """A file of the hub is one unit and may take an hour."""
    reported = []
    [unit, _] = hub.hub_units(Recipe(source="hf", name=str(dataset)))
    list(hub.read_hub(unit, "text", Filters([]), reported.append))
    assert reported == [len(f"part 0 row {i} " * 20) for i in range(50)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "nosuch"}, "has no such split.*data.split"),
        ({"column": "body"}, "data.column='body': .* has no such column; columns: n, text"),
    ],
)
def test_wrong_names_are_explained(dataset, tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        prepare(Recipe(source="hf", name=str(dataset), **changes), tmp_path / "out", 1, progress=False)
    assert not (tmp_path / "out" / "meta.json").exists()


def test_no_network_names_the_remedy(tmp_path, monkeypatch):
    """Uses the hub library's offline switch, so nothing is sent."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    hub.load.cache_clear()
    with pytest.raises(DataError, match="the hub cannot be reached: check the network"):
        prepare(Recipe(source="hf", name="allenai/c4", subset="en"), tmp_path / "out", 1, progress=False)


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (type("GatedRepoError", (Exception,), {})("403"), "is gated: accept its terms"),
        (type("RepositoryNotFoundError", (Exception,), {})("404"), "is not a dataset of the hub"),
        (ValueError("Config name is missing. Please pick one among ['en']"), "data.subset=NAME"),
    ],
)
def test_each_failure_has_its_remedy(error, remedy):
    assert remedy in str(hub._explained("owner/name", error))


def test_a_column_in_an_object(dataset, tmp_path):
    for part in range(2):
        (dataset / f"train-{part}.jsonl").write_text('{"meta": {"q": "words"}}\n' * 3)
    recipe = Recipe(source="hf", name=str(dataset), column="meta.q")
    assert prepare(recipe, tmp_path / "out", 1, progress=False).documents == 6


@pytest.mark.parametrize("streaming", [True, False])
def test_a_folder_that_changes_is_an_error(dataset, tmp_path, monkeypatch, streaming):
    """A change while it is read, and between two attempts."""
    recipe = Recipe(source="hf", name=str(dataset), streaming=streaming)
    real = hub.document_of

    def changing(*arguments):
        with (dataset / "train-1.jsonl").open("a") as stream:
            stream.write('{"text": "another", "n": 1}\n')
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(hub, "document_of", changing)
        with pytest.raises(DataError, match=r"data\.name=.* changed while it was prepared"):
            prepare(recipe, tmp_path / "out", 1, progress=False)
    hub.load.cache_clear()
    prepare(recipe, tmp_path / "other", 1, progress=False)
    os.utime(dataset / "train-0.jsonl", ns=(1, 1))
    with pytest.raises(DataError, match="the source or the tokenizer has changed since"):
        prepare(recipe, tmp_path / "other", 1, progress=False)
