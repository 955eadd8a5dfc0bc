"""AdamW: weight decay applies to matrices only, and the update equals PyTorch's."""

import torch

from lhtrain.conf.schema import ModelConfig, OptimConfig
from lhtrain.model.decoder import GPT
from lhtrain.model.optimizer import AdamW

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SIZES = {"dim": 16, "n_layers": 2, "n_heads": 2, "n_kv_heads": 2, "head_dim": 8, "ffn_dim": 32}
PARTS = {"qkv_bias": True, "qk_norm": True}
CONFIG = OptimConfig(weight_decay=0.3, betas=(0.8, 0.9), eps=1e-7)


def model_of(seed=0, **sizes):
    sizes = SIZES | PARTS | sizes
    model = GPT(ModelConfig(name="t", seq_len=8, vocab_size=32, tie_embeddings=True, **sizes)).to(DEVICE)
    model.init_weights(seed)
    return model


def test_matrices_decay_and_vectors_do_not():
    model = model_of()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    by_decay = {g.weight_decay: {names[id(p)] for p in g.parameters} for g in AdamW(model, CONFIG).groups}
    assert by_decay.keys() == {0.3, 0.0}
    assert all(name.endswith(("norm.weight", ".bias")) for name in by_decay[0.0])
    assert len(by_decay[0.0]) == 5 + 2 * 5
    assert "embedding.weight" in by_decay[0.3] and len(by_decay[0.3]) == 1 + 2 * 7


def test_the_update_equals_torchs_bit_for_bit():
    """Learning rates change, one step is skipped, and the state exists before the first step."""
    ours, theirs = model_of(), model_of()
    optimizer = AdamW(ours, CONFIG)
    for parameter in ours.parameters():
        optimizer.state_of(parameter)
    groups = [
        {"params": [p for p in theirs.parameters() if p.ndim >= 2], "weight_decay": 0.3},
        {"params": [p for p in theirs.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(groups, betas=(0.8, 0.9), eps=1e-7, fused=True)
    draw = torch.Generator().manual_seed(1)
    for number, lr in enumerate((1e-3, 3e-3, 2e-3, 1e-3)):
        tokens = torch.randint(0, 32, (2, 9), generator=draw).to(DEVICE)
        for model in (ours, theirs):
            model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
        skip = torch.tensor(float(number == 2), device=DEVICE)
        for group in reference.param_groups:
            group["lr"] = lr
        reference.found_inf = skip
        reference.step()
        optimizer.step(lr, skip)
        reference.zero_grad(set_to_none=True)
        optimizer.zero_grad()
        for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            assert mine.grad is None
            assert torch.equal(mine, other), (number, name)
            for key, value in reference.state[other].items():
                assert torch.equal(optimizer.state_of(mine)[key], value), (number, name, key)


def test_groups_have_their_own_rate_and_decay():
    """The last pattern that matches decides. A rate of 0 changes nothing."""
    model, decay = model_of(), {"weight_decay": 0.0}
    groups = {
        "blocks": 0.5,
        "blocks.1": {"lr_scale": 0.0},
        "blocks.*.ffn": decay,
        "norm": {"weight_decay": 1},
    }
    optimizer = AdamW(model, OptimConfig(weight_decay=0.3, groups=groups))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    got = {names[id(p)]: (g.lr_scale, g.weight_decay) for g in optimizer.groups for p in g.parameters}
    assert got.keys() == set(names.values())
    assert (got["embedding.weight"], got["norm.weight"]) == ((1.0, 0.3), (1.0, 1.0))
    assert (got["blocks.0.attention.wq.weight"], got["blocks.0.ffn.up.weight"]) == ((0.5, 0.3), (0.5, 0.0))
    assert (got["blocks.1.attention.wq.weight"], got["blocks.1.ffn.up.weight"]) == ((0.0, 0.3), (0.0, 0.0))
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    tokens = torch.arange(16, device=DEVICE).view(2, 8)
    model.loss(tokens, tokens.roll(1, 1)).backward()
    optimizer.step(1e-2, torch.zeros((), device=DEVICE))
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == name.startswith("blocks.1."), name


def test_frozen_parameters_and_their_state_do_not_change():
    model = model_of()
    optimizer, before = AdamW(model, CONFIG), {name: p.clone() for name, p in model.named_parameters()}
    assert model.freeze(["blocks.0", "embedding"]) and not model.freeze(["embedding", "blocks.0"])
    tokens = torch.arange(16, device=DEVICE).view(2, 8)
    model.loss(tokens, tokens.roll(1, 1)).backward()
    optimizer.step(1e-2, torch.zeros((), device=DEVICE))
    for name, parameter in model.named_parameters():
        is_frozen = name.startswith(("blocks.0.", "embedding."))
        assert torch.equal(parameter, before[name]) == is_frozen, name
        assert optimizer.state_of(parameter)["step"].item() == (0 if is_frozen else 1), name
    assert model.freeze([]) and all(parameter.requires_grad for parameter in model.parameters())


def test_a_skipped_step_changes_nothing():
    model = model_of()
    optimizer, before = AdamW(model, CONFIG), [p.clone() for p in model.parameters()]
    tokens = torch.arange(16, device=DEVICE).view(2, 8)
    model.loss(tokens, tokens).backward()
    optimizer.step(1e-2, torch.ones((), device=DEVICE))
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
