"""The chunked loss compared with the plain one; full logits are never allocated."""

import weakref

import pytest
import torch

from lhtrain.model.loss import (
    IGNORE,
    chunk_grad,
    chunk_loss,
    linear_cross_entropy,
    plain_linear_cross_entropy,
)


def inputs(m=37, c=16, v=51, masked=0, dtype=torch.float64, seed=0):
    draw = torch.Generator().manual_seed(seed)
    hidden = torch.randn(m, c, generator=draw, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(v, c, generator=draw, dtype=torch.float64).to(dtype).requires_grad_()
    targets = torch.randint(0, v, (m,), generator=draw)
    targets[torch.randperm(m, generator=draw)[:masked]] = IGNORE
    return hidden, weight, targets


@pytest.mark.parametrize("chunk", [1, 5, 37, 1000, None])
@pytest.mark.parametrize("masked", [0, 9, 37])
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
def test_equals_the_plain_loss(chunk, masked, z_loss):
    got, expected = [], []
    for out, loss in (
        (got, lambda *a: linear_cross_entropy(*a, z_loss, chunk)),
        (expected, lambda *a: plain_linear_cross_entropy(*a, z_loss)),
    ):
        hidden, weight, targets = inputs(masked=masked, dtype=torch.float32)
        value = loss(hidden, weight, targets)
        (3 * value).backward()  # the incoming gradient is not 1
        out += [value, hidden.grad, weight.grad]
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_gradients_agree_with_finite_differences():
    """Finite differences, with a coarse step because the softmax is float32."""
    hidden, weight, targets = inputs(m=6, c=4, v=7, masked=1)

    def loss(hidden, weight):
        return linear_cross_entropy(hidden, weight, targets, z_loss=0.1, chunk=4)

    assert torch.autograd.gradcheck(loss, (hidden, weight), eps=1e-2, atol=2e-3, rtol=2e-3)


def test_without_gradients_the_value_is_the_same():
    hidden, weight, targets = inputs(masked=3, dtype=torch.float32)
    with torch.no_grad():
        value = linear_cross_entropy(hidden, weight, targets, z_loss=0.1, chunk=8)
    torch.testing.assert_close(value, linear_cross_entropy(hidden, weight, targets, z_loss=0.1).detach())


def test_low_precision_stays_close_to_float32():
    exact = linear_cross_entropy(*inputs(m=200, v=300, dtype=torch.float32))
    hidden, weight, targets = inputs(m=200, v=300, dtype=torch.bfloat16)
    loss = linear_cross_entropy(hidden, weight, targets, chunk=64)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=2e-2)


def test_the_weight_of_a_micro_batch_is_not_rounded_to_low_precision():
    """Checked by the mean over many elements; bfloat16 would round 0.3603 to 0.3594."""
    hidden, weight, targets = inputs(m=512, c=32, v=97, dtype=torch.float32)
    hidden = hidden.detach().bfloat16().requires_grad_()

    def gradients(share):
        loss = linear_cross_entropy(hidden, weight, targets, chunk=100)
        return torch.autograd.grad(loss * share, (hidden, weight))

    whole, part = gradients(1.0), gradients(0.3603)
    for one, other in zip(whole, part, strict=True):
        one, other = one.double(), other.double()
        assert ((one * other).sum() / one.square().sum()).item() == pytest.approx(0.3603, rel=3e-4)


def test_no_tensor_has_the_size_of_all_logits():
    """The largest tensor that the loss allocates is a chunk of logits."""
    from torch.utils._python_dispatch import TorchDispatchMode

    sizes = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            sizes.extend(
                x.numel() for x in torch.utils._pytree.tree_leaves(out) if isinstance(x, torch.Tensor)
            )
            return out

    hidden, weight, targets = inputs(m=64, c=4, v=100, dtype=torch.float32)
    with Sizes():
        linear_cross_entropy(hidden, weight, targets, chunk=8).backward()
    assert max(sizes) == 8 * 100


def test_a_chunk_is_freed_before_the_next():
    hidden, weight, targets = inputs()
    given = []

    def of_logits(*chunk):
        assert all(grad() is None for grad in given)
        loss, grad = chunk_grad(*chunk)
        given.append(weakref.ref(grad))
        return loss, grad

    linear_cross_entropy(hidden, weight, targets, chunk=5, of_logits=of_logits)
    assert len(given) == 8


def test_a_chunk_without_gradients_is_freed_before_the_next():
    hidden, weight, targets = inputs()
    given = []

    def of_logits(logits, *others):
        assert all(before() is None for before in given)
        given.append(weakref.ref(logits))
        return chunk_loss(logits, *others)

    with torch.no_grad():
        linear_cross_entropy(hidden, weight, targets, chunk=5, value_of_logits=of_logits)
    assert len(given) == 8


@pytest.mark.gpu
def test_validation_takes_no_more_memory_than_training():
    """Compiled, both need a chunk of logits and, in training, its gradient, without float32 copies."""
    draw = torch.Generator("cuda").manual_seed(0)
    hidden = torch.randn(8192, 256, device="cuda", dtype=torch.bfloat16, generator=draw)
    weight = torch.randn(128_256, 256, device="cuda", generator=draw).bfloat16()
    targets = torch.randint(0, 128_256, (8192,), device="cuda", generator=draw)
    compiled = torch.compile(chunk_loss, fullgraph=True, dynamic=False)
    for _ in range(2):  # the first pass compiles, which needs more memory
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with torch.no_grad():
            linear_cross_entropy(hidden, weight, targets, value_of_logits=compiled)
        peak = torch.cuda.max_memory_allocated() - before
    assert peak < 1.2 * 2 * 2048 * 128_256  # a bfloat16 chunk
