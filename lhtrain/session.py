"""A run from its configuration to its end: ranks, directory, lock, watchdog, trainer."""

import shutil
import sys
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from lhtrain.compute.device import gpu_memory
from lhtrain.compute.fill import filled
from lhtrain.conf.compose import build
from lhtrain.conf.paths import with_absolute_paths
from lhtrain.conf.schema import Config, Resume
from lhtrain.distributed.ranks import find_ranks
from lhtrain.distributed.world import close
from lhtrain.health.hang import Watchdog
from lhtrain.runs.launch import launch, same_folder
from lhtrain.runs.lock import PATIENCE, RunLock
from lhtrain.train import Trainer


def _remove_empty(run_dir: Path) -> None:
    """Remove the directory that was made for a run of which nothing came."""
    shutil.rmtree(run_dir / "ranks", ignore_errors=True)
    (run_dir / ".lock").unlink(missing_ok=True)
    if run_dir.is_dir() and not any(run_dir.iterdir()):
        run_dir.rmdir()


def run(composed: DictConfig) -> None:
    """Hydra's task: train one composed configuration. Exits with 128 + n after signal n."""
    config = build(composed, find_ranks().size)
    sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    if sweep:
        config.run.dir = HydraConfig.get().runtime.output_dir
    train_config(config, leave=not sweep)


def train_config(config: Config, leave: bool = True) -> None:
    """Train a valid configuration. Exits with 128 + n after signal n.

    leave: leave the other ranks at the end; not where another run of a sweep follows with the same ranks.
    """
    world = launch(config)
    config.run.dir = world.on_main(lambda: config.run.dir)  # which may hold the time
    memory = world.least(gpu_memory(world.device)) or None
    config = filled(with_absolute_paths(config), world.size, memory)
    run_dir = Path(config.run.dir)
    # A new run finds out at once that the place is taken; one that continues may wait for its predecessor.
    lock = RunLock(run_dir, patience=0 if config.resume is Resume.never else PATIENCE)
    is_new = world.on_main(lambda: not run_dir.is_dir() or not any(run_dir.iterdir()))
    starting = False
    try:
        with Watchdog(config.watchdog, run_dir, world.rank, attempt=world.attempt) as watchdog:
            world.on_main(lock.acquire)
            same_folder(run_dir, world)
            starting = True
            trainer = Trainer(config, run_dir, world, watchdog)
            starting = False
            result = trainer.run()
    except Exception:
        if starting and world.is_main and is_new:
            _remove_empty(run_dir)  # not before the watchdog has ended, which writes there
        raise
    lock.release()
    if leave:
        close()
    if result["signal"] and not result["finished"]:
        sys.exit(128 + result["signal"])
