"""Context-parallel ranks as threads of one process: collectives that exchange through memory."""

import threading
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import torch

from lhtrain.context_parallel import collectives, ring

PATIENCE = 60.0  # seconds that a rank waits for the others before the test fails


class ThreadRanks:
    """`size` ranks. `run(function)` calls function(rank) on each, at once; returns what each returned."""

    def __init__(self, size, monkeypatch):
        self.size = size
        self._here = threading.local()
        self._barrier = threading.Barrier(size, timeout=PATIENCE)
        self._values = [None] * size
        self._arriving = [SimpleQueue() for _ in range(size)]
        for module in (collectives, ring):
            monkeypatch.setattr(module, "group_of", lambda name: name)
            monkeypatch.setattr(module, "dist", self)
        monkeypatch.setattr(ring, "_pass_on", self.pass_on)

    def run(self, function):
        def on(rank):
            self._here.rank = rank
            # On a GPU, autograd would run the backward passes of all ranks one after the other in one thread.
            with torch.autograd.set_multithreading_enabled(False):
                return function(rank)

        with ThreadPoolExecutor(self.size) as pool:
            return list(pool.map(on, range(self.size)))

    def exchange(self, value):
        """Every rank's value, by rank."""
        self._values[self._here.rank] = value
        self._barrier.wait()
        values = list(self._values)
        self._barrier.wait()
        return values

    def pass_on(self, x, members):
        rank = self._here.rank
        self._arriving[(rank + 1) % self.size].put(x.clone())
        return lambda: self._arriving[rank].get(timeout=PATIENCE)

    # The functions of torch.distributed that context parallelism calls.
    def get_rank(self, group):
        return self._here.rank

    def get_world_size(self, group):
        return self.size

    def all_to_all_single(self, out, x, group):
        out.copy_(torch.stack([part[self._here.rank] for part in self.exchange(x.clone())]))

    def all_gather(self, parts, x, group):
        for part, value in zip(parts, self.exchange(x.clone()), strict=True):
            part.copy_(value)

    def all_reduce(self, x, group):
        x.copy_(torch.stack(self.exchange(x.clone())).sum(0))
