"""The merge in plain PyTorch: the reference of `kernel.py`.

B batch, N tokens, H query heads, G key/value heads, D head dim, E pyramid entries, S rows, L levels.
"""

import torch
from torch import Tensor

from lhtrain.kernels.pyramid import Pyramid


def finest_rows(
    row_of_entry: Tensor, pyramid: Pyramid, before: Tensor | None = None, starts: Tensor | None = None
) -> Tensor:
    """Return the row of each position, (B, G, N) int64, -1 for none: the finest kept entry that reaches it.

    Entry i of level l reaches the p^l positions from the last of its window on. row_of_entry (B, G, E): -1
    where an entry is not kept. before (B, G, L - 1): the rows of the entries that precede the first of each
    level from 1 up, which end right before the first position. starts (B, N): where the document of each
    position begins, counted from the first position; an entry reaches only positions of its own document.
    """
    found = torch.full((*row_of_entry.shape[:2], pyramid.seq_len), -1, device=row_of_entry.device)
    position = torch.arange(pyramid.seq_len, device=row_of_entry.device)
    for level in range(pyramid.levels):
        window, first = pyramid.pooling**level, pyramid.offset(level)
        rows = row_of_entry[..., first : first + pyramid.size(level)].long()
        ahead = before[..., level - 1 : level].long() if level and before is not None else None
        rows = torch.cat([torch.full_like(rows[..., :1], -1) if ahead is None else ahead, rows], -1)
        entry = (position - (window - 1)).div(window, rounding_mode="floor")
        of_level = rows[..., entry + 1]
        if starts is not None:
            of_level = of_level.masked_fill((entry * window < starts).unsqueeze(1), -1)
        found = torch.where(found < 0, of_level, found)
    return found


def merge(
    near: Tensor,
    near_lse: Tensor,
    rows: Tensor,
    rows_lse: Tensor,
    row_of_entry: Tensor,
    pyramid: Pyramid,
    before: Tensor | None = None,
    starts: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Merge two parts of each position's softmax: near (B, N, H, D) and its finest row, rows (B, S, H, D).

    near_lse (B, H, N), rows_lse (B, H, S) float32; the others as in `finest_rows`. A position that no row
    reaches keeps its near part. Returns out (B, N, H, D) in near's dtype and its logsumexp (B, H, N) float32.
    """
    taken = finest_rows(row_of_entry, pyramid, before, starts)
    taken = taken.repeat_interleave(near.shape[2] // taken.shape[1], 1)  # (B, H, N)
    place = taken.clamp(min=0)
    far_lse = rows_lse.gather(2, place).masked_fill(taken < 0, -torch.inf)
    place = place.transpose(1, 2).unsqueeze(-1).expand(-1, -1, -1, near.shape[-1])
    far = rows.gather(1, place).to(far_lse.dtype)
    share = torch.sigmoid(far_lse - near_lse).transpose(1, 2).unsqueeze(-1)
    wide = near.to(far_lse.dtype)
    return (wide + share * (far - wide)).to(near.dtype), torch.logaddexp(near_lse, far_lse)
