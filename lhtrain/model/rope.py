"""The rotary position embedding, with the scalings that published models use.

T tokens, B batch, H heads, D head dim. The formulas are those of Hugging Face transformers
(modeling_rope_utils.py), so that published weights give the same results here.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lhtrain.attention.where import Rotation
from lhtrain.conf.rope_scaling import ORIGINAL
from lhtrain.conf.schema import ModelConfig


@dataclass(frozen=True)
class Rope:
    """The frequencies of a rotary embedding.

    Attributes:
        theta: the base.
        scaling: as in `model.rope_scaling`, None for none.
        seq_len: length in tokens of the sequences. Only rope_type=dynamic depends on it: its frequencies are
            those that transformers uses for sequences of this length.
    """

    theta: float
    scaling: dict[str, Any] | None = None
    seq_len: int = 0

    @classmethod
    def of(cls, config: ModelConfig) -> "Rope":
        """Return the rotary embedding of a model's configuration."""
        return cls(config.rope_theta, config.rope_scaling, config.seq_len)

    def frequencies(self, head_dim: int, device: torch.device | None = None) -> Tensor:
        """Return the angle by which each pair turns from one position to the next: (D / 2,) float32."""
        exponents = torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim
        if self.scaling is None:
            return self.theta**-exponents
        return SCALE[self.scaling["rope_type"]](self, exponents, head_dim)

    @property
    def attention_factor(self) -> float:
        """The factor for cosines and sines. Only rope_type=yarn has one."""
        if self.scaling is None or self.scaling["rope_type"] != "yarn":
            return 1.0
        given, factor = self.scaling.get("attention_factor"), self.scaling["factor"]
        mscale, of_all = self.scaling.get("mscale"), self.scaling.get("mscale_all_dim")
        if given is not None:
            return float(given)
        if mscale and of_all:
            return _yarn_scale(factor, mscale) / _yarn_scale(factor, of_all)
        return _yarn_scale(factor)

    def rotation(self, positions: Tensor, head_dim: int) -> Rotation:
        """Return cosines and sines at `positions` (T,) or (B, T): (…, D) each, float32."""
        angles = positions.float().unsqueeze(-1) * self.frequencies(head_dim, positions.device)
        angles = torch.cat([angles, angles], -1)
        cos, sin, factor = angles.cos(), angles.sin(), self.attention_factor
        return (cos, sin) if factor == 1.0 else (cos * factor, sin * factor)


def rotate(x: Tensor, by: Rotation) -> Tensor:
    """Rotate x (B, T, H, D) by halves, as Llama's published weights expect; keeps x's dtype.

    by: (T, D) or (B, T, D) each.
    """
    cos, sin = (part.unsqueeze(-2) for part in by)
    first, second = x.float().chunk(2, -1)
    return (x.float() * cos + torch.cat([-second, first], -1) * sin).to(x.dtype)


def _linear(rope: Rope, exponents: Tensor, head_dim: int) -> Tensor:
    assert rope.scaling is not None
    return rope.theta**-exponents / rope.scaling["factor"]


def _dynamic(rope: Rope, exponents: Tensor, head_dim: int) -> Tensor:
    """A larger base for sequences longer than the original ones (NTK-aware scaling)."""
    assert rope.scaling is not None
    factor, original = rope.scaling["factor"], rope.scaling[ORIGINAL]
    longer = factor * max(rope.seq_len, original) / original - (factor - 1)
    return (rope.theta * longer ** (head_dim / (head_dim - 2))) ** -exponents


def _llama3(rope: Rope, exponents: Tensor, head_dim: int) -> Tensor:
    """Slow frequencies are divided by the factor, fast ones are kept (Llama 3.1)."""
    assert rope.scaling is not None
    plain, scaling = rope.theta**-exponents, rope.scaling
    factor, low, high = scaling["factor"], scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling[ORIGINAL] * plain / (2 * math.pi)  # of each pair in a sequence of the original length
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - kept) * plain / factor + kept * plain


def _yarn(rope: Rope, exponents: Tensor, head_dim: int) -> Tensor:
    """Frequencies between two numbers of turns go from kept to divided by the factor (arXiv:2309.00071)."""
    assert rope.scaling is not None
    scaling, plain = rope.scaling, rope.theta**-exponents

    def dimension(turns: float) -> float:
        of_one = scaling[ORIGINAL] / (turns * 2 * math.pi)
        return head_dim * math.log(of_one) / (2 * math.log(rope.theta))

    low, high = dimension(scaling.get("beta_fast") or 32), dimension(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    high += 0.001 if low == high else 0.0
    pairs = torch.arange(head_dim // 2, device=exponents.device, dtype=torch.float32)
    divided = ((pairs - low) / (high - low)).clamp(0, 1)
    return divided * plain / scaling["factor"] + (1 - divided) * plain


def _yarn_scale(factor: float, mscale: float = 1.0) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


SCALE = {"linear": _linear, "dynamic": _dynamic, "llama3": _llama3, "yarn": _yarn}
