"""Learning rates and initial weights that fit models of every width (muP, arXiv:2203.03466, table 3).

m is the width of the model divided by the base width. At the base width, m = 1, nothing changes. The factors
on the initial standard deviation and on AdamW's learning rate:

    parameter                             standard deviation    learning rate
    embedding                             1                     1
    matrices of the blocks                1 / sqrt(m)           1 / m
    head                                  1 / m                 1 / m
    norm gains, biases                    1                     1
    gain of the last norm, if tied        1 / m (its value)     1 / m

A tied head is the embedding. It would need a factor 1 / m on the logits; the gain of the last norm carries
it, so that the model has no factors of its own and other programs compute the same logits.

The scores of attention keep their factor 1 / sqrt(head_dim), which is as good as 1 / head_dim if head_dim is
the same at all widths. The factors assume that the number of heads and ffn_dim grow with the width.
"""

import math
from collections.abc import Sequence

from lhtrain.conf.schema import ModelConfig, OptimConfig

LAST_GAIN = "norm.weight"


def width_ratio(optim: OptimConfig, model: ModelConfig) -> float:
    """Return m; 1 without optim.mup."""
    return model.dim / optim.mup_base_width if optim.mup else 1.0


def mup_scale(name: str, shape: Sequence[int], optim: OptimConfig, model: ModelConfig) -> float:
    """Return the factor on the learning rate of the parameter `name` of the whole `shape`."""
    shrinks = len(shape) >= 2 and name != "embedding.weight"
    is_gain = name == LAST_GAIN and model.tie_embeddings
    return 1 / width_ratio(optim, model) if shrinks or is_gain else 1.0


def init_scale(name: str, shape: Sequence[int], ratio: float, tied: bool) -> float:
    """Return the factor on the initial values of the parameter `name`. ratio: m. tied: as tie_embeddings."""
    if len(shape) < 2:
        return 1 / ratio if name == LAST_GAIN and tied else 1.0
    if name == "embedding.weight":
        return 1.0
    return 1 / ratio if name == "head.weight" else 1 / math.sqrt(ratio)
