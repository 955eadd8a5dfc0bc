"""Repositories: one document each, with files in path order after headers."""

import os

import pytest

from lhtrain.data.errors import DataError
from lhtrain.data.prepare.pipeline import prepare
from lhtrain.data.prepare.recipe import Recipe


def test_a_repository_is_one_document(tmp_path):
    for name, content in {"b/z.py": "z = 1", "b/a.py": "a = 1\n", "c.txt": "c\n", ".git/x": "no"}.items():
        path = tmp_path / "repos" / "one" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (tmp_path / "repos" / "one" / "b" / "data.bin").write_bytes(b"\0\1")
    (tmp_path / "repos" / "two").mkdir()
    (tmp_path / "repos" / "two" / "d.py").write_text("d = 1\n")
    recipe = Recipe(source="code", path=str(tmp_path / "repos" / "*"))
    manifest = prepare(recipe, tmp_path / "out", workers=1, progress=False)
    documents = [
        bytes(store.document(i)[:-1].astype("u1")).decode()
        for store in manifest.open_stores(tmp_path / "out")
        for i in range(store.n_documents)
    ]
    assert documents == [
        "==> one/b/a.py <==\na = 1\n\n==> one/b/z.py <==\nz = 1\n\n==> one/c.txt <==\nc\n\n",
        "==> two/d.py <==\nd = 1\n\n",
    ]


def test_the_error_names_a_pattern_without_a_folder(tmp_path):
    with pytest.raises(DataError, match=r"must exist, or be a pattern .* that matches something"):
        prepare(Recipe(source="code", path=str(tmp_path / "no*")), tmp_path / "out", 1, progress=False)


def test_files_that_are_not_text_are_counted_and_odd_names_are_written(tmp_path):
    folder = tmp_path / "repo"
    folder.mkdir()
    (folder / "a.py").write_text("a = 1\n")
    (folder / "latin.py").write_bytes("# caf\xe9\n".encode("latin-1"))
    (folder / os.fsdecode(b"caf\xe9.py")).write_text("b = 2\n")
    manifest = prepare(Recipe(source="code", path=str(folder)), tmp_path / "out", 1, progress=False)
    assert manifest.documents == 1 and manifest.skipped == {"file of a repository that is not text": 1}
    document = bytes(manifest.open_stores(tmp_path / "out")[0].document(0)[:-1].astype("u1"))
    assert b"==> repo/caf?.py <==\nb = 2" in document and b"latin" not in document


def documents_in(tmp_path, path):
    manifest = prepare(Recipe(source="code", path=path), tmp_path / "out", 1, progress=False)
    return manifest.documents


def test_an_existing_folder_is_not_a_pattern(tmp_path):
    for name in ("proj[v2]", "projv"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"in_{name}.py").write_text("a = 1\n")
    assert documents_in(tmp_path, str(tmp_path / "proj[v2]")) == 1
    [store] = prepare(
        Recipe(source="code", path=str(tmp_path / "proj[v2]")), tmp_path / "out", 1, progress=False
    ).open_stores(tmp_path / "out")
    assert b"in_proj[v2].py" in bytes(store.document(0)[:-1].astype("u1"))


def test_each_folder_once_and_no_shards(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.py").write_text("a = 1\n")
    (tmp_path / "link").symlink_to(tmp_path / "one")
    for _ in range(2):  # the second time there are shards beside the folders
        assert documents_in(tmp_path, [str(tmp_path / "*"), str(tmp_path / "two")]) == 2
