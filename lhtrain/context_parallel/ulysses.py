"""Each rank attends with some of the heads over the whole sequence: two exchanges of all to all.

B batch, T tokens of a rank, W ranks, H query heads, Hkv key/value heads, D head dim.
Source: DeepSpeed Ulysses, arXiv:2309.14509.
"""

import torch
from torch import Tensor

from lhtrain.attention.dense import dense_attention
from lhtrain.context_parallel.collectives import all_to_all
from lhtrain.context_parallel.layout import shared_out, whole


def ulysses_attention(q: Tensor, k: Tensor, v: Tensor, group: str, size: int, backend: str) -> Tensor:
    """Causal attention of q (B, T, H, D) to all ranks' k, v (B, T, Hkv, D), in the load-balanced layout.

    Returns (B, T, H, D). H and Hkv must be multiples of `size`; any dense backend will do.
    """
    # A rank's heads of q, k and v go out together: (B, T, W, h + 2 hkv, D) -> (W, B, T, h + 2 hkv, D)
    shares = torch.cat([x.unflatten(2, (size, -1)) for x in (q, k, v)], 3).movedim(2, 0)
    mine = whole(all_to_all(shares.contiguous(), group))
    n_kv = k.shape[2] // size
    heads_q, heads_k, heads_v = mine.split([q.shape[2] // size, n_kv, n_kv], 2)
    out = dense_attention(heads_q.contiguous(), heads_k.contiguous(), heads_v.contiguous(), backend)
    return all_to_all(shared_out(out, size).contiguous(), group).movedim(0, 2).flatten(2, 3)
