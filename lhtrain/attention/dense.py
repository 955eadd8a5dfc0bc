"""Full causal attention with the fastest installed kernel.

Shapes: B batch, T tokens, H query heads, Hkv key/value heads, D head dim.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lhtrain.attention.documents import Documents
from lhtrain.attention.flash4 import FA4_FROM, INSTALLED, PACKAGES, fa4, fa4_runs
from lhtrain.attention.varlen import attend_documents, naive_documents
from lhtrain.attention.where import Where

if TYPE_CHECKING:
    from lhtrain.stage import Stage

# The kernels that sdpa_kernel tries, in order. Only "auto" has fallbacks.
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


def dense_attention(
    q: Tensor, k: Tensor, v: Tensor, backend: str = "auto", documents: Documents | None = None
) -> Tensor:
    """Causal softmax attention with scale 1/sqrt(D).

    Args:
        q: (B, T, H, D); k, v: (B, T, Hkv, D) with Hkv dividing H, any float dtype.
        backend: "math", "flash" or "cudnn": a kernel of PyTorch's scaled_dot_product_attention; "fa2", "fa3"
            or "fa4": a FlashAttention package; "auto": the fastest installed one for this shape.
        documents: each token attends only to its own document; None: to its whole sequence. With documents,
            "math" is the reference in `kernels/ranges`, and "auto" is a kernel of `varlen.py`.

    Returns:
        (B, T, H, D) in q's dtype.

    Raises:
        ValueError: the backend is unknown, or its package or device is missing, or it cannot keep documents
            apart.
    """
    check_dense_backend(backend)
    if documents is not None:
        return attention_in_segments(q, k, v, documents.bounds, backend)
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


def attention_in_segments(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, backend: str = "auto") -> Tensor:
    """Causal attention within segments of the flattened batch, such as documents; (B, N, H, D).

    bounds: (n + 1,) int32, the beginnings of the segments, as in `Documents.bounds`. Others as in
    `dense_attention`, which also has the errors.
    """
    if backend == "math":
        return naive_documents(q, k, v, bounds)[0]
    if backend in ("auto", "fa4", "flash"):
        return attend_documents(q, k, v, bounds, kernel="" if backend == "auto" else backend)[0]
    if backend == "cudnn":
        raise ValueError(f"dense={backend}: has no kernel for documents apart; use auto, flash or math")
    if backend == "fa3":
        from flash_attn_interface import flash_attn_varlen_func as varlen
    else:
        from flash_attn import flash_attn_varlen_func as varlen
    flat, longest = (x.flatten(0, 1) for x in (q, k, v)), q.shape[1]
    return varlen(*flat, bounds, bounds, longest, longest, causal=True).view(q.shape)


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
    """Return whether PyTorch has no fused kernel for this q with fewer key/value heads than query heads.

    It would then silently use its kernel that stores all scores (pytorch issue 154363).
    """
    return q.is_cuda and (q.dtype == torch.float32 or q.shape[-1] > 256)


def check_dense_backend(backend: str) -> None:
    """Raise ValueError if `backend` is unknown, or a package that is not installed or has no GPU here."""
    if backend not in DENSE_BACKENDS:
        raise ValueError(f"dense={backend}: must be one of {', '.join(DENSE_BACKENDS)}")
    if backend in PACKAGES and not INSTALLED[backend]:
        raise ValueError(f"dense={backend}: needs the package {PACKAGES[backend]}, which is not installed")
    if backend in PACKAGES and not torch.cuda.is_available():
        raise ValueError(f"dense={backend}: needs a CUDA device, and there is none")


def _fastest(q: Tensor) -> str:
    return pick_dense(q.shape[1], q.shape[-1], q.dtype, q.device)[0]


def pick_dense(tokens: int, head_dim: int, dtype: torch.dtype, device: torch.device) -> tuple[str, str]:
    """Return the fastest kernel for a shape, as measured on an H200 (kernels/NOTES.md), and the reason."""
    if device.type != "cuda":
        return "default", "PyTorch chooses the kernel on a CPU"
    if dtype not in (torch.bfloat16, torch.float16):
        return "default", "PyTorch chooses the kernel for float32"
    if tokens < FA4_FROM:
        return "best", f"cuDNN if possible: FlashAttention-4 is faster only from {FA4_FROM:,} tokens"
    if head_dim not in (64, 128):
        return "best", "cuDNN if possible: FlashAttention-4 is used only for head_dim 64 and 128"
    if not fa4_runs():
        missing = "FlashAttention-4 is not installed, or this GPU is neither Hopper nor Blackwell"
        return "best", f"cuDNN if possible: {missing}"
    return "fa4", "FlashAttention-4 is the fastest for this shape"


@dataclass(frozen=True)
class DenseAttention:
    """Full attention as an `Attend`; `backend` as in `dense_attention`."""

    backend: str = "auto"
    keeps_documents: ClassVar[bool] = True  # uses `Where.documents`

    def __post_init__(self) -> None:
        check_dense_backend(self.backend)

    @classmethod
    def of(cls, stage: "Stage", backend: str) -> "DenseAttention":
        """Return the attention of a stage's layers. `backend` concerns only Lighthouse layers."""
        return FULL_ATTENTION

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, where: Where | None = None) -> Tensor:
        return dense_attention(q, k, v, self.backend, None if where is None else where.documents)


FULL_ATTENTION = DenseAttention()  # one object for all stages, so that the compiler does not compile again
