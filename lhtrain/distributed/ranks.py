"""Rank of this process and number of ranks, from environment variables. Imports no PyTorch.

Reads the variables of torchrun, or those of SLURM if srun starts one task per GPU. Without these there is one
rank.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from lhtrain.errors import RunError

OF_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
OF_SLURM = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
PORTS = range(1, 65536)


@dataclass(frozen=True)
class Ranks:
    """Rank in the run, number of ranks, and rank on this machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0


def find_ranks(environment: Mapping[str, str] = os.environ) -> Ranks:
    """Return the rank of this process from the environment.

    Raises RunError: variables are not numbers, contradict each other or are partly missing; several SLURM
    tasks have no MASTER_ADDR and MASTER_PORT.
    """
    if any(environment.get(name) for name in OF_TORCHRUN):
        names = OF_TORCHRUN
    elif environment.get("SLURM_STEP_ID") and _number(environment, "SLURM_STEP_NUM_TASKS", 1) != 1:
        names = OF_SLURM
    else:
        return Ranks()
    rank, size, local_rank = names
    for present, absent in ((rank, size), (size, rank), (local_rank, rank)):
        if environment.get(present) and not environment.get(absent):
            rule = f"a launcher such as torchrun sets {rank} and {size}; for one process, unset both"
            raise RunError(f"{present}={environment[present]} is set and {absent} is not; {rule}")
    found = Ranks(*(_number(environment, name, 0) for name in names))
    if found.size < 1:
        raise RunError(f"{size}={found.size}: must be at least 1, the number of ranks")
    for name, number in ((rank, found.rank), (local_rank, found.local_rank)):
        if not 0 <= number < found.size:
            raise RunError(f"{name}={number}: must be at least 0 and below {size}={found.size}")
    if names is OF_SLURM and not (environment.get("MASTER_ADDR") and environment.get("MASTER_PORT")):
        rule = "several tasks need MASTER_ADDR and MASTER_PORT in their environment"
        raise RunError(f"{size}={found.size}: {rule}; lhtrain slurm submit sets them")
    return found


def meeting_place(environment: Mapping[str, str] = os.environ) -> tuple[str, int]:
    """Return host and port of the rendezvous.

    Raises RunError: MASTER_ADDR or MASTER_PORT is missing or not valid.
    """
    place = {name: environment.get(name, "").strip() for name in ("MASTER_ADDR", "MASTER_PORT")}
    address, port = place.values()
    for name, text in place.items():
        if not text:
            rule = "several ranks need MASTER_ADDR, the machine of rank 0, and MASTER_PORT, a free port on it"
            raise RunError(f"{name} is not set: {rule}; torchrun and lhtrain slurm submit set both")
    if not port.isascii() or not port.isdigit() or int(port) not in PORTS:
        raise RunError(f"MASTER_PORT={port}: must be a free port of MASTER_ADDR={address}, from 1 to 65535")
    return address, int(port)


def under_torchrun(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in environment


def attempt(environment: Mapping[str, str] = os.environ) -> int:
    """Return how often torchrun has restarted the ranks of this launch; 0 without torchrun."""
    return _number(environment, "TORCHELASTIC_RESTART_COUNT", 0)


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name) or str(default)
    try:
        return int(text)
    except ValueError:
        raise RunError(f"{name}={text}: must be a whole number, as a launcher sets it") from None


def ready_ranks() -> Ranks:
    """Return the rank of this process and, with several ranks, check the address of the rendezvous.

    Raises RunError: as `find_ranks` and `meeting_place`.
    """
    ranks = find_ranks()
    if ranks.size > 1:
        meeting_place()
    return ranks
