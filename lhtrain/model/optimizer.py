"""Optimizers, and the interface that the step, checkpoints and the memory estimate use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Protocol

from lhtrain.model import moments
from lhtrain.model.parameter_groups import Belongs, Group, alike, everything, grouped
from lhtrain.registry import OPTIMIZERS

if TYPE_CHECKING:  # the memory estimate reads state_bytes, and must not import torch for it
    from torch import Tensor, nn

    from lhtrain.conf.schema import OptimConfig
    from lhtrain.model.decoder import GPT

# Weights whose moments AdamW converts to float32 together: more need memory, fewer more calls of kernels.
MOST_AT_ONCE = 2**23


class Optimizer(Protocol):
    """The interface of the classes in registry.OPTIMIZERS.

    state_bytes: bytes of state per weight. If it depends on the parameter or the configuration, a class may
    have `state_bytes_of(name, shape, config)` too.
    """

    state_bytes: ClassVar[int]

    def __init__(self, model: GPT, config: OptimConfig) -> None: ...

    def step(self, lr: float, skip: Tensor) -> None:
        """Update the weights from their gradients, with learning rate `lr` times each group's lr_scale.

        A parameter without a gradient (.grad is None), such as one that the stage does not train, does not
        change, and neither does its state.

        skip: a float scalar on the device; if it is not 0, nothing changes. The host must not wait for it.
        """

    def zero_grad(self) -> None:
        """Set all gradients to None, which frees them."""

    def state_of(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """Return the state tensors of `parameter` by name.

        A checkpoint saves them, and loads them in place. They exist before the first step, with the values
        that the optimizer would initialize them with.
        """


class AdamW:
    """PyTorch's fused AdamW.

    Only fused AdamW honors `found_inf`, so skipping a step needs no wait of the host for the device.

    It calls the function behind torch.optim.AdamW, because the class imports torch._dynamo, which takes a
    sixth of the start time of a run on a CPU. A test compares the two bit for bit.
    """

    state_bytes: ClassVar[int] = 8  # two float32 moments; `state_bytes_of` knows optim.state

    def __init__(self, model: GPT, config: OptimConfig, belongs: Belongs = everything) -> None:
        self.groups = grouped(model, config, belongs)
        self.trained = {parameter for group in self.groups for parameter in group.parameters}
        self.betas, self.eps, self.moments = config.betas, config.eps, config.state
        self._state: dict[nn.Parameter, dict[str, Tensor]] = {}

    @staticmethod
    def state_bytes_of(name: str, shape: Sequence[int], config: OptimConfig) -> float:
        """Return the bytes of state per weight of a parameter."""
        return 2 * moments.bytes_of(shape, config.state)

    def step(self, lr: float, skip: Tensor) -> None:
        import torch

        with torch.no_grad():
            for group in self.groups:
                with_grad = [parameter for parameter in group.parameters if parameter.grad is not None]
                plain = [one for one in with_grad if moments.is_plain("exp_avg", self.state_of(one))]
                states = [self.state_of(parameter) for parameter in plain]
                of_plain = [[state[name] for state in states] for name in ("exp_avg", "exp_avg_sq", "step")]
                self._update(group, lr, skip, plain, [parameter.grad for parameter in plain], *of_plain)
                compact = [one for one in with_grad if not moments.is_plain("exp_avg", self.state_of(one))]
                for parameters in alike(compact, MOST_AT_ONCE):
                    self._update_compact(group, lr, skip, parameters)

    def _update_compact(self, group: Group, lr: float, skip: Tensor, parameters: list[nn.Parameter]) -> None:
        """Update parameters of one shape whose moments are not float32, but are for as long as this takes."""
        states = [self.state_of(parameter) for parameter in parameters]
        first = moments.read("exp_avg", states, signed=True)
        second = moments.read("exp_avg_sq", states, signed=False)
        weights = [moments.local(parameter) for parameter in parameters]
        grads = [moments.local(parameter.grad) for parameter in parameters]
        steps = [state["step"] for state in states]
        self._update(group, lr, skip, weights, grads, list(first.unbind()), list(second.unbind()), steps)
        moments.write("exp_avg", states, first, skip, signed=True)
        moments.write("exp_avg_sq", states, second, skip, signed=False)

    def _update(self, group: Group, lr: float, skip: Tensor, *tensors: list) -> None:
        """Update parameters. tensors: they, their gradients, first and second moments, and step counts."""
        from torch.optim.adamw import adamw

        if not tensors[0]:
            return
        parameters, grads, first, second, steps = tensors
        adamw(
            parameters,
            grads,
            first,
            second,
            [],
            steps,
            fused=True,
            found_inf=skip,
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=lr * group.lr_scale,
            weight_decay=group.weight_decay,
            eps=self.eps,
            maximize=False,
        )

    def zero_grad(self) -> None:
        for group in self.groups:
            for parameter in group.parameters:
                parameter.grad = None

    def state_of(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        import torch

        if parameter not in self._state:
            state = {}
            if parameter in self.trained:  # a stage that freezes it keeps its state
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                for moment in ("exp_avg", "exp_avg_sq"):
                    state |= moments.new(moment, parameter, self.moments)
            self._state[parameter] = state
        return self._state[parameter]


def build_optimizer(model: GPT, config: OptimConfig) -> Optimizer:
    """Build the optimizer `optim.kind` for `model`."""
    return OPTIMIZERS[config.kind](model, config)
