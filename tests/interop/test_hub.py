"""Models of the Hugging Face hub, from its cache, without a network."""

import pytest

from lhtrain.errors import RunError
from lhtrain.interop.importer import import_model
from tests.interop.published import published

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache with the repository someone/small, as huggingface_hub arranges it."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "cache" / "models--someone--small"
    snapshot, blobs = repository / "snapshots" / COMMIT, repository / "blobs"
    for folder in (snapshot, blobs, repository / "refs"):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    published(tmp_path / "hf")
    for path in (tmp_path / "hf").iterdir():
        path.rename(blobs / path.name)
        (snapshot / path.name).symlink_to(blobs / path.name)
    return tmp_path


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_from_the_cache(cache, revision):
    notes = import_model("hub:someone/small", cache / "ckpt", revision)
    assert "someone/small" in notes[0]
    assert (cache / "ckpt" / "tokenizer.json").is_file() and not (
        cache / "ckpt" / "tokenizer.json"
    ).is_symlink()


@pytest.mark.parametrize(
    ("source", "revision", "message"),
    [
        ("hub:someone/other", None, "not in the cache"),
        ("hub:someone/small", "v9", "not in the cache"),
        ("hub:a/b/c", None, "must be the name of a repository"),
    ],
)
def test_what_is_not_there(cache, source, revision, message):
    with pytest.raises(RunError, match=message):
        import_model(source, cache / "ckpt", revision)
    assert not (cache / "ckpt").exists()
