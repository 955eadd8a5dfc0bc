"""`verify`: whether a prepared folder is, in every file, as it was written."""

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
    """Read every byte of every file; returns the manifest and what is wrong, a line for each faulty file.

    Raises DataError: no meta.json, or not as it was written.
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
    described = any((folder / name).exists() for name in (PLAN, LOCK))
    if described or next(folder.glob("*.skipped.json"), None):  # the cache's own folders have none of these
        yield partial(_check_plan, folder, manifest)
        yield partial(_check_skipped, folder, manifest)


def _check_shard(folder: Path, manifest: Manifest, shard: Shard, first: list[TokenStore]) -> None:
    store = manifest.open_store(folder, shard)
    store.verify(manifest.tokenizer["vocab_size"])
    first.append(store)
    if (store.dtype, store.header.escaped) != (first[0].dtype, first[0].header.escaped):
        rule = f"must store its tokens as {first[0].path.name} does"
        raise DamagedStore(f"{str(store.path)!r}: {rule}; {REMEDY}")


def _check_tokenizer(folder: Path, manifest: Manifest) -> None:
    """Of a tiktoken encoding, which is no file of the folder and may have to be fetched, the size alone."""
    name, vocab_size = manifest.tokenizer["name"], manifest.tokenizer["vocab_size"]
    if name not in ENCODINGS:
        open_tokenizer(f"{PREPARED}{folder}")
    elif vocab_size != ENCODINGS[name]:
        rule = f"tokenizer.vocab_size={vocab_size}: must be {name}'s {ENCODINGS[name]}"
        raise DamagedStore(f"{str(folder / 'meta.json')!r}: {rule}; {REMEDY}")


def _check_plan(folder: Path, manifest: Manifest) -> None:
    path = folder / PLAN
    there = read_json(path, MOST_PLAN_BYTES, "preparing cannot continue without it")
    units = there.get("units")
    same = there.get("fingerprint") == manifest.fingerprint and there.get("recipe") == manifest.recipe
    limited = any(manifest.recipe.get(key) is not None for key in ("max_documents", "max_tokens"))
    wanted = len(manifest.shards)
    if not same or type(units) is not int or units < wanted or (units > wanted and not limited):
        raise DamagedStore(f"{str(path)!r}: must agree with meta.json")


def _check_skipped(folder: Path, manifest: Manifest) -> None:
    skipped = skipped_documents(folder, len(manifest.shards))
    if dict(skipped) != dict(manifest.skipped):
        rule = "the .skipped.json files must add up to what meta.json has as skipped"
        raise DamagedStore(f"{str(folder)!r}: {rule}")
