"""`prepare`: a source into a folder of shards, in parallel, again and again until it is complete.

The plan lists the units in an order of its own; unit i becomes shard i, whoever writes it. A finished shard
is there under its name, an unfinished one is not; meta.json is written when all are there.
"""

import fcntl
import hashlib
import json
import logging
import multiprocessing
import os
import shutil
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from lhtrain.data.errors import DamagedStore, DataError
from lhtrain.data.manifest import Manifest, Shard
from lhtrain.data.plan import Unit, make_plan, plan_hash
from lhtrain.data.progress import Meter
from lhtrain.data.recipe import PREPARABLE, Recipe
from lhtrain.data.shard import SKIPPED, write_shard
from lhtrain.data.source import LOCK
from lhtrain.data.store import TokenStore, read_header
from lhtrain.data.tokenizer import Tokenizer, open_tokenizer

PLAN = "plan.json"

log = logging.getLogger(__name__)


def prepare(recipe: Recipe, folder: Path, workers: int | None = None, progress: bool = True) -> Manifest:
    """Tokenize `recipe` into `folder` and return what is there; what is there already is kept.

    Args:
        workers: processes; None takes one a core. What is written does not depend on it.
        progress: a bar with tokens/s and time left on a terminal, else a line now and then; on stderr.

    Raises:
        DataError: anything wrong with the source or the folder, a full disk, a killed process. Shards that
            are finished stay; the same call goes on after them.
    """
    if recipe.source not in PREPARABLE:
        rule = f"must be one of {', '.join(PREPARABLE)} to be prepared"
        raise DataError(f"data.source={recipe.source!r}: {rule}")
    tokenizer = open_tokenizer(recipe.tokenizer, recipe.bos, recipe.eos)
    with _disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            return _prepare(recipe, folder, tokenizer, workers or _cores(), progress)


def shard_name(number: int) -> str:
    return f"{number:05}.bin"


def _prepare(recipe: Recipe, folder: Path, tokenizer: Tokenizer, workers: int, progress: bool) -> Manifest:
    units = make_plan(recipe)
    fingerprint = _claim(folder, recipe, tokenizer, units)
    for leftover in folder.glob(".*.bin.*"):
        leftover.unlink()  # of a killed process; the lock says that nobody writes it now
    finished = {i for i in range(len(units)) if _is_finished(folder, i, tokenizer)}
    if (folder / "meta.json").exists():
        try:
            manifest = Manifest.read(folder)
            if all(i in finished for i in range(len(manifest.shards))):
                return manifest
        except DamagedStore as damage:
            log.warning("writing it again: %s", damage)
        (folder / "meta.json").unlink()
    todo = [i for i in range(len(units)) if i not in finished]
    left = None if recipe.max_tokens is None else max(recipe.max_tokens - _tokens(folder, finished), 1)
    with Meter(sum(units[i].size for i in todo), left, progress) as meter:
        _write_shards(folder, recipe, units, finished, min(workers, max(len(todo), 1)), meter)
    shards = _counted(folder, recipe, len(units))
    _save_tokenizer(folder, tokenizer)
    skipped = _skipped(folder, len(shards))
    manifest = Manifest(fingerprint, recipe.as_dict(), tokenizer.as_meta(), shards, dict(skipped))
    if not manifest.documents:
        rule = f"no document is left; skipped {dict(skipped) or 'none'}"
        raise DataError(f"data.path={recipe.path!r}: must hold at least one text that is not empty: {rule}")
    for number in range(len(shards), len(units)):  # written ahead of a limit that earlier ones reached
        for path in ((folder / shard_name(number)), (folder / shard_name(number)).with_suffix(SKIPPED)):
            path.unlink(missing_ok=True)
    manifest.write(folder)
    return manifest


def _claim(folder: Path, recipe: Recipe, tokenizer: Tokenizer, units: list[Unit]) -> str:
    """Write plan.json, or check that it is of the same plan; returns the hash of what decides the tokens."""
    told = [recipe.as_dict() | {"path": None, "tokenizer": None}, tokenizer.fingerprint, plan_hash(units)]
    fingerprint = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]
    path = folder / PLAN
    if path.exists():
        try:
            there = json.loads(path.read_text())
        except ValueError:
            there = {}
        if there.get("fingerprint") == fingerprint:
            return fingerprint
        if there.get("recipe") == recipe.as_dict():
            rule = "holds shards of the same settings, but the source or the tokenizer has changed since"
        else:
            rule = "holds shards of other data settings"
        raise DataError(f"data.out={str(folder)!r}: {rule}; remove it or give another data.out")
    if next(folder.glob("*.bin"), None):
        raise DataError(f"data.out={str(folder)!r}: holds .bin files of something else; give another folder")
    aside = folder / f".{PLAN}"
    content = {"fingerprint": fingerprint, "recipe": recipe.as_dict(), "units": len(units)}
    aside.write_text(json.dumps(content, indent=2) + "\n")
    aside.replace(path)
    return fingerprint


def _is_finished(folder: Path, number: int, tokenizer: Tokenizer) -> bool:
    """Whether shard `number` is there, whole as far as its header and size tell; a damaged one is removed.
    One of another width, which earlier versions wrote, is not finished: a folder's shards are of one kind."""
    path = folder / shard_name(number)
    try:
        header = read_header(path)
    except FileNotFoundError:
        return False
    except DamagedStore as damage:
        log.warning("writing the damaged shard again: %s", damage)
        path.unlink()
        return False
    try:
        json.loads(path.with_suffix(SKIPPED).read_text())
    except (FileNotFoundError, ValueError):
        return False
    same = header.itemsize == tokenizer.dtype.itemsize
    return same and header.tokenizer == bytes.fromhex(tokenizer.fingerprint)[:12]


def _write_shards(
    folder: Path, recipe: Recipe, units: list[Unit], finished: set[int], workers: int, meter: Meter
) -> None:
    """Write what is not finished, in order, up to the first shards that reach the recipe's limits."""
    waiting = [i for i in range(len(units)) if i not in finished]
    if workers == 1:
        _start_worker(recipe, None)
        for number in waiting:
            if _enough(folder, recipe, number):
                return
            _work(folder, number, units[number], meter.advance)
        return
    context = multiprocessing.get_context("spawn")
    counts = context.Array("q", 3)  # bytes of source, tokens, whether to stop
    pool = ProcessPoolExecutor(workers, context, _start_worker, (recipe, counts))
    running: dict[Future[None], int] = {}
    try:
        while waiting or running:
            if _enough(folder, recipe, min([*running.values(), *waiting[:1]])):
                return  # what still runs would be left out
            while waiting and len(running) < workers and not _enough(folder, recipe, waiting[0]):
                number = waiting.pop(0)
                running[pool.submit(_work, folder, number, units[number])] = number
            done, _ = wait(running, timeout=0.25, return_when=FIRST_COMPLETED)
            meter.show(*counts[:2])
            for future in done:
                del running[future]
                future.result()
    except BrokenProcessPool as error:
        rule = "a worker process was killed, perhaps for lack of memory: try fewer data.workers; "
        raise DataError(f"data.workers={workers}: {rule}finished shards stay") from error
    finally:
        counts[2] = True
        pool.shutdown(wait=True, cancel_futures=True)


class _Stopped(Exception):
    """Nobody waits for this shard any more."""


_worker: dict[str, Any] = {}


def _start_worker(recipe: Recipe, counts: Any) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    _worker.update(
        recipe=recipe, counts=counts, tokenizer=open_tokenizer(recipe.tokenizer, recipe.bos, recipe.eos)
    )
    if counts is not None:  # a process of its own
        threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Where prepare is killed, its workers would finish their shards, beside those of the next prepare, and
    then wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(folder: Path, number: int, unit: Unit, advance: Any = None) -> None:
    def count(n_bytes: int, n_tokens: int) -> None:
        counts = _worker["counts"]
        with counts.get_lock():
            counts[0] += n_bytes
            counts[1] += n_tokens
        if counts[2]:
            raise _Stopped

    path = folder / shard_name(number)
    with _disk_errors(folder):
        write_shard(path, unit, _worker["recipe"], _worker["tokenizer"], advance or count)


def _enough(folder: Path, recipe: Recipe, number: int) -> bool:
    """Whether the shards before `number` that are there reach a limit. Those being written can only add."""
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
    """The shards in order, up to the document that reaches a limit."""
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
    """Tokens of these shards together, which are there."""
    return sum(read_header(folder / shard_name(number)).n_tokens for number in numbers)


def _skipped(folder: Path, n_shards: int) -> Counter[str]:
    """Documents skipped in the first shards."""
    total: Counter[str] = Counter()
    for number in range(n_shards):
        total.update(json.loads((folder / shard_name(number)).with_suffix(SKIPPED).read_text()))
    return total


def _save_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    path = getattr(tokenizer, "path", None)
    if path is not None:
        shutil.copyfile(path, folder / "tokenizer.json")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process prepares a folder at a time. The lock goes with the process, even a killed one."""
    with (folder / LOCK).open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            rule = "is being prepared by another process"
            raise DataError(f"data.out={str(folder)!r}: {rule}; wait for it") from error
        yield


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        rule = "must be writable, with room for the shards"
        text = f"data.out={str(folder)!r}: {rule} ({error.strerror or error}); finished shards stay, and the"
        raise DataError(f"{text} same command goes on after them") from error
