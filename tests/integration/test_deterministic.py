"""compute.deterministic: two runs with the same settings are equal, bit for bit, also on a GPU."""

import signal

import pytest
import torch

pytestmark = pytest.mark.slow

# Long enough for FlashAttention-4, if installed: only its backward sums in an arbitrary order.
GPU = ["run.device=cuda", "model.seq_len=16384", "run.batch_tokens=32768", "model.dim=128", "model.n_heads=2"]
GPU += ["model.dense_layers=[0]", "eval.tokens=16384"]


def test_it_changes_nothing_on_a_cpu(lhtrain, undisturbed):
    assert lhtrain("fixed", "compute.deterministic=true").trace == undisturbed.trace


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_run_killed_and_resumed_on_a_gpu_is_the_run_that_was_not(lhtrain):
    settings = [*GPU, "compute.deterministic=true", "checkpoint.every=2"]
    alone = lhtrain("alone", *settings)
    assert lhtrain.kill_after("killed", 5, *settings).status == -signal.SIGKILL
    assert lhtrain("killed", *settings, "resume=auto").trace == alone.trace
