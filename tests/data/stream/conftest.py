import pytest

from lhtrain.data.stream import portions
from tests.data.stream.source import Here, write_files


@pytest.fixture
def source(tmp_path):
    """Eight files."""
    return write_files(tmp_path / "source")


@pytest.fixture
def here(monkeypatch):
    """Tokenize in this process."""
    monkeypatch.setattr(portions, "Workers", Here)
