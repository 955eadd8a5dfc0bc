"""Windowed Lighthouse Attention on the tokens of one context-parallel rank, after the selection of its rows.

All ranks attend to their rows together, as in the published layer. Two things come from the chunk before:

- its last W - 1 keys and values, so that the window crosses the border between chunks;
- the outputs and logsumexps of the last entry of each level from 1 up, where it is kept. These entries reach
  into the chunk. This is left out where the selection is `local`.

B batch, c tokens of a chunk, s rows of a chunk, H query heads, G key/value heads, D head dim, L levels,
E pyramid entries of a chunk. The two chunks of a rank are batch elements: `layout.as_chunks`.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from lhtrain.attention.lighthouse import Selected
from lhtrain.attention.windowed import merge_window
from lhtrain.context_parallel.halo import check_window, from_chunk_before, with_tokens_before
from lhtrain.context_parallel.layout import as_chunks, as_sequence
from lhtrain.kernels.pyramid import Pyramid
from lhtrain.kernels.selection.naive import inverse

AttendWithLse = Callable[[Tensor, Tensor, Tensor, bool], tuple[Tensor, Tensor]]


def windowed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    selected: Selected,
    pyramid: Pyramid,
    window: int,
    attend: AttendWithLse,
    exact: bool,
    ranks: tuple[str, int, int],
    starts: Tensor | None = None,
) -> Tensor:
    """Attend to the last `window` tokens and merge the result with the rows': (2 B, c, H, D), q's dtype.

    Args:
        selected, pyramid: of each chunk.
        attend: causal attention over all ranks' rows, q (B, 2 s, H, D), k, v (B, 2 s, G, D) and whether GPU
            kernels run -> out (B, 2 s, H, D), lse (B, H, 2 s) float32.
        exact: give the result of one rank, which takes the entries before a chunk into account.
        ranks: the group, this rank and the number of ranks.
        starts: (2 B, c), where the document of each token begins, counted from the first token of its chunk;
            None: no documents.

    Raises:
        ValueError: a window longer than a chunk.
    """
    check_window(window, pyramid.seq_len, ranks[2])
    kernels = selected.row_of_entry is not None
    rows_q, rows_k, rows_v = (as_sequence(x) for x in (selected.q, selected.k, selected.v))
    rows, lse = attend(rows_q, rows_k, rows_v, kernels)
    rows, lse = as_chunks(rows), as_chunks(lse.transpose(1, 2))  # (2 B, s, H, D), (2 B, s, H)
    places = selected.row_of_entry
    if places is None:
        places = inverse(selected.indices, pyramid)
    before: list[Tensor] | list[None] = [None, None]
    of_chunks: list[Tensor] | list[None] = [None, None] if starts is None else list(starts.chunk(2))
    if exact:
        ahead = rows_before(rows, lse, places, pyramid, ranks)
        rows, lse = torch.cat([rows, ahead[0]], 1), torch.cat([lse, ahead[1]], 1)
        before = list(ahead[2].chunk(2))
    keys, values = (with_tokens_before(x.unflatten(0, (2, -1)), window - 1, *ranks) for x in (k, v))
    tensors = (x.chunk(2) for x in (q, rows, lse.transpose(1, 2), places))
    parts = []
    for i, (of_q, of_rows, of_lse, of_places) in enumerate(zip(*tensors, strict=True)):
        first = window - 1 if i == 0 and ranks[1] == 0 else 0  # nothing precedes the first chunk
        near_k, near_v = keys[i, :, first:], values[i, :, first:]
        far = of_rows, of_lse, of_places
        near = of_q, near_k, near_v
        parts.append(
            merge_window(*near, *far, pyramid, window, kernels, before=before[i], starts=of_chunks[i])
        )
    return torch.cat(parts)


def rows_before(
    rows: Tensor, lse: Tensor, places: Tensor, pyramid: Pyramid, ranks: tuple[str, int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """The last entry of each level from 1 up of the chunks before, to be added behind a chunk's own s rows.

    rows (2 B, s, H, D), lse (2 B, s, H), places (2 B, G, E) -> their rows (2 B, L - 1, H, D) and lse
    (2 B, L - 1, H), and `before` (2 B, G, L - 1) int32 for `merge_window`: -1 where the entry is not kept or
    the sequence begins.
    """
    entries = [pyramid.offset(level) + pyramid.size(level) - 1 for level in range(1, pyramid.levels)]
    last = places[..., entries].long()
    kept = last >= 0
    place = last.clamp(min=0).repeat_interleave(rows.shape[2] // last.shape[1], 1).transpose(1, 2)
    of_rows = rows.gather(1, place.unsqueeze(-1).expand(-1, -1, -1, rows.shape[-1]))
    of_chunks = (x.unflatten(0, (2, -1)) for x in (of_rows, lse.gather(1, place), kept.int()))
    of_rows, of_lse, kept = (from_chunk_before(x, *ranks).flatten(0, 1) for x in of_chunks)
    behind = rows.shape[1] + torch.arange(len(entries), device=rows.device)
    return of_rows, of_lse, torch.where(kept > 0, behind, -1).int()
