"""Orthogonalization of matrices whose rows are spread over ranks: each rank gets some of them whole."""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from lhtrain.model.orthogonal import orthogonal


def orthogonal_shards(shards: Tensor, like: Tensor) -> Tensor:
    """Return the rows on this rank of `orthogonal` of each whole matrix, as bfloat16.

    Each rank orthogonalizes some of the matrices, which it gets whole: there are two exchanges of all
    matrices together, and no rank repeats the work of another one that holds other rows.

    Args:
        shards: the rows of K matrices on this rank, (K, rows, columns).
        like: a parameter of the shape and sharding of the matrices.
    """
    group = _group(like)
    if group is None:
        return orthogonal(shards)
    size, rank = dist.get_world_size(group), dist.get_rank(group)
    (count, mine), (n_rows, n_columns) = shards.shape[:2], like.shape
    most, each = -(-n_rows // size), -(-count // size)  # rows on a rank, matrices for a rank
    parts = torch.zeros(size * each, most, n_columns, dtype=torch.bfloat16, device=shards.device)
    parts[:count, :mine] = shards
    # Rank r gets the matrices from r * each on: (ranks, each, rows, columns), then whole ones.
    whole = _exchange(parts.view(size, each, most, n_columns), group)
    whole = whole.transpose(0, 1).reshape(each, size * most, n_columns)
    here = min(max(count - rank * each, 0), each)
    if here:
        whole[:here, :n_rows] = orthogonal(whole[:here, :n_rows])
    back = _exchange(whole.view(each, size, most, n_columns).transpose(0, 1).contiguous(), group)
    return back.view(size * each, most, n_columns)[:count, :mine]


def _group(parameter: Tensor) -> dist.ProcessGroup | None:
    """Return the ranks that hold different rows of a parameter; None if this rank holds all of them."""
    if isinstance(parameter, DTensor):
        for number, placement in enumerate(parameter.placements):
            if placement == Shard(0) and parameter.device_mesh.size(number) > 1:
                return parameter.device_mesh.get_group(number)
    return None


def _exchange(parts: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Send parts[r] to rank r of the group; return the parts that each rank sent to this one."""
    out = torch.empty_like(parts)
    dist.all_to_all_single(out, parts, group=group)
    return out
