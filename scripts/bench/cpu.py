"""Compare a training step on the CPU with a bare PyTorch loop of the same model, and Lighthouse with dense.

The bare loop is that of bare.py, lhtrain's step that of a run. Both have the same number of parameters. All
are measured in turn (A B C A B C), so that other programs disturb them alike. Prints and appends medians, and
the medians of the ratios of each round.

    python scripts/bench/cpu.py --csv scripts/bench/results/cpu.csv --seq-lens 4096 16384
"""

import argparse
import datetime
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from bare import Bare, bare_adamw
from rows import append
from torch import nn

from lhtrain.build import build_engine
from lhtrain.compute.fill import compose_config
from lhtrain.conf.schema import Config
from lhtrain.distributed.mesh import Mesh
from lhtrain.distributed.world import Ranks, World
from lhtrain.loader import Read, batches
from lhtrain.provenance import cpu_name
from lhtrain.stage import Stage
from lhtrain.step import update

COLUMNS = ["cpu", "threads", "torch", "date", "seq_len", "parameters", "rounds", "bare_seconds"]
COLUMNS += ["dense_seconds", "lighthouse_seconds", "bare_over_dense", "dense_over_lighthouse", "settings"]


def bare_step(config: Config, stage: Stage) -> tuple[Callable[[], float], int]:
    """Return a function that does one step of the bare loop and returns its seconds, and the parameters."""
    model, optim = Bare(config.model, stage.seq_len), config.optim
    adamw = bare_adamw(model, optim)

    def step() -> float:
        tokens = torch.randint(0, 256, (stage.batch_tokens // stage.seq_len, stage.seq_len + 1))
        began = time.perf_counter()
        loss = model(tokens[:, :-1], tokens[:, 1:].contiguous())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), optim.clip_norm)
        adamw.step()
        adamw.zero_grad()
        loss.item()
        return time.perf_counter() - began

    return step, sum(p.numel() for p in model.parameters())


def lhtrain_steps(config: Config) -> tuple[dict[str, Callable[[], float]], int]:
    """Return for each stage a function that does one step and returns its seconds, and the parameters."""
    world = World(Ranks(), torch.device("cpu"))
    engine = build_engine(config, Mesh(config.parallel, config.model, config.lighthouse.selection, world))
    mesh = engine.mesh

    def step(stage: Stage) -> float:
        engine.enter(stage)
        tokens = torch.randint(0, 256, (stage.n_sequences, stage.seq_len + 1))
        read = Read.of(tokens, stage.batch_tokens, eos=0, device=world.device, part=mesh.slice, apart=None)
        parts = batches(read, stage.grad_accum, world.device, None)
        began = time.perf_counter()
        update(engine.model, engine.optimizer, parts, config.optim.lr, config.optim, mesh).loss.item()
        return time.perf_counter() - began

    steps = {name: lambda stage=stage: step(stage) for name, stage in engine.stages.items()}
    return steps, engine.model.n_parameters()[0]


def measure(seq_len: int, rounds: int, settings: list[str]) -> dict:
    given = [
        f"model.seq_len={seq_len}",
        f"run.batch_tokens={max(seq_len, 4096)}",
        "run.device=cpu",
        *settings,
    ]
    config = compose_config(["run.steps=2", "stages.lighthouse.steps=1", *given])
    steps, count = lhtrain_steps(config)
    stages = config.stages
    dense = next(name for name in stages if stages[name].attention == "dense")
    sparse = next(name for name in stages if stages[name].attention == "lighthouse")
    bare, bare_count = bare_step(config, build_stage(config, dense))
    assert bare_count == count, (bare_count, count)
    ways = {"bare": bare, "dense": steps[dense], "lighthouse": steps[sparse]}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            taken = way()
            if number:  # the first round allocates memory
                seconds[name].append(taken)
    medians = {f"{name}_seconds": round(statistics.median(values), 4) for name, values in seconds.items()}
    pairs = {"bare_over_dense": ("bare", "dense"), "dense_over_lighthouse": ("dense", "lighthouse")}
    ratios = {
        key: round(statistics.median(x / y for x, y in zip(seconds[a], seconds[b], strict=True)), 3)
        for key, (a, b) in pairs.items()
    }
    about = {"cpu": cpu_name(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    about |= {"date": datetime.date.today().isoformat(), "seq_len": seq_len, "parameters": count}
    return about | {"rounds": rounds, "settings": " ".join(given)} | medians | ratios


def build_stage(config: Config, name: str) -> Stage:
    return Stage.of(name, config.stages[name])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seq-lens", type=int, nargs="+", default=[4096, 16384], help="lengths")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds of each length")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="threads of PyTorch")
    parser.add_argument("--csv", type=Path, help="file to append the rows to")
    parser.add_argument("settings", nargs="*", help="settings of lhtrain, KEY=VALUE")
    arguments = parser.parse_intermixed_args()
    torch.set_num_threads(arguments.threads)
    for seq_len in arguments.seq_lens:
        row = measure(seq_len, arguments.rounds, arguments.settings)
        print({key: row[key] for key in COLUMNS[4:-1]}, flush=True)
        if arguments.csv:
            append(arguments.csv, COLUMNS, [row])


if __name__ == "__main__":
    main()
