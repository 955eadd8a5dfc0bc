"""Moments of an optimizer, kept in float32, bfloat16 or 8 bits (optim.state).

Only matrices have fewer bits; vectors are small. With 8 bits, a row is divided into blocks of at most 256
weights, each with its largest magnitude in float32. A code of 8 bits is the nearest of 256 numbers, which are
denser near 0 (dynamic quantization, arXiv:2110.02861; the numbers of bitsandbytes and torchao). Blocks lie
within rows, so that any number of ranks, which share the rows, can load a checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from lhtrain.conf.schema import MomentDtype

if TYPE_CHECKING:  # the memory estimate counts bytes, and must not import torch for it
    import torch
    from torch import Tensor, nn

LEAST_BLOCK, MOST_BLOCK = 32, 256
LEAST_SCALE = 1e-30  # of a block of zeros


def block_of(shape: Sequence[int]) -> int:
    """Return the weights of a block: the largest divisor of the row's length in the bounds; 0: no blocks."""
    if len(shape) != 2:
        return 0
    sizes = range(MOST_BLOCK, LEAST_BLOCK - 1, -1)
    return next((size for size in sizes if shape[1] % size == 0), 0)


def form_of(shape: Sequence[int], dtype: MomentDtype) -> MomentDtype:
    """Return how a moment of a parameter of `shape` is kept if optim.state is `dtype`."""
    if len(shape) != 2 or (dtype is MomentDtype.int8 and not block_of(shape)):
        return MomentDtype.float32
    return dtype


def bytes_of(shape: Sequence[int], dtype: MomentDtype) -> float:
    """Return the bytes of a moment per weight."""
    form = form_of(shape, dtype)
    if form is MomentDtype.int8:
        return 1 + 4 / block_of(shape)
    return 2 if form is MomentDtype.bfloat16 else 4


def new(name: str, parameter: nn.Parameter, dtype: MomentDtype) -> dict[str, Tensor]:
    """Return the tensors of a new moment, all zeros, with the sharding of its parameter."""
    import torch

    form = form_of(parameter.shape, dtype)
    if form is MomentDtype.int8:
        codes = torch.zeros_like(parameter, dtype=torch.uint8, requires_grad=False)
        scales = torch.zeros_like(parameter.detach()[:, :: block_of(parameter.shape)])
        return {f"{name}_codes": codes, f"{name}_scales": scales}
    kept = torch.bfloat16 if form is MomentDtype.bfloat16 else torch.float32
    return {name: torch.zeros_like(parameter, dtype=kept, requires_grad=False)}


def is_plain(name: str, state: dict[str, Tensor]) -> bool:
    """Return whether the moment is a float32 tensor, which may be changed in place."""
    return name in state and state[name].element_size() == 4


def read(name: str, states: Sequence[dict[str, Tensor]], signed: bool) -> Tensor:
    """Return the rows on this rank of a moment of K parameters of one shape, in float32: (K, rows, columns).

    signed: whether the moment may be negative.
    """
    import torch

    if name in states[0]:
        return torch.stack([local(state[name]) for state in states]).float()
    codes, scales = (_stacked(f"{name}_{part}", states) for part in ("codes", "scales"))
    values = numbers(signed, codes.device)[codes.int()]
    return (values.unflatten(-1, (scales.shape[-1], -1)) * scales.unsqueeze(-1)).flatten(-2)


def write(name: str, states: Sequence[dict[str, Tensor]], value: Tensor, skip: Tensor, signed: bool) -> None:
    """Keep `value`, (K, rows, columns) float32.

    skip: not 0 if the step is skipped. Then `value` must be what `read` returned; its codes are not computed
    again, because that could change the largest numbers of a block.
    """
    import torch

    if name in states[0]:
        _keep(name, states, value)
        return
    blocks = value.unflatten(-1, (states[0][f"{name}_scales"].shape[-1], -1))
    largest = blocks.abs().amax(-1)
    known = numbers(signed, value.device)
    scaled = (blocks / largest.clamp(min=LEAST_SCALE).unsqueeze(-1)).flatten(-2)
    nearest = torch.bucketize(scaled, (known[1:] + known[:-1]) / 2, out_int32=True)
    for part, new in (("codes", nearest), ("scales", largest)):
        before = _stacked(f"{name}_{part}", states)
        _keep(f"{name}_{part}", states, torch.where(skip > 0, before, new.to(before.dtype)))


def _keep(name: str, states: Sequence[dict[str, Tensor]], value: Tensor) -> None:
    """Copy `value` into the tensors `name`, all in one call."""
    import torch

    kept = [local(state[name]) for state in states]
    torch._foreach_copy_(kept, list(value.to(kept[0].dtype).unbind()))


def _stacked(name: str, states: Sequence[dict[str, Tensor]]) -> Tensor:
    import torch

    return torch.stack([local(state[name]) for state in states])


@lru_cache(maxsize=8)
def numbers(signed: bool, device: torch.device) -> Tensor:
    """Return the numbers of the 256 codes, ascending, from -1 or 0 to 1."""
    import torch

    out = [torch.tensor([0.0, 1.0])]
    for exponent in range(7):  # each decade has twice as many numbers as the one below it
        bounds = torch.linspace(0.1, 1, 2 ** (exponent + (not signed)) + 1)
        decade = 10.0 ** (exponent - 6) * (bounds[1:] + bounds[:-1]) / 2
        out += [decade, -decade] if signed else [decade]
    return torch.cat(out).sort().values.to(device)


def local(tensor: Any) -> Any:
    """Return the part of a tensor on this rank, which shares its memory."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
