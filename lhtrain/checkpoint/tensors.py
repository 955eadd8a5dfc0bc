"""The tensors of a checkpoint, and the part of each on this rank."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate, Shard

from lhtrain.checkpoint.layout import Box
from lhtrain.model.optimizer import Optimizer


def tensors_of(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Return all tensors that a checkpoint saves and restores, by name; they share the model's memory."""
    out = {}
    for name, parameter in model.named_parameters():
        out[f"model.{name}"] = parameter.detach()
        out |= {f"optimizer.{key}.{name}": value for key, value in optimizer.state_of(parameter).items()}
    return out


def local_part(tensor: Tensor) -> tuple[Tensor, Box]:
    """Return this rank's part of a tensor, sharded or not, and its box in the whole tensor.

    Raises NotImplementedError: a kind of sharding that runs do not use.
    """
    if not isinstance(tensor, DTensor):
        return tensor.detach(), ((0,) * tensor.dim(), tuple(tensor.shape))
    offsets, sizes = [0] * tensor.dim(), list(tensor.shape)
    coordinate: Sequence[int] = tensor.device_mesh.get_coordinate() or ()
    for index, count, placement in zip(coordinate, tensor.device_mesh.shape, tensor.placements, strict=True):
        if type(placement) is Shard:
            here = sizes[placement.dim]
            each = -(-here // count)  # as torch.chunk does: the last parts may be smaller or empty
            begin = min(index * each, here)
            offsets[placement.dim] += begin
            sizes[placement.dim] = min(each, here - begin)
        elif type(placement) is not Replicate:
            raise NotImplementedError(f"checkpoints of tensors with the placement {placement}")
    local: Tensor = tensor.to_local().detach()
    if tuple(local.shape) != tuple(sizes):
        raise NotImplementedError(
            f"a local shard has the shape {tuple(local.shape)}, expected {tuple(sizes)}"
        )
    return local, (tuple(offsets), tuple(sizes))


def writes(tensor: Tensor, number: int, rank: int, size: int) -> bool:
    """Return whether this rank writes its part of the tensor.

    One of all replicas writes it. `number`, the index of the tensor, selects which one, so that the ranks
    share the work.
    """
    if not isinstance(tensor, DTensor):
        return number % size == rank
    place, replicas = 0, 1
    coordinate: Sequence[int] = tensor.device_mesh.get_coordinate() or ()
    for index, count, placement in zip(coordinate, tensor.device_mesh.shape, tensor.placements, strict=True):
        if isinstance(placement, Replicate):
            place, replicas = place * count + index, replicas * count
    return number % replicas == place
