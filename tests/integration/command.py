"""Run the `lhtrain` command on a small text and read its run directory."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.integration.forked import Forked
from tests.small_texts import write_texts

ROOT = Path(__file__).parents[2]

# A model whose steps take a few hundredths of a second; two stages, the shortest possible sequence.
TINY = [
    *("model.seq_len=2048", "model.dim=32", "model.n_layers=2", "model.ffn_dim=64", "run.device=cpu"),
    *("run.steps=16", "run.batch_tokens=4096", "run.grad_accum=2", "eval.tokens=4096", "eval.every=6"),
    "checkpoint.every=5",
]


@dataclass
class Run:
    """A run directory after its command ended."""

    path: Path
    status: int
    out: str
    err: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.path / "metrics.jsonl").read_text().splitlines()]

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.path / "summary.json").read_text())

    @property
    def trace(self) -> list[tuple]:
        """All rows without times: two runs must have the same, bit for bit."""
        timed = ("seconds", "step_seconds", "tokens_per_second", "mfu")
        return [tuple(sorted((k, v) for k, v in row.items() if k not in timed)) for row in self.rows]

    @property
    def checkpoints(self) -> list[str]:
        return sorted(path.name for path in (self.path / "checkpoints").iterdir())


class Lhtrain:
    """The command with its own data and cache."""

    def __init__(self, folder: Path):
        self.folder = folder
        write_texts(folder / "text")
        self.data = ["data=text", f"data.path={folder / 'text'}", f"data.cache_dir={folder / 'cache'}"]
        self.forked = not torch.cuda.is_available()  # False: every process does its own imports
        self.environment = os.environ | {"OMP_NUM_THREADS": "1", "WANDB_SILENT": "true"}

    def start(
        self, name: str, *overrides: str, ranks: int = 1, through: Sequence[str] = ()
    ) -> subprocess.Popen | Forked:
        """ranks: number of ranks, started by torchrun. through: a command that runs its arguments."""
        arguments = [*self.data, *TINY, f"run.dir={self.folder / name}", *overrides]
        if not any(override.startswith("stage=") for override in overrides):
            arguments.append("stages.lighthouse.fraction=0.5")  # the stage switch is in the middle of the run
        if self.forked and ranks == 1 and not through:
            return Forked(arguments, self.folder, self.environment)
        launch = ["-m", "torch.distributed.run", f"--nproc-per-node={ranks}", "--rdzv-backend=c10d"]
        launch += ["--rdzv-endpoint=localhost:0"]
        python = [sys.executable, *(launch if ranks > 1 else ()), "-m", "lhtrain"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(
            [*through, *python, *arguments], cwd=self.folder, env=self.environment, **pipes
        )

    def __call__(self, name: str, *overrides: str, status: int = 0, ranks: int = 1) -> Run:
        process = self.start(name, *overrides, ranks=ranks)
        out, err = process.communicate()
        assert process.returncode == status, f"status {process.returncode}, not {status}\n{out}\n{err}"
        return Run(self.folder / name, process.returncode, out, err)

    def kill_after(
        self,
        name: str,
        step: int,
        *overrides: str,
        with_signal: int = signal.SIGKILL,
        ranks: int = 1,
        victims: Sequence[int] = (),
    ) -> Run:
        """Send the signal as soon as `step` is printed; runs of under 40 steps print every step.

        Of several ranks the `victims` get it, or, if none are named, all of them and what started them.
        """
        process = self.start(name, *overrides, ranks=ranks)
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("step") and int(line.split()[1].split("/")[0]) >= step:
                if ranks > 1:
                    chosen = victims or range(ranks)
                    if not all(self._whereabouts(name, rank).exists() for rank in chosen):
                        continue  # the machine is busy; try the next step
                    for pid in [self.pid(name, rank) for rank in chosen]:
                        os.kill(pid, with_signal)
                if not victims:
                    process.send_signal(with_signal)
                break
        rest, err = process.communicate()
        return Run(self.folder / name, process.returncode, "".join(lines) + rest, err)

    def pid(self, name: str, rank: int) -> int:
        """The process id of a rank, from the file that its watchdog wrote."""
        return json.loads(self._whereabouts(name, rank).read_text())["pid"]

    def _whereabouts(self, name: str, rank: int) -> Path:
        return self.folder / name / "ranks" / f"{rank}.json"

    def bare(self, *arguments: str) -> subprocess.CompletedProcess:
        """Run `lhtrain ARGUMENTS`."""
        if self.forked:
            done = Forked(arguments, self.folder, self.environment)
            out, err = done.communicate()
            return subprocess.CompletedProcess(done.args, done.returncode, out, err)
        command = [sys.executable, "-m", "lhtrain", *arguments]
        return subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True)
