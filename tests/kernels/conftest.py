"""Sets up Triton's interpreter if there is no GPU; it must be set before the kernels are imported."""

import os
from importlib.util import find_spec

import pytest
import torch

if find_spec("triton") is None:
    collect_ignore_glob = ["test_*.py"]  # without triton these files cannot be imported
elif not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
    from lhtrain.kernels.merge import kernel as merge
    from lhtrain.kernels.scores import kernel as scores
    from lhtrain.kernels.windows import kernel as windows

    # The interpreter takes milliseconds per program, so use fewer and larger programs.
    scores.LAUNCH["BLOCK_T"] = windows.ROWS_BLOCK["tokens"] = 512
    windows.TOKENS_LAUNCH["BLOCK_T"] = 256
    merge.TOKENS_LAUNCH["BLOCK_T"] = merge.ROWS_LAUNCH["BLOCK_E"] = 256


@pytest.fixture
def device():
    torch.backends.cuda.matmul.allow_tf32 = False
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def poison():
    """Fill uninitialized memory with NaN or the largest integer, so that a missing write is noticed."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(3).isnan().all() and torch.zeros(2).new_empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)
