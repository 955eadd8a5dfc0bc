"""Muon (https://kellerjordan.github.io/posts/muon/) for the matrices of the blocks, AdamW for the rest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import sqrt
from typing import TYPE_CHECKING, ClassVar

from lhtrain.model import moments
from lhtrain.model.optimizer import AdamW
from lhtrain.model.parameter_groups import grouped

if TYPE_CHECKING:  # the memory estimate reads state_bytes_of, and must not import torch for it
    from torch import Tensor, nn

    from lhtrain.conf.schema import OptimConfig
    from lhtrain.model.decoder import GPT

# Weights that a rank orthogonalizes together: small matrices alone keep no GPU busy.
MOST_AT_ONCE = 2**25


def takes(name: str, shape: Sequence[int]) -> bool:
    """Return whether Muon, and not AdamW, updates the parameter: whether it is a matrix of a block."""
    return name.startswith("blocks.") and len(shape) == 2


class Muon:
    """Muon with Nesterov momentum, as torch.optim.Muon with adjust_lr_fn="match_rms_adamw".

    An update has the root mean square of those of AdamW, 0.2 times the learning rate (arXiv:2502.16982), so
    that the learning rate and the weight decay of AdamW serve here too. A test compares it with the class of
    torch, which neither takes sharded matrices nor can skip a step without a wait of the host.
    """

    state_bytes: ClassVar[int] = 4  # one float32 momentum; `state_bytes_of` knows the other parameters

    def __init__(self, model: GPT, config: OptimConfig) -> None:
        self.groups = grouped(model, config, takes)
        self.others = AdamW(model, config, belongs=lambda name, shape: not takes(name, shape))
        self.trained = {parameter for group in self.groups for parameter in group.parameters}
        self.momentum, self.moments = config.momentum, config.state
        self._state: dict[nn.Parameter, dict[str, Tensor]] = {}

    @staticmethod
    def state_bytes_of(name: str, shape: Sequence[int], config: OptimConfig) -> float:
        """Return the bytes of state per weight of a parameter."""
        return (
            moments.bytes_of(shape, config.state)
            if takes(name, shape)
            else AdamW.state_bytes_of(name, shape, config)
        )

    def step(self, lr: float, skip: Tensor) -> None:
        import torch

        with torch.no_grad():
            self.others.step(lr, skip)
            for group in self.groups:
                for alike in _alike(group.parameters):
                    self._update(alike, lr * group.lr_scale, group.weight_decay, skip)

    def _update(self, parameters: list[nn.Parameter], lr: float, weight_decay: float, skip: Tensor) -> None:
        """Update matrices of one shape and sharding."""
        from lhtrain.distributed.orthogonal import orthogonal_shards

        keep = 1 - skip
        shards = [self._direction(parameter, skip) for parameter in parameters]
        rate = 0.2 * sqrt(max(parameters[0].shape)) * lr
        for parameter, update in zip(parameters, orthogonal_shards(shards, parameters[0]), strict=True):
            weights = moments.local(parameter)
            weights.mul_(1 - lr * weight_decay * keep)
            weights.sub_(update * (rate * keep))

    def _direction(self, parameter: nn.Parameter, skip: Tensor) -> Tensor:
        """Update the momentum, unless the step is skipped; return the gradient with Nesterov momentum."""
        import torch

        assert parameter.grad is not None
        grad, state = moments.local(parameter.grad), self.state_of(parameter)
        grad = torch.where(skip > 0, torch.zeros_like(grad), grad)  # may not be finite
        momentum = moments.read("momentum", state, signed=True)
        momentum.lerp_(grad, (1 - self.momentum) * (1 - skip))
        moments.write("momentum", state, momentum, skip, signed=True)
        return grad.lerp(momentum, self.momentum)

    def zero_grad(self) -> None:
        self.others.zero_grad()
        for parameter in self.trained:
            parameter.grad = None

    def state_of(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        if parameter not in self.trained:
            return self.others.state_of(parameter)
        if parameter not in self._state:
            self._state[parameter] = moments.new("momentum", parameter, self.moments)
        return self._state[parameter]


def _alike(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Yield lists of parameters with gradients that have one shape and sharding, and are updated together."""
    by_shape: dict[tuple, list[nn.Parameter]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            key = tuple(parameter.shape), getattr(parameter, "placements", None)
            by_shape.setdefault(key, []).append(parameter)
    for (shape, _), alike in by_shape.items():
        mesh = getattr(alike[0], "device_mesh", None)  # the same list on every rank
        count = (1 if mesh is None else mesh.shape[-1]) * max(MOST_AT_ONCE // (shape[0] * shape[1]), 1)
        yield from (alike[begin : begin + count] for begin in range(0, len(alike), count))
