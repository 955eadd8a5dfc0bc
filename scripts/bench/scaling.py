"""Time the paper's model on 1, 2, 4, … GPUs of this machine: FSDP at 98,304 tokens, cp at longer contexts.

Each run is `train.py` under torchrun, so that a run that fails costs only its own rows. Prints tokens per
second and GPU, the efficiency against the first number of GPUs (FSDP: a sequence for each GPU; cp: the same
sequence on more), the share of the step in which NCCL's kernels run, and peak memory; --csv keeps the rows.

    python scripts/bench/scaling.py --csv scripts/bench/results/multi_gpu.csv    all GPUs
    python scripts/bench/scaling.py --gpus 1,4,8 --only fsdp
    python scripts/bench/scaling.py --tiny --gpus 1,2          on CPUs, to see it run
"""

import argparse
import csv
import subprocess
import sys
import tempfile
from pathlib import Path

PAPER = ["model=lighthouse_530m"]
LONG = ["lighthouse.levels=4", "lighthouse.budget=4096", "model.dense_layers=[]", "compute.recompute=full"]
RUNS = {  # name -> sequence length and settings; a step has a sequence for each GPU for fsdp, one for cp
    "fsdp_98k": (98_304, [*PAPER, "stage=two_stage", "compute.recompute=selective"]),
    "cp_196k": (196_608, [*PAPER, "lighthouse.budget=4096", "stage=two_stage", "compute.recompute=full"]),
    "cp_262k": (262_144, [*PAPER, *LONG, "stage=two_stage"]),
    "cp_1m": (1_048_576, [*PAPER, *LONG, "compute.offload=true", "stage=lighthouse"]),  # dense takes minutes
}
SMALL = ["model.dim=32", "model.n_layers=2", "model.ffn_dim=64", "model.n_heads=4", "run.device=cpu"]
SMALL += ["lighthouse.levels=2", "lighthouse.pooling=2", "lighthouse.budget=512"]
TINY = {"fsdp_2k": (2048, SMALL), "cp_4k": (4096, SMALL)}


def main() -> int:
    """Status 1 if a run failed; the others are measured all the same."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--gpus", help="numbers of GPUs, such as 1,2,4,8; default: the powers of two there are"
    )
    parser.add_argument("--only", default="", help="runs whose names begin so, such as fsdp,cp_1m")
    parser.add_argument("--steps", default="3")
    parser.add_argument("--warmup", default="2")
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--tiny", action="store_true")
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

    there = torch.cuda.device_count()
    return [2**i for i in range(there.bit_length()) if 2**i <= there]


def scale(
    name: str, seq_len: int, settings: list[str], gpus: list[int], arguments: argparse.Namespace
) -> int:
    """One run on each number of GPUs; a line for each of its stages. Returns how many failed."""
    alone: dict[str, float] = {}
    failed = 0
    for number in gpus:
        shared = (
            [f"run.batch_tokens={seq_len * number}"] if name.startswith("fsdp") else [f"parallel.cp={number}"]
        )
        rows = measure([*settings, f"model.seq_len={seq_len}", *shared], number, arguments)
        if not rows:
            failed += 1
            print(f"{name} on {number}: failed, see above", flush=True)
        for row in rows:
            each = float(row["tokens_per_second"]) / number
            alone.setdefault(row["stage"], each)
            efficiency = f"{each / alone[row['stage']]:.1%} of {gpus[0]}"
            said = f"{each:>10,.0f} tok/s each, {efficiency:>12}, peak {row['peak_gb']} GB"
            nccl = f"communication {row['communication'] or '-'}, exposed {row['exposed'] or '-'}"
            print(f"{name} on {number}, {row['stage']:<11} {said}; {nccl}", flush=True)
    return failed


def measure(settings: list[str], number: int, arguments: argparse.Namespace) -> list[dict[str, str]]:
    """The rows that train.py wrote; [] if it failed."""
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
