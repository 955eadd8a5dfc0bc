"""Check that speed options do not change what a model learns: compare loss curves with those of a plain run.

Each run is the real command on real text (data=stdlib). All continue, over both stages, from the last
checkpoint of one plain float32 run (the start), whose learning rate rises throughout. Comparing from the
first step would not work: initially the norms by which rows are selected are almost equal, so that any
rounding error changes the selection, and Adam moves all weights by about the same amount, so that differences
grow.

    plain            float32, not compiled, the PyTorch reference of the Lighthouse layer
    options          float32, kernels, compiler, recomputation, offloading: only the order of sums differs
    bfloat16         like plain, in bfloat16; run twice. Its distance from plain is the noise
    all              bfloat16 with the same options; a GPU uses most of them by default
    float8           like all, with the matrix products of the blocks in float8

Fails if `options` or `all` differs from plain by more than twice the noise, in the mean or at the worst step.
Runs are distributed over the visible GPUs.

    python scripts/bench/curve.py --csv scripts/bench/results/curve.csv
    python scripts/bench/curve.py --tiny        on a CPU, with Triton's interpreter: takes minutes
"""

import argparse
import csv
import datetime
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

import torch

PLAIN = ["compute.compile=off", "lighthouse.backend=reference"]
ALL = ["compute.compile=on", "compute.recompute=full", "compute.offload=true", "lighthouse.backend=triton"]
RUNS = {
    "plain": ["compute.precision=float32", *PLAIN],
    "options": ["compute.precision=float32", *ALL],
    "bfloat16": ["compute.precision=bfloat16", *PLAIN],
    "bfloat16_again": ["compute.precision=bfloat16", *PLAIN],
    "all": ["compute.precision=bfloat16", *ALL],
    "float8": ["compute.precision=bfloat16", "compute.float8=true", *ALL],
}
NOISE = ("bfloat16", "bfloat16_again")
COMPARED = ("options", "all")
# Not run on a CPU: it repeats results exactly, and Triton's interpreter computes bfloat16 incorrectly.
ONLY_ON_GPUS = ("bfloat16_again", "all", "float8")
MODEL = ["model=gpt_130m", "model.seq_len=16384"]
TINY = ["model.seq_len=2048", "model.dim=64", "model.n_layers=2", "model.ffn_dim=128", "run.device=cpu"]
TINY += ["model.dense_layers=[0]"]
COMMON = ["optim.lr=2e-4", "optim.z_loss=1e-4"]
COMMON += ["eval.every=1000", "eval.tokens=16384", "checkpoint.every=1000"]
START = ["stage=lighthouse", "optim.warmup_fraction=1", "optim.decay_fraction=0"]
CONTINUE = ["stage=two_stage", "optim.warmup_fraction=0"]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=50, help="steps of the start and of each run after it")
    parser.add_argument("--csv", type=Path, help="file to write the curves to")
    parser.add_argument("--tiny", action="store_true", help="a small model on a CPU")
    parser.add_argument("overrides", nargs="*", help="settings for all runs, KEY=VALUE")
    arguments = parser.parse_args()
    skipped = ONLY_ON_GPUS if arguments.tiny else ()
    runs = {name: settings for name, settings in RUNS.items() if name not in skipped}
    common = [*(TINY if arguments.tiny else MODEL), *COMMON, f"run.steps={arguments.steps}"]
    common += arguments.overrides
    gpus: Queue[str] = Queue()
    for gpu in visible_gpus():
        gpus.put(gpu)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(gpus.qsize()) as pool:
        train([*common, *START, *RUNS["plain"]], Path(folder, "start"), gpus)
        common += [*CONTINUE, f"init_from={folder}/start/checkpoints/step_{arguments.steps:08}"]
        jobs = {
            name: pool.submit(train, [*common, *own], Path(folder, name), gpus) for name, own in runs.items()
        }
        losses = {name: job.result() for name, job in jobs.items()}
    if arguments.csv:
        write(arguments.csv, losses)
    return report(losses)


def visible_gpus() -> list[str]:
    """Return the GPUs for CUDA_VISIBLE_DEVICES; on a machine without GPUs ["0"], which has no effect."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(n) for n in range(max(torch.cuda.device_count(), 1))]


def train(overrides: list[str], run_dir: Path, gpus: Queue[str]) -> list[float]:
    """Run the command on a free GPU and return the loss of each step."""
    gpu = gpus.get()
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": gpu}
    environment |= {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "lhtrain", *overrides, f"run.dir={run_dir}"]
    try:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    finally:
        gpus.put(gpu)
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if row["kind"] == "train"]


def report(losses: dict[str, list[float]]) -> int:
    """Print every run's distance from plain; return 0 if the compared runs are within twice the noise."""
    distances = {name: distance(curve, losses["plain"]) for name, curve in losses.items()}
    for name, (mean, worst) in distances.items():
        first, last = losses[name][0], losses[name][-1]
        difference = f"difference from plain: mean {mean:.5f}, largest {worst:.5f}"
        print(f"{name:<14} loss {first:.4f} -> {last:.4f}   {difference}")
    noise = [max(own) for own in zip(*(distances[name] for name in NOISE if name in distances), strict=True)]
    equal = True
    for name in (name for name in COMPARED if name in distances):
        within = all(own <= 2 * most for own, most in zip(distances[name], noise, strict=True))
        print(f"{name}: {'within' if within else 'NOT within'} twice the noise of bfloat16")
        equal = equal and within
    return 0 if equal else 1


def distance(curve: list[float], plain: list[float]) -> tuple[float, float]:
    """Return the mean and the largest difference of two curves, in nats."""
    apart = [abs(a - b) for a, b in zip(curve, plain, strict=True)]
    return sum(apart) / len(apart), max(apart)


def write(path: Path, losses: dict[str, list[float]]) -> None:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    about = {"gpu": gpu, "torch": torch.__version__, "date": datetime.date.today().isoformat()}
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*about, "step", *losses])
        writer.writeheader()
        for step, values in enumerate(zip(*losses.values(), strict=True), 1):
            writer.writerow(
                about | {"step": step} | dict(zip(losses, (f"{v:.6f}" for v in values), strict=True))
            )


if __name__ == "__main__":
    sys.exit(main())
