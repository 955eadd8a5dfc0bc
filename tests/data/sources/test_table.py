"""The table of sources."""

from lhtrain.data.prepare.recipe import PREPARABLE
from lhtrain.data.sources.table import READERS


def test_each_source_that_can_be_prepared_has_one_reader():
    assert sorted(source for reader in READERS.values() for source in reader.sources) == sorted(PREPARABLE)
