"""Time the paper's model on 1, 2, 4, … GPUs of this machine.

FSDP runs have one sequence of 98,304 tokens per GPU. Context-parallel (cp) runs have one longer sequence,
divided over the GPUs. Each run is `train.py` under torchrun, so a failed run does not affect the others.
Prints tokens per second per GPU, the efficiency relative to the first number of GPUs, peak memory, and the
shares of the step in which NCCL kernels run (communication) and in which only they run (exposed).

    python scripts/bench/scaling.py --csv scripts/bench/results/multi_gpu.csv    all GPUs
    python scripts/bench/scaling.py --gpus 1,4,8 --only fsdp
    python scripts/bench/scaling.py --tiny --gpus 1,2          a small model on CPUs, to try the script
"""

import argparse
import csv
import subprocess
import sys
import tempfile
from pathlib import Path

PAPER = ["model=lighthouse_530m"]
LONG = ["lighthouse.levels=4", "lighthouse.budget=4096", "model.dense_layers=[]", "compute.recompute=full"]
RUNS = {  # name -> sequence length and settings; a step has one sequence per GPU for fsdp, one in all for cp
    "fsdp_98k": (98_304, [*PAPER, "stage=two_stage", "compute.recompute=selective"]),
    "cp_196k": (196_608, [*PAPER, "lighthouse.budget=4096", "stage=two_stage", "compute.recompute=full"]),
    "cp_262k": (262_144, [*PAPER, *LONG, "stage=two_stage"]),
    "cp_1m": (1_048_576, [*PAPER, *LONG, "compute.offload=true", "stage=lighthouse"]),  # dense takes minutes
}
SMALL = ["model.dim=32", "model.n_layers=2", "model.ffn_dim=64", "model.n_heads=4", "run.device=cpu"]
SMALL += ["lighthouse.levels=2", "lighthouse.pooling=2", "lighthouse.budget=512"]
TINY = {"fsdp_2k": (2048, SMALL), "cp_4k": (4096, SMALL)}


def main() -> int:
    """Measure all runs; return exit status 1 if one failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--gpus", help="numbers of GPUs, such as 1,2,4,8; default: powers of two up to all GPUs"
    )
    parser.add_argument("--only", default="", help="prefixes of the runs to measure, such as fsdp,cp_1m")
    parser.add_argument("--steps", default="3", help="timed steps per stage")
    parser.add_argument("--warmup", default="2", help="untimed steps before them")
    parser.add_argument("--csv", type=Path, help="file to append the results to")
    parser.add_argument("--tiny", action="store_true", help="a small model on CPUs")
    arguments = parser.parse_args()
    failed = 0
    for name, (seq_len, settings) in (TINY if arguments.tiny else RUNS).items():
        if name.startswith(tuple(arguments.only.split(","))):
            failed += scale(name, seq_len, settings, numbers(arguments), arguments)
    return int(failed > 0)


def numbers(arguments: argparse.Namespace) -> list[int]:
    if arguments.gpus:
        return [int(number) for number in arguments.gpus.split(",")]
    import torch

    count = torch.cuda.device_count()
    return [2**i for i in range(count.bit_length()) if 2**i <= count]


def scale(
    name: str, seq_len: int, settings: list[str], gpus: list[int], arguments: argparse.Namespace
) -> int:
    """Measure one run on each number of GPUs and print a line per stage. Return the number of failed runs."""
    first: dict[str, float] = {}  # stage -> tokens per second per GPU on gpus[0]
    failed = 0
    for number in gpus:
        shared = (
            [f"run.batch_tokens={seq_len * number}"] if name.startswith("fsdp") else [f"parallel.cp={number}"]
        )
        rows = measure([*settings, f"model.seq_len={seq_len}", *shared], number, arguments)
        if not rows:
            failed += 1
            print(f"{name} on {number} GPUs: failed, see the error above", flush=True)
        for row in rows:
            each = float(row["tokens_per_second"]) / number
            first.setdefault(row["stage"], each)
            efficiency = f"efficiency {each / first[row['stage']]:6.1%}"
            speed = f"{each:>10,.0f} tok/s per GPU, {efficiency}, peak {row['peak_gb']} GB"
            nccl = f"communication {row['communication'] or '-'}, exposed {row['exposed'] or '-'}"
            print(f"{name} on {number} GPUs, {row['stage']:<11} {speed}; {nccl}", flush=True)
    return failed


def measure(settings: list[str], number: int, arguments: argparse.Namespace) -> list[dict[str, str]]:
    """Return the rows that train.py wrote; [] if it failed."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "rows.csv"
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={number}"]
        bench = str(Path(__file__).with_name("train.py"))
        options = ["--csv", str(target), "--steps", arguments.steps, "--warmup", arguments.warmup]
        subprocess.run([sys.executable, *launch, bench, *options, *settings], stdout=subprocess.DEVNULL)
        rows = list(csv.DictReader(target.open())) if target.exists() else []
    if arguments.csv and rows:
        new = not arguments.csv.exists()
        with arguments.csv.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            if new:
                writer.writeheader()
            writer.writerows(rows)
    return rows


if __name__ == "__main__":
    sys.exit(main())
