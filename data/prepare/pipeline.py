"""`lhtrain data prepare`: writes a source into a folder of shards, in parallel. Run again, it continues.

The plan is the list of units; unit i becomes shard i, whichever process writes it. A shard appears under its
name only when it is finished. meta.json is written when all shards are finished.
"""

import fcntl
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import TextIO

import numpy as np

from lhtrain.data.errors import DamagedStore, DataError, disk_errors
from lhtrain.data.prepare.plan import make_plan, plan_fingerprint
from lhtrain.data.prepare.pool import ShardPool, write_here
from lhtrain.data.prepare.recipe import PREPARABLE, Recipe, differences
from lhtrain.data.progress import Meter
from lhtrain.data.sources.local import LOCK, PLAN
from lhtrain.data.sources.paths import expanded, matching
from lhtrain.data.sources.units import Unit
from lhtrain.data.store.checks import Checks
from lhtrain.data.store.manifest import (
    SKIPPED,
    Manifest,
    Shard,
    read_json,
    save_tokenizer,
    shard_name,
    skipped_documents,
)
from lhtrain.data.store.tokens import TokenStore, read_header
from lhtrain.data.tokenizers.base import Tokenizer
from lhtrain.data.tokenizers.named import open_tokenizer
from lhtrain.files import open_lock, remove_leftovers, write_atomic

MOST_PLAN_BYTES = 1 << 24  # largest plan.json accepted
# Examples of all kinds of names that `prepare` writes.
WRITTEN = (LOCK, PLAN, shard_name(0), f"00000{SKIPPED}", "meta.json", "tokenizer.json")

log = logging.getLogger(__name__)


def prepare(recipe: Recipe, folder: Path, workers: int | None = None, progress: bool = True) -> Manifest:
    """Tokenize `recipe` into `folder` and return the manifest. Finished shards in the folder are kept.

    Args:
        workers: number of processes; None: one per core. The result does not depend on it.
        progress: show progress on stderr: a bar with tokens/s and the time left on a terminal, else a line
            every PLAIN_SECONDS.

    Raises:
        DataError: a problem with the source or the folder, a full disk, a killed worker. Finished shards are
            kept; the same call continues after them.
    """
    if recipe.source not in PREPARABLE:
        rule = f"cannot be prepared; must be one of {', '.join(PREPARABLE)}"
        raise DataError(f"data.source={recipe.source!r}: {rule}")
    tokenizer = open_tokenizer(recipe.tokenizer, recipe.bos, recipe.eos)
    units = make_plan(recipe)
    _check_apart(folder, recipe, units)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK) and _is_of(
            folder, plan_fingerprint(recipe, tokenizer.fingerprint, units)
        ):
            return Manifest.read(folder)  # complete and read-only
        with _locked(folder) as lock:
            return _prepare(recipe, folder, tokenizer, units, workers or _cores(), progress, lock)


def _check_apart(folder: Path, recipe: Recipe, units: list[Unit]) -> None:
    """Raise DataError if `folder` contains files of the source.

    A later run would read the shards as texts, or skip the texts because they are in a folder of shards.
    """
    out = os.path.realpath(folder)
    key = f"data.out={str(folder)!r}: must be a separate folder, but"
    remedy = "choose a new folder, beside data.path or inside it"
    roots = []
    for given in recipe.paths:
        found = matching(given)
        roots += [os.path.realpath(path) for path in found]
        beside = found != [expanded(given)] and any(os.path.dirname(root) == out for root in roots)
        if beside and recipe.source != "code" and any(fnmatch(name, Path(given).name) for name in WRITTEN):
            raise DataError(f"{key} data.path={given!r} also matches the files written there; {remedy}")
    if not any(_is_in(out, root) for root in roots):
        return
    parents = {os.path.dirname(item.path) for unit in units for item in unit.items if unit.reader != "hub"}
    held = next((parent for parent in sorted(parents) if _is_in(os.path.realpath(parent), out)), None)
    if held is not None:
        raise DataError(f"{key} it contains files of the source, in {held!r}; {remedy}")


def _is_in(path: str, folder: str) -> bool:
    return os.path.join(path, "").startswith(os.path.join(folder, ""))


def _prepare(
    recipe: Recipe,
    folder: Path,
    tokenizer: Tokenizer,
    units: list[Unit],
    workers: int,
    progress: bool,
    lock: TextIO,
) -> Manifest:
    fingerprint = _claim(folder, recipe, tokenizer, units)
    remove_leftovers(folder)  # from a killed process; thanks to the lock, no process is writing them now
    for leftover in folder.glob(".*.bin.*"):  # names that earlier versions used
        leftover.unlink()
    checks = Checks.of_prepared(folder, None)
    finished = {i for i in range(len(units)) if _is_finished(folder, i, tokenizer, checks)}
    if os.path.lexists(folder / "meta.json") and _describes(
        folder, lambda: _complete(folder, recipe, tokenizer, fingerprint, len(units), finished)
    ):
        save_tokenizer(folder, tokenizer)
        return Manifest.read(folder)
    todo = [i for i in range(len(units)) if i not in finished]
    left = None if recipe.max_tokens is None else max(recipe.max_tokens - _tokens(folder, finished), 1)
    n_bytes, enough = sum(units[i].size for i in todo), partial(_enough, folder, recipe)
    if (n_workers := min(workers, len(todo))) > 1:
        pool = ShardPool(recipe, tokenizer, n_workers, lock)  # forks before the bar starts a thread
        with Meter(n_bytes, left, progress) as meter:
            pool.write(folder, units, todo, enough, meter)
    else:
        with Meter(n_bytes, left, progress) as meter:
            write_here(folder, recipe, tokenizer, units, todo, enough, meter)
    manifest = _manifest(folder, recipe, tokenizer, fingerprint, len(units))
    save_tokenizer(folder, tokenizer)
    if not manifest.documents:
        rule = f"must contain at least one text that is not empty; skipped {dict(manifest.skipped) or 'none'}"
        raise DataError(f"data.path={recipe.path!r}: {rule}")
    for number in range(len(manifest.shards), len(units)):  # written before earlier ones reached the limit
        for path in ((folder / shard_name(number)), (folder / shard_name(number)).with_suffix(SKIPPED)):
            path.unlink(missing_ok=True)
    manifest.write(folder)
    return manifest


def _describes(folder: Path, complete: Callable[[], Manifest | None]) -> bool:
    """Return whether meta.json equals the result of `complete`; remove it if it differs or is damaged."""
    try:
        if Manifest.read(folder) == complete():
            return True
        log.warning("%s no longer describes the shards: writing it again", folder / "meta.json")
    except DamagedStore as damage:
        log.warning("damaged, writing it again: %s", damage)
    (folder / "meta.json").unlink()
    return False


def _complete(
    folder: Path, recipe: Recipe, tokenizer: Tokenizer, fingerprint: str, n_units: int, finished: set[int]
) -> Manifest | None:
    """Return the manifest if the finished shards are sufficient, else None."""
    first = next((i for i in range(n_units) if i not in finished), n_units)
    manifest = _manifest(folder, recipe, tokenizer, fingerprint, first)
    enough = first == n_units or _reaches(recipe, manifest.documents, manifest.tokens)
    return manifest if enough else None


def _manifest(folder: Path, recipe: Recipe, tokenizer: Tokenizer, fingerprint: str, n_units: int) -> Manifest:
    """Return the manifest of the first `n_units` shards, which must be finished."""
    shards = _counted(folder, recipe, n_units)
    skipped = dict(skipped_documents(folder, len(shards)))
    return Manifest(fingerprint, recipe.as_dict(), tokenizer.as_meta(), shards, skipped)


def _claim(folder: Path, recipe: Recipe, tokenizer: Tokenizer, units: list[Unit]) -> str:
    """Write plan.json, or check that it describes the same plan; return the fingerprint of the plan."""
    fingerprint = plan_fingerprint(recipe, tokenizer.fingerprint, units)
    path = folder / PLAN
    try:
        plan = read_json(path, MOST_PLAN_BYTES, "")
    except DamagedStore as damage:
        plan = {}
        if os.path.lexists(path):
            log.warning("damaged, writing it again: %s", damage)
    if plan.get("fingerprint") == fingerprint:
        return fingerprint
    shards = next(folder.glob("*.bin"), None) is not None
    if not plan and shards and not _is_of(folder, fingerprint):
        rule = "contains .bin files but no plan.json; remove the folder or choose another data.out"
        raise DataError(f"data.out={str(folder)!r}: {rule}")
    if plan and (shards or os.path.lexists(folder / "meta.json")):
        differing = differences(plan.get("recipe"), recipe.as_dict())
        rule = f"contains shards of different settings ({differing})"
        if not differing:
            rule = "contains shards of the same settings, but the source or the tokenizer has changed since"
        raise DataError(f"data.out={str(folder)!r}: {rule}; remove the folder or choose another")
    content = {"fingerprint": fingerprint, "recipe": recipe.as_dict(), "units": len(units)}
    write_atomic(path, json.dumps(content, indent=2) + "\n")
    return fingerprint


def _is_of(folder: Path, fingerprint: str) -> bool:
    """Return whether a folder is complete and has this fingerprint. Does not need plan.json."""
    try:
        return Manifest.read(folder).fingerprint == fingerprint
    except DamagedStore:
        return False


def _is_finished(folder: Path, number: int, tokenizer: Tokenizer, checks: Checks) -> bool:
    """Return whether shard `number` exists and is undamaged; remove a damaged one.

    A shard with another number of bytes per token, which an earlier version may have written, does not count:
    all shards of a folder must have the same format.
    """
    path = folder / shard_name(number)
    try:
        store = TokenStore(path, tokenizer.vocab_size)
        checks.check(store)
    except FileNotFoundError:
        return False
    except DamagedStore as damage:
        log.warning("damaged shard, writing it again: %s", damage)
        path.unlink()
        return False
    try:
        skipped_documents(folder, number + 1, number)
    except DamagedStore:
        return False
    same = store.dtype.itemsize == tokenizer.dtype.itemsize
    return same and store.header.tokenizer == bytes.fromhex(tokenizer.fingerprint)[:12]


def _enough(folder: Path, recipe: Recipe, number: int) -> bool:
    """Return whether the finished shards before `number` reach a limit. Those being written can only add."""
    if recipe.max_documents is None and recipe.max_tokens is None:
        return False
    documents = tokens = 0
    for earlier in range(number):
        path = folder / shard_name(earlier)
        if path.exists():
            header = read_header(path)
            documents, tokens = documents + header.n_documents, tokens + header.n_tokens
    return _reaches(recipe, documents, tokens)


def _reaches(recipe: Recipe, documents: int, tokens: int) -> bool:
    enough = recipe.max_documents is not None and documents >= recipe.max_documents
    return enough or (recipe.max_tokens is not None and tokens >= recipe.max_tokens)


def _counted(folder: Path, recipe: Recipe, n_units: int) -> list[Shard]:
    """Return the shards in order, up to the document that reaches a limit."""
    shards: list[Shard] = []
    documents = tokens = 0
    for number in range(n_units):
        if _reaches(recipe, documents, tokens):
            break
        store = TokenStore(folder / shard_name(number))
        count = store.n_documents
        if recipe.max_documents is not None:
            count = min(count, recipe.max_documents - documents)
        if recipe.max_tokens is not None:
            last = int(np.searchsorted(store.offsets, recipe.max_tokens - tokens, side="left"))
            count = min(count, last)
        shards.append(Shard(store.path.name, count, int(store.offsets[count]), store.header.crc))
        documents, tokens = documents + count, tokens + shards[-1].tokens
    return shards


def _tokens(folder: Path, numbers: Iterable[int]) -> int:
    """Return the total number of tokens in these shards, which must be finished."""
    return sum(read_header(folder / shard_name(number)).n_tokens for number in numbers)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _locked(folder: Path) -> Iterator[TextIO]:
    """Hold the folder's lock: only one process at a time may prepare it.

    The system releases the lock when the process ends, even if it is killed.
    """
    with open_lock(folder / LOCK) as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            rule = "is being prepared by another process"
            raise DataError(f"data.out={str(folder)!r}: {rule}; wait for it") from error
        except OSError as error:
            rule = "the file system has no locks; do not prepare this folder twice at the same time"
            log.warning("data.out=%r: %s (%s)", str(folder), rule, error)
        yield stream
