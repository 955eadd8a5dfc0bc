"""`verify`: whether every shard of a prepared folder is as it was written."""

from pathlib import Path

from lhtrain.data.errors import DamagedStore
from lhtrain.data.manifest import Manifest


def verify(folder: Path) -> tuple[Manifest, list[str]]:
    """Read every byte of every shard; returns the manifest and what is wrong, a line for each faulty shard.

    Raises DataError: no meta.json, or not as it was written.
    """
    manifest = Manifest.read(folder)
    faults = []
    for shard in manifest.shards:
        try:
            manifest.open_store(folder, shard).verify(int(manifest.tokenizer["vocab_size"]))
        except DamagedStore as damage:
            faults.append(str(damage))
    return manifest, faults
