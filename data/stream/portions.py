"""A source in portions: units that are tokenized during training, then packed and shuffled together."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from lhtrain.data.errors import DamagedStore, DataError
from lhtrain.data.prepare.split import Split
from lhtrain.data.store.checks import Checks
from lhtrain.data.store.tokens import TokenStore
from lhtrain.data.stream.job import Job
from lhtrain.data.stream.shelf import Shelf
from lhtrain.data.stream.workers import Workers
from lhtrain.data.tokenizers.base import Tokenizer

ATTEMPTS = 4  # to open a shard that other processes remove or damage
RECENT = 3  # portions whose shards stay on the disk: the previous, the current and the next one
LONGEST_PAUSE = 0.2  # seconds between checks whether a shard exists

log = logging.getLogger(__name__)


class Portion(NamedTuple):
    """Consecutive units. stop: the index of the unit behind them. split: their documents to train on."""

    stop: int
    split: Split


class Stream:
    """The portions of a source, which other processes tokenize before they are needed.

    A portion has the smallest number of units that have `n_tokens` tokens together, and does not extend into
    the next epoch. So its end depends only on its beginning, not on the process that reads it.

    Args:
        tokenizer: that of job.recipe.
        n_tokens: least number of tokens of a portion.
        workers: number of processes; None: by the number of cores.
        checks: the record of shards whose checksum was compared; None: none is compared.
    """

    def __init__(
        self,
        job: Job,
        tokenizer: Tokenizer,
        n_tokens: int,
        workers: int | None = None,
        checks: Checks | None = None,
    ) -> None:
        self.job, self.n_tokens = job, n_tokens
        self.excluded = np.empty(0, np.uint64)  # hashes of the documents that are not trained on
        self._tokenizer, self._checks = tokenizer, checks
        self._shelf, self._workers = Shelf(job.folder, job.most_bytes), Workers(job, workers)
        self._recent: deque[range] = deque(maxlen=RECENT)
        self._first = range(0)  # the units of the first portion, which is opened at each start
        self._lock, self._closed = threading.Lock(), False

    @property
    def n_units(self) -> int:
        """Number of units in an epoch."""
        return len(self.job.units)

    def portion(self, begin: int, advance: Callable[[int], object] = lambda n_tokens: None) -> Portion:
        """Return the portion that begins with the unit of this index; waits until it is tokenized.

        Raises DataError: the source cannot be read, the cache cannot be written, or the stream is closed.
        """
        with self._lock:
            self._workers.follow(begin)
            stores: list[TokenStore] = []
            index, end, n_tokens = begin, (begin // self.n_units + 1) * self.n_units, 0
            while index < end and n_tokens < self.n_tokens:
                self._hold(range(begin, index + 1))
                stores.append(self._store(begin, index))
                n_tokens += stores[-1].n_tokens
                advance(stores[-1].n_tokens)
                index += 1
            self._recent.append(range(begin, index))
            if begin == 0:
                self._first = range(index)
        split = Split.whole(*stores)
        if len(self.excluded):
            hashes = np.concatenate([store.hashes for store in stores])
            split = split.only(~np.isin(hashes, self.excluded))
        return Portion(index, split)

    def close(self) -> None:
        """End the processes, and let a thread that waits for a portion end with an error."""
        self._closed = True
        self._workers.close()

    def _hold(self, units: range) -> None:
        indices = {*self._first, *units, *(index for recent in self._recent for index in recent)}
        self._shelf.hold({self.job.unit_at(index) for index in indices})

    def _store(self, begin: int, index: int) -> TokenStore:
        """Return the shard of a unit, once it is there and undamaged."""
        number = self.job.unit_at(index)
        path = self._shelf.path(number)
        for _ in range(ATTEMPTS):
            self._wait_for(number, begin, index)
            try:
                return self._opened(number)
            except FileNotFoundError:
                pass
            except DamagedStore as damage:
                log.warning("damaged shard, writing it again: %s", damage)
                path.unlink(missing_ok=True)
        rule = f"{path.name} was removed or damaged {ATTEMPTS} times while it was in use"
        raise DataError(f"data.cache_dir={str(path.parents[1])!r}: {rule}")

    def _opened(self, number: int) -> TokenStore:
        path = self._shelf.path(number)
        store = TokenStore(path, self._tokenizer.vocab_size)
        if store.header.tokenizer != bytes.fromhex(self._tokenizer.fingerprint)[:12]:
            raise DamagedStore(f"{str(path)!r}: must have tokens of {self._tokenizer.name}")
        if self._checks is not None:
            self._checks.check(store)
        return store

    def _wait_for(self, number: int, begin: int, index: int) -> None:
        if self._shelf.has(number):
            return
        self._workers.need(begin, index + 1)
        pause = LONGEST_PAUSE / 64
        while not self._shelf.has(number):
            if self._closed:
                raise DataError("data: reading has ended")
            self._workers.check(number)
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
