"""Starts the processes that tokenize a source during training, and reads the errors that they report."""

import json
import os
import pickle
import subprocess
import sys
import threading
import weakref
from contextlib import suppress
from pathlib import Path
from typing import IO

import lhtrain
from lhtrain.data.errors import DataError
from lhtrain.data.stream.job import Job

MOST = 8  # processes of a rank, by default
PATIENCE = 5.0  # seconds until a process that was asked to end is killed


class Workers:
    """The processes of one reader. They start at the first `need` and end with this object or this process.

    count: number of processes; None: a share of the cores for each rank on this machine.
    """

    def __init__(self, job: Job, count: int | None = None) -> None:
        self.job, self.count = job, count or _cores()
        self._processes: list[subprocess.Popen] = []
        self._failed: dict[int, str] = {}  # unit -> why its last attempt failed

    def need(self, low: int, high: int) -> None:
        """Let the units from index low to before high be written now, and others behind them later.

        Units that failed are tried again.
        """
        self._failed.clear()
        if not self._processes:
            self._start()
        for process in self._processes:
            self._send(process, f"{low} {high}\n".encode())

    def follow(self, low: int) -> None:
        """Let the processes, if they run, write ahead from the unit of this index on."""
        for process in self._processes:
            self._send(process, f"{low} {low}\n".encode())

    def check(self, number: int) -> None:
        """Raise DataError if a unit could not be written, or a process has ended."""
        if message := self._failed.get(number):
            raise DataError(message)
        ended = [process for process in self._processes if process.poll() is not None]
        if ended:
            status = ended[0].returncode
            why = (
                "perhaps for lack of memory; set fewer data.workers" if status < 0 else "see its error above"
            )
            rule = f"a process that tokenizes the data has ended with status {status}, {why}"
            raise DataError(f"data.workers={self.count}: {rule}")

    def close(self) -> None:
        """End the processes."""
        processes, self._processes = self._processes, []
        _end(processes)

    def _start(self) -> None:
        root = str(Path(lhtrain.__file__).parents[1])
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        command = [sys.executable, "-m", "lhtrain.data.stream.worker"]
        for _ in range(self.count):
            # In a session of its own, Ctrl-C in the terminal does not reach it.
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=os.environ | {"PYTHONPATH": path},
                start_new_session=True,
            )
            self._processes.append(process)
            assert process.stdout is not None
            threading.Thread(target=_listen, args=(process.stdout, self._failed), daemon=True).start()
        weakref.finalize(self, _end, self._processes)
        for process in self._processes:
            self._send(process, pickle.dumps(self.job))

    @staticmethod
    def _send(process: subprocess.Popen, message: bytes) -> None:
        assert process.stdin is not None
        try:
            process.stdin.write(message)
            process.stdin.flush()
        except BrokenPipeError:
            process.wait()  # `check` reports it


def _listen(lines: IO[bytes], failed: dict[int, str]) -> None:
    with lines:
        for line in lines:
            found = json.loads(line)
            failed[found["unit"]] = found["message"]


def _end(processes: list[subprocess.Popen]) -> None:
    for process in processes:
        assert process.stdin is not None
        with suppress(BrokenPipeError):
            process.stdin.close()
    for process in processes:
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:  # its disk hangs
            process.kill()


def _cores() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    ranks = os.environ.get("LOCAL_WORLD_SIZE", "1")  # of torchrun; srun gives each rank its cores
    return max(min(cores // max(int(ranks) if ranks.isdecimal() else 1, 1), MOST), 1)
