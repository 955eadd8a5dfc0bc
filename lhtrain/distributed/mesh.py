"""How the model is shared among ranks: the mesh, sharded weights, context-parallel attention.

The mesh is dp_replicate x dp_shard x cp, ranks numbered in that order, so that the ranks that share a
sequence are neighbours. Weights, gradients and optimizer state are sharded over dp_shard x cp and replicated
over dp_replicate (FSDP2, or HSDP where both are above one). Other dimensions would be added here alone.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from lhtrain.attention import DenseAttention, LighthouseAttention
from lhtrain.conf.rules.parallel import mesh_sizes
from lhtrain.conf.schema import ModelConfig, ParallelConfig, Selection
from lhtrain.context_parallel import over_ranks, pick_method, positions
from lhtrain.data.order.rank_slice import data_rank_rows
from lhtrain.distributed.world import World
from lhtrain.model.decoder import GPT, Attend


@dataclass(frozen=True)
class Share:
    """What of a step's sequences one rank has: some of the rows, and of each a slice."""

    dp_rank: int = 0
    dp_size: int = 1
    cp_rank: int = 0
    cp_size: int = 1

    def rows(self, n_sequences: int) -> range:
        return data_rank_rows(n_sequences, self.dp_rank, self.dp_size)

    def positions(self, seq_len: int) -> Tensor:
        """(seq_len / cp_size,) int64, rising."""
        return positions(seq_len, self.cp_rank, self.cp_size)


class Parallel:
    """This rank's place in the mesh, and what follows from it."""

    def __init__(self, config: ParallelConfig, model: ModelConfig, selection: Selection, world: World):
        self.world, self.config = world, config
        replicate, shard, cp = mesh_sizes(config, world.size)
        self.share = Share(world.rank // cp, world.size // cp, world.rank % cp, cp)
        self.exact = selection is Selection.exact
        self.method = pick_method(config.cp_attention.value, model.n_heads, model.n_kv_heads, cp)
        self.mesh: DeviceMesh | None = None
        self.cp_group = ""
        if world.together:
            kind = world.device.type
            mesh = init_device_mesh(kind, (replicate, shard * cp), mesh_dim_names=("replicate", "shard"))
            world.set_limit(mesh.get_all_groups())
            self.mesh = mesh if replicate > 1 else mesh["shard"]
        if cp > 1:
            mesh = init_device_mesh(kind, (replicate * shard, cp), mesh_dim_names=("dp", "cp"))
            world.set_limit(mesh.get_all_groups())
            self.cp_group = mesh["cp"].get_group().group_name

    def attention(self, attend: DenseAttention | LighthouseAttention) -> Attend:
        """What this rank attends with in place of `attend`."""
        if self.share.cp_size == 1:
            return attend
        return over_ranks(
            attend, self.method, self.exact, self.cp_group, self.share.cp_rank, self.share.cp_size
        )

    def build(self, model: GPT, seed: int) -> None:
        """Shard a `model` made on the meta device and give it its initial weights, the same on any mesh."""
        if self.mesh is not None:
            # Inputs are left alone: the rotary embedding's cosines and sines stay float32, as on one rank.
            policy = MixedPrecisionPolicy(
                param_dtype=model.dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
            )
            for block in model.blocks:
                fully_shard(block, mesh=self.mesh, mp_policy=policy)
            if self.world.device.type == "cpu":
                # A CPU sums the embedding's gradient in its weight's dtype: bfloat16 would lose most of it.
                policy = replace(policy, param_dtype=None)
            fully_shard(model, mesh=self.mesh, mp_policy=policy)
            register_fsdp_forward_method(model, "loss")
        model.to_empty(device=self.world.device)
        model.tie()  # new storage is new parameters
        model.init_weights(seed, put=_put)

    def accumulates(self, model: nn.Module, last: bool) -> None:
        """Whether the next backward pass is the step's `last`: gradients are reduced in that one alone."""
        if isinstance(model, FSDPModule) and not self.config.reduce_always:
            model.set_requires_gradient_sync(last)


def clip_grad_norm(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Clip the gradients, sharded or not; returns their norm before, over all ranks, a plain scalar."""
    norm = nn.utils.clip_grad_norm_(parameters, max_norm)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def _put(parameter: Tensor, drawn: Tensor) -> None:
    """Store a whole tensor, which every rank has, in a parameter that may be sharded."""
    if not isinstance(parameter, DTensor):
        parameter.copy_(drawn)
        return
    mine = distribute_tensor(drawn, parameter.device_mesh, parameter.placements, src_data_rank=None)
    parameter.to_local().copy_(mine.to_local())
