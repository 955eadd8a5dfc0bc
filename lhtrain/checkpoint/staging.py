"""A copy of a rank's tensors in host memory, so that training continues while they are written.

The copy is one buffer with the bytes of the rank's file, allocated at the first save and then reused.
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
    """The copy. `stage` fills it; `content` and `tensors` are to be written.

    rank, size: this rank and the number of ranks.
    """

    rank: int
    size: int
    tensors: dict[str, Any] = field(default_factory=dict)  # of this rank's file, as in the manifest
    n_bytes: int = 0
    _buffer: Tensor | None = None
    _pinned: bool = False

    @property
    def content(self) -> memoryview:
        """The bytes of this rank's file."""
        assert self._buffer is not None
        return memoryview(self._buffer.numpy().data)[: self.n_bytes]

    def stage(self, tensors: dict[str, Tensor]) -> None:
        """Copy the parts of `tensors` that this rank writes; afterwards the tensors may change.

        Raises MemoryError, RuntimeError: not enough host memory.
        """
        parts = self._parts(tensors)
        # Largest element size first: then each tensor begins at a multiple of its element size.
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
        """Return a buffer of at least `size` bytes, pinned if possible."""
        if self._buffer is None or len(self._buffer) < size:
            self.release()
            self._buffer = torch.empty(size, dtype=torch.uint8)
            if of_cuda and size:
                # Registered, because PyTorch rounds allocations of pinned memory up to a power of two.
                outcome = torch.cuda.cudart().cudaHostRegister(self._buffer.data_ptr(), size, 0)
                self._pinned = int(outcome) == 0  # without pinning, the copy is only slower
        return self._buffer

    def release(self) -> None:
        """Free the memory."""
        if self._pinned and self._buffer is not None:
            torch.cuda.cudart().cudaHostUnregister(self._buffer.data_ptr())
        self._buffer, self._pinned = None, False


def _described(tensor: Tensor) -> dict[str, Any]:
    return {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}
