"""Orthogonalization of matrices by Newton-Schulz iterations."""

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of each iteration; those of torch.optim.Muon
ITERATIONS = 5
LEAST_NORM = 1e-7


def orthogonal(matrices: Tensor) -> Tensor:
    """Return about U V^T for each matrix U S V^T, as bfloat16.

    The singular values of the result lie between about 0.5 and 1.5, which serves Muon as well as 1
    (https://kellerjordan.github.io/posts/muon/).

    matrices: (K, M, N), float.
    """
    a, b, c = COEFFICIENTS
    x = matrices.bfloat16()
    is_tall = x.shape[1] > x.shape[2]
    x = x.mT if is_tall else x
    x = x / x.flatten(1).norm(dim=1).clamp(min=LEAST_NORM)[:, None, None]
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x
