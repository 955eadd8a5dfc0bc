"""Attention: every layer calls one function `attend(q, k, v, where)` on (B, N, H, D) tensors."""

from lhtrain.attention.dense import DenseAttention, dense_attention
from lhtrain.attention.lighthouse import LighthouseAttention, lighthouse_attention
from lhtrain.kernels.pyramid import Pyramid
from lhtrain.kernels.selection.naive import select

__all__ = [
    "DenseAttention",
    "LighthouseAttention",
    "Pyramid",
    "dense_attention",
    "lighthouse_attention",
    "select",
]
