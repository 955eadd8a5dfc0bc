"""Lighthouse layers that keep documents apart, with the kernels."""

from dataclasses import replace

import pytest
import torch
import torch._dynamo.testing

from lhtrain.attention import LighthouseAttention
from lhtrain.attention.where import Where
from tests.attention.test_lighthouse_documents import (
    BEGINS,
    ISOLATED,
    KINDS,
    SIZES,
    documents,
    draw,
    layer,
    other_document,
    results,
)


@pytest.mark.slow
@pytest.mark.parametrize("heads", [(4, 2)])
@pytest.mark.parametrize("kind", ["published", "windowed", "strict"])
def test_the_kernels_are_the_reference(kind, heads, device):
    docs, tensors = documents(device=device), draw(*heads, device=device)
    got, want = (
        results(lambda *x, backend=backend: layer(*x, kind, docs, backend), tensors)
        for backend in ("triton", "reference")
    )
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["windowed", "strict"])
def test_the_kernels_let_nothing_through(kind, device):
    docs, tensors = documents(BEGINS[:1], device=device), draw(2, 1, batch=1, device=device)
    scorer = "norm" if kind in ISOLATED else "position"
    changed = [x.clone() for x in tensors]
    for x in changed:
        x[0, 50] *= 30
    outside = other_document(docs, 40, 72).to(device)
    got, want = (
        results(lambda *x: layer(*x, kind, docs, "triton", scorer=scorer), own, outside)
        for own in (changed, tensors)
    )
    for one, other in zip(got, want, strict=True):
        assert torch.equal(one * outside, other * outside)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "backend"),
    [("windowed", "triton"), ("published", "reference"), ("windowed", "reference"), ("strict", "reference")],
)
def test_the_layer_compiles_once_for_all_boundaries(kind, backend, device):
    tensors = draw(2, 1, n=64, device=device)
    attend = LighthouseAttention(**SIZES | {"budget": 8} | KINDS[kind], backend=backend)
    plain = replace(attend, backend="reference")
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(attend, fullgraph=True, backend=counter, dynamic=False)
    rotation = tensors[0], tensors[0]
    for begins in ([[4, 40], []], [[32], [16]]):
        where = Where(rotation, documents=documents(begins, 64, device=device))
        got, want = (
            results(lambda *x, own=own, where=where: own(*x, where), tensors) for own in (compiled, plain)
        )
        for one, other in zip(got, want, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert counter.frame_count == 1
