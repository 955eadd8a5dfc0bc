"""Settings that must be made before anything imports Triton."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    # Without a GPU kernels run in Triton's interpreter, which its own library functions must know at import.
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


def pytest_runtest_teardown():
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # processes that test side by side share the GPU's memory
