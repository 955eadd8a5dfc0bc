"""Dtypes and gradients of sharded weights."""

import pytest
import torch
from torch.distributed.tensor import DTensor

from lhtrain.conf.schema import ModelConfig, ParallelConfig, Selection
from lhtrain.distributed.mesh import Mesh
from lhtrain.distributed.world import Ranks, World
from lhtrain.model.decoder import GPT, run_plainly
from tests.distributed.ranks import DEVICE, on_ranks

pytestmark = pytest.mark.slow

SIZES = {"dim": 16, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "head_dim": 8, "ffn_dim": 32}
CONFIG = ModelConfig(name="t", seq_len=64, vocab_size=64, qkv_bias=True, qk_norm=True, **SIZES)


def dtypes_in_blocks():
    """On a rank: dtypes of each block's inputs and weights in a bfloat16 step."""
    world, seen = World.start(torch.device(DEVICE)), []

    def noting(block, x, where):
        cos, sin = where.rotation
        seen.append((x.dtype, cos.dtype, sin.dtype, block.ffn.up.weight.dtype))
        return run_plainly(block, x, where)

    with torch.device("meta"):
        model = GPT(CONFIG, torch.bfloat16)
    for block in model.blocks:
        block.run = noting
    mesh = Mesh(ParallelConfig(), CONFIG, Selection.exact, world)
    mesh.shard(model)
    mesh.initialize(model, seed=0)
    tokens = torch.zeros(1, 64, dtype=torch.int64, device=world.device)
    model.loss(tokens, tokens).backward()
    return seen


def test_the_rotary_embedding_stays_float32_where_weights_are_bfloat16(tmp_path):
    low, full = torch.bfloat16, torch.float32
    for seen in on_ranks(dtypes_in_blocks, 2, folder=tmp_path):
        assert seen == [(low, full, full, low)] * CONFIG.n_layers


def gradients(dtype, size):
    """On a rank: loss and full gradients of one batch, the same on every rank."""
    device = torch.device(DEVICE)
    world = World(Ranks(), device) if size == 1 else World.start(device)
    with torch.device("meta"):
        model = GPT(CONFIG, dtype)
    mesh = Mesh(ParallelConfig(), CONFIG, Selection.exact, world)
    mesh.shard(model)
    mesh.initialize(model, seed=0)
    with torch.no_grad():  # gains that bfloat16 cannot represent
        for name, parameter in model.named_parameters():
            if "norm" in name or "bias" in name:
                parameter += 0.1234
    # Mostly one token, as spaces in text: its embedding row sums many small gradients.
    tokens = torch.zeros(8, 512, dtype=torch.int64, device=world.device)
    tokens[:, ::7] = torch.arange(8 * 74, device=world.device).view(8, 74) % 64
    loss = model.loss(tokens, tokens.roll(-1, 1))
    loss.backward()
    whole = {
        name: (p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad).float().cpu()
        for name, p in model.named_parameters()
    }
    return loss.item(), whole


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_several_ranks_compute_what_one_does(tmp_path, dtype):
    """Also for the embedding and the gains of norms, which a rank gathers in its compute dtype."""
    loss, alone = gradients(dtype, 1)
    low = dtype is torch.bfloat16
    for other_loss, together in on_ranks(gradients, 2, dtype, 2, folder=tmp_path):
        assert other_loss == pytest.approx(loss, rel=1e-6 if DEVICE == "cpu" else 1e-4)
        for name, gradient in alone.items():
            error = (together[name] - gradient).norm() / gradient.norm()
            assert error < (1e-2 if low else 1e-5), name
