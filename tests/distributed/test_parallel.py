"""What a rank computes with when weights are sharded."""

import torch

from lhtrain.conf.schema import ModelConfig, ParallelConfig, Selection
from lhtrain.model import GPT, run_plainly
from lhtrain.parallel import Parallel
from lhtrain.world import World
from tests.distributed.ranks import DEVICE, on_ranks

SIZES = {"dim": 16, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "head_dim": 8, "ffn_dim": 32}
CONFIG = ModelConfig(name="t", seq_len=64, vocab_size=64, tie_embeddings=False, dense_layers=[], **SIZES)


def dtypes_in_blocks():
    """On a rank: of what each block is called with, and of its weights, in a bfloat16 step."""
    world, seen = World.start(torch.device(DEVICE)), []

    def noting(block, x, by):
        seen.append((x.dtype, by[0].dtype, by[1].dtype, block.ffn.up.weight.dtype))
        return run_plainly(block, x, by)

    with torch.device("meta"):
        model = GPT(CONFIG, torch.bfloat16)
    for block in model.blocks:
        block.run = noting
    Parallel(ParallelConfig(), CONFIG, Selection.exact, world).build(model, seed=0)
    tokens = torch.zeros(1, 64, dtype=torch.int64, device=world.device)
    model.loss(tokens, tokens).backward()
    return seen


def test_the_rotary_embedding_stays_float32_where_weights_are_bfloat16(tmp_path):
    low, full = torch.bfloat16, torch.float32
    for seen in on_ranks(dtypes_in_blocks, 2, folder=tmp_path):
        assert seen == [(low, full, full, low)] * CONFIG.n_layers
