"""How the ranks share a run: the mesh, sharded weights, context-parallel attention.

The mesh is dp_replicate x dp_shard x cp. Ranks are numbered in this order, so that ranks that share a
sequence are neighbours. Weights, gradients and optimizer state are sharded over dp_shard x cp and replicated
over dp_replicate (FSDP2, or HSDP if both are above 1). Another dimension would be added only in this file.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from lhtrain.attention import DenseAttention, LighthouseAttention
from lhtrain.attention.sliding import SlidingAttention
from lhtrain.attention.where import Attend
from lhtrain.conf.rules.parallel import mesh_sizes
from lhtrain.conf.schema import ModelConfig, ParallelConfig, Selection
from lhtrain.context_parallel import over_ranks, pick_method, positions
from lhtrain.data.order.rank_slice import sequences_of_rank
from lhtrain.distributed.world import World
from lhtrain.errors import RunError
from lhtrain.model.decoder import GPT

DIMENSIONS = ("dp_replicate", "dp_shard", "cp")


@dataclass(frozen=True)
class RankSlice:
    """The part of a step's data on one rank: some of the sequences, and a slice of each."""

    dp_rank: int = 0
    dp_size: int = 1
    cp_rank: int = 0
    cp_size: int = 1

    @classmethod
    def of(cls, rank: int, n_ranks: int, cp: int) -> "RankSlice":
        """Return the part of `rank`; `cp` neighbours share their sequences."""
        return cls(rank // cp, n_ranks // cp, rank % cp, cp)

    def sequences(self, n_sequences: int) -> range:
        """Return the indices of the step's sequences that this rank reads."""
        return sequences_of_rank(n_sequences, self.dp_rank, self.dp_size)

    def positions(self, seq_len: int) -> Tensor:
        """Return the positions of a sequence on this rank: (seq_len / cp_size,) int64, ascending."""
        return positions(seq_len, self.cp_rank, self.cp_size)


class Mesh:
    """The device mesh, this rank's part of the data, and the sharding of weights and attention.

    Loss ranks are ranks that compute different parts of a step's loss; gradients, losses and norms are
    averaged over them. Currently these are all ranks. With tensor parallelism, ranks that share a matrix
    product would count once.
    """

    def __init__(self, config: ParallelConfig, model: ModelConfig, selection: Selection, world: World):
        self.world, self.config = world, config
        replicate, shard, cp = mesh_sizes(config, world.size)
        self.slice = RankSlice.of(world.rank, world.size, cp)
        self.n_loss_ranks = replicate * shard * cp
        self.exact = selection is Selection.exact
        self.method = pick_method(config.cp_attention.value, model.n_heads, model.n_kv_heads, cp)
        self.ranks: DeviceMesh | None = None  # by DIMENSIONS; None for a single rank
        self.sharding: DeviceMesh | None = (
            None  # for FSDP: the sharded dimension, after a replicated one if there is one
        )
        self.cp_group = ""
        if world.is_distributed:
            self.ranks = init_device_mesh(
                world.device.type, (replicate, shard, cp), mesh_dim_names=DIMENSIONS
            )
            self.sharding = _sharding(self.ranks)
            world.set_limit(self.ranks.get_all_groups())
            world.set_limit(self.sharding.get_all_groups())
        if self.ranks is not None and cp > 1:
            self.cp_group = self.ranks["cp"].get_group().group_name

    def attention(self, attend: Attend) -> Attend:
        """Return `attend`, or its context-parallel version if parallel.cp > 1.

        Raises RunError: the attention kind does not support context parallelism.
        """
        if self.slice.cp_size == 1:
            return attend
        if not isinstance(attend, DenseAttention | LighthouseAttention | SlidingAttention):
            rule = f"{type(attend).__name__} does not support context parallelism; set parallel.cp=1"
            raise RunError(f"parallel.cp={self.slice.cp_size}: {rule}")
        return over_ranks(
            attend, self.method, self.exact, self.cp_group, self.slice.cp_rank, self.slice.cp_size
        )

    def shard(self, model: GPT) -> None:
        """Shard the weights of `model`, which is on the meta device."""
        if self.sharding is None:
            return
        # Inputs are not cast: the cosines and sines of the rotary embedding stay float32, as on one rank.
        policy = MixedPrecisionPolicy(
            param_dtype=model.dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
        for block in model.blocks:
            fully_shard(block, mesh=self.sharding, mp_policy=policy)
        if self.world.device.type == "cpu":
            # A CPU sums the embedding's gradient in the weight's dtype; in bfloat16 most of it would be lost.
            policy = replace(policy, param_dtype=None)
        fully_shard(model, mesh=self.sharding, mp_policy=policy)
        for method in ("loss", "token_losses", "next_logits"):
            register_fsdp_forward_method(model, method)

    def initialize(self, model: GPT, seed: int, width_ratio: float = 1.0) -> None:
        """Allocate a model that is on the meta device and set its initial weights, the same on any mesh.

        seed, width_ratio: as in `GPT.init_weights`.
        """
        model.to_empty(device=self.world.device)
        model.tie()  # `to_empty` made new parameters
        model.init_weights(seed, put=_put, width_ratio=width_ratio)

    def freeze(self, model: GPT, patterns: Collection[str]) -> None:
        """Train all parameters except those that `patterns` match, from the next forward pass on."""
        if isinstance(model, FSDPModule):
            model.reshard()  # after a forward pass, the root module's parameters are gathered copies
        if model.freeze(patterns) and isinstance(model, FSDPModule):
            # FSDP chose the dtype in which it reduces gradients by what each module trained before.
            for module in (*model.blocks, model):
                assert isinstance(module, FSDPModule)
                module.unshard()
                module.reshard()

    def accumulates(self, model: nn.Module, last: bool) -> None:
        """Reduce gradients in the next backward pass only if it is the `last` one of the step."""
        if isinstance(model, FSDPModule) and not self.config.reduce_always:
            model.set_requires_gradient_sync(last)

    def sum(self, x: Tensor) -> Tensor:
        """Sum x over all ranks, in place, and return it."""
        if self.world.is_distributed:
            dist.all_reduce(x)
        return x

    def mean(self, x: Tensor) -> Tensor:
        """Average x over the loss ranks, in place, and return it."""
        if self.world.is_distributed:
            self.sum(x)
            x /= self.n_loss_ranks
        return x


def _sharding(ranks: DeviceMesh) -> DeviceMesh:
    """Return the mesh for FSDP: dp_shard and cp as one dimension, after dp_replicate if that is above 1.

    If cp is above 1 this is a separate mesh, because PyTorch's views of flattened dimensions change between
    versions (2.11 deprecates slicing them).
    """
    replicate, shard, cp = ranks.shape
    if cp > 1:
        names = ("dp_replicate", "dp_shard_cp")
        ranks = init_device_mesh(ranks.device_type, (replicate, shard * cp), mesh_dim_names=names)
    else:
        names = DIMENSIONS[:2]
    return ranks[names] if replicate > 1 else ranks[names[1]]


def clip_grad_norm(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Clip gradients, sharded or not; return their norm over all ranks before clipping, a scalar tensor."""
    norm = nn.utils.clip_grad_norm_(parameters, max_norm)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def _put(parameter: Tensor, drawn: Tensor) -> None:
    """Copy a whole tensor, the same on every rank, into a parameter that may be sharded."""
    if not isinstance(parameter, DTensor):
        parameter.copy_(drawn)
        return
    mine = distribute_tensor(drawn, parameter.device_mesh, parameter.placements, src_data_rank=None)
    parameter.to_local().copy_(mine.to_local())
