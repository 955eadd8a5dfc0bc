"""Compare training steps on short contexts: a bare PyTorch loop, and lhtrain with and without CUDA graphs.

A small micro-batch has kernels that run for less time than the host needs to start them. All variants train a
model of the same shape and are measured in turn, several steps at a time, in which the host does not wait for
the GPU. Prints and appends for each variant the medians of the seconds of a step, of those that the host
needs to start it, and of those in which kernels run, the number of kernels, and the speed relative to bare.

    python scripts/bench/small.py --csv scripts/bench/results/small.csv --seq-lens 4096 16384

Variants: bare (bare.py, the whole model compiled), bare_graph (the same with mode="reduce-overhead"), plain
(lhtrain without graphs), graph (lhtrain's default), graph_auto (the same with the attention kernel that is
the best without graphs), whole and whole_graph (lhtrain with the whole model compiled instead of each block),
lighthouse and lighthouse_graph (Lighthouse Attention instead of full attention).
"""

import argparse
import datetime
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from bare import Bare, bare_adamw
from rows import append
from spans import busy, kernel_spans, print_kernels
from torch import Tensor, nn

from lhtrain.attention.dense import FULL_ATTENTION
from lhtrain.attention.where import Where
from lhtrain.build import Engine, build_engine
from lhtrain.compute.device import compute_dtype, gpu_memory, peak_memory, pick_device, reset_peak_memory
from lhtrain.compute.fill import compose_config
from lhtrain.conf.schema import Config, Device, Precision
from lhtrain.distributed.mesh import Mesh
from lhtrain.distributed.world import Ranks, World
from lhtrain.loader import Read, batches
from lhtrain.model.loss import chunk_grad
from lhtrain.stage import Stage
from lhtrain.step import update

COLUMNS = ["gpu", "torch", "date", "model", "seq_len", "batch_tokens", "micro_batches", "variant", "seconds"]
COLUMNS += ["host_seconds", "busy_seconds", "kernels", "tokens_per_second", "over_bare", "peak_gb", "loss"]
COLUMNS += ["settings"]

BARE_TOKENS = 32_768  # most tokens of a micro-batch of the bare loop, whose logits are in memory whole


class Way(NamedTuple):
    """A variant: `step` does one step without waiting for the GPU, and returns the loss on it."""

    step: Callable[[], Tensor]
    micro_batches: int


def bare_way(config: Config, stage: Stage, device: torch.device, mode: str | None) -> Way:
    dtype, optim = compute_dtype(Precision.auto, device), config.optim
    model = Bare(config.model, stage.seq_len, dtype).to(device)
    adamw, run = bare_adamw(model, optim), torch.compile(model, dynamic=False, mode=mode)
    count = max(stage.batch_tokens // max(BARE_TOKENS, stage.seq_len), 1)
    rows = random_rows(config, stage)
    tokens, targets = (one(x) for x in (rows[:, :-1], rows[:, 1:]))

    def step() -> Tensor:
        total = torch.zeros((), device=device)
        for some, wanted in zip(tokens.chunk(count), targets.chunk(count), strict=True):
            if mode is not None:
                torch.compiler.cudagraph_mark_step_begin()
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                inputs = (x.to(device, non_blocking=True) for x in (some, wanted))
                loss = run(*inputs) / count
            loss.backward()
            total += loss.detach()
        nn.utils.clip_grad_norm_(model.parameters(), optim.clip_norm)
        adamw.step()
        adamw.zero_grad()
        return total

    return Way(step, count)


def random_rows(config: Config, stage: Stage) -> Tensor:
    return torch.randint(0, config.model.vocab_size, (stage.n_sequences, stage.seq_len + 1))


def one(tokens: Tensor) -> Tensor:
    """Return tokens as the loader returns them: contiguous, and pinned for a GPU."""
    tokens = tokens.contiguous()
    return tokens.pin_memory() if torch.cuda.is_available() else tokens


def lhtrain_way(config: Config, world: World, whole: bool = False, auto: bool = False) -> Way:
    """lhtrain's own step, of the first stage.

    whole: compile the whole model; config.compute.compile must be off. auto: take the attention kernel that
    is the best without graphs.
    """
    name = next(iter(config.stages))
    engine = build_engine(config, Mesh(config.parallel, config.model, config.lighthouse.selection, world))
    stage, mesh = engine.stages[name], engine.mesh
    if auto:
        engine.dense = engine.attention[name] = FULL_ATTENTION
    engine.enter(stage)
    if whole:
        compile_whole(engine)
    rows = random_rows(config, stage)
    read = Read.of(rows, stage.batch_tokens, eos=0, device=world.device, part=mesh.slice, apart=None)

    def step() -> Tensor:
        parts = batches(read, stage.grad_accum, world.device, None)
        rate, optim = config.optim.lr, config.optim
        options = {"passes": engine.passes}
        return update(engine.model, engine.optimizer, parts, rate, optim, mesh, **options).loss

    return Way(step, stage.grad_accum)


def compile_whole(engine: Engine) -> None:
    model = engine.model

    def blocks_and_norm(x: Tensor, where: object) -> Tensor:
        for block in model.blocks:
            x = block(x, where)
        return model.norm(x)

    run = torch.compile(blocks_and_norm, dynamic=False)

    def hidden(tokens: Tensor, positions: Tensor | None = None, documents: object = None) -> Tensor:
        x = model.embedding(tokens).to(model.dtype)
        positions = torch.arange(tokens.shape[1], device=tokens.device) if positions is None else positions
        rotation = model.rope.rotation(positions, model.config.head_dim)
        return run(x, Where(rotation, positions=positions, documents=documents))

    model.hidden = hidden  # type: ignore[method-assign]
    model.chunk_grad = torch.compile(chunk_grad, fullgraph=True, dynamic=False)


def ways(config_of: Callable[..., Config], world: World) -> dict[str, Callable[[], Way]]:
    """Return for each variant a function that builds it. config_of: from settings to a configuration."""

    def bare(mode: str | None) -> Way:
        config = config_of("stage=dense")
        return bare_way(config, Stage.of("dense", next(iter(config.stages.values()))), world.device, mode)

    def own(*settings: str, **options: bool) -> Way:
        return lhtrain_way(config_of(*settings), world, **options)

    graph, plain = "compute.cuda_graph=auto", "compute.cuda_graph=off"
    found = {
        "bare": lambda: bare(None),
        "bare_graph": lambda: bare("reduce-overhead"),
        "plain": lambda: own("stage=dense", plain),
        "graph": lambda: own("stage=dense", graph),
        "graph_auto": lambda: own("stage=dense", graph, auto=True),
        "whole": lambda: own("stage=dense", plain, "compute.compile=off", whole=True),
        "whole_graph": lambda: own("stage=dense", graph, "compute.compile=off", whole=True),
        "lighthouse": lambda: own("stage=lighthouse", plain),
        "lighthouse_graph": lambda: own("stage=lighthouse", graph),
    }
    return found


def warmed_up(name: str, build: Callable[[], Way], device: torch.device) -> tuple[Way, float, float]:
    """Build a variant and do three steps; return it, the peak of memory in GB, and the loss."""
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    reset_peak_memory(device)
    began = time.perf_counter()
    way = build()
    losses = [way.step().item() for _ in range(3)]
    print(f"{name}: ready after {time.perf_counter() - began:.1f} s, losses {losses}", flush=True)
    return way, (peak_memory(device) - before) / 1e9, losses[-1]


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def timed(way: Way, steps: int, device: torch.device) -> tuple[float, float]:
    """Return the seconds of a step, and those until the host has started it."""
    synchronize(device)
    began = time.perf_counter()
    for _ in range(steps):
        way.step()
    started = time.perf_counter()
    synchronize(device)
    return (time.perf_counter() - began) / steps, (started - began) / steps


def measure(arguments: argparse.Namespace, seq_len: int, batch_tokens: int, world: World) -> list[dict]:
    device = world.device
    given = [f"model={arguments.model}", f"model.seq_len={seq_len}", f"run.batch_tokens={batch_tokens}"]
    given += ["run.steps=2", *arguments.settings]

    def config_of(*settings: str) -> Config:
        return compose_config([*settings, *given], 1, gpu_memory(device) or None)

    ready: dict[str, tuple[Way, float, float]] = {}
    builders = ways(config_of, world)
    for name in arguments.variants:
        try:
            ready[name] = warmed_up(name, builders[name], device)
        except Exception as error:  # the others are still of use
            print(f"{name}: {type(error).__name__}: {str(error)[:300]}", flush=True)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ready}
    for _ in range(arguments.rounds):
        for name, (way, *_) in ready.items():
            seconds[name].append(timed(way, arguments.steps, device))
    rows = []
    for name, (way, peak, loss) in ready.items():
        whole, host = (statistics.median(values) for values in zip(*seconds[name], strict=True))
        over = None
        if "bare" in seconds:
            pairs = zip(seconds["bare"], seconds[name], strict=True)
            over = round(statistics.median(bare[0] / own[0] for bare, own in pairs), 3)
        spans = kernel_spans(way.step, device)
        if arguments.kernels and spans:
            print(name, end=": ")
            print_kernels(spans, arguments.kernels)
        values = [torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu", torch.__version__]
        values += [datetime.date.today().isoformat(), arguments.model, seq_len, batch_tokens]
        values += [way.micro_batches, name, round(whole, 5), round(host, 5), round(busy(spans) / 1e6, 5)]
        values += [len(spans), round(batch_tokens / whole), over, round(peak, 2), round(loss, 4)]
        rows.append(dict(zip(COLUMNS, [*values, " ".join(arguments.settings)], strict=True)))
    return rows


def print_rows(rows: list[dict]) -> None:
    shown = ["seq_len", "batch_tokens", "micro_batches", "variant", "seconds", "host_seconds"]
    shown += ["busy_seconds", "kernels", "tokens_per_second", "over_bare", "peak_gb"]
    print(" ".join(f"{name:>16}" for name in shown))
    for row in rows:
        print(" ".join(f"{row[name]!s:>16}" for name in shown))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [*ways(lambda: None, None)]  # type: ignore[arg-type, return-value]  # only the names
    parser.add_argument("--model", default="gpt_130m", help="a model preset")
    parser.add_argument("--seq-lens", type=int, nargs="+", default=[4096, 16384], help="lengths")
    parser.add_argument("--batch-tokens", type=int, default=0, help="tokens of a step; 0: one sequence")
    parser.add_argument("--variants", nargs="+", default=names, choices=names, help="what is compared")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds")
    parser.add_argument("--steps", type=int, default=10, help="steps of each variant in a round")
    parser.add_argument("--kernels", type=int, default=0, help="print this many kernels, longest first")
    parser.add_argument("--csv", type=Path, help="file to append the rows to")
    parser.add_argument("settings", nargs="*", help="settings of lhtrain, KEY=VALUE")
    arguments = parser.parse_intermixed_args()
    world = World(Ranks(), pick_device(Device.auto))
    rows = []
    for seq_len in arguments.seq_lens:
        found = measure(arguments, seq_len, arguments.batch_tokens or seq_len, world)
        if arguments.csv:
            append(arguments.csv, COLUMNS, found)
        rows += found
        if world.device.type == "cuda":
            torch.cuda.empty_cache()
    print_rows(rows)


if __name__ == "__main__":
    main()
