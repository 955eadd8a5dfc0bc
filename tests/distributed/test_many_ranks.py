"""Runs of up to 1,024 ranks in one process: each token is read once, each weight is saved once.

The process group is PyTorch's fake one, in which collectives return without communication. In most
meshes of 8 and 64 ranks every rank is built by the code of a run. In the others some are, and the plan of all
is computed by the functions that they use; the plan of the built ranks must be equal.
"""

import warnings
from collections import defaultdict
from contextlib import contextmanager
from functools import cache

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from lhtrain.build import build_engine
from lhtrain.checkpoint.layout import DTYPES, tiles
from lhtrain.checkpoint.staging import Staging
from lhtrain.checkpoint.tensors import box_at, local_part, tensors_of, writes, writes_at
from lhtrain.compute.fill import compose_config
from lhtrain.data import SequenceOrder, Split, TokenStore
from lhtrain.data.store.tokens import TokenStoreWriter
from lhtrain.distributed.mesh import Mesh, RankSlice
from lhtrain.distributed.ranks import Ranks
from lhtrain.distributed.world import World
from lhtrain.loader import Loader
from lhtrain.stage import stages_of

pytestmark = pytest.mark.slow

CPU, EOS, SEQ_LEN = torch.device("cpu"), 300, 32
MODEL = ["model.dim=32", "model.n_layers=1", "model.n_heads=4", "model.ffn_dim=48", "model.vocab_size=512"]
MODEL += [f"model.seq_len={SEQ_LEN}", "stage=dense", "run.device=cpu", "run.grad_accum=2"]
MESHES = [  # dp_replicate, dp_shard, cp
    *((1, 8, 1), (2, 4, 1), (1, 4, 2), (2, 2, 2)),
    *((1, 64, 1), (8, 4, 2)),
    *((1, 1024, 1), (128, 8, 1), (16, 32, 2)),
]
EVERY_RANK = [mesh for mesh in MESHES if np.prod(mesh) == 8] + [(8, 4, 2)]
SOME_RANKS = [mesh for mesh in MESHES if mesh not in EVERY_RANK]


@cache
def configured(mesh):
    replicate, shard, cp = mesh
    sizes = [f"parallel.dp_replicate={replicate}", f"parallel.dp_shard={shard}", f"parallel.cp={cp}"]
    batch = f"run.batch_tokens={2 * replicate * shard * SEQ_LEN}"
    return compose_config([*MODEL, *sizes, batch], replicate * shard * cp)


def forget_meshes():
    """Clear PyTorch's caches of results, which hold meshes of this rank; the next rank would get them."""
    DTensor._op_dispatcher.sharding_propagator.propagate_op_sharding.cache_clear()
    clear = getattr(torch._C, "_clear_DTensor_sharding_propagator_cache", None)  # absent in older versions
    if clear is not None:
        clear()


@contextmanager
def as_rank(rank, mesh):
    """The mesh and the engine of one rank, as a run builds them."""
    config, size = configured(mesh), int(np.prod(mesh))
    dist.init_process_group("fake", rank=rank, world_size=size, store=FakeStore())
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Set timeout")
            world = World(Ranks(rank, size, rank % 8), CPU)
            built = Mesh(config.parallel, config.model, config.lighthouse.selection, world)
            yield built, build_engine(config, built)
    finally:
        dist.destroy_process_group()
        forget_meshes()


@cache
def whole():
    """The tensors of a checkpoint of one rank."""
    config = configured((1, 1, 1))
    mesh = Mesh(config.parallel, config.model, config.lighthouse.selection, World(Ranks(), CPU))
    engine = build_engine(config, mesh)
    return {name: x.detach().clone() for name, x in tensors_of(engine.model, engine.optimizer).items()}


def staged(rank, mesh):
    """Name -> box and values of what a rank writes."""
    with as_rank(rank, mesh) as (_, engine):
        copy = Staging(rank, int(np.prod(mesh)))
        copy.stage(tensors_of(engine.model, engine.optimizer))
        out = {}
        for name, described in copy.tensors.items():
            for chunk in described["chunks"]:
                count = int(np.prod(chunk["sizes"]))
                values = torch.frombuffer(
                    copy.content, dtype=DTYPES[described["dtype"]], count=count, offset=chunk["begin"]
                )
                box = tuple(chunk["offsets"]), tuple(chunk["sizes"])
                out[name] = box, values.view(box[1]).clone()
        return out


def planned(mesh):
    """Rank -> name -> box of what it writes, from one rank's tensors."""
    with as_rank(0, mesh) as (built, engine):
        tensors = tensors_of(engine.model, engine.optimizer)
        places = {int(rank): place for place, rank in np.ndenumerate(built.sharding.mesh.numpy())}
        out = {rank: {} for rank in places}
        for number, (name, tensor) in enumerate(tensors.items()):
            for rank, place in places.items():
                if isinstance(tensor, DTensor):
                    mine, box = writes_at(tensor, number, place), box_at(tensor, place)
                else:
                    mine, box = writes(tensor, number, rank, len(places)), local_part(tensor)[1]
                if mine and 0 not in box[1]:
                    out[rank][name] = box
        return out


def boxes_by_name(of_ranks):
    found = defaultdict(list)
    for boxes in of_ranks:
        for name, box in boxes.items():
            found[name].append(box)
    return found


def covers(found):
    return found.keys() == whole().keys() and all(
        tiles(tuple(x.shape), found[name]) for name, x in whole().items()
    )


@pytest.mark.parametrize("mesh", EVERY_RANK, ids=str)
def test_all_ranks_together_save_every_weight_once(mesh):
    parts = [staged(rank, mesh) for rank in range(int(np.prod(mesh)))]
    assert covers(boxes_by_name({name: box for name, (box, _) in part.items()} for part in parts))
    for part in parts:
        for name, ((offsets, sizes), values) in part.items():
            here = tuple(slice(begin, begin + size) for begin, size in zip(offsets, sizes, strict=True))
            assert torch.equal(values, whole()[name][here]), name
    plan = planned(mesh)
    assert [{name: box for name, (box, _) in part.items()} for part in parts] == [
        plan[rank] for rank in range(len(parts))
    ]


@pytest.mark.parametrize("mesh", SOME_RANKS, ids=str)
def test_the_plan_of_many_ranks_saves_every_weight_once(mesh):
    plan, size = planned(mesh), int(np.prod(mesh))
    assert len(plan) == size
    assert covers(boxes_by_name(plan.values()))
    for rank in (0, 7, 8, size // 2 - 1, size - 1):
        assert {name: box for name, (box, _) in staged(rank, mesh).items()} == plan[rank]


def test_a_weight_that_two_ranks_save_or_none_is_found():
    plan = planned((2, 4, 1))
    once = boxes_by_name(plan.values())
    name = next(iter(once))
    assert covers(once)
    assert not covers(once | {name: once[name][1:]})
    assert not covers(once | {name: [*once[name], once[name][0]]})


@pytest.mark.parametrize("mesh", [(2, 4, 1), (128, 8, 1)], ids=str)
def test_replicas_share_the_work_of_saving(mesh):
    plan = planned(mesh)
    sizes = [sum(np.prod(box[1]) for box in boxes.values()) for boxes in plan.values()]
    assert sum(sizes) == sum(x.numel() for x in whole().values())
    assert max(sizes) < sum(sizes) / mesh[1]  # no replica writes all


@pytest.fixture(scope="module")
def order(tmp_path_factory):
    path = tmp_path_factory.mktemp("many") / "train.bin"
    with TokenStoreWriter(path, np.dtype("<u2")) as writer:
        for number in range(3000):
            writer.append((np.arange(20 + number % 50) + 7 * number) % 256)
            writer.end_document(EOS)
    order = SequenceOrder(Split.whole(TokenStore(path)), [SEQ_LEN], seed=0)
    order.n_targets = cache(order.n_targets)  # of the whole step, so the same on every rank
    return order


def read_by(part, order, stage, position):
    """Tokens and targets of one rank's step, all micro-batches together, and the position after it."""
    loader = Loader(order, EOS, CPU, part, ahead=False)
    micro, after = loader.micro_batches(position, stage)
    tokens, targets = (torch.cat([getattr(one, key) for one in micro]) for key in ("tokens", "targets"))
    return tokens, targets, sum(one.loss_weight for one in micro), after


@pytest.mark.parametrize("mesh", [MESHES[i] for i in (0, 2, 4, 5, 6, 8)], ids=str)
def test_all_ranks_together_read_every_token_of_a_step_once(mesh, order):
    stage, size = stages_of(configured(mesh))["dense"], int(np.prod(mesh))
    position = stage.batch_tokens  # the second step
    tokens, targets, _, after = read_by(RankSlice(), order, stage, position)
    times, weight = torch.zeros(stage.n_sequences, SEQ_LEN, dtype=torch.int64), 0.0
    for rank in range(size):
        part = RankSlice.of(rank, size, mesh[2])
        mine, of_mine, share, end = read_by(part, order, stage, position)
        rows, columns = torch.tensor(part.sequences(stage.n_sequences))[:, None], part.positions(SEQ_LEN)
        assert torch.equal(mine, tokens[rows, columns])
        assert torch.equal(of_mine, targets[rows, columns])
        times[rows, columns] += 1
        weight += share
        assert end == after
    assert (times == 1).all()
    assert weight == pytest.approx(1)


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_a_rank_knows_its_place_in_the_mesh(mesh):
    size = int(np.prod(mesh))
    for rank in {0, size // 2 - 1, size - 1}:
        with as_rank(rank, mesh) as (built, _):
            assert built.slice == RankSlice.of(rank, size, mesh[2])
            assert tuple(built.ranks.shape) == mesh
            assert tuple(built.ranks.get_coordinate()) == np.unravel_index(rank, mesh)
            assert built.n_loss_ranks == size
            assert built.sharding.size(-1) == mesh[1] * mesh[2]
