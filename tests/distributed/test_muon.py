"""Muon: PyTorch's update on one rank, and AdamW for what is not a matrix of a block."""

import pytest
import torch

from lhtrain.conf.schema import MomentDtype, OptimConfig
from lhtrain.distributed.muon import Muon
from lhtrain.model.optimizer import AdamW
from lhtrain.model.orthogonal import orthogonal
from tests.model.test_optimizer import DEVICE, model_of

CONFIG = OptimConfig(kind="muon", weight_decay=0.3, betas=(0.8, 0.9), momentum=0.9)


def is_hidden(name, parameter):
    return name.startswith("blocks.") and parameter.ndim == 2


@pytest.mark.parametrize("shape", [(3, 48, 16), (2, 16, 48), (1, 32, 32)])
def test_directions_stay_and_lengths_become_about_one(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    inside = left.mT @ orthogonal(matrices).float() @ right.mT
    values = inside.diagonal(dim1=1, dim2=2)
    assert values.min() > 0.4 and values.max() < 1.4
    assert (inside - torch.diag_embed(values)).abs().max() < 0.05


def test_zeros_stay_zeros():
    assert not orthogonal(torch.zeros(1, 4, 8, device=DEVICE)).any()


def test_the_updates_equal_torchs():
    """Over steps with other rates, one of which is skipped because a gradient is not finite."""
    ours, theirs = model_of(), model_of()
    optimizer = Muon(ours, CONFIG)
    hidden = [p for name, p in theirs.named_parameters() if is_hidden(name, p)]
    reference = torch.optim.Muon(hidden, weight_decay=0.3, momentum=0.9, adjust_lr_fn="match_rms_adamw")
    rest = [
        {"params": [theirs.embedding.weight], "weight_decay": 0.3},
        {"params": [p for p in theirs.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(rest, betas=(0.8, 0.9), eps=1e-8, fused=True)
    draw = torch.Generator().manual_seed(1)
    for number, lr in enumerate((1e-2, 3e-2, 2e-2, 1e-2)):
        tokens = torch.randint(0, 32, (2, 9), generator=draw).to(DEVICE)
        ours.loss(tokens[:, :-1], tokens[:, 1:]).backward()
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            other.grad = mine.grad.clone()  # the same, whatever rounding has done to the weights
        if number == 2:
            ours.blocks[0].ffn.up.weight.grad[0, 0] = torch.nan
        else:
            for one in (reference, adamw):
                for group in one.param_groups:
                    group["lr"] = lr
                one.step()
        optimizer.step(lr, torch.tensor(float(number == 2), device=DEVICE))
        optimizer.zero_grad()
        theirs.zero_grad()
        for (name, mine), other in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
            # Updates have a root mean square of 0.2 * lr = 2e-3, rounded to bfloat16 several times.
            torch.testing.assert_close(mine, other[1], rtol=0, atol=1e-4, msg=lambda m, n=name: n + m)
            assert mine.grad is None


def test_a_matrix_of_a_block_has_one_moment_and_the_rest_two():
    model = model_of()
    optimizer = Muon(model, CONFIG)
    for name, parameter in model.named_parameters():
        state = optimizer.state_of(parameter)
        hidden = is_hidden(name, parameter)
        assert set(state) == ({"momentum"} if hidden else {"step", "exp_avg", "exp_avg_sq"}), name
        assert all(value.shape in ((), parameter.shape) and not value.any() for value in state.values())
        assert Muon.state_bytes_of(name, parameter.shape, CONFIG) == (4 if hidden else AdamW.state_bytes)


def test_groups_and_frozen_parameters():
    model = model_of()
    groups = {"blocks.0.ffn": 0.0, "norm": 0.0}
    optimizer = Muon(model, OptimConfig(kind="muon", groups=groups))
    model.freeze(["blocks.1.attention"])
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    tokens = torch.arange(16, device=DEVICE).view(2, 8)
    model.loss(tokens, tokens.roll(1, 1)).backward()
    optimizer.step(1e-2, torch.zeros((), device=DEVICE))
    same = {name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])}
    untrained = ("blocks.0.ffn.", "norm.", "blocks.1.attention.")
    assert same == {name for name in before if name.startswith(untrained)}


@pytest.mark.gpu
@pytest.mark.parametrize("state", MomentDtype)
def test_a_gpu_updates_as_a_cpu_does_and_its_host_does_not_wait(state):
    """One step of four is skipped. Both get the gradients of the GPU."""
    config = OptimConfig(kind="muon", weight_decay=0.3, betas=(0.8, 0.9), state=state)
    on_gpu, on_cpu = model_of(dim=64), model_of(dim=64).cpu()
    optimizers = [Muon(model, config) for model in (on_gpu, on_cpu)]
    draw = torch.Generator().manual_seed(1)
    for number, lr in enumerate((1e-2, 3e-2, 2e-2, 1e-2)):
        tokens = torch.randint(0, 32, (2, 9), generator=draw).to(DEVICE)
        on_gpu.loss(tokens[:, :-1], tokens[:, 1:]).backward()
        for mine, other in zip(on_gpu.parameters(), on_cpu.parameters(), strict=True):
            other.grad = mine.grad.cpu()
        skip = torch.tensor(float(number == 2), device=DEVICE)
        try:
            torch.cuda.set_sync_debug_mode("error" if number else "default")  # the first step makes constants
            optimizers[0].step(lr, skip)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        optimizers[1].step(lr, skip.cpu())
        for optimizer in optimizers:
            optimizer.zero_grad()
        for (name, mine), other in zip(on_gpu.named_parameters(), on_cpu.named_parameters(), strict=True):
            # Rounding to bfloat16 and to codes of 8 bits may differ by one unit.
            torch.testing.assert_close(mine.cpu(), other[1], rtol=0, atol=5e-4, msg=lambda m, n=name: n + m)
