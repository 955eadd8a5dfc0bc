"""Settings that must be made before anything imports Triton."""

import os
import sys
from collections import Counter

import pytest
import torch

if not torch.cuda.is_available():
    # Without a GPU kernels run in Triton's interpreter, which its own library functions must know at import.
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_modifyitems(items):
    """Files with the most slow tests start first, so that no process is left alone with one at the end."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(autouse=True, scope="module")
def fresh_compiler():
    """Forget what files before this one compiled: torch limits how often a function compiles in a process."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


def pytest_runtest_teardown():
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # processes that test side by side share the GPU's memory
