"""The device and precision of a run, and a description of the machine."""

import os
import sys
from typing import Any

import torch

from lhtrain.compute.rates import PEAK_TFLOPS
from lhtrain.conf.schema import Device, Precision
from lhtrain.errors import RunError
from lhtrain.provenance import cpu_cores, cpu_name
from lhtrain.provenance import versions as installed_versions

LEAST_BFLOAT16 = (8, 0)  # Ampere and later


def pick_device(wanted: Device) -> torch.device:
    """Return the device of the run. Raises RunError if `wanted` is cuda and there is no GPU."""
    if wanted is Device.cuda and not torch.cuda.is_available():
        raise RunError(
            "run.device=cuda: PyTorch sees no CUDA device here; use run.device=auto or run.device=cpu"
        )
    return torch.device("cpu" if wanted is Device.cpu or not torch.cuda.is_available() else "cuda")


def compute_dtype(wanted: Precision, device: torch.device) -> torch.dtype:
    """Return the dtype of activations. auto: bfloat16 on a GPU, float32 on a CPU (bfloat16 is slow there).

    Raises RunError if the GPU has no bfloat16.
    """
    if device.type == "cuda" and wanted is not Precision.float32:
        if torch.cuda.get_device_capability(device) >= LEAST_BFLOAT16:
            return torch.bfloat16
        raise RunError(
            f"compute.precision={wanted.value}: bfloat16 needs a GPU of compute capability 8.0 or higher, "
            f"not {torch.cuda.get_device_name(device)}; use compute.precision=float32"
        )
    return torch.float32 if wanted is Precision.auto else getattr(torch, wanted.value)


def set_deterministic(on: bool) -> None:
    """Make PyTorch, its compiler and the attention kernels give the same bits in every run, or undo that.

    Call it before any computation, because cuBLAS reads its environment variable only once. The kernels of
    this project are always deterministic.
    """
    if on:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # required by PyTorch
    if on or torch.are_deterministic_algorithms_enabled():  # else skip the call, which imports torch._dynamo
        torch.use_deterministic_algorithms(on)
    # We never read uninitialized memory, so filling it would only cost time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if on or "torch._inductor.config" in sys.modules:
        from torch._inductor import config  # imported only if needed: it takes a second

        config.deterministic = on  # else autotuning could choose kernels that sum in another order


def peak_flops(device: torch.device) -> float | None:
    """Return the bfloat16 FLOP/s of the device from its data sheet; None for a CPU or an unknown GPU."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    if " MIG " in name:  # a part of a GPU; the data sheet describes only the whole
        return None
    return next((1e12 * peak for key, peak in PEAK_TFLOPS.items() if key in name), None)


def peak_memory(device: torch.device) -> int:
    """Return the peak of bytes that tensors took on the GPU since the last reset; 0 on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def gpu_memory(device: torch.device) -> int:
    """Return the memory of the GPU in bytes; 0 on a CPU."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0


def reset_peak_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def describe(device: torch.device) -> dict[str, dict[str, Any]]:
    """Return versions and hardware, for summary.json."""
    versions: dict[str, Any] = installed_versions()
    hardware: dict[str, Any] = {"device": device.type, "cpu": cpu_name(), "cpu_cores": cpu_cores()}
    if device.type == "cuda":
        hardware["gpu"] = torch.cuda.get_device_name(device)
        versions["cuda"] = torch.version.cuda
    return {"versions": versions, "hardware": hardware}
