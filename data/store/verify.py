"""`lhtrain data verify`: checks every file of a prepared folder for damage."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from lhtrain.data.errors import REMEDY, DamagedStore, DataError
from lhtrain.data.sources.local import LOCK, PLAN
from lhtrain.data.store.manifest import Manifest, Shard, read_json, skipped_documents
from lhtrain.data.store.tokens import TokenStore
from lhtrain.data.tokenizers.base import ENCODINGS, PREPARED
from lhtrain.data.tokenizers.named import open_tokenizer

MOST_PLAN_BYTES = 1 << 24


def verify(folder: Path) -> tuple[Manifest, list[str]]:
    """Read every file of a folder; return the manifest and a message for each damaged file.

    Raises DataError: meta.json is missing or damaged.
    """
    manifest = Manifest.read(folder)
    faults = []
    for check in _checks(folder, manifest):
        try:
            check()
        except DataError as damage:
            faults.append(str(damage))
    return manifest, faults


def _checks(folder: Path, manifest: Manifest) -> Iterator[Callable[[], object]]:
    first: list[TokenStore] = []
    for shard in manifest.shards:
        yield partial(_check_shard, folder, manifest, shard, first)
    yield partial(_check_tokenizer, folder, manifest)
    planned = any((folder / name).exists() for name in (PLAN, LOCK))
    if planned or next(folder.glob("*.skipped.json"), None):  # folders of the cache have none of these files
        yield partial(_check_plan, folder, manifest)
        yield partial(_check_skipped, folder, manifest)


def _check_shard(folder: Path, manifest: Manifest, shard: Shard, first: list[TokenStore]) -> None:
    store = manifest.open_store(folder, shard)
    store.verify(manifest.tokenizer["vocab_size"])
    first.append(store)
    if (store.dtype, store.header.escaped) != (first[0].dtype, first[0].header.escaped):
        rule = f"must store tokens in the same format as {first[0].path.name}"
        raise DamagedStore(f"{str(store.path)!r}: {rule}; {REMEDY}")


def _check_tokenizer(folder: Path, manifest: Manifest) -> None:
    """Check the tokenizer. Of a tiktoken encoding, which may need a download, check only the size."""
    name, vocab_size = manifest.tokenizer["name"], manifest.tokenizer["vocab_size"]
    if name not in ENCODINGS:
        open_tokenizer(f"{PREPARED}{folder}")
    elif vocab_size != ENCODINGS[name]:
        rule = f"tokenizer.vocab_size={vocab_size}: must be {ENCODINGS[name]}, the size of {name}"
        raise DamagedStore(f"{str(folder / 'meta.json')!r}: {rule}; {REMEDY}")


def _check_plan(folder: Path, manifest: Manifest) -> None:
    path = folder / PLAN
    plan = read_json(path, MOST_PLAN_BYTES, "without it, preparing cannot continue")
    units = plan.get("units")
    same = plan.get("fingerprint") == manifest.fingerprint and plan.get("recipe") == manifest.recipe
    limited = any(manifest.recipe.get(key) is not None for key in ("max_documents", "max_tokens"))
    wanted = len(manifest.shards)
    if not same or type(units) is not int or units < wanted or (units > wanted and not limited):
        raise DamagedStore(f"{str(path)!r}: must agree with meta.json")


def _check_skipped(folder: Path, manifest: Manifest) -> None:
    skipped = skipped_documents(folder, len(manifest.shards))
    if dict(skipped) != dict(manifest.skipped):
        rule = "the .skipped.json files must add up to `skipped` in meta.json"
        raise DamagedStore(f"{str(folder)!r}: {rule}")
