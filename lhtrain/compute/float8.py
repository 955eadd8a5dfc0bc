"""The blocks' products in float8 (e4m3, gradients e5m2), through torchao.

Weights, activations and gradients are scaled as whole tensors and cast as they are used. Weights stay
float32, and everything between the products bfloat16.
"""

import torch

from lhtrain.errors import RunError
from lhtrain.model.decoder import GPT, Linear

LEAST_CAPABILITY = (8, 9)  # Ada, Hopper and later


def use_float8(model: GPT, device: torch.device, emulate: bool = False) -> None:
    """Have the projections and the SwiGLU of every block multiply in float8; the output head stays as it is.

    emulate: the same rounding with plain products, for devices without float8.
    Raises RunError: a device that has no float8.
    """
    on_gpu = device.type == "cuda"
    if not emulate and not (on_gpu and torch.cuda.get_device_capability(device) >= LEAST_CAPABILITY):
        name = torch.cuda.get_device_name(device) if on_gpu else device.type
        raise RunError(f"compute.float8=true: needs a GPU of compute capability 8.9 or higher, not {name}")
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    convert_to_float8_training(
        model.blocks,
        config=Float8LinearConfig(emulate=emulate),
        module_filter_fn=lambda module, name: isinstance(module, Linear),
    )
