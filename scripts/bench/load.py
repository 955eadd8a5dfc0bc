"""Time how long a checkpoint takes to load, against torch.load of the same tensors.

All files are in the page cache. `verify + load` is what a resumed run does: manifest, state and sizes are
checked, then each byte is read, hashed and copied into its tensor. `load` alone, and `sha256` alone on as
many threads, show what bounds it. All are measured in turn, and the medians are printed.

    python scripts/bench/load.py --megabytes 64 256 1024
"""

import argparse
import hashlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from lhtrain import checkpoint
from lhtrain.checkpoint import all_ranks
from lhtrain.checkpoint.hashed import PIECE
from lhtrain.checkpoint.saver import Saver
from lhtrain.distributed.world import Ranks, World


def tensors_of(megabytes: int) -> dict[str, Tensor]:
    """Return tensors as of a model with its AdamW state: an embedding, matrices, and small vectors."""
    dim = 16 * max(1, round((megabytes * 1e6 / 4 / 3 / 49 / 256) ** 0.5))  # 49 squares, three times
    out = {}
    for kind in ("model", "optimizer.exp_avg", "optimizer.exp_avg_sq"):
        out[f"{kind}.embedding"] = torch.randn(dim, dim)
        for block in range(4):
            out[f"{kind}.{block}.norm"] = torch.randn(dim)
            out |= {f"{kind}.{block}.{n}": torch.randn(dim, dim) for n in range(4)}
            out |= {f"{kind}.{block}.ffn{n}": torch.randn(dim, 8 * dim // 3) for n in range(3)}
    return out


def measure(megabytes: int, repeats: int, folder: Path) -> dict[str, float]:
    """Return the size in bytes, and the median seconds of each way to load."""
    tensors = tensors_of(megabytes)
    world = World(Ranks(), torch.device("cpu"))
    with Saver(folder / "checkpoints", 1, world, say=lambda text: None) as saver:
        saver.save(1, tensors, {"progress": {"step": 1}, "config": {}, "data": ""})
        saver.finish()
    path = checkpoint.folder_of(folder / "checkpoints", 1)
    torch.save(tensors, folder / "all.pt")
    filled = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    ways: dict[str, Callable[[], object]] = {
        "torch.load": lambda: _torch_load(folder / "all.pt", filled),
        "load": lambda: checkpoint.load(path, filled),
        "verify + load": lambda: _verify_and_load(path, filled, world),
        "sha256": lambda: _hash(path / "rank_00000.bin"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            if repeat:  # the first one fills the page cache
                seconds[name].append(time.perf_counter() - began)
    assert all(torch.equal(filled[name], tensor) for name, tensor in tensors.items())
    size = sum(tensor.nbytes for tensor in tensors.values())
    return {"bytes": size} | {name: statistics.median(values) for name, values in seconds.items()}


def _torch_load(path: Path, filled: dict[str, Tensor]) -> None:
    """Load as a training program does: read the file, then copy into the tensors of model and optimizer."""
    for name, tensor in torch.load(path).items():
        filled[name].copy_(tensor)


def _verify_and_load(path: Path, filled: dict[str, Tensor], world: World) -> None:
    checkpoint.newest_sound(path.parent, world, load=lambda found: checkpoint.load(found, filled))


def _hash(path: Path) -> None:
    def work(begins: list[int]) -> None:
        handle, buffer = os.open(path, os.O_RDONLY), bytearray(PIECE)
        for begin in begins:
            n = os.preadv(handle, [buffer], begin)
            hashlib.sha256(memoryview(buffer)[:n]).digest()
        os.close(handle)

    all_ranks.in_parallel(work, list(range(0, path.stat().st_size, PIECE)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, nargs="+", default=[64, 256, 1024], help="sizes to measure")
    parser.add_argument("--repeats", type=int, default=7, help="measurements of each")
    parser.add_argument("--folder", type=Path, help="where to write; default: the folder for temporary files")
    arguments = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    for megabytes in arguments.megabytes:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            row = measure(megabytes, arguments.repeats, Path(folder))
        plain = row["torch.load"]
        row |= {f"{name} / torch.load": row[name] / plain for name in ("load", "verify + load", "sha256")}
        print(json.dumps({name: round(value, 4) for name, value in row.items()}), flush=True)


if __name__ == "__main__":
    main()
