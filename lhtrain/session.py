"""Runs the training of a configuration: sets up ranks, directory, lock and watchdog, then trains."""

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
    """Remove the directory of a new run that failed to start, if it is empty."""
    shutil.rmtree(run_dir / "ranks", ignore_errors=True)
    (run_dir / ".lock").unlink(missing_ok=True)
    if run_dir.is_dir() and not any(run_dir.iterdir()):
        run_dir.rmdir()


def run(composed: DictConfig) -> None:
    """Train one composed configuration, as Hydra's task function. Exits with 128 + n after signal n."""
    config = build(composed, find_ranks().size)
    sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    if sweep:
        config.run.dir = HydraConfig.get().runtime.output_dir
    train_config(config, leave=not sweep)


def train_config(config: Config, leave: bool = True) -> None:
    """Train a valid configuration. Exits with 128 + n after signal n.

    leave: disconnect from the other ranks at the end. False in a sweep, whose next run uses the same ranks.
    """
    world = launch(config)
    config.run.dir = world.on_main(lambda: config.run.dir)  # may contain the time: use the first rank's
    memory = world.least(gpu_memory(world.device)) or None
    config = filled(with_absolute_paths(config), world.size, memory)
    run_dir = Path(config.run.dir)
    # A new run fails at once if the directory is locked; a resumed run waits for the previous process.
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
            _remove_empty(run_dir)  # after the watchdog has ended, because it writes there
        raise
    lock.release()
    if leave:
        close()
    if result["signal"] and not result["finished"]:
        sys.exit(128 + result["signal"])
