"""A process that tokenizes units of a source before a run reads them: `python -m lhtrain.data.stream.worker`.

Standard input has a pickled Job, then lines with two numbers, the range of units that are needed now (see
`Worker`). The process ends when its standard input does, so it never outlives the run. On standard output it
writes a line of JSON for each unit that fails.
"""

import json
import os
import pickle
import signal
import sys
import threading
from typing import IO

from lhtrain.data.errors import DataError
from lhtrain.data.prepare.shard import write_shard
from lhtrain.data.stream.job import Job
from lhtrain.data.stream.shelf import Shelf
from lhtrain.data.tokenizers.named import open_tokenizer

NICE = 5  # the processes of the run come first
PAUSE = 1.0  # seconds between checks whether other processes have removed a shard, or failed


class Worker:
    """Writes the shards of a job in the order in which they are read, together with other processes.

    needed: the units from the first to before the second index are needed now. They are always written.
        Those behind are written as long as all shards from the first index on have less than job.ahead_bytes,
        and the disk space of the job suffices.
    is_needed: whether the unit that `next` claimed is one of the first kind.
    """

    def __init__(self, job: Job) -> None:
        self.job, self.shelf = job, Shelf(job.folder, job.most_bytes)
        self.tokenizer = open_tokenizer(job.recipe.tokenizer, job.recipe.bos, job.recipe.eos)
        self.needed, self.is_needed = (0, 0), False
        self.failed: set[int] = set()

    def next(self) -> int | None:
        """Claim the next unit to write and return its number; None: there is nothing to do now."""
        low, high = self.needed
        sizes, kept, ahead = self.shelf.sizes(), set(), 0
        mean = sum(sizes.values()) // max(len(sizes), 1)
        for index in range(low, low + len(self.job.units)):
            number = self.job.unit_at(index)
            ahead += sizes.get(number, 0)
            kept.add(number)
            self.is_needed = index < high
            if number in sizes or (number in self.failed and not self.is_needed):
                continue  # a unit that failed is tried again when it is needed: the network may be back
            if not self.is_needed and ahead >= self.job.ahead_bytes:
                return None
            if not self.shelf.claim(number):
                continue
            room = self.shelf.make_room(mean, kept)
            if (room or self.is_needed) and not self.shelf.has(number):
                return number
            self.shelf.release(number)
            if not room:
                return None
        return None  # other processes write what is left

    def write(self, number: int) -> str | None:
        """Write the shard of a claimed unit; return why that failed, if it did."""
        try:
            write_shard(self.shelf.path(number), self.job.units[number], self.job.recipe, self.tokenizer)
        except DataError as error:
            self.failed.add(number)
            return str(error)
        except OSError as error:
            self.failed.add(number)
            reason = error.strerror or str(error)
            if error.filename and not os.fspath(error.filename).startswith(str(self.shelf.folder)):
                return f"data.path: {error.filename!r}: must be readable until the run ends ({reason})"
            rule = f"must be writable, with enough free space ({reason})"
            return f"data.cache_dir={str(self.shelf.folder.parent)!r}: {rule}"
        except MemoryError:
            self.failed.add(number)
            return "there is not enough memory to tokenize the data; set fewer data.workers"
        finally:
            self.shelf.release(number)
        return None


def main() -> None:
    for sent in (signal.SIGINT, signal.SIGTERM):  # the run saves a checkpoint first, and may need data
        signal.signal(sent, signal.SIG_IGN)
    os.nice(NICE)
    os.environ.update(TOKENIZERS_PARALLELISM="false", HF_DATASETS_DISABLE_PROGRESS_BARS="1")
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print does not mix with the lines above
    worker, changed = Worker(pickle.load(sys.stdin.buffer)), threading.Event()
    threading.Thread(target=_listen, args=(worker, changed), daemon=True).start()
    while True:
        changed.clear()
        number = worker.next()
        if number is None:
            changed.wait(PAUSE)
        elif (message := worker.write(number)) and worker.is_needed:
            _tell(out, number, message)
            changed.wait()  # the run ends, or another process writes the unit


def _listen(worker: Worker, changed: threading.Event) -> None:
    for line in sys.stdin.buffer:
        low, high = line.split()
        worker.needed = int(low), int(high)
        changed.set()
    os._exit(0)


def _tell(out: IO[str], number: int, message: str) -> None:
    out.write(json.dumps({"unit": number, "message": message}) + "\n")
    out.flush()


if __name__ == "__main__":
    main()
