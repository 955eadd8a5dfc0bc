"""A sliding window and nothing else: the rival of windowed Lighthouse in `recipes.py`, as a plugin.

plugins=[scripts.bench.window_alone] stages.NAME.attention=window_alone 'stages.NAME.options={window: 512}'
"""

import torch
from torch import Tensor

from lhtrain.attention.varlen import attend_documents
from lhtrain.attention.where import Where
from lhtrain.registry import ATTENTIONS
from lhtrain.stage import Stage


@ATTENTIONS.add("window_alone")
class WindowAlone:
    """Exact attention to the last `window` tokens, itself included."""

    keeps_documents = True

    def __init__(self, window: int):
        self.window = window

    @classmethod
    def of(cls, stage: Stage, backend: str) -> "WindowAlone":
        return cls(stage.options["window"])

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, where: Where | None = None) -> Tensor:
        """q (B, N, H, D), k, v (B, N, G, D) -> (B, N, H, D)."""
        if where is not None and where.documents is not None:
            bounds = where.documents.bounds
        else:
            bounds = torch.arange(len(q) + 1, device=q.device, dtype=torch.int32) * q.shape[1]
        return attend_documents(q, k, v, bounds, self.window)[0]
