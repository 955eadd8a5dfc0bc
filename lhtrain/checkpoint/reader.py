"""Loading of tensors from a checkpoint on any mesh: each rank reads the chunks that overlap its shards."""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lhtrain.checkpoint import format2
from lhtrain.checkpoint.all_ranks import in_parallel, on_all, several_ranks
from lhtrain.checkpoint.errors import Damaged, Invalid
from lhtrain.checkpoint.hashed import HashedFile, OpenFiles
from lhtrain.checkpoint.layout import Chunk, SavedTensor
from lhtrain.checkpoint.manifest import Manifest
from lhtrain.checkpoint.retry import patiently
from lhtrain.checkpoint.state import opened
from lhtrain.checkpoint.tensors import local_part
from lhtrain.errors import RunError


class Read(NamedTuple):
    """A chunk to read, because it overlaps `local`, this rank's shard at `offsets` of the tensor `name`."""

    chunk: Chunk
    saved: SavedTensor
    name: str
    local: Tensor
    offsets: tuple[int, ...]


def load(path: Path, tensors: dict[str, Tensor], optional: Sequence[str] = (), partial: bool = False) -> None:
    """Fill `tensors` from the checkpoint `path`, written by any number of ranks. A collective.

    Bytes are hashed when they are read, in one pass, and only verified bytes are copied into tensors.

    Args:
        path: the checkpoint.
        tensors: by name, as from `tensors_of`; filled in place.
        optional: parts of names. A tensor whose name contains one of them may be missing in the checkpoint
            (then it keeps its values) or in `tensors`.
        partial: whether the checkpoint may have more tensors of the model.

    Raises:
        Damaged: a file is damaged; some tensors may be filled then.
        RunError: tensors do not match (the message names them with both shapes), or a file cannot be read.
    """

    def fill() -> None:
        try:
            patiently(lambda: _load(path, tensors, optional, partial), path)
        except Invalid as found:
            raise Damaged(path, found) from found

    on_all(fill, is_distributed=several_ranks())


def check(
    path: Path, tensors: dict[str, Tensor], optional: Sequence[str] = (), partial: bool = False
) -> None:
    """Raise RunError if `load` would not fill `tensors`. Reads none; they may be on the device "meta"."""
    try:
        patiently(lambda: _matching(path, opened(path), tensors, optional, partial), path)
    except Invalid as found:
        raise RunError(f"checkpoint {path}: {found}") from found


def _load(path: Path, tensors: dict[str, Tensor], optional: Sequence[str], is_partial: bool) -> None:
    described = opened(path)
    tensors = _matching(path, described, tensors, optional, is_partial)
    reads = sorted(_reads(described, tensors), key=lambda read: (read.chunk.file, read.chunk.begin))
    sizes = [read.chunk.end - read.chunk.begin for read in reads]
    in_parallel(functools.partial(_fill_all, path, described), reads, sizes)


def _matching(
    path: Path,
    described: Manifest,
    tensors: dict[str, Tensor],
    optional: Sequence[str],
    is_partial: bool = False,
) -> dict[str, Tensor]:
    """Return the tensors to fill. Raises RunError: they do not match those in the checkpoint."""

    def needed(name: str) -> bool:
        return not any(part in name for part in optional)

    tensors = {name: tensor for name, tensor in tensors.items() if name in described.tensors or needed(name)}
    saved = {
        name: saved
        for name, saved in described.tensors.items()
        if name in tensors or (needed(name) and not is_partial)
    }
    _compare(path, saved, tensors)
    return tensors


def _fill_all(path: Path, described: Manifest, reads: Sequence[Read]) -> None:
    with OpenFiles(path, described.files) as files, torch.no_grad():
        for read in reads:
            _fill(read, files.open(read.chunk.file), described.format)


def _compare(path: Path, saved: dict[str, SavedTensor], tensors: dict[str, Tensor]) -> None:
    """Raise RunError if names, shapes or dtypes in the checkpoint differ from those of `tensors`."""
    wrong = []
    for name, tensor in tensors.items():
        plain, there = name.removeprefix("model."), saved.get(name)
        if there is None or there.shape != tuple(tensor.shape):
            found = "not in the checkpoint" if there is None else f"{there.shape} in the checkpoint"
            wrong.append(f"{plain}: {found}, {tuple(tensor.shape)} in this model")
        elif there.dtype != tensor.dtype and not (
            there.dtype.is_floating_point and tensor.is_floating_point()
        ):
            wrong.append(f"{plain}: {there.dtype} in the checkpoint, {tensor.dtype} in this model")
    for name in sorted(saved.keys() - tensors.keys()):
        if name.startswith("model."):
            wrong.append(f"{name.removeprefix('model.')}: not in this model")
    if wrong:
        more = f" and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        raise RunError(f"checkpoint {path} does not match the model: {'; '.join(wrong[:4])}{more}")


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


def _fill(read: Read, file: HashedFile, version: int) -> None:
    """Copy the overlap of chunk and shard, one slice of the first dimension at a time."""
    chunk, local = read.chunk, read.local
    if not chunk.sizes:
        local.copy_(next(_slices(read, file, version, 0, 1))[1].view(()))
        return
    # Begin and end of the overlap in each dimension, as indices into the whole tensor.
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
    for at, part in _slices(read, file, version, first, last):
        target[at - first : at - first + len(part)].copy_(part[(slice(None), *inner)])


def _slices(
    read: Read, file: HashedFile, version: int, first: int, last: int
) -> Iterator[tuple[int, Tensor]]:
    """Yield the chunk from `first` to `last` along its first dimension as (index, slice) pairs."""
    chunk, saved = read.chunk, read.saved
    sizes = chunk.sizes or (1,)
    if version == 2:
        whole = format2.part(file.read(chunk.begin, chunk.end), chunk, saved, read.name)
        yield first, whole.view(sizes)[first:last] if not chunk.sizes else whole[first:last]
        return
    row, piece, at = (chunk.end - chunk.begin) // sizes[0], file.entry.piece, first  # row: bytes
    while at < last:
        # The rows that end in the same piece, which are not copied once more; or the one that is in two.
        end_of_piece = ((chunk.begin + at * row) // piece + 1) * piece
        until = min(max((end_of_piece - chunk.begin) // row, at + 1), last)
        content = file.read(chunk.begin + at * row, chunk.begin + until * row)
        yield at, torch.frombuffer(content, dtype=saved.dtype).view(until - at, *sizes[1:])
        at = until
