"""What a run sets for the whole process."""

import os

import pytest
import torch
import torch._inductor.config

from lhtrain.hardware import set_deterministic


@pytest.fixture(autouse=True)
def as_it_was():
    yield
    set_deterministic(False)


def test_deterministic_reaches_pytorch_and_its_compiler_and_is_taken_back(monkeypatch):
    monkeypatch.setattr("os.environ", {})
    for on in (True, False):
        set_deterministic(on)
        assert torch.are_deterministic_algorithms_enabled() is on
        assert torch._inductor.config.deterministic is on
    assert os.environ == {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
