"""Settings for the tests of the data pipeline."""

import pytest
from hypothesis import settings

# The stores of these tests are flushed to disk: how long an example takes says how busy the machine is.
settings.register_profile("disk", deadline=None)
settings.load_profile("disk")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test leaves in the cache stays away from the user's."""
    monkeypatch.setenv("LHTRAIN_CACHE", str(tmp_path_factory.mktemp("cache")))
