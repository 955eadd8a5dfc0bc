"""The device, the precision and the deterministic mode of a process."""

import os

import pytest
import torch
import torch._inductor.config

from lhtrain.compute.device import compute_dtype, set_deterministic
from lhtrain.conf.schema import Precision
from lhtrain.errors import RunError


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


@pytest.mark.parametrize(("capability", "fits"), [((7, 0), False), ((8, 0), True), ((9, 0), True)])
def test_the_error_for_a_gpu_without_bfloat16_suggests_float32(monkeypatch, capability, fits):
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")
    assert compute_dtype(Precision.float32, gpu) is torch.float32
    assert compute_dtype(Precision.auto, cpu) is torch.float32
    assert compute_dtype(Precision.bfloat16, cpu) is torch.bfloat16
    for wanted in (Precision.auto, Precision.bfloat16):
        if fits:
            assert compute_dtype(wanted, gpu) is torch.bfloat16
        else:
            with pytest.raises(RunError, match=r"not Tesla V100; use compute\.precision=float32"):
                compute_dtype(wanted, gpu)
