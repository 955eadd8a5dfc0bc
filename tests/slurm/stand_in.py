"""A program in place of the trainer that runs for about a second; tests select it with `cluster.module`.

Each rank parses its overrides, prints its rank and host, and behaves as the variable STAND_IN names.
"""

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser

from lhtrain.health.signals import StopSignal


def main() -> None:
    overrides = OverridesParser.create().parse_overrides(sys.argv[1:])
    run_dir = Path(next(str(given.value()) for given in overrides if given.key_or_group == "run.dir"))
    behaviour = os.environ["STAND_IN"]
    rank = int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID", "0"))
    if behaviour == "start":  # wait until a signal is pending
        print(f"rank {rank} on {socket.gethostname()}: start", flush=True)
        while not signal.sigpending() & {signal.SIGUSR1, signal.SIGTERM}:
            time.sleep(0.05)
    with StopSignal() as stop:
        print(f"rank {rank} on {socket.gethostname()}: {behaviour}", flush=True)
        if behaviour == "wait":
            while stop.requested is None:
                time.sleep(0.05)
    if behaviour == "start" and stop.requested:  # as the trainer does before its first step
        sys.exit(128 + stop.requested)
    if behaviour == "crash":
        sys.exit(1)
    if behaviour == "meet":
        meet()
    if rank == 0:
        step = 1 + len(list(run_dir.glob("checkpoints/step_*")))
        (run_dir / "checkpoints" / f"step_{step:08d}").mkdir(parents=True)
        aside = run_dir / "summary.tmp"
        finished = stop.requested is None
        ended = {"how": "finished" if finished else "signal"}
        aside.write_text(json.dumps({"finished": finished, "ended": ended}))
        aside.replace(run_dir / "summary.json")
    if stop.requested:
        sys.exit(128 + stop.requested)


def meet() -> None:
    """Sum the numbers of all ranks."""
    import torch
    import torch.distributed as dist

    if "RANK" not in os.environ:
        os.environ["RANK"], os.environ["WORLD_SIZE"] = os.environ["SLURM_PROCID"], os.environ["SLURM_NTASKS"]
    dist.init_process_group("gloo")
    total = torch.tensor([dist.get_rank() + 1])
    dist.all_reduce(total)
    print(f"rank {dist.get_rank()} of {dist.get_world_size()}: sum {total.item()}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
