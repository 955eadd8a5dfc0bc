"""A step with all options for speed and memory has the same loss and gradients as a plain step."""

from importlib.util import find_spec

import pytest
import torch

from lhtrain.attention import LighthouseAttention
from lhtrain.compute.apply import apply
from lhtrain.conf.schema import Compile, ComputeConfig, ModelConfig, Recompute
from lhtrain.model.decoder import GPT

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
N = 2048 if GPU else 512  # without a GPU the kernels run in Triton's slow interpreter
SIZES = {"dim": 128, "n_layers": 3, "n_heads": 4, "n_kv_heads": 2, "head_dim": 32, "ffn_dim": 256}
CONFIG = ModelConfig(name="t", seq_len=N, vocab_size=N + 64, tie_embeddings=True, dense_layers=[1], **SIZES)
PLAIN = ComputeConfig(compile=Compile.off)
ALL = ComputeConfig(
    compile=Compile.on if GPU else Compile.off,  # on a CPU test_blocks compiles
    recompute=Recompute.full,
    offload=True,
)


def step(compute, backend):
    """Return the loss and the float32 gradients of two micro-batches."""
    torch.backends.cuda.matmul.allow_tf32 = False
    model = GPT(CONFIG).to(DEVICE)
    model.init_weights(0)
    model.attend_with(LighthouseAttention(levels=2, pooling=4, budget=128, backend=backend))
    apply(model, compute, DEVICE)
    # All tokens differ: two equal tokens would have equal scores, and rounding would choose between them.
    draw = torch.Generator().manual_seed(1)
    tokens = torch.stack([torch.randperm(N + 1, generator=draw) for _ in range(2)]).to(DEVICE)
    losses = []
    for part in tokens.split(1):
        loss = model.loss(part[:, :-1], part[:, 1:], z_loss=1e-4)
        loss.backward()
        losses.append(loss.item())
    return losses, {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.skipif(find_spec("triton") is None, reason="needs the package triton")
@pytest.mark.slow
def test_all_options_together_equal_the_plain_step():
    plain, want = step(PLAIN, "reference")
    losses, got = step(ALL, "triton")
    assert losses == pytest.approx(plain, rel=1e-5)
    for name, gradient in got.items():
        error = ((gradient - want[name]).norm() / want[name].norm()).item()
        assert error < 1e-4, (name, error)
