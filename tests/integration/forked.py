"""The command `lhtrain`, forked from a process that has done the imports; saves three seconds per start.

All that follows the imports is as in a process of its own: signals, status, streams, environment, directory.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
PRELOADED = ["lhtrain.cli", "lhtrain.train", "lhtrain.build", "torch.distributed.fsdp", "matplotlib.figure"]


class Forked:
    """The part of `subprocess.Popen` that tests use, for `python -m lhtrain ARGUMENTS`."""

    def __init__(self, arguments: Sequence[str], cwd: Path, env: dict[str, str]):
        multiprocessing.set_forkserver_preload(PRELOADED)
        context = multiprocessing.get_context("forkserver")
        pipes = [context.Pipe(duplex=False) for _ in range(2)]
        umask = os.umask(0)
        os.umask(umask)
        ends = [writer for _, writer in pipes]
        self.args = ["lhtrain", *arguments]
        self.process = context.Process(target=_run, args=(self.args, str(cwd), env, umask, *ends))
        self.process.start()
        for end in ends:
            end.close()
        self.stdout, self.stderr = (
            os.fdopen(os.dup(reader.fileno()), encoding="utf-8") for reader, _ in pipes
        )
        self.pid = self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self.process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self) -> tuple[str, str]:
        out = self.stdout.read()  # stderr meanwhile stays below the size of a pipe
        err = self.stderr.read()
        self.wait()
        return out, err


def _run(
    args: list[str], cwd: str, env: dict[str, str], umask: int, out: Connection, err: Connection
) -> None:
    for end, number in ((out, 1), (err, 2)):
        os.dup2(end.fileno(), number)
        end.close()
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(env)
    os.umask(umask)
    os.chdir(cwd)
    if "OMP_NUM_THREADS" in env:  # torch read the value of the process that imported it
        torch.set_num_threads(int(env["OMP_NUM_THREADS"]))
    sys.orig_argv = [sys.executable, "-m", *args]
    sys.argv = [str(ROOT / "lhtrain" / "__main__.py"), *args[1:]]
    from lhtrain.__main__ import main

    main()
