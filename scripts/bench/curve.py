"""Is anything paid in correctness? The loss curve of a run with every option on, against a plain one.

Each run is the real command on real text (data=stdlib), both stages, the same seed. `plain` computes in
float32, nothing compiled, with the layer's PyTorch reference. `options` is float32 too, with the kernels, the
compiler, recomputation and offloading: what is left is the order of sums. `bfloat16` is plain but for the
precision: its distance from plain is the noise. `all` is what a GPU runs by default and the options; `float8`
adds the blocks' products. Fails if `options` or `all` is further from plain than twice the noise, in the mean
or at the worst step. The learning rate is low and warms up slowly: a run that jumps in its first steps
magnifies any rounding.

    python scripts/bench/curve.py --csv scripts/bench/results/curve.csv
    python scripts/bench/curve.py --tiny        on a CPU, where Triton's interpreter runs the kernels: minutes
"""

import argparse
import csv
import datetime
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

PLAIN = ["compute.compile=off", "lighthouse.backend=reference"]
ALL = ["compute.compile=on", "compute.recompute=full", "compute.offload=true", "lighthouse.backend=triton"]
RUNS = {
    "plain": ["compute.precision=float32", *PLAIN],
    "options": ["compute.precision=float32", *ALL],
    "bfloat16": ["compute.precision=bfloat16", *PLAIN],
    "all": ["compute.precision=bfloat16", *ALL],
    "float8": ["compute.precision=bfloat16", "compute.float8=true", *ALL],
}
OF_GPUS = ("all", "float8")  # Triton's interpreter gets bfloat16 wrong
MODEL = ["model=gpt_130m", "model.seq_len=16384"]
TINY = ["model.seq_len=2048", "model.dim=64", "model.n_layers=2", "model.ffn_dim=128", "run.device=cpu"]
TINY += ["model.dense_layers=[0]"]
COMMON = ["stage=two_stage", "optim.lr=5e-4", "optim.warmup_fraction=0.3", "optim.z_loss=1e-4"]
COMMON += ["eval.every=1000", "eval.tokens=16384", "checkpoint.every=1000"]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    runs = {name: settings for name, settings in RUNS.items() if not (arguments.tiny and name in OF_GPUS)}
    settings = [*(TINY if arguments.tiny else MODEL), *COMMON, f"run.steps={arguments.steps}"]
    with tempfile.TemporaryDirectory() as folder:
        losses = {
            name: losses_of(
                [*settings, *own, *arguments.overrides, f"run.dir={folder}/{name}"], Path(folder, name)
            )
            for name, own in runs.items()
        }
    if arguments.csv:
        write(arguments.csv, losses)
    distances = {name: distance(curve, losses["plain"]) for name, curve in losses.items()}
    for name, (mean, worst) in distances.items():
        first, last = losses[name][0], losses[name][-1]
        print(
            f"{name:<10} loss {first:.4f} -> {last:.4f}   from plain: mean {mean:.5f}, at worst {worst:.5f}"
        )
    noise, equal = distances.pop("bfloat16"), True
    for name in {"options", "all"} & distances.keys():
        within = all(own <= 2 * most for own, most in zip(distances[name], noise, strict=True))
        print(f"{name}: {'within' if within else 'NOT within'} twice the noise of bfloat16")
        equal = equal and within
    return 0 if equal else 1


def losses_of(overrides: list[str], run_dir: Path) -> list[float]:
    on_cpu = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "lhtrain", *overrides]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | on_cpu)
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if row["kind"] == "train"]


def distance(curve: list[float], plain: list[float]) -> tuple[float, float]:
    """Mean and largest difference of two curves, in nats."""
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
