"""muP: updates of activations have the same size at all widths, and nothing changes at the base width."""

import pytest
import torch

from lhtrain.conf.schema import ModelConfig, OptimConfig
from lhtrain.model.decoder import GPT
from lhtrain.model.mup import width_ratio
from lhtrain.model.optimizer import AdamW
from lhtrain.model.parameter_groups import treatment

BASE, STEPS = 64, 4
WIDTHS = (64, 128, 512)


def built(width, mup=True, tied=False):
    sizes = {"n_layers": 2, "head_dim": 16, "n_heads": width // 16, "n_kv_heads": width // 16}
    config = ModelConfig(
        name="t", seq_len=32, vocab_size=64, dim=width, ffn_dim=2 * width, tie_embeddings=tied, **sizes
    )
    optim = OptimConfig(mup=mup, mup_base_width=BASE)
    model = GPT(config)
    model.init_weights(0, width_ratio=width_ratio(optim, config))
    return model, optim


def moved(width, mup, tied):
    """How far a few steps move the logits and the hidden states, as root mean squares."""
    model, optim = built(width, mup, tied)
    optimizer, draw = AdamW(model, optim), torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 64, (4, 32), generator=draw)

    def activations():
        seen = []
        hook = model.blocks[-1].register_forward_hook(lambda module, given, out: seen.append(out))
        with torch.no_grad():
            logits = model(tokens)
        hook.remove()
        return logits, seen[0]

    before = activations()
    for _ in range(STEPS):
        model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
        optimizer.step(5e-3, torch.zeros(()))
        optimizer.zero_grad()
    return [(b - a).square().mean().sqrt().item() for a, b in zip(before, activations(), strict=True)]


@pytest.mark.parametrize("tied", [False, True])
def test_steps_move_activations_as_far_at_all_widths(tied):
    logits, hidden = zip(*(moved(width, True, tied) for width in WIDTHS), strict=True)
    assert max(logits) < 2 * min(logits) and max(hidden) < 2 * min(hidden), (logits, hidden)
    wide, narrow = moved(WIDTHS[-1], False, tied), moved(WIDTHS[0], False, tied)
    assert wide[0] > 2.5 * narrow[0] and wide[1] > 2.5 * narrow[1]  # without muP they grow with the width


@pytest.mark.parametrize("tied", [False, True])
def test_nothing_changes_at_the_base_width(tied):
    (model, optim), (plain, off) = built(BASE, True, tied), built(BASE, False, tied)
    for (name, one), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other)
        assert treatment(name, one.shape, optim, model.config) == treatment(
            name, one.shape, off, model.config
        )


def test_the_factors_of_a_model_four_times_as_wide():
    def scales(tied, name):
        model, optim = built(4 * BASE, True, tied)
        parameter = dict(model.named_parameters())[name]
        spread = parameter.mean() if parameter.ndim < 2 else parameter.std() / 0.02
        return round(spread.item(), 2), *treatment(name, parameter.shape, optim, model.config)

    assert scales(False, "embedding.weight") == (1, 1, 0.1)
    assert scales(False, "blocks.1.ffn.gate.weight") == (0.5, 0.25, 0.4)  # rate * decay is constant
    assert scales(False, "head.weight") == (0.25, 0.25, 0.4)
    assert scales(False, "norm.weight") == (1, 1, 0) and scales(True, "norm.weight") == (0.25, 0.25, 0)
    assert scales(True, "blocks.0.attention_norm.weight") == (1, 1, 0)


def test_a_pattern_multiplies_the_rate_and_replaces_the_decay():
    model, optim = built(4 * BASE)
    optim.groups = {"head": {"lr_scale": 0.5, "weight_decay": 0.3}}
    assert treatment("head.weight", (64, 256), optim, model.config) == (0.125, 0.3)
