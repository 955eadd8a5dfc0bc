"""Which tensors a checkpoint holds, and which part of each is on this rank."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate, Shard

from lhtrain.checkpoint.layout import Box
from lhtrain.model.optimizer import Optimizer


def tensors_of(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Everything a checkpoint restores, by name; loading fills these very tensors."""
    out = {}
    for name, parameter in model.named_parameters():
        out[f"model.{name}"] = parameter.detach()
        out |= {f"optimizer.{key}.{name}": value for key, value in optimizer.state_of(parameter).items()}
    return out


def local_part(tensor: Tensor) -> tuple[Tensor, Box]:
    """This rank's part of a tensor that may be sharded, and the box of the whole tensor that it is.

    Raises NotImplementedError: a way of sharding that the mesh of a run does not use.
    """
    if not isinstance(tensor, DTensor):
        return tensor.detach(), ((0,) * tensor.dim(), tuple(tensor.shape))
    offsets, sizes = [0] * tensor.dim(), list(tensor.shape)
    coordinate: Sequence[int] = tensor.device_mesh.get_coordinate() or ()
    for index, count, placement in zip(coordinate, tensor.device_mesh.shape, tensor.placements, strict=True):
        if type(placement) is Shard:
            here = sizes[placement.dim]
            each = -(-here // count)  # as torch.chunk: the last parts may be smaller or empty
            begin = min(index * each, here)
            offsets[placement.dim] += begin
            sizes[placement.dim] = min(each, here - begin)
        elif type(placement) is not Replicate:
            raise NotImplementedError(f"a checkpoint of a tensor that is placed as {placement}")
    local: Tensor = tensor.to_local().detach()
    if tuple(local.shape) != tuple(sizes):
        raise NotImplementedError(f"a local shard of shape {tuple(local.shape)} where {tuple(sizes)} is due")
    return local, (tuple(offsets), tuple(sizes))


def writes(tensor: Tensor, number: int, rank: int, size: int) -> bool:
    """Whether this rank writes its part of the tensor. Of replicas one does: another for each `number`, so
    that the work is shared."""
    if not isinstance(tensor, DTensor):
        return number % size == rank
    place, replicas = 0, 1
    coordinate: Sequence[int] = tensor.device_mesh.get_coordinate() or ()
    for index, count, placement in zip(coordinate, tensor.device_mesh.shape, tensor.placements, strict=True):
        if isinstance(placement, Replicate):
            place, replicas = place * count + index, replicas * count
    return number % replicas == place
