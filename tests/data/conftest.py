"""Settings for the tests of the data pipeline."""

import pytest
from hypothesis import settings

# These tests flush files to disk, so the time of an example depends on how busy the machine is: no deadline.
settings.register_profile("disk", deadline=None)
settings.load_profile("disk")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test its own cache instead of the user's."""
    monkeypatch.setenv("LHTRAIN_CACHE", str(tmp_path_factory.mktemp("cache")))
