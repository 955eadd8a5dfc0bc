"""Which device and precision a run computes on, and how to describe the machine."""

import os
import sys
from typing import Any

import torch

from lhtrain.conf.schema import Device, Precision
from lhtrain.errors import RunError
from lhtrain.provenance import cpu_cores, cpu_name
from lhtrain.provenance import versions as installed_versions

LEAST_BFLOAT16 = (8, 0)  # Ampere and later

# Dense bfloat16 TFLOP/s of the data sheets.
# By the first key that the GPU's name contains: boards of less power come before their family.
PEAK_TFLOPS = {
    "GB200": 2500.0,
    "B200": 2250.0,
    "H200 NVL": 835.5,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.5,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "A6000": 155.0,
}


def pick_device(wanted: Device) -> torch.device:
    """The device of the run. Raises RunError if cuda is asked for and absent."""
    if wanted is Device.cuda and not torch.cuda.is_available():
        raise RunError(
            "run.device=cuda: PyTorch sees no CUDA device here; run.device=auto takes what there is"
        )
    return torch.device("cpu" if wanted is Device.cpu or not torch.cuda.is_available() else "cuda")


def compute_dtype(wanted: Precision, device: torch.device) -> torch.dtype:
    """bfloat16 on GPUs, float32 on CPUs (bfloat16 products are many times slower there) unless told.

    Raises RunError: a GPU that has no bfloat16.
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
    """Have PyTorch, its compiler and the attention kernels choose what gives the same bits in every run.

    Before anything is computed: cuBLAS reads its variable once. Kernels of our own always do.
    """
    if on:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # PyTorch asks for it
    if on or torch.are_deterministic_algorithms_enabled():  # the call imports torch._dynamo
        torch.use_deterministic_algorithms(on)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # none is read
    if on or "torch._inductor.config" in sys.modules:
        from torch._inductor import config  # takes a second, for what most runs do without

        config.deterministic = on  # times no kernels that add up in different orders


def peak_flops(device: torch.device) -> float | None:
    """bfloat16 FLOP/s of the device by its data sheet; None for a CPU or an unknown GPU."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    if " MIG " in name:  # a part of a card, which the data sheet does not describe
        return None
    return next((1e12 * peak for key, peak in PEAK_TFLOPS.items() if key in name), None)


def peak_memory(device: torch.device) -> int:
    """Most bytes that tensors took on the GPU since the last reset; 0 on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def gpu_memory(device: torch.device) -> int:
    """Bytes of memory that the GPU has; 0 on a CPU."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0


def reset_peak_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def describe(device: torch.device) -> dict[str, dict[str, Any]]:
    """Versions and hardware, for summary.json."""
    versions: dict[str, Any] = installed_versions()
    hardware: dict[str, Any] = {"device": device.type, "cpu": cpu_name(), "cpu_cores": cpu_cores()}
    if device.type == "cuda":
        hardware["gpu"] = torch.cuda.get_device_name(device)
        versions["cuda"] = torch.version.cuda
    return {"versions": versions, "hardware": hardware}
