"""Kill a run many times at random moments, resume it, and compare it with a run that was never killed.

    python scripts/soak.py --kills 100              one rank
    python scripts/soak.py --kills 100 --ranks 2    each kill hits one of two ranks, or both

The run saves a checkpoint at every step, and some disk syncs are slowed down, so that kills happen during
steps, saves, renames and the stage switch. The limit for loss spikes is low, so that there are spike rows to
compare. All rows of metrics.jsonl must equal those of the other run, bit for bit. Prints what each kill
interrupted and how many steps had to be repeated.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

TINY = [
    *("model.seq_len=2048", "model.dim=32", "model.n_layers=2", "model.ffn_dim=64", "run.device=cpu"),
    *("run.batch_tokens=4096", "eval.tokens=4096", "eval.every=20", "checkpoint.every=1"),
    *("stages.lighthouse.fraction=0.5", "run.name=soak", "guard.spike=1.5"),
]
# Python imports sitecustomize when it starts. This one makes a tenth of all syncs take up to 0.5 s.
SLOW_DISK = """
import os, random, time
fsync, draw = os.fsync, random.Random(os.getpid())
def slow(file):
    if draw.random() < 0.1:
        time.sleep(draw.uniform(0, 0.5))
    fsync(file)
os.fsync = slow
"""
STEPS = 20  # steps of the run per kill
TIMED = ("seconds", "step_seconds", "tokens_per_second", "mfu")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20, help="number of kills")
    parser.add_argument("--ranks", type=int, default=1, help="number of ranks, 1 or 2")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments of the kills")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory(prefix="lhtrain-soak-") as name:
        try:
            soak(Path(name), arguments.kills, arguments.ranks, random.Random(arguments.seed))
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(128 + signal.SIGINT)
        finally:
            end_started()


def soak(folder: Path, kills: int, ranks: int, draw: random.Random) -> None:
    """Kill the run `kills` times and compare its rows. Raises SystemExit if they differ."""
    steps = STEPS * kills
    (folder / "slow").mkdir()
    (folder / "slow" / "sitecustomize.py").write_text(SLOW_DISK)
    start(folder, "alone", ranks, steps).wait()
    interrupted: Counter[str] = Counter()
    repeated = 0
    for number in range(1, kills + 1):
        what, cost = kill(folder, ranks, steps, draw)
        interrupted[what] += 1
        repeated += cost
        print(f"kill {number:>3}: during {what}, {cost} steps to repeat", flush=True)
    if newest(folder / "soaked") == steps:
        sys.exit("the run ended before the last kill, so this test proves nothing")
    start(folder, "soaked", ranks, steps).wait()
    if rows(folder / "soaked") != rows(folder / "alone"):
        sys.exit("the killed run differs from the run that was never killed")
    kinds = Counter(row["kind"] for row in rows(folder / "alone"))
    if kills >= 10 and not kinds["spike"]:
        sys.exit("there was no loss spike, so spike rows were not tested")
    print(f"equal, bit for bit, after {kills} kills: {dict(interrupted)}; {repeated} steps repeated")
    print(f"rows compared: {dict(kinds)}")


def start(folder: Path, name: str, ranks: int, steps: int) -> subprocess.Popen:
    launch = ["-m", "torch.distributed.run", f"--nproc-per-node={ranks}", "--rdzv-backend=c10d"]
    launch += ["--rdzv-endpoint=localhost:0"]
    command = [sys.executable, *(launch if ranks > 1 else ()), "-m", "lhtrain", *TINY]
    command += [
        f"run.grad_accum={2 // ranks}",
        f"run.dir={folder / name}",
        "resume=auto",
        f"run.steps={steps}",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    if name == "soaked":
        inherited = os.environ.get("PYTHONPATH")
        environment["PYTHONPATH"] = os.pathsep.join(
            [str(folder / "slow"), *([inherited] if inherited else [])]
        )
    log = (folder / f"{name}.log").open("a")
    return subprocess.Popen(command, stdout=log, stderr=log, env=environment)


def kill(folder: Path, ranks: int, steps: int, draw: random.Random) -> tuple[str, int]:
    """Start the run and kill it once. Return what was interrupted and the steps after the newest checkpoint.

    The moment is random: during the start of the run, or up to 0.8 s after its first new step.
    """
    run = folder / "soaked"
    process = start(folder, "soaked", ranks, steps)
    before = seen(run)
    if draw.random() < 0.85:
        while seen(run) <= before and process.poll() is None:
            time.sleep(0.005)
    time.sleep(draw.uniform(0, 0.8))
    workers = children(process.pid) if ranks > 1 else []
    victims = draw.sample(workers, draw.randint(1, len(workers))) if len(workers) == ranks else []
    if len(victims) in (0, ranks):  # kill all ranks, and the launcher
        process.kill()
        victims = workers
    for pid in victims:
        end(pid)
    process.wait()
    writing = any((run / "checkpoints").glob(".writing-*"))
    done, saved = seen(run), newest(run)
    if done <= before:
        return "start", 0
    what = "save" if writing else "step"
    return what + (" after the switch" if done > steps / 2 else ""), max(done - saved, 0)


def children(parent: int) -> list[int]:
    """Return the ids of the processes that `parent` started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent_of = int(path.read_text().rsplit(")", 1)[1].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        if parent_of == parent:
            found.append(int(path.parent.name))
    return found


def end_started() -> None:
    """Kill runs that this process has started and that are not over."""
    for pid in children(os.getpid()):
        for worker in children(pid):
            end(worker)
        end(pid)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


def end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def rows(run: Path) -> list[dict]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMED} for line in lines]


def seen(run: Path) -> int:
    """Return the last step with a complete row in metrics.jsonl."""
    path = run / "metrics.jsonl"
    whole = path.read_text().split("\n")[:-1] if path.exists() else []
    return json.loads(whole[-1])["step"] if whole else 0


def newest(run: Path) -> int:
    return max((int(path.name.split("_")[1]) for path in (run / "checkpoints").glob("step_*")), default=0)


if __name__ == "__main__":
    main()
