"""What updates the weights. The small interface that the step, checkpoints and the memory estimate use."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Protocol

from lhtrain.registry import OPTIMIZERS

if TYPE_CHECKING:  # the memory estimate asks for state_bytes, and need not import torch for it
    from torch import Tensor, nn

    from lhtrain.conf.schema import OptimConfig


class Optimizer(Protocol):
    """An entry of registry.OPTIMIZERS: a class that is called with the model and its OptimConfig.

    state_bytes: of the state that it keeps for each weight.
    """

    state_bytes: ClassVar[int]

    def __init__(self, model: nn.Module, config: OptimConfig) -> None: ...

    def step(self, lr: float, skip: Tensor) -> None:
        """Update the weights from their gradients, at learning rate `lr` times each group's own scale.

        skip: a float scalar on the device; where it is not 0, nothing changes. The host must not wait for it.
        """

    def zero_grad(self) -> None:
        """Free the gradients."""

    def state_of(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """The tensors kept for `parameter`, by name: what a checkpoint saves, and fills in place. They exist
        from the start, with the values that the first step would give them."""


class AdamW:
    """torch.optim.AdamW, fused: on every device only that one honors `found_inf`, so that a step is skipped
    without the host waiting for the device. Weight decay applies to matrices (the embedding is one), not to
    norm gains and other vectors."""

    state_bytes: ClassVar[int] = 8  # two float32 moments

    def __init__(self, model: nn.Module, config: OptimConfig) -> None:
        import torch  # see above

        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        matrices = [parameter for parameter in trained if parameter.ndim >= 2]
        vectors = [parameter for parameter in trained if parameter.ndim < 2]
        groups = [
            {"params": matrices, "weight_decay": config.weight_decay, "lr_scale": 1.0},
            {"params": vectors, "weight_decay": 0.0, "lr_scale": 1.0},
        ]
        beta1, beta2 = config.betas
        self.adamw = torch.optim.AdamW(groups, lr=config.lr, betas=(beta1, beta2), eps=config.eps, fused=True)

    def step(self, lr: float, skip: Tensor) -> None:
        for group in self.adamw.param_groups:
            group["lr"] = lr * group["lr_scale"]
        self.adamw.found_inf = skip  # type: ignore[attr-defined]  # as torch.amp.GradScaler hands it over
        self.adamw.step()

    def zero_grad(self) -> None:
        self.adamw.zero_grad(set_to_none=True)

    def state_of(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        import torch

        state = self.adamw.state[parameter]
        if not state and parameter.requires_grad:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            for moment in ("exp_avg", "exp_avg_sq"):
                state[moment] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return state


def build_optimizer(model: nn.Module, config: OptimConfig) -> Optimizer:
    """The optimizer `optim.kind` for `model`."""
    return OPTIMIZERS[config.kind](model, config)
