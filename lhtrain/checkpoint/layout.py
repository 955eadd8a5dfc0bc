"""The positions of the parts of a tensor in the files of a checkpoint."""

import math
from dataclasses import dataclass

import torch

Box = tuple[tuple[int, ...], tuple[int, ...]]  # offsets and sizes by dimension

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
        *(torch.float8_e4m3fn, torch.float8_e5m2),
    )
}
MAX_DIMENSIONS = 16


@dataclass(frozen=True)
class Chunk:
    """A box of a tensor, stored as the bytes from `begin` to `end` of `file`."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    begin: int
    end: int


@dataclass(frozen=True)
class SavedTensor:
    """A tensor of a checkpoint. Its chunks cover it exactly once."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    chunks: tuple[Chunk, ...]


def n_bytes(sizes: tuple[int, ...], dtype: torch.dtype) -> int:
    return math.prod(sizes) * dtype.itemsize


def tiles(shape: tuple[int, ...], boxes: list[Box]) -> bool:
    """Return whether the boxes form a grid that covers a tensor of `shape` exactly once."""
    return not boxes if 0 in shape else _tiles(shape, boxes)


def _tiles(shape: tuple[int, ...], boxes: list[Box]) -> bool:
    if not shape:
        return len(boxes) == 1
    slabs: dict[tuple[int, int], list[Box]] = {}
    for offsets, sizes in boxes:
        slabs.setdefault((offsets[0], sizes[0]), []).append((offsets[1:], sizes[1:]))
    end = 0
    for offset, size in sorted(slabs):
        if offset != end or size <= 0:
            return False
        end += size
    return end == shape[0] and all(_tiles(shape[1:], inside) for inside in slabs.values())
