"""Connects the ranks of a run and checks that their settings, code and run directory are the same."""

import hashlib
import os
import platform
import time
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import lhtrain
from lhtrain.compute.device import compute_dtype, pick_device, set_deterministic
from lhtrain.conf.keys import like_run
from lhtrain.conf.schema import Config
from lhtrain.distributed.agreement import refuse
from lhtrain.distributed.meeting import POLL
from lhtrain.distributed.ranks import find_ranks, under_torchrun
from lhtrain.distributed.torchrun import BEGAN, leave_note
from lhtrain.distributed.world import World
from lhtrain.errors import RunError
from lhtrain.files import write_atomic
from lhtrain.health.hang import collective_limit
from lhtrain.runs.changes import as_container

# Keys that only rank 0 uses, and data paths, which may differ between machines because the data are compared.
MAY_DIFFER = {"run.dir", "run.name", "run.device", "data.path", "data.out", "data.cache_dir", "data.workers"}
MAY_DIFFER |= {"data.keep_gb", "data.tokenizer", "data.val_path"}
GROUPS_MAY_DIFFER = ("cluster.", "logger.", "data.mix.")
SEEN = 60.0  # seconds after which an NFS client sees files that another machine has made


def launch(config: Config) -> World:
    """Connect this rank to all ranks of the run. config: valid and unfilled.

    Raises:
        Disagreement: on every rank: a rank has a problem, or settings or code differ between ranks.
        RunError: the ranks cannot connect.
    """
    ranks = find_ranks()
    set_deterministic(config.compute.deterministic)
    try:
        device = pick_device(config.run.device)
        dtype = str(compute_dtype(config.compute.precision, device)).removeprefix("torch.")
    except RunError as error:
        refuse(ranks, str(error))
        raise
    mine = settings(config) | surroundings(device.type, dtype)
    limit = collective_limit(config.watchdog, config.parallel.timeout)
    try:
        return World.start(device, config.parallel.timeout, limit, mine)
    except RunError:
        made = Path(config.run.dir)  # Hydra has made this folder, but the run does not begin
        if ranks.rank == 0 and made.is_dir() and not any(made.iterdir()):
            made.rmdir()
        raise


def _contains(path: Path, text: str) -> bool:
    try:
        return path.read_text() == text
    except (OSError, ValueError):
        return False


def same_folder(run_dir: Path, world: World) -> None:
    """Check that all ranks share the folder `run_dir`, and note in it which torchrun began the run.

    Restarts by torchrun look for that note. Raises Disagreement, on every rank, if `run_dir` is another
    folder on the machine of some rank.
    """
    proof = run_dir / "ranks" / "attempt"

    def write() -> None:
        proof.parent.mkdir(parents=True, exist_ok=True)
        if world.is_distributed:
            write_atomic(proof, world.attempt, durable=False)
        leave_note(run_dir / BEGAN)

    if world.is_distributed or under_torchrun():
        world.on_main(write)
    if not world.is_distributed:
        return
    ends = time.monotonic() + (0 if world.is_on_main_machine else SEEN)
    while not (found := _contains(proof, world.attempt)) and time.monotonic() < ends:
        time.sleep(POLL)
    world.agree({f"run.dir={run_dir} is the folder of rank 0 (all machines must share it)": found})


def settings(config: Config) -> dict[str, Any]:
    """Return the settings that must be equal on all ranks, by their dotted keys."""
    flat = _flat(as_container(config))
    return {
        key: value
        for key, value in flat.items()
        if like_run(key) not in MAY_DIFFER and not like_run(key).startswith(GROUPS_MAY_DIFFER)
    }


def surroundings(device: str, dtype: str) -> dict[str, Any]:
    """Return the versions, code, device type and precision, which must be equal on all ranks."""
    names = {"Python": ".".join(platform.python_version_tuple()[:2]), "lhtrain": lhtrain.__version__}
    for name in ("torch", "triton"):
        try:
            names[name] = version(name)
        except PackageNotFoundError:
            names[name] = "absent"
    return names | {"code of lhtrain": code_digest(), "device": device, "precision": dtype}


@cache
def code_digest() -> str:
    """Return a hash of the package's source files, which also shows uncommitted changes."""
    digest, root = hashlib.sha256(), Path(lhtrain.__file__).parent
    for folder, folders, names in os.walk(root, followlinks=True):  # data, conf and kernels are links
        folders.sort()
        for name in sorted(names):
            if name.endswith(".py"):
                path = Path(folder, name)
                digest.update(str(path.relative_to(root)).encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            out |= _flat(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value
    return out
