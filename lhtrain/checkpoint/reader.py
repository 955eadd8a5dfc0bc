"""Filling tensors from a checkpoint, on any mesh: each rank reads what overlaps with its own shards."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lhtrain.checkpoint import format2
from lhtrain.checkpoint.blocks import BLOCK, BlockFile, Opened
from lhtrain.checkpoint.check import opened, patiently
from lhtrain.checkpoint.faults import Fault
from lhtrain.checkpoint.layout import Chunk, Saved
from lhtrain.checkpoint.manifest import Manifest
from lhtrain.checkpoint.tensors import local_part
from lhtrain.checkpoint.together import in_parallel, is_together, on_all
from lhtrain.errors import RunError


class Read(NamedTuple):
    """A chunk of which `local`, a shard at `offsets`, needs a part."""

    chunk: Chunk
    saved: Saved
    name: str
    local: Tensor
    offsets: tuple[int, ...]


def load(path: Path, tensors: dict[str, Tensor]) -> None:
    """Fill `tensors` from the checkpoint `path`, however many ranks wrote it. Every byte that is used is
    verified. A collective, where there are several ranks.

    Raises:
        RunError: its tensors do not match, each named with both shapes; a file is damaged or cannot be read.
            The tensors may then be filled in part.
    """

    def fill() -> None:
        try:
            patiently(lambda: _load(path, tensors), path)
        except Fault as found:
            raise RunError(f"checkpoint {path}: {found}") from found

    on_all(fill, together=is_together())


def _load(path: Path, tensors: dict[str, Tensor]) -> None:
    described = opened(path)
    _compare(path, described.tensors, tensors)
    reads = sorted(_reads(described, tensors), key=lambda read: (read.chunk.file, read.chunk.begin))
    in_parallel(partial(_fill_all, path, described), reads)


def _fill_all(path: Path, described: Manifest, reads: Sequence[Read]) -> None:
    with Opened(path, described.files) as files, torch.no_grad():
        for read in reads:
            _fill(read, files.open(read.chunk.file), described.format)


def _compare(path: Path, saved: dict[str, Saved], tensors: dict[str, Tensor]) -> None:
    """Raise RunError where the checkpoint holds other tensors than `tensors`."""
    wrong = []
    for name, tensor in tensors.items():
        plain, there = name.removeprefix("model."), saved.get(name)
        if there is None or there.shape != tuple(tensor.shape):
            shape = "absent" if there is None else there.shape
            wrong.append(f"{plain}: {shape} there, {tuple(tensor.shape)} in this model")
        elif there.dtype != tensor.dtype and not (
            there.dtype.is_floating_point and tensor.is_floating_point()
        ):
            wrong.append(f"{plain}: {there.dtype} there, {tensor.dtype} in this model")
    for name in sorted(saved.keys() - tensors.keys()):
        if name.startswith("model."):
            wrong.append(f"{name.removeprefix('model.')}: there, and not in this model")
    if wrong:
        more = f" and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        raise RunError(f"checkpoint {path} is of another model: {'; '.join(wrong[:4])}{more}")


def _reads(described: Manifest, tensors: dict[str, Tensor]) -> Iterator[Read]:
    for name, tensor in tensors.items():
        saved = described.tensors[name]
        local, (offsets, sizes) = local_part(tensor)
        for chunk in saved.chunks:
            if all(
                max(a, b) < min(a + n, b + m)
                for a, n, b, m in zip(offsets, sizes, chunk.offsets, chunk.sizes, strict=True)
            ):
                yield Read(chunk, saved, name, local, offsets)


def _fill(read: Read, file: BlockFile, version: int) -> None:
    """Copy what the shard needs of the chunk, some rows at a time."""
    chunk, local = read.chunk, read.local
    if not chunk.sizes:
        local.copy_(next(_rows(read, file, version, 0, 1))[1].view(()))
        return
    # Where the overlap begins and ends in each dimension: of the chunk, and of the shard.
    begins = [max(a, b) for a, b in zip(read.offsets, chunk.offsets, strict=True)]
    ends = [
        min(a + n, b + m)
        for a, n, b, m in zip(read.offsets, local.shape, chunk.offsets, chunk.sizes, strict=True)
    ]
    inner = tuple(
        slice(a - b, e - b) for a, e, b in zip(begins[1:], ends[1:], chunk.offsets[1:], strict=True)
    )
    target = local[tuple(slice(a - b, e - b) for a, e, b in zip(begins, ends, read.offsets, strict=True))]
    first, last = begins[0] - chunk.offsets[0], ends[0] - chunk.offsets[0]
    for at, rows in _rows(read, file, version, first, last):
        target[at - first : at - first + len(rows)].copy_(rows[(slice(None), *inner)])


def _rows(read: Read, file: BlockFile, version: int, first: int, last: int) -> Iterator[tuple[int, Tensor]]:
    """The rows from `first` to `last` of the chunk, in pieces; each with the number of its first row."""
    chunk, saved = read.chunk, read.saved
    sizes = chunk.sizes or (1,)
    if version == 2:
        whole = format2.part(file.read(chunk.begin, chunk.end), chunk, saved, read.name)
        yield first, whole.view(sizes)[first:last] if not chunk.sizes else whole[first:last]
        return
    row = (chunk.end - chunk.begin) // sizes[0]  # bytes
    step = max(BLOCK // row, 1)
    for at in range(first, last, step):
        until = min(at + step, last)
        content = file.read(chunk.begin + at * row, chunk.begin + until * row)
        yield at, torch.frombuffer(content, dtype=saved.dtype).view(until - at, *sizes[1:])
