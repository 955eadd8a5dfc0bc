import pytest

from tests.integration.command import Lhtrain


@pytest.fixture(scope="session")
def lhtrain(tmp_path_factory):
    return Lhtrain(tmp_path_factory.mktemp("lhtrain"))


@pytest.fixture(scope="session")
def undisturbed(lhtrain):
    """The two-stage reference run, in a process that does its own imports."""
    lhtrain.forked, forked = False, lhtrain.forked
    try:
        return lhtrain("undisturbed")
    finally:
        lhtrain.forked = forked
