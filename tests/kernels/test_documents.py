"""The kernel of ranges keeps documents apart, as float32 needs it on GPUs."""

import pytest
import torch

from lhtrain.attention.documents import documents_of
from lhtrain.attention.varlen import attend_documents, naive_documents


@pytest.mark.parametrize("window", [None, 20])
def test_documents_by_the_kernel_of_ranges(window, device, poison):
    torch.manual_seed(0)
    bounds = documents_of([[1, 33, 70], [], [95]], 96, most=5).bounds.to(device)
    shapes = [(3, 96, 4, 16), (3, 96, 2, 16), (3, 96, 2, 16)]
    q, k, v = (torch.randn(shape, device=device, requires_grad=True) for shape in shapes)
    grad, grad_lse = torch.randn(3, 96, 4, 16, device=device), torch.randn(3, 4, 96, device=device)
    got = attend_documents(q, k, v, bounds, window, "ranges")
    want = naive_documents(q, k, v, bounds, window)
    got += torch.autograd.grad(got, (q, k, v), (grad, grad_lse))
    want += torch.autograd.grad(want, (q, k, v), (grad, grad_lse))
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
