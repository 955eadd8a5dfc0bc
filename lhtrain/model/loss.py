"""Output projection and cross-entropy, computed together in chunks; full logits are never allocated.

Shapes: M positions, C model dim, V vocabulary. With M = 98,304 and V = 128,256 the logits alone would take
25 GB in bfloat16. The gradient of a chunk's logits depends only on that chunk, so the forward pass computes
it and adds it to the gradients of the hidden states and of the weight. The backward pass only scales these.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lhtrain.model.chunks import chunk_rows

IGNORE = -100  # marks a position without a target

ChunkGrad = Callable[[Tensor, Tensor, float, Tensor], tuple[Tensor, Tensor]]
ChunkLoss = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]


def chunk_loss(logits: Tensor, targets: Tensor, z_loss: float) -> tuple[Tensor, Tensor]:
    """Return the summed loss of a chunk of logits (m, V), and their float32 logsumexp (m,)."""
    logits = logits.float()
    counts = targets != IGNORE
    # Not torch.logsumexp: from this form the compiler computes maximum and sum in one pass over the logits.
    most = logits.amax(-1, keepdim=True)
    lse = (most + (logits - most).exp().sum(-1, keepdim=True).log()).squeeze(-1)
    right = logits.gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return ((lse - right + z_loss * lse.square()) * counts).sum(), lse


def chunk_grad(logits: Tensor, targets: Tensor, z_loss: float, count: Tensor) -> tuple[Tensor, Tensor]:
    """Return the summed loss of a chunk, and the gradient of the mean loss with respect to its logits.

    logits: (m, V). targets: (m,) int64. count: scalar, the number of targets of all chunks. The gradient is
    (m, V), in the dtype of the logits.
    """
    loss, lse = chunk_loss(logits, targets, z_loss)
    counts = (targets != IGNORE).unsqueeze(-1)
    grad = (logits.float() - lse.unsqueeze(-1)).exp() * (1 + 2 * z_loss * lse).unsqueeze(-1)
    # A comparison instead of a scatter: the compiler fuses it into one pass, without a float32 chunk.
    right = torch.arange(logits.shape[-1], device=logits.device) == targets.unsqueeze(-1)
    return loss, ((grad - right.float()) * counts / count).to(logits.dtype)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b. total is float32, and the product is summed in float32 for every dtype of a and b."""
    if a.dtype == total.dtype:
        torch.addmm(total, a, b, out=total)
    elif total.is_cuda:
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    else:  # only CUDA has products whose dtype differs from that of the factors
        total += a @ b


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    z_loss: float = 0.0,
    chunk: int | None = None,
    of_logits: ChunkGrad = chunk_grad,
    value_of_logits: ChunkLoss = chunk_loss,
) -> Tensor:
    """Mean cross-entropy, in nats, of the logits hidden @ weight.T.

    Args:
        hidden: (M, C), float; the products use its dtype, the softmax float32.
        weight: (V, C), float32 or hidden's dtype; its gradient is summed over chunks in float32.
        targets: (M,) int64 below V; positions with target -100 do not count.
        z_loss: adds z_loss * mean(logsumexp(logits)^2), which keeps logits from drifting (PaLM, section 5).
        chunk: positions per chunk; None: as many as give at most 2^28 logits.
        of_logits: `chunk_grad`, or a compiled version of it.
        value_of_logits: `chunk_loss`, or a compiled version of it; used if no gradient is needed.

    Returns:
        Scalar float32. Zero, with zero gradients, if no target counts.
    """
    rows = chunk or chunk_rows(weight.shape[0])
    if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
        return _LinearCrossEntropy.apply(hidden, weight, targets, z_loss, rows, of_logits)
    total = torch.zeros((), dtype=torch.float32, device=hidden.device)
    matrix = weight.to(hidden.dtype)
    for part, target in zip(hidden.split(rows), targets.split(rows), strict=True):
        logits = part @ matrix.T
        loss, _ = value_of_logits(logits, target, z_loss)
        total += loss
        del logits  # otherwise it would be in memory together with the next chunk's logits
    return total / (targets != IGNORE).sum().clamp(min=1)


class TokenLosses(NamedTuple):
    """The loss of each target, and whether it was the most likely token; one shape."""

    losses: Tensor  # float32, in nats
    right: Tensor  # bool


@torch.no_grad()
def per_token_losses(
    hidden: Tensor, weight: Tensor, targets: Tensor, among: Tensor | None = None, chunk: int | None = None
) -> TokenLosses:
    """Cross-entropy of each target under the logits hidden @ weight.T, in chunks, without gradients.

    Args:
        hidden, weight, chunk: as in `linear_cross_entropy`.
        targets: (M,) int64, each below V.
        among: (m,) int64, the tokens of which the most likely one is compared with the target; None: all.

    Returns:
        (M,) each.
    """
    matrix, rows = weight.to(hidden.dtype), chunk or chunk_rows(weight.shape[0])
    losses = torch.empty(targets.shape, dtype=torch.float32, device=hidden.device)
    right = torch.empty(targets.shape, dtype=torch.bool, device=hidden.device)
    parts = zip(*(x.split(rows) for x in (hidden, targets, losses, right)), strict=True)
    for part, target, loss, hit in parts:
        logits = (part @ matrix.T).float()
        loss.copy_(logits.logsumexp(-1) - logits.gather(-1, target.unsqueeze(-1)).squeeze(-1))
        best = logits.argmax(-1) if among is None else among[logits[:, among].argmax(-1)]
        hit.copy_(best == target)
        del logits  # otherwise it would be in memory together with the next chunk's logits
    return TokenLosses(losses, right)


def plain_linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, z_loss: float = 0.0
) -> Tensor:
    """The reference for `linear_cross_entropy`: the same value, with all logits at once."""
    logits = (hidden @ weight.to(hidden.dtype).T).float()
    count = (targets != IGNORE).sum().clamp(min=1)
    loss = F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum")
    squares = logits.logsumexp(-1).square() * (targets != IGNORE)
    return (loss + z_loss * squares.sum()) / count


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        z_loss: float,
        rows: int,
        of_logits: ChunkGrad,
    ) -> Tensor:
        count = (targets != IGNORE).sum().clamp(min=1)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        of_hidden, of_weight = ctx.needs_input_grad[:2]  # False below what is trained, and for a frozen head
        grad_hidden = torch.empty_like(hidden) if of_hidden else hidden.new_empty(0)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if of_weight else weight.new_empty(0)
        matrix = weight.to(hidden.dtype)
        for begin in range(0, len(hidden), rows):
            part, target = hidden[begin : begin + rows], targets[begin : begin + rows]
            loss, grad_logits = of_logits(part @ matrix.T, target, z_loss, count)
            total += loss
            if of_hidden:
                torch.mm(grad_logits, matrix, out=grad_hidden[begin : begin + rows])
            if of_weight:
                _add_product(grad_weight, grad_logits.T, part)
            del grad_logits  # otherwise it would be in memory together with the next chunk's logits
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype, ctx.rows = weight.dtype, rows
        return total / count

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        of_hidden, of_weight = ctx.needs_input_grad[:2]
        scaled_weight = (grad_weight * grads[0]).to(ctx.weight_dtype) if of_weight else None
        # Scale in float32, by chunks: bfloat16 would round the weight of a micro-batch to two digits.
        wide, scaled = torch.promote_types(grad_hidden.dtype, torch.float32), torch.empty_like(grad_hidden)
        for part, out in zip(grad_hidden.split(ctx.rows), scaled.split(ctx.rows), strict=True):
            out.copy_(part.to(wide) * grads[0])
        return scaled if of_hidden else None, scaled_weight, None, None, None, None
