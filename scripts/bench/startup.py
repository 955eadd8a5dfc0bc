"""Compare two checkouts: how long commands take that do not train. The checkouts take turns.

    git worktree add /tmp/old 3ee40e6
    python scripts/bench/startup.py /tmp/old . --repeat 5
    python scripts/bench/startup.py /tmp/old . --first-step        # the start of the default run

Prints for each command the smallest wall-clock and CPU seconds (user + system) of both, and their ratio.
`--first-step` measures instead the time until the default run has logged its first step, in seconds and
relative to `import torch`.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

COMMANDS = {
    "--help": ["--help"],
    "a mistyped key": ["model.n_layer=3"],
    "--cfg job": ["--cfg", "job"],
    "estimate": ["estimate", "model=lighthouse_530m"],
    "slurm submit --dry-run": ["slurm", "submit", "--dry-run", "cluster.partition=gpu", "run.dir=runs/a"],
}
IMPORT_TORCH = ["-c", "import torch"]


def timed(checkout: Path, arguments: list[str], folder: Path) -> tuple[float, float]:
    """Return wall-clock and CPU seconds of `python ARGUMENTS` with the checkout's package."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def until_first_step(checkout: Path, folder: Path) -> tuple[float, float]:
    """Return wall-clock and CPU seconds until the default run has logged its first step; then kill it."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory(dir=folder) as place:
        rows = Path(place, "run", "metrics.jsonl")
        command = [sys.executable, "-m", "lhtrain", "run.log_every=1", f"run.dir={place}/run"]
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while process.poll() is None and not (rows.exists() and rows.stat().st_size):
            time.sleep(0.005)
        wall = time.perf_counter() - began
        if process.poll() is not None:
            raise SystemExit(f"{checkout}: the run ended before its first step, status {process.returncode}")
        process.kill()
        process.wait()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def least(measures: list[Callable[[], tuple[float, float]]], repeat: int) -> list[tuple[float, float]]:
    """Return the smallest wall-clock and CPU seconds of each measurement; the measurements take turns."""
    found: list[list[tuple[float, float]]] = [[] for _ in measures]
    for _ in range(repeat):
        for number, measure in enumerate(measures):
            found[number].append(measure())
    return [(min(wall for wall, _ in runs), min(cpu for _, cpu in runs)) for runs in found]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", type=Path, help="checkout to compare with")
    parser.add_argument("new", type=Path, help="checkout to measure")
    parser.add_argument("--repeat", type=int, default=5, help="repetitions of each command")
    parser.add_argument("--first-step", action="store_true", help="measure the start of the default run")
    arguments = parser.parse_args()
    checkouts = [path.resolve() for path in (arguments.old, arguments.new)]
    print("| | old, s (CPU s) | new, s (CPU s) | new / old |\n|---|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name, words in {} if arguments.first_step else COMMANDS.items():
            line = ["-m", "lhtrain", *words]
            old, new = least([partial(timed, path, line, folder) for path in checkouts], arguments.repeat)
            print(row(name, old, new), flush=True)
        if arguments.first_step:
            measures = [partial(until_first_step, path, folder) for path in checkouts]
            measures += [partial(timed, checkouts[1], IMPORT_TORCH, folder)]
            old, new, torch = least(measures, arguments.repeat)
            print(row("first step of the default run", old, new))
            print(
                row(
                    "first step / `import torch`",
                    *(tuple(x / y for x, y in zip(one, torch, strict=True)) for one in (old, new)),
                )
            )


def row(name: str, old: tuple[float, ...], new: tuple[float, ...]) -> str:
    cells = (f"{wall:.2f} ({cpu:.2f})" for wall, cpu in (old, new))
    return f"| {name} | {' | '.join(cells)} | {new[0] / old[0]:.2f} ({new[1] / old[1]:.2f}) |"


if __name__ == "__main__":
    main()
