"""The attention boundary: every layer meets attention in one callable on (B, N, H, D) tensors."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lhtrain.attention.dense import DenseAttention, dense_attention
    from lhtrain.attention.lighthouse import LighthouseAttention, lighthouse_attention
    from lhtrain.attention.selection import select
    from lhtrain.kernels.pyramid import Pyramid

# Where each name is. Imported when it is asked for, so that the shape of a pyramid, which checking a
# configuration needs, can be had without the seconds that importing torch takes.
_PLACES = {
    "DenseAttention": "lhtrain.attention.dense",
    "LighthouseAttention": "lhtrain.attention.lighthouse",
    "Pyramid": "lhtrain.kernels.pyramid",
    "dense_attention": "lhtrain.attention.dense",
    "lighthouse_attention": "lhtrain.attention.lighthouse",
    "select": "lhtrain.attention.selection",
}

__all__ = [
    "DenseAttention",
    "LighthouseAttention",
    "Pyramid",
    "dense_attention",
    "lighthouse_attention",
    "select",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)
