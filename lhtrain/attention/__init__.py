"""The attention boundary: every layer meets attention in one callable on (B, N, H, D) tensors."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lhtrain.attention.dense import DenseAttention, dense_attention
    from lhtrain.attention.lighthouse import LighthouseAttention, lighthouse_attention
    from lhtrain.attention.pyramid import Pyramid
    from lhtrain.attention.selection import select

# Where each name is. Imported when it is asked for, so that the shape of a pyramid, which checking a
# configuration needs, can be had without the seconds that importing torch takes.
_PLACES = {
    "DenseAttention": "dense",
    "LighthouseAttention": "lighthouse",
    "Pyramid": "pyramid",
    "dense_attention": "dense",
    "lighthouse_attention": "lighthouse",
    "select": "selection",
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
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
