"""Which learning rate and weight decay each parameter gets. All optimizers of lhtrain use this."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, NamedTuple

from lhtrain.conf.parameters import matches
from lhtrain.conf.schema import ModelConfig, OptimConfig
from lhtrain.model.mup import mup_scale

if TYPE_CHECKING:  # the memory estimate imports the optimizers, and must not import torch
    from torch import nn

    from lhtrain.model.decoder import GPT


class Treatment(NamedTuple):
    """How an optimizer treats a parameter. lr_scale: factor on the step's learning rate."""

    lr_scale: float
    weight_decay: float


@dataclass(frozen=True)
class Group:
    """Parameters with the same settings. lr_scale: factor on the step's learning rate."""

    parameters: list[nn.Parameter]
    weight_decay: float
    lr_scale: float = 1.0


def treatment(name: str, shape: Sequence[int], optim: OptimConfig, model: ModelConfig) -> Treatment:
    """Return the rate factor and the weight decay of one parameter.

    Weight decay applies to matrices, including the embedding, and not to vectors such as norm gains. Patterns
    of optim.groups change both; of several patterns that match, the last one decides. With optim.mup, the
    rate is multiplied by the factor of muP too, and weight decay, unless a pattern sets it, is divided by it.

    Args:
        name: as in model.named_parameters().
        shape: of the whole parameter, not of a shard.
        optim: optim.groups must be valid.
        model: the configuration of the model, for rates that depend on its width.
    """
    scale = mup_scale(name, shape, optim, model)
    # A step decays by rate * weight_decay, which should not depend on the width.
    own = {"lr_scale": 1.0, "weight_decay": optim.weight_decay / scale if len(shape) >= 2 else 0.0}
    for pattern, settings in optim.groups.items():
        if matches(pattern, name):
            own |= settings if isinstance(settings, dict) else {"lr_scale": settings}
    return Treatment(float(own["lr_scale"]) * scale, float(own["weight_decay"]))


Belongs = Callable[[str, Sequence[int]], bool]


def everything(name: str, shape: Sequence[int]) -> bool:
    return True


def grouped(model: GPT, optim: OptimConfig, belongs: Belongs = everything) -> list[Group]:
    """Return the trained parameters that `belongs` accepts, by name and shape, in groups of one treatment."""
    groups: dict[Treatment, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and belongs(name, parameter.shape):
            treated = treatment(name, parameter.shape, optim, model.config)
            groups.setdefault(treated, []).append(parameter)
    return [Group(members, decay, scale) for (scale, decay), members in groups.items()]


def alike(parameters: Sequence[nn.Parameter], most: int) -> Iterator[list[nn.Parameter]]:
    """Yield lists of parameters with gradients that have one shape and sharding, and are updated together.

    most: number of weights of a list on one rank, unless a single parameter has more.
    """
    by_shape: dict[tuple, list[nn.Parameter]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            key = tuple(parameter.shape), getattr(parameter, "placements", None)
            by_shape.setdefault(key, []).append(parameter)
    for (shape, _), found in by_shape.items():
        mesh = getattr(found[0], "device_mesh", None)  # the same list on every rank
        count = (1 if mesh is None else mesh.shape[-1]) * max(most // prod(shape), 1)
        yield from (found[begin : begin + count] for begin in range(0, len(found), count))
