"""Checkpoints of small models, saved as the trainer saves them."""

import torch

from lhtrain import checkpoint
from lhtrain.checkpoint.saver import Saver
from lhtrain.conf.schema import ModelConfig, OptimConfig
from lhtrain.data.tokenizers.named import open_tokenizer
from lhtrain.distributed.world import Ranks, World
from lhtrain.model.decoder import GPT
from lhtrain.model.optimizer import AdamW

SIZES = {"dim": 32, "n_layers": 3, "n_heads": 4, "n_kv_heads": 2, "head_dim": 16, "ffn_dim": 80}
FULL = {"name": "t", "seq_len": 64, "vocab_size": 300, "rope_theta": 5e5, "norm_eps": 1e-6} | SIZES
ALONE = World(Ranks(), torch.device("cpu"))
DENSE = {"attention": "dense", "seq_len": 64}
LIGHTHOUSE = {"attention": "lighthouse", "seq_len": 128}


def saved(place, attention="dense", tokenizer="bytes", step=7, stages=None, done=None, **changes):
    """Save a checkpoint of a run in `place` as the trainer does; return its path and the model.

    stages: of the configuration; default: one stage named "it". done: records of progress; default: of "it".
    """
    config = FULL | changes
    model = GPT(ModelConfig(**config))
    model.init_weights(3)
    torch.nn.init.normal_(model.norm.weight, 1, 0.1, generator=torch.Generator().manual_seed(3))
    tensors = checkpoint.tensors_of(model, AdamW(model, OptimConfig()))
    record = {
        "name": "it",
        "steps": step,
        "tokens": 100 * step,
        "losses": {"last": [3.0, 2.0]},
        "val_loss": 2.25,
    }
    state = {
        "progress": {"step": step, "position": 0, "stages": done or [record]},
        "config": {
            "model": config,
            "data": {"source": "text", "path": "/home/somebody/secret", "tokenizer": tokenizer, "bos": False},
            "stages": stages or {"it": {"attention": attention, "seq_len": config["seq_len"]}},
            "init_from": None,
        },
        "data": "0" * 32,
        "tokenizer": open_tokenizer(tokenizer).as_meta(),
    }
    saver = Saver(place / "checkpoints", 9, ALONE)
    saver.save(step, tensors, state)
    saver.finish()
    return checkpoint.folder_of(place / "checkpoints", step), model
