"""Checkpoints on meshes: each part is written once and can be read on any other mesh."""

from pathlib import Path

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from lhtrain import checkpoint
from lhtrain.checkpoint.saver import Saver
from lhtrain.distributed.world import World
from lhtrain.errors import RunError
from tests.checkpoint.made import ALONE, STATE, flip, problem_of
from tests.distributed.ranks import on_ranks

pytestmark = pytest.mark.slow

# Uneven shapes, fewer rows than ranks, a scalar; each with the dimension to shard.
TENSORS = {
    "model.uneven": (torch.arange(35.0).reshape(7, 5), 0),
    "model.columns": (torch.arange(30.0).reshape(5, 6).bfloat16(), 1),
    "model.row": (torch.arange(3.0).reshape(1, 3).half(), 0),
    "model.none": (torch.zeros(0, 3), 0),
    "optimizer.step.w": (torch.tensor(4.0), None),
    "model.plain": (torch.arange(4), None),
}
ROWS = {"model.uneven": TENSORS["model.uneven"]}
FIXTURE = Path(__file__).parents[1] / "fixtures" / "checkpoint_format_2" / "step_00000004"
OF_FIXTURE = {
    "model.uneven": (torch.arange(15.0).reshape(5, 3), 0),
    "model.columns": (torch.arange(12.0).reshape(3, 4).bfloat16(), 1),
    "model.one": (torch.tensor([7.0]).bfloat16(), 0),
    "model.counts": (torch.arange(3), None),
}


def placed(world, tensors, replicate):
    """The tensors on a mesh of all ranks, with `replicate` replicas; plain ones unchanged."""
    mesh = init_device_mesh("cpu", (replicate, world.size // replicate), mesh_dim_names=("r", "s"))
    return {
        name: tensor.clone()
        if dim is None
        else distribute_tensor(tensor.clone(), mesh, [Replicate(), Shard(dim)])
        for name, (tensor, dim) in tensors.items()
    }


def write(folder, replicate, tensors=TENSORS):
    world = World.start(torch.device("cpu"))
    saver = Saver(folder, 9, world)
    saver.save(6, placed(world, tensors, replicate), STATE)
    saver.finish()
    return saver.saved.count, saver.saved.bytes


def read(checkpoints, replicate):
    """Names of tensors that differ from the saved ones after they were read on this mesh."""
    world, wrong = World.start(torch.device("cpu")), []
    for path, tensors in checkpoints:
        assert problem_of(path, world) is None
        zeros = {name: (torch.zeros_like(tensor), dim) for name, (tensor, dim) in tensors.items()}
        filled = placed(world, zeros, replicate)
        checkpoint.load(path, filled)
        whole = {name: t.full_tensor() if isinstance(t, DTensor) else t for name, t in filled.items()}
        wrong += [name for name, (tensor, _) in tensors.items() if not torch.equal(whole[name], tensor)]
    return wrong


def test_each_part_is_written_once_and_read_on_other_meshes(tmp_path):
    counts = on_ranks(write, 4, tmp_path / "four", 2, folder=tmp_path)
    four = tmp_path / "four" / "step_00000006"
    assert all(count == (1, counts[0][1]) for count in counts)
    stored = sum(file.stat().st_size for file in four.glob("*.bin"))
    assert stored == sum(tensor.nbytes for tensor, _ in TENSORS.values())
    whole = {name: torch.zeros_like(tensor) for name, (tensor, _) in TENSORS.items()}
    checkpoint.load(four, whole)
    for name, (tensor, _) in TENSORS.items():
        assert torch.equal(whole[name], tensor), name
    saver = Saver(tmp_path / "one", 9, ALONE)
    saver.save(6, {name: tensor for name, (tensor, _) in TENSORS.items()}, STATE)
    saver.finish()
    one = tmp_path / "one" / "step_00000006"
    checkpoints = [(four, TENSORS), (one, TENSORS), (FIXTURE, OF_FIXTURE)]
    for wrong in on_ranks(read, 3, checkpoints, 1, folder=tmp_path):
        assert wrong == []


def load_where_one_rank_finds_damage(path):
    """On a rank: the error. Only rank 1 needs the file of rank 2, which had the last row."""
    world = World.start(torch.device("cpu"))
    try:
        checkpoint.load(path, placed(world, ROWS, 1))
    except RunError as error:
        return str(error)
    return "loaded"


def test_damage_that_one_rank_finds_ends_the_loading_on_all(tmp_path):
    on_ranks(write, 3, tmp_path / "run", 1, ROWS, folder=tmp_path)
    path = tmp_path / "run" / "step_00000006"
    flip(path, "rank_00002.bin")
    told = on_ranks(load_where_one_rank_finds_damage, 2, path, folder=tmp_path)
    assert told[0] == told[1] and "rank_00002.bin was altered" in told[0]
