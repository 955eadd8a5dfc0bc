"""Time the training steps of each stage of a configuration.

Uses lhtrain's configuration and the trainer's own step, on random bytes. Prints one line per stage, with its
speed relative to the dense stage; --csv appends rows to a file. Columns: of_matmul is the FLOP/s relative to
a large matrix product timed just before on the same device; communication is the share of a step in which
NCCL kernels run; exposed is the share in which only NCCL kernels run.

    python scripts/bench/train.py --csv scripts/bench/results/train.csv model=lighthouse_530m
    torchrun --nproc-per-node=2 scripts/bench/train.py --csv scripts/bench/results/multi_gpu.csv \\
        model=lighthouse_530m parallel.cp=2
    python scripts/bench/train.py --config-dir scripts/bench/recipes model=smollm2_135m stage=lengths \\
        model.seq_len=1048576 run.batch_tokens=1048576 run.steps=10

With data.documents=apart, sequences are packed with documents of random lengths: --documents 1024,8192.

--with measures variants one after the other in one process: each takes its settings besides the others. The
last column is the speed relative to the first variant.

    python scripts/bench/train.py --with optim=adamw --with optim=muon model=gpt_350m stage=dense
"""

import argparse
import datetime
import gc
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rows import append
from spans import communication, kernel_spans, print_kernels

from lhtrain.attention.flash4 import fa4_runs
from lhtrain.build import Engine, build_engine
from lhtrain.compute.device import (
    gpu_memory,
    peak_flops,
    peak_memory,
    pick_device,
    reset_peak_memory,
    set_deterministic,
)
from lhtrain.compute.fill import filled
from lhtrain.compute.flops import step_flops
from lhtrain.conf.compose import check_overrides, with_folders
from lhtrain.conf.schema import Config, DocumentMode, PositionMode
from lhtrain.distributed.mesh import Mesh
from lhtrain.distributed.world import World, close, find_ranks
from lhtrain.loader import Apart, Read, batches
from lhtrain.profiler import Span, no_span
from lhtrain.stage import Stage, coarsest_window
from lhtrain.step import update

COLUMNS = [
    "gpu",
    "torch",
    "date",
    "model",
    "seq_len",
    "stage",
    "tokens_per_second",
    "step_seconds",
    "mfu",
    "peak_gb",
]
COLUMNS += [
    "of_matmul",
    "attention",
    "parameters",
    "rows",
    "loss",
    "ranks",
    "communication",
    "exposed",
    "settings",
]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=3, help="timed steps per stage")
    parser.add_argument(
        "--warmup", type=int, default=2, help="untimed steps before them, which include compiling"
    )
    parser.add_argument("--csv", type=Path, help="file to append the results to")
    parser.add_argument(
        "--kernels", type=int, default=0, help="print this many kernels of a step, longest first"
    )
    parser.add_argument(
        "--documents", default="1024,8192", help="shortest and longest document, for data.documents=apart"
    )
    parser.add_argument(
        "--with",
        action="append",
        default=[],
        dest="variants",
        metavar="SETTINGS",
        help="settings of a variant",
    )
    parser.add_argument(
        "--config-dir", action="append", default=[], metavar="DIR", help="folder with presets"
    )
    parser.add_argument("overrides", nargs="*", help="settings of lhtrain, KEY=VALUE")
    arguments = parser.parse_intermixed_args()  # options may stand between settings
    variants = [[*arguments.overrides, *variant.split()] for variant in arguments.variants or [""]]
    folders, n_ranks = arguments.config_dir, find_ranks().size
    configs = [check_overrides(with_folders(folders, variant), n_ranks=n_ranks) for variant in variants]
    set_deterministic(configs[0].compute.deterministic)
    world = World.start(pick_device(configs[0].run.device), configs[0].parallel.timeout)
    memory, first = world.least(gpu_memory(world.device)) or None, []
    for overrides, config in zip(variants, configs, strict=True):
        measured = measure(filled(config, world.size, memory), overrides, arguments, world)
        first = first or measured
        if world.is_main:
            report(measured, first, " ".join(overrides[len(arguments.overrides) :]))
            if arguments.csv:
                append(arguments.csv, COLUMNS, measured)
        torch.compiler.reset()  # the compiler limits how often a function compiles, and keeps the model
        gc.collect()  # the model of this variant, which contains cycles
        if world.device.type == "cuda":
            torch.cuda.empty_cache()
    close()


def report(measured: list[dict], first: list[dict], variant: str) -> None:
    """Print the rows of a variant. first: those of the first variant, which may be the same."""
    dense = [row for row in measured if row["rows"] == row["seq_len"]]
    for row in measured:
        speed = f"{row['tokens_per_second']:>10,.0f} tok/s  {row['step_seconds']:.3f} s/step"
        ratio = f"{row['tokens_per_second'] / dense[-1]['tokens_per_second']:.2f}x dense" if dense else ""
        before = [one for one in first if one["stage"] == row["stage"] and measured is not first]
        ratio += f"  {row['tokens_per_second'] / before[0]['tokens_per_second']:.2f}x first" if before else ""
        share = f"mfu {row['mfu'] or 0:.1%}, {row['of_matmul'] or 0:.1%} of matmul"
        print(
            f"{row['stage']:<12} {speed}  {share}  peak {row['peak_gb']:.1f} GB  {ratio}  {variant}",
            flush=True,
        )


def measure(config: Config, overrides: list[str], arguments: argparse.Namespace, world: World) -> list[dict]:
    device = world.device
    engine = build_engine(config, Mesh(config.parallel, config.model, config.lighthouse.selection, world))
    ceiling, out = matmul_ceiling(device), []
    for name, stage in engine.stages.items():
        engine.enter(stage)
        packed = None
        if config.data.documents is DocumentMode.apart:
            lengths = tuple(int(length) for length in arguments.documents.split(","))
            packed = Packed(stage, lengths, coarsest_window([stage]), config)
        began = time.perf_counter()
        reset_peak_memory(device)  # now, because a CUDA graph allocates its memory when it is recorded
        for _ in range(arguments.warmup):
            step(engine, config, stage, packed)
        print(f"{name}: warm-up took {time.perf_counter() - began:.1f} s", flush=True)
        parts = Parts(device)
        timed = [step(engine, config, stage, packed, parts) for _ in range(arguments.steps)]
        times, losses = zip(*timed, strict=True)
        if world.is_main:
            print(f"{name}: {parts.described(sum(times))}", flush=True)
        seconds, sheet = statistics.median(times), peak_flops(device)
        peak = peak_memory(device) / 1e9
        share = packed.apart.share[stage.seq_len] if packed else 1.0
        flops = step_flops(config.model, stage, share) / world.size
        profiled = partial(step, engine, config, stage, packed)
        spans = kernel_spans(profiled, device) if arguments.kernels or world.is_distributed else []
        if world.is_main and arguments.kernels and spans:  # a CPU has no spans
            print_kernels(spans, arguments.kernels)
        values = [
            torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            torch.__version__,
            datetime.date.today().isoformat(),
            config.model.name,
            stage.seq_len,
            name,
            round(stage.batch_tokens / seconds, 1),
            round(seconds, 6),
            round(flops / seconds / sheet, 4) if sheet else None,
            round(peak, 2),
            round(flops / seconds / ceiling, 4) if ceiling else None,
            "fa4" if fa4_runs() else "cudnn" if ceiling else "cpu",
            engine.model.n_parameters()[0],
            stage.n_attended,
            round(losses[-1], 4),
            world.size,
            *(communication(spans) if world.is_distributed else (None, None)),
            " ".join(
                [
                    *overrides,
                    *derived(config, stage, overrides),
                    *([f"--documents {arguments.documents}"] if packed else []),
                ]
            ),
        ]
        out.append(dict(zip(COLUMNS, values, strict=True)))
    return out


def derived(config: Config, stage: Stage, overrides: list[str]) -> list[str]:
    """Return the values chosen for `auto` settings, so that a row has everything that decides its numbers."""
    compute = config.compute
    settings = [f"compute.recompute={compute.recompute.value}"]
    settings += ["compute.offload=true"] if compute.offload else []
    settings += [f"run.grad_accum={stage.grad_accum}"]
    given = {override.split("=")[0] for override in overrides}
    return [setting for setting in settings if setting.split("=")[0] not in given]


class Packed:
    """Documents of random lengths, in sequences of a stage; the same ones in every run."""

    def __init__(self, stage: Stage, lengths: tuple[int, int], align: int, config: Config):
        self.random, self.lengths, self.align, self.seq_len = random.Random(0), lengths, align, stage.seq_len
        some = [self.begins() for _ in range(100)]
        ends = [np.append(begins, self.seq_len) for begins in some]
        pairs = np.mean([(np.diff(end) * (np.diff(end) + 1.0)).sum() for end in ends])
        most = {self.seq_len: -(-self.seq_len // lengths[0])}
        share = {self.seq_len: float(pairs / self.seq_len / (self.seq_len + 1))}
        self.apart = Apart(most, share, config.data.positions is PositionMode.restarted)

    def begins(self) -> np.ndarray:
        """Return where the documents of one sequence begin."""
        begins = [0]
        while (begin := begins[-1] + self.random.randint(*self.lengths)) < self.seq_len:
            begins.append(-(-begin // self.align) * self.align)
        return np.array([begin for begin in begins if begin < self.seq_len])


class Parts:
    """Times of the parts of steps, on the device, as the `span` of `update`."""

    def __init__(self, device: torch.device):
        self.on_gpu, self.marks = device.type == "cuda", defaultdict(list)

    def mark(self) -> torch.cuda.Event | float:
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        begin = self.mark()
        yield
        self.marks[name].append((begin, self.mark()))

    def described(self, whole: float) -> str:
        """Return the share of each part in `whole` seconds, and its milliseconds in a step."""
        out = []
        for name, pairs in self.marks.items():
            times = [a.elapsed_time(b) / 1e3 if self.on_gpu else b - a for a, b in pairs]
            n_steps = len(self.marks["optimizer"])
            out.append(f"{name} {sum(times) / whole:.1%} ({1e3 * sum(times) / n_steps:.2f} ms)")
        return ", ".join(out)


def step(engine: Engine, config: Config, stage: Stage, packed: Packed | None, span: Span = no_span) -> tuple:
    """Run one step on random tokens; return its seconds (without making the tokens) and its loss."""
    mesh = engine.mesh
    device, part = mesh.world.device, mesh.slice
    mine = part.sequences(stage.n_sequences)
    tokens = torch.randint(0, 256, (len(mine), stage.seq_len + 1))
    kept = packed and packed.apart.split(tokens, [packed.begins() for _ in mine], stage.grad_accum)
    read = Read.of(tokens, stage.batch_tokens, eos=0, device=device, part=part, apart=kept)
    parts = batches(read, stage.grad_accum, device, packed and packed.apart)
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    optimizer, optim = engine.optimizer, config.optim
    measured = update(engine.model, optimizer, parts, optim.lr, optim, mesh, span, engine.passes)
    value = measured.loss.item()  # waits for the device
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began, value


def matmul_ceiling(device: torch.device) -> float | None:
    """Return the FLOP/s of a large bfloat16 product of random matrices; None on a CPU."""
    if device.type != "cuda":
        return None
    a, b = (torch.randn(8192, 8192, device=device, dtype=torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(20):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        _ = a @ b
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return 2 * 8192**3 / statistics.median(times)


if __name__ == "__main__":
    main()
