"""An exponential moving average of the weights (optim.ema), kept beside them and sharded as they are.

At update number t, counted from 1, the average keeps the share min(ema, (1 + t) / (10 + t)) of itself, so
that the initial weights are soon forgotten, and takes the rest from the weights. A skipped step counts too.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from lhtrain.weights import AVERAGE


def decay(ema: float, updates: int) -> float:
    """Return the share of the old average that the update with this number keeps."""
    return min(ema, (1 + updates) / (10 + updates))


class WeightAverage:
    """The average of the weights of `model`, in their dtype and on their device.

    ema: the share of itself that it keeps at each update; None: there is no average, and nothing is done.
    """

    def __init__(self, model: nn.Module, ema: float | None):
        self.model, self.ema = model, ema
        self.updates = torch.zeros((), dtype=torch.int64)  # 0: the average does not exist yet
        # Held from here on, because between a validation and the next step FSDP shows gathered parameters.
        held = {name: one.detach() for name, one in model.named_parameters()} if self.is_kept else {}
        self._held = [_local(weight) for weight in held.values()]
        self._average = {name: weight.clone() for name, weight in held.items()}

    @property
    def is_kept(self) -> bool:
        return self.ema is not None

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that a checkpoint saves and restores, by name."""
        if not self.is_kept:
            return {}
        named = {f"{AVERAGE}{name}": tensor for name, tensor in self._average.items()}
        return named | {f"{AVERAGE}updates": self.updates}

    @torch.no_grad()
    def begin(self) -> None:
        """Take the weights as they are, unless the average was loaded from a checkpoint."""
        if self.is_kept and self.updates == 0:
            torch._foreach_copy_(self._mine(), self._held)

    def forget(self) -> None:
        """Let the average begin anew, unless it is loaded before `begin`."""
        self.updates.zero_()

    @torch.no_grad()
    def update(self) -> None:
        """Move the average to the weights. The host does not wait for the device."""
        if self.ema is None:
            return
        self.updates += 1
        share = 1 - decay(self.ema, int(self.updates))  # `updates` is on the CPU
        torch._foreach_lerp_(self._mine(), self._held, share)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Exchange the weights and the average while the block runs."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for weight, average in zip(self._held, self._mine(), strict=True):
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # frees weights that were gathered before

    def _mine(self) -> list[Tensor]:
        return [_local(tensor) for tensor in self._average.values()]


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
