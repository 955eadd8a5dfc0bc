"""From one configuration on every rank to ranks that agree, or to one error for all of them."""

import time
from pathlib import Path

from lhtrain.compute.device import compute_dtype, pick_device, set_deterministic
from lhtrain.conf.schema import Config
from lhtrain.distributed import agreement
from lhtrain.distributed.meeting import POLL, meet
from lhtrain.distributed.ranks import Ranks, find_ranks, under_torchrun
from lhtrain.distributed.torchrun import NOTE, this_torchrun
from lhtrain.distributed.world import World
from lhtrain.errors import RunError
from lhtrain.files import write_atomic
from lhtrain.health.hang import collective_limit

SEEN = 60.0  # seconds after which a client of NFS sees what another machine has made
REFUSAL = 30.0  # seconds that a rank which cannot start waits for the others, to end with one error


def launch(config: Config) -> World:
    """The world of all ranks that have this valid, unfilled configuration.

    Raises:
        Disagreement: on every rank: some rank's problem, or what differs between them.
        RunError: ranks that cannot meet.
    """
    ranks = find_ranks()
    set_deterministic(config.compute.deterministic)
    try:
        device = pick_device(config.run.device)
        dtype = str(compute_dtype(config.compute.precision, device)).removeprefix("torch.")
    except RunError as error:
        refuse(ranks, str(error))
        raise
    mine = agreement.settings(config) | agreement.surroundings(device.type, dtype)
    limit = collective_limit(config.watchdog, config.parallel.timeout)
    try:
        return World.start(device, config.parallel.timeout, limit, mine)
    except RunError:
        made = Path(config.run.dir)  # by Hydra, for a run that does not begin
        if ranks.rank == 0 and made.is_dir() and not any(made.iterdir()):
            made.rmdir()
        raise


def refuse(ranks: Ranks, problem: str) -> None:
    """Tell the other ranks of a problem that keeps this one from starting.

    Raises Disagreement, on every rank. Returns for a single rank, and where the others do not come.
    """
    if ranks.size == 1:
        return
    try:
        agreement.agree(meet(ranks, REFUSAL), {agreement.PROBLEM: problem}, REFUSAL)
    except agreement.Disagreement:
        raise
    except (RuntimeError, RunError):
        return


def _says(path: Path, text: str) -> bool:
    try:
        return path.read_text() == text
    except (OSError, ValueError):
        return False


def same_folder(run_dir: Path, world: World) -> None:
    """Note in `run_dir` which torchrun began the run, if one did; its restarts look for that.

    Raises Disagreement, on every rank: `run_dir` is another folder on some rank's machine.
    """
    proof = run_dir / "ranks" / "attempt"

    def write() -> None:
        proof.parent.mkdir(parents=True, exist_ok=True)
        if world.together:
            write_atomic(proof, world.attempt, durable=False)
        if under_torchrun():
            write_atomic(run_dir / NOTE, this_torchrun(), durable=False)

    if world.together or under_torchrun():
        world.on_main(write)
    if not world.together:
        return
    ends = time.monotonic() + (0 if world.is_on_main_machine else SEEN)
    while not (found := _says(proof, world.attempt)) and time.monotonic() < ends:
        time.sleep(POLL)
    world.agree({f"run.dir={run_dir} is the folder of rank 0 (all machines must share it)": found})
