"""Matrix products of the blocks in float8 (e4m3, gradients in e5m2), by torchao.

Weights, activations and gradients are scaled per tensor and cast to float8 just before each product. The
weights are stored in float32, and everything between the products is bfloat16.
"""

import torch

from lhtrain.errors import RunError
from lhtrain.model.decoder import GPT, Linear

LEAST_CAPABILITY = (8, 9)  # Ada, Hopper and later


def use_float8(model: GPT, device: torch.device, emulate: bool = False) -> None:
    """Replace the linear layers of every block (projections and SwiGLU), so that they multiply in float8.

    The output head does not change. emulate: round as float8 does, but multiply in the higher precision, for
    devices without float8. Raises RunError if the device has no float8.
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
