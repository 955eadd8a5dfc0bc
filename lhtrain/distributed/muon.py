"""Muon (https://kellerjordan.github.io/posts/muon/) for the matrices of the blocks, AdamW for the rest."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import TYPE_CHECKING, ClassVar

from lhtrain.model import moments
from lhtrain.model.optimizer import AdamW
from lhtrain.model.parameter_groups import alike, grouped

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
                for parameters in alike(group.parameters, MOST_AT_ONCE):
                    self._update(parameters, lr * group.lr_scale, group.weight_decay, skip)

    def _update(self, parameters: list[nn.Parameter], lr: float, weight_decay: float, skip: Tensor) -> None:
        """Update K matrices of one shape and sharding, with few calls of kernels for all of them."""
        import torch

        from lhtrain.distributed.orthogonal import orthogonal_shards

        keep = 1 - skip
        updates = orthogonal_shards(self._directions(parameters, skip), parameters[0])
        rate = 0.2 * sqrt(max(parameters[0].shape)) * lr
        weights = [moments.local(parameter) for parameter in parameters]
        torch._foreach_mul_(weights, 1 - lr * weight_decay * keep)
        torch._foreach_sub_(weights, list((updates * (rate * keep)).float().unbind()))

    def _directions(self, parameters: list[nn.Parameter], skip: Tensor) -> Tensor:
        """Update the momenta, unless the step is skipped.

        Returns the gradients with Nesterov momentum, (K, rows on this rank, columns).
        """
        import torch

        grads = torch.stack([moments.local(parameter.grad) for parameter in parameters])
        grads.masked_fill_(skip > 0, 0.0)  # may not be finite
        states = [self.state_of(parameter) for parameter in parameters]
        momenta = moments.read("momentum", states, signed=True)
        momenta.lerp_(grads, (1 - self.momentum) * (1 - skip))
        moments.write("momentum", states, momenta, skip, signed=True)
        return grads.lerp_(momenta, self.momentum)

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
