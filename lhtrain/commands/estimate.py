"""`lhtrain estimate`: the GPU memory that each stage needs, and settings that make it fit."""

from argparse import Namespace
from dataclasses import fields

from rich.console import Console
from rich.table import Table

from lhtrain.compute.advice import advice
from lhtrain.compute.fill import compose_config
from lhtrain.compute.memory import Memory, how, parameters
from lhtrain.compute.memory import estimate as peak
from lhtrain.compute.rotary import low_bases
from lhtrain.conf.compose import with_folders
from lhtrain.conf.rules.parallel import mesh_sizes
from lhtrain.conf.schema import Config
from lhtrain.errors import UsageError
from lhtrain.stage import stages_of

GPUS = {"a100": 80, "h100": 80, "h200": 141, "b200": 180}  # GB


def estimate(arguments: Namespace) -> None:
    """Print the peak memory of each stage. Raises UsageError, ConfigError."""
    gpu, ranks = arguments.gpu.lower(), arguments.ranks
    if gpu not in GPUS and not (gpu.replace(".", "", 1).isdigit() and float(gpu) > 0):
        raise UsageError(f"gpu={gpu}: must be one of {', '.join(GPUS)}, or a number of GB")
    if ranks and not (ranks.isdecimal() and int(ranks) > 0):
        raise UsageError(f"ranks={ranks}: must be a whole number, at least 1")
    capacity, n_ranks = float(GPUS.get(gpu, 0) or gpu), int(ranks) if ranks else None
    settings = with_folders(arguments.config_dir, arguments.settings)
    config = compose_config(settings, n_ranks, int(capacity * 1e9))
    if n_ranks is not None:
        config.parallel.dp_shard = mesh_sizes(config.parallel, n_ranks)[1]
    console = Console(markup=False, emoji=False, highlight=False)
    total = sum(parameters(config.model))
    console.print(
        f"{config.model.name}: {total:,} parameters; peak memory of a step in GB, of {capacity:g} GB"
    )
    console.print(table(config, capacity))
    console.print(f"with {how(config)}")
    if any(peak(config, stage).total >= capacity * 1e9 for stage in stages_of(config).values()):
        print(*advice(config, capacity), sep="\n")
    for text in low_bases(config):
        print(f"warning: {text}")


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
