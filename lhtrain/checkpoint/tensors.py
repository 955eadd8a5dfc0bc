"""The tensors of a checkpoint, and the part of each on this rank."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate, Shard

from lhtrain.checkpoint.layout import Box
from lhtrain.distributed.average import WeightAverage
from lhtrain.model.optimizer import Optimizer


def tensors_of(
    model: nn.Module, optimizer: Optimizer, average: WeightAverage | None = None
) -> dict[str, Tensor]:
    """Return all tensors that a checkpoint saves and restores, by name; they share the model's memory."""
    out = {} if average is None else average.tensors()
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
    offsets, sizes = box_at(tensor, tensor.device_mesh.get_coordinate() or ())
    local: Tensor = tensor.to_local().detach()
    if tuple(local.shape) != sizes:
        raise NotImplementedError(
            f"a local shard has the shape {tuple(local.shape)}, expected {tuple(sizes)}"
        )
    return local, (offsets, sizes)


def box_at(tensor: DTensor, coordinate: Sequence[int]) -> Box:
    """Return the box of a sharded tensor that the rank at `coordinate` of its mesh has.

    Raises NotImplementedError: as `local_part`.
    """
    offsets, sizes = [0] * tensor.dim(), list(tensor.shape)
    for index, count, placement in zip(coordinate, tensor.device_mesh.shape, tensor.placements, strict=True):
        if type(placement) is Shard:
            here = sizes[placement.dim]
            each = -(-here // count)  # as torch.chunk does: the last parts may be smaller or empty
            begin = min(index * each, here)
            offsets[placement.dim] += begin
            sizes[placement.dim] = min(each, here - begin)
        elif type(placement) is not Replicate:
            raise NotImplementedError(f"checkpoints of tensors with the placement {placement}")
    return tuple(offsets), tuple(sizes)


def writes(tensor: Tensor, number: int, rank: int, size: int) -> bool:
    """Return whether this rank writes its part of the tensor.

    One of all replicas writes it. `number`, the index of the tensor, selects which one, so that the ranks
    share the work.
    """
    if not isinstance(tensor, DTensor):
        return number % size == rank
    return writes_at(tensor, number, tensor.device_mesh.get_coordinate() or ())


def writes_at(tensor: DTensor, number: int, coordinate: Sequence[int]) -> bool:
    """Return whether the rank at `coordinate` of a tensor's mesh writes its part. number: as `writes`."""
    place, replicas = 0, 1
    for index, count, placement in zip(coordinate, tensor.device_mesh.shape, tensor.placements, strict=True):
        if isinstance(placement, Replicate):
            place, replicas = place * count + index, replicas * count
    return number % replicas == place
