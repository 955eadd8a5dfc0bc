"""The data source of docs/extending.md. Its other examples are run in tests/integration/test_plugins.py."""

from lhtrain.data.prepare import pipeline
from lhtrain.data.prepare.recipe import PREPARABLE, Recipe
from lhtrain.data.sources.table import READERS, Reader
from tests.docs.page import ROOT, Page


def code(file):
    """The code of a file that docs/extending.md shows."""
    (block,) = [block for block in Page(ROOT / "docs" / "extending.md").blocks if block.file == file]
    return block.text


def test_a_data_source(tmp_path, monkeypatch):
    source = {}
    exec(code("data/sources/paragraphs.py"), source)
    reader = Reader(("paragraphs",), source["paragraph_units"], source["read_paragraphs"])
    monkeypatch.setitem(READERS, "paragraphs", reader)
    monkeypatch.setattr(pipeline, "PREPARABLE", (*PREPARABLE, "paragraphs"))
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("one\n\ntwo\n\n\n\nthree")
    (tmp_path / "texts" / "b.txt").write_text("four")
    recipe = Recipe("paragraphs", path=str(tmp_path / "texts"))
    manifest = pipeline.prepare(recipe, tmp_path / "out", workers=1, progress=False)
    assert (manifest.documents, manifest.skipped) == (4, {"empty": 1})
    assert manifest.tokens == sum(map(len, ("one", "two", "three", "four"))) + 4  # an end-of-text token each
