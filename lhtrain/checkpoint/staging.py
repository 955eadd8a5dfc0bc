"""A copy of a rank's tensors in host memory, so that training continues while they are written.

One buffer, allocated at the first save and used again, that holds exactly the bytes of the rank's file.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lhtrain.checkpoint import manifest
from lhtrain.checkpoint.layout import Box, n_bytes
from lhtrain.checkpoint.tensors import local_part, writes


@dataclass
class Staging:
    """rank, size: who this is, of how many. `stage` fills it; `content` and `tensors` are what to write."""

    rank: int
    size: int
    tensors: dict[str, Any] = field(default_factory=dict)  # as in the manifest: those of this rank's file
    n_bytes: int = 0
    _buffer: Tensor | None = None
    _pinned: bool = False

    @property
    def content(self) -> memoryview:
        """The bytes of this rank's file."""
        assert self._buffer is not None
        return memoryview(self._buffer.numpy().data)[: self.n_bytes]

    def stage(self, tensors: dict[str, Tensor]) -> None:
        """Copy what this rank writes of `tensors`; they may change when this returns.

        Raises MemoryError, RuntimeError: there is no room for the copy.
        """
        parts = self._parts(tensors)
        # The largest elements first: then each tensor begins at a multiple of its element's size.
        parts.sort(key=lambda part: -part[1].dtype.itemsize)
        size = sum(n_bytes(box[1], local.dtype) for _, local, box in parts)
        buffer = self._room(size, any(local.is_cuda for _, local, _ in parts))
        self.tensors, self.n_bytes, begin = {}, size, 0
        devices = set()
        for name, local, (offsets, sizes) in parts:
            end = begin + n_bytes(sizes, local.dtype)
            buffer[begin:end].view(local.dtype).view(sizes).copy_(local, non_blocking=self._pinned)
            chunk = {
                "offsets": offsets,
                "sizes": sizes,
                "file": manifest.file_name(self.rank),
                "begin": begin,
            }
            self.tensors[name] = _described(tensors[name]) | {"chunks": [chunk]}
            devices.add(local.device)
            begin = end
        for name, tensor in tensors.items():
            if tensor.numel() == 0 and self.rank == 0:
                self.tensors[name] = _described(tensor) | {"chunks": []}
        for device in devices:
            if device.type == "cuda":
                torch.cuda.current_stream(device).synchronize()

    def _parts(self, tensors: dict[str, Tensor]) -> list[tuple[str, Tensor, Box]]:
        parts = []
        for number, (name, tensor) in enumerate(tensors.items()):
            if writes(tensor, number, self.rank, self.size):
                local, box = local_part(tensor)
                if local.numel() > 0:
                    parts.append((name, local, box))
        return parts

    def _room(self, size: int, of_cuda: bool) -> Tensor:
        """A buffer of at least `size` bytes."""
        if self._buffer is None or len(self._buffer) < size:
            self.release()
            self._buffer = torch.empty(size, dtype=torch.uint8)
            if of_cuda and size:
                # Registered, not allocated as pinned memory: PyTorch would round up to a power of two.
                outcome = torch.cuda.cudart().cudaHostRegister(self._buffer.data_ptr(), size, 0)
                self._pinned = int(outcome) == 0  # else the copy is slower, and as right
        return self._buffer

    def release(self) -> None:
        """Give the memory back."""
        if self._pinned and self._buffer is not None:
            torch.cuda.cudart().cudaHostUnregister(self._buffer.data_ptr())
        self._buffer, self._pinned = None, False


def _described(tensor: Tensor) -> dict[str, Any]:
    return {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}
