"""Where documents begin among the selected rows, so that rows attend only to rows of their own document.

No window crosses the boundary of a document, so the rows of a document are contiguous in attention order.
But where they begin differs for each sequence and key/value head. So each key/value head becomes a sequence
of its own, with the R query heads of its group: G B sequences of S rows, one head after the other.

Every entry of the coarsest level has a row, which follows the rows of all finer entries in its window. So the
rows before a document are those up to the last coarsest entry before it: no search, no sort.

B batch, N tokens, S rows, H query heads, G key/value heads, R = H / G, M coarsest entries, n documents.
"""

import torch
from torch import Tensor

from lhtrain.attention.documents import Documents
from lhtrain.kernels.pyramid import Pyramid


def by_group(x: Tensor, n_groups: int) -> Tensor:
    """(B, S, H, ...) -> (G B, S, R, ...)."""
    return x.unflatten(2, (n_groups, -1)).movedim(2, 0).flatten(0, 1)


def of_groups(x: Tensor, n_groups: int) -> Tensor:
    """The inverse of `by_group`."""
    return x.unflatten(0, (n_groups, -1)).movedim(0, 2).flatten(2, 3)


def coarsest_rows(row_of_entry: Tensor, pyramid: Pyramid) -> Tensor:
    """Return the rows of the coarsest entries: row_of_entry (B, G, E) -> (B, G, M)."""
    return row_of_entry[..., pyramid.offset(pyramid.levels - 1) :]


def rows_before(coarsest: Tensor, sequences: Tensor, begins: Tensor, window: int) -> Tensor:
    """Return the rows before the positions `begins` (...) of `sequences`, for each head: (..., G) int64.

    coarsest: (B, G, M), see `coarsest_rows`. begins: multiples of `window`, the tokens of a coarsest entry.
    """
    entry = begins.long() // window - 1
    return torch.where((entry < 0).unsqueeze(-1), 0, coarsest[sequences, :, entry.clamp(min=0)].long() + 1)


def row_bounds(bounds: Tensor, coarsest: Tensor, seq_len: int, n_rows: int) -> Tensor:
    """Return the beginnings of the documents in the flattened G B sequences of rows: (G n + 1,) int32.

    bounds: (n + 1,), those in the flattened batch of tokens (`Documents.bounds`). Its length fixes that of
    the result, so that the host does not wait for the device.
    """
    batch, n_groups, n_coarsest = coarsest.shape
    begins = bounds[:-1].long()
    sequence = (begins // seq_len).clamp(max=batch - 1)
    before = rows_before(coarsest, sequence, begins - sequence * seq_len, seq_len // n_coarsest)  # (n, G)
    group = torch.arange(n_groups, device=bounds.device)
    rows = before + (group * batch + sequence.unsqueeze(1)) * n_rows
    return torch.nn.functional.pad(rows.T.flatten(), (0, 1), value=n_groups * batch * n_rows).int()


def aligned_starts(documents: Documents, pyramid: Pyramid) -> Tensor:
    """Return `documents.starts`. Raise ValueError where a document begins inside of a coarsest window.

    Only on a CPU: reading the boundaries from a GPU would wait for it.
    """
    starts, window = documents.starts, pyramid.coarsest_window
    if not (torch.compiler.is_compiling() or starts.is_cuda) and len(wrong := starts[starts % window != 0]):
        rule = f"documents kept apart must begin at multiples of pooling^(levels-1) = {window}"
        raise ValueError(f"documents: one begins at {int(wrong[0])}: {rule}")
    return starts
