"""Run a function on several ranks: gloo on CPUs, or NCCL on GPUs under `make test-multigpu`."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

DEVICE = os.environ.get("LHTRAIN_TEST_DEVICE", "cpu")
# On CPUs, ranks are forked from a process that has already done the imports, which take three seconds.
METHOD = "forkserver" if DEVICE == "cpu" else "spawn"
multiprocessing.set_forkserver_preload(["lhtrain.cli", "lhtrain.train", "torch.distributed.fsdp"])


def on_ranks(function: Callable[..., Any], size: int, *args: Any, folder: Path) -> list[Any]:
    """Call function(*args) in one process per rank; return the results by rank.

    `function` must be importable. The environment is as under torchrun; an error fails the test.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    rank_arguments = (function, size, port, str(folder), args)
    mp.start_processes(_work, rank_arguments, nprocs=size, start_method=METHOD)
    return [torch.load(folder / f"rank_{rank}.pt", weights_only=False) for rank in range(size)]


def _work(rank: int, function: Callable[..., Any], size: int, port: int, folder: str, args: tuple) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.save(function(*args), Path(folder) / f"rank_{rank}.pt")
    # Sometimes a thread of PyTorch outlives this short process and aborts it after its work is done.
    os._exit(0)
