"""The rotary position embedding, with the scalings that published models use.

T tokens, B batch, H heads, D head dim. Frequencies are computed with the operations of Hugging Face
transformers (modeling_rope_utils.py), on the CPU in float32: at position 100,000 an error in the last bit of
a frequency already turns a pair by 0.006 radians.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lhtrain.attention.where import Rotation
from lhtrain.conf.rope_scaling import ORIGINAL, dynamic_raise
from lhtrain.conf.schema import ModelConfig

Scaling = dict[str, Any]


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
    scaling: Scaling | None = None
    seq_len: int = 0
    # frequencies by head_dim and device, so that a step neither computes nor copies them
    _kept: dict[tuple[int, torch.device], Tensor] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, config: ModelConfig) -> "Rope":
        """Return the rotary embedding of a model's configuration."""
        return cls(config.rope_theta, config.rope_scaling, config.seq_len)

    def frequencies(self, head_dim: int) -> Tensor:
        """Return the angle by which each pair turns per position: (D / 2,) float32, on the CPU."""
        if self.scaling is None:
            return 1.0 / _waves(self.theta, head_dim)
        return SCALE[self.scaling["rope_type"]](self.theta, self.scaling, self.seq_len, head_dim)

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
        place = head_dim, positions.device
        if place not in self._kept:
            self._kept[place] = self.frequencies(head_dim).to(positions.device)
        angles = positions.float().unsqueeze(-1) * self._kept[place]
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


def _waves(theta: float, head_dim: int) -> Tensor:
    """Return the number of positions in which each pair turns by one radian, (D / 2,)."""
    exponents: Tensor = torch.arange(0, head_dim, 2, dtype=torch.int64, device="cpu").float() / head_dim
    return theta**exponents


def _linear(theta: float, scaling: Scaling, seq_len: int, head_dim: int) -> Tensor:
    """Positions are divided by the factor (arXiv:2306.15595)."""
    return 1.0 / _waves(theta, head_dim) / scaling["factor"]


def _dynamic(theta: float, scaling: Scaling, seq_len: int, head_dim: int) -> Tensor:
    """A larger base for sequences longer than the original ones (NTK-aware scaling)."""
    return 1.0 / _waves(theta * dynamic_raise(scaling, seq_len, head_dim), head_dim)


def _llama3(theta: float, scaling: Scaling, seq_len: int, head_dim: int) -> Tensor:
    """Slow frequencies are divided by the factor, fast ones are kept, with a mean in between (Llama 3.1)."""
    factor, low, high = scaling["factor"], scaling["low_freq_factor"], scaling["high_freq_factor"]
    original, plain = scaling[ORIGINAL], 1.0 / _waves(theta, head_dim)
    lengths = 2 * math.pi / plain  # positions of a whole turn
    slow, fast = lengths > original / low, lengths < original / high
    kept = (original / lengths - low) / (high - low)
    mean = (1 - kept) * plain / factor + kept * plain
    return torch.where(slow, plain / factor, torch.where(fast, plain, mean))


def _yarn(theta: float, scaling: Scaling, seq_len: int, head_dim: int) -> Tensor:
    """Frequencies between two numbers of turns go from kept to divided by the factor (arXiv:2309.00071)."""
    waves = _waves(theta, head_dim)

    def dimension(turns: float) -> float:
        of_one = scaling[ORIGINAL] / (turns * 2 * math.pi)
        return head_dim * math.log(of_one) / (2 * math.log(theta))

    low, high = dimension(scaling.get("beta_fast") or 32), dimension(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    high += 0.001 if low == high else 0.0
    kept = 1 - ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    return 1.0 / (scaling["factor"] * waves) * (1 - kept) + 1.0 / waves * kept


def _yarn_scale(factor: float, mscale: float = 1.0) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


SCALE = {"linear": _linear, "dynamic": _dynamic, "llama3": _llama3, "yarn": _yarn}
