"""Full causal attention: the fastest stock kernel that is installed, behind the boundary's layout.

B batch, T tokens, H query heads, Hkv key/value heads, D head dim.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lhtrain.attention.flash4 import FA4_FROM, INSTALLED, PACKAGES, fa4, fa4_runs
from lhtrain.attention.where import Where

if TYPE_CHECKING:
    from lhtrain.stage import Stage

# What sdpa_kernel tries, in this order. "auto" may fall back, a name that was asked for may not.
SDPA = {
    "math": [SDPBackend.MATH],
    "flash": [SDPBackend.FLASH_ATTENTION],
    "cudnn": [SDPBackend.CUDNN_ATTENTION],
}
FALLBACKS = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
DENSE_BACKENDS = ("auto", *SDPA, *PACKAGES)


def dense_attention(q: Tensor, k: Tensor, v: Tensor, backend: str = "auto") -> Tensor:
    """Causal softmax attention with scale 1/sqrt(D).

    Args:
        q: (B, T, H, D); k, v: (B, T, Hkv, D) with Hkv dividing H, any float dtype.
        backend: "math", "flash" or "cudnn" of PyTorch's scaled_dot_product_attention; "fa2", "fa3" or "fa4",
            the FlashAttention packages; or "auto", the fastest of those installed for this shape.

    Returns:
        (B, T, H, D), q's dtype.

    Raises:
        ValueError: an unknown backend, or one whose package or device is missing.
    """
    check_dense_backend(backend)
    if backend == "auto":
        backend = _fastest(q)
    if backend == "fa4":
        return fa4(q, k, v)[0]
    if backend == "fa3":
        from flash_attn_interface import flash_attn_func as fa3

        return fa3(q, k, v, causal=True)
    if backend == "fa2":
        from flash_attn import flash_attn_func as fa2

        return fa2(q, k, v, causal=True)
    if backend == "default":
        return _sdpa(q, k, v)
    with sdpa_kernel(FALLBACKS if backend == "best" else SDPA[backend], set_priority=True):
        return _sdpa(q, k, v)


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    if q.shape[2] != k.shape[2] and _shares_no_heads(q):
        k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], 2) for x in (k, v))
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        is_causal=True,
        enable_gqa=q.shape[2] != k.shape[2],
    )
    return out.transpose(1, 2)


def _shares_no_heads(q: Tensor) -> bool:
    """Whether no fused kernel of PyTorch takes fewer key/value heads than query heads for such a q: only its
    kernel that stores all scores would be left, which is silently taken (pytorch 154363)."""
    return q.is_cuda and (q.dtype == torch.float32 or q.shape[-1] > 256)


def check_dense_backend(backend: str) -> None:
    """Raise ValueError unless `backend` is known and, if it is a package of its own, usable here."""
    if backend not in DENSE_BACKENDS:
        raise ValueError(f"dense={backend}: must be one of {', '.join(DENSE_BACKENDS)}")
    if backend in PACKAGES and not INSTALLED[backend]:
        raise ValueError(f"dense={backend}: needs the package {PACKAGES[backend]}, which is not installed")
    if backend in PACKAGES and not torch.cuda.is_available():
        raise ValueError(f"dense={backend}: needs a CUDA device, and there is none")


def _fastest(q: Tensor) -> str:
    return pick_dense(q.shape[1], q.shape[-1], q.dtype, q.device)[0]


def pick_dense(tokens: int, head_dim: int, dtype: torch.dtype, device: torch.device) -> tuple[str, str]:
    """The fastest kernel by shape, as measured on an H200 (kernels/NOTES.md), and why it is taken."""
    if device.type != "cuda":
        return "default", "PyTorch chooses its kernel on a CPU"
    if dtype not in (torch.bfloat16, torch.float16):
        return "default", "PyTorch chooses its kernel for float32"
    if tokens < FA4_FROM:
        return "best", f"cuDNN first: FlashAttention-4 is faster from {FA4_FROM} tokens on"
    if head_dim not in (64, 128):
        return "best", "cuDNN first: FlashAttention-4 is used for heads of 64 and 128"
    if not fa4_runs():
        return (
            "best",
            "cuDNN first: FlashAttention-4 is not installed, or this GPU is neither Hopper nor Blackwell",
        )
    return "fa4", "FlashAttention-4 is the fastest here"


@dataclass(frozen=True)
class DenseAttention:
    """The boundary's callable for full attention; `backend` as in `dense_attention`."""

    backend: str = "auto"

    def __post_init__(self) -> None:
        check_dense_backend(self.backend)

    @classmethod
    def of(cls, stage: "Stage", backend: str) -> "DenseAttention":
        """What the layers of a stage attend with; `backend` is that of other parts of Lighthouse layers."""
        return FULL_ATTENTION

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, where: Where | None = None) -> Tensor:
        return dense_attention(q, k, v, self.backend)


FULL_ATTENTION = DenseAttention()  # one object for all stages: a compiler takes another for other code
