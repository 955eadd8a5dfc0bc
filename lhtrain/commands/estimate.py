"""`lhtrain estimate`: memory, predicted speed and cost of a run, and what makes it fit on how many GPUs."""

from argparse import Namespace
from dataclasses import fields, replace

from rich.console import Console
from rich.table import Table

from lhtrain.commands import estimate_speed
from lhtrain.compute.advice import advice
from lhtrain.compute.fill import filled
from lhtrain.compute.memory import Memory, how, parameters
from lhtrain.compute.memory import estimate as peak
from lhtrain.compute.meshes import Hardware, shared
from lhtrain.compute.rates import GPUS, H100, NETWORK, NODE
from lhtrain.compute.rotary import low_bases
from lhtrain.conf.compose import check_overrides, with_folders
from lhtrain.conf.rules.parallel import mesh_sizes
from lhtrain.conf.schema import Config
from lhtrain.errors import UsageError
from lhtrain.stage import stages_of


def estimate(arguments: Namespace) -> None:
    """Print peak memory, predicted speed and cost of each stage. Raises UsageError, ConfigError."""
    hardware, name = hardware_of(arguments)
    ranks = int(_number(arguments, "ranks", whole=True) or 0) or None
    price = _number(arguments, "price")
    valid = check_overrides(with_folders(arguments.config_dir, arguments.settings), n_ranks=ranks)
    config = filled(valid, ranks, hardware.memory)
    known = config.parallel.dp_replicate * config.parallel.cp
    n_ranks = ranks or known * max(config.parallel.dp_shard, 1)
    config.parallel.dp_shard = mesh_sizes(config.parallel, n_ranks)[1]
    console, capacity = Console(markup=False, emoji=False, highlight=False), hardware.memory / 1e9
    total = sum(parameters(config.model))
    console.print(
        f"{config.model.name}: {total:,} parameters; peak memory of a step in GB, of {capacity:g} GB"
    )
    console.print(table(config, capacity))
    console.print(f"with {how(config)}")
    if any(peak(config, stage).total >= hardware.memory for stage in stages_of(config).values()):
        print(*advice(config, capacity), sep="\n")
    for text in low_bases(config):
        print(f"warning: {text}")
    run = shared(config, n_ranks, hardware)
    print("", *estimate_speed.heading(run, name, hardware), sep="\n")
    console.print(estimate_speed.table(run, hardware, price))
    print(*estimate_speed.limits(run, hardware), "", sep="\n")
    print(*estimate_speed.choices(valid, n_ranks, hardware), sep="\n")


def hardware_of(arguments: Namespace) -> tuple[Hardware, str]:
    """Return the GPUs that the arguments describe, and their name. Raises UsageError."""
    gpu = arguments.gpu.lower()
    rates = GPUS.get(gpu)
    if rates is None:
        if not (gpu.replace(".", "", 1).isdigit() and float(gpu) > 0):
            raise UsageError(f"gpu={gpu}: must be one of {', '.join(GPUS)}, or a number of GB")
        assumed = f"gpu={gpu} names no GPU, so the speed of an H100 is assumed"
        rates = replace(H100, gigabytes=float(gpu), assumed=assumed)
    network = _number(arguments, "network")
    node = int(_number(arguments, "node", whole=True) or NODE)
    memory = int(rates.gigabytes * 1e9)
    name = gpu.upper() if gpu in GPUS else f"GPU of {gpu} GB"
    return Hardware(rates, memory, network * 1e9 if network else NETWORK, node), name


def _number(arguments: Namespace, key: str, whole: bool = False) -> float | None:
    """Return the value of `key`; None if it is not given. Raises UsageError: not a number above 0."""
    text = getattr(arguments, key)
    if text is None:
        return None
    rule = "a whole number, at least 1" if whole else "a number above 0"
    digits = text if whole else text.replace(".", "", 1)
    if not (digits.isdecimal() and float(text) > 0):
        raise UsageError(f"{key}={text}: must be {rule}")
    return float(text)


def table(config: Config, capacity: float) -> Table:
    """A table in GB (10^9 bytes), with a row for each part and a column for each stage."""
    stages = {name: peak(config, stage) for name, stage in stages_of(config).items()}
    out = Table("")
    for name, stage in config.stages.items():
        out.add_column(f"{name}\nN {stage.seq_len:,}", justify="right")
    for field in fields(Memory):
        parts = (getattr(memory, field.name) for memory in stages.values())
        out.add_row(field.name, *(f"{part / 1e9:.2f}" for part in parts))
    out.add_section()
    out.add_row("total", *(f"{memory.total / 1e9:.2f}" for memory in stages.values()))
    out.add_row("fits", *("yes" if memory.total < capacity * 1e9 else "NO" for memory in stages.values()))
    return out
