"""Which parameters decay."""

from lhtrain.conf.schema import ModelConfig, OptimConfig
from lhtrain.model.decoder import GPT
from lhtrain.model.optimizer import AdamW


def test_matrices_decay_and_vectors_do_not():
    sizes = {"dim": 16, "n_layers": 2, "n_heads": 2, "n_kv_heads": 2, "head_dim": 8, "ffn_dim": 32}
    model = GPT(ModelConfig(name="t", seq_len=8, vocab_size=32, tie_embeddings=True, **sizes))
    optimizer = AdamW(model, OptimConfig(weight_decay=0.3, betas=(0.8, 0.9), eps=1e-7)).adamw
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    by_decay = {
        group["weight_decay"]: {names[id(p)] for p in group["params"]} for group in optimizer.param_groups
    }
    assert by_decay.keys() == {0.3, 0.0}
    assert all(name.endswith("norm.weight") for name in by_decay[0.0]) and len(by_decay[0.0]) == 5
    assert "embedding.weight" in by_decay[0.3] and len(by_decay[0.3]) == 1 + 2 * 7
    assert optimizer.defaults["betas"] == (0.8, 0.9) and optimizer.defaults["eps"] == 1e-7
