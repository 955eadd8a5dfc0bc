"""Scorers and selections of a user give the same results with the reference and with the kernels."""

from dataclasses import dataclass
from itertools import pairwise
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from lhtrain.attention import LighthouseAttention, lighthouse_attention
from lhtrain.attention.dense import dense_attention
from lhtrain.attention.documents import documents_of
from lhtrain.kernels import ops
from lhtrain.kernels.pyramid import Pyramid
from lhtrain.kernels.scores import Tokens
from lhtrain.kernels.scores.dilated import Dilated
from lhtrain.kernels.scores.gla import CHUNK, Gla
from lhtrain.kernels.scores.naive import max_pooled
from lhtrain.kernels.scores.norm import Norm
from lhtrain.kernels.selection import naive
from lhtrain.kernels.selection.topk import TopK
from lhtrain.registry import SCORERS
from tests.kernels import cases

PYRAMID = Pyramid(1024, 2, 4, 128)  # expands 128 of 256 entries


@dataclass(frozen=True)
class FirstChannel:
    """The first channel of q, summed over a group, and of k. Scores can be negative, unlike norms."""

    def scores(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        q, k = tokens.q, tokens.k
        qk = q[..., 0].unflatten(-1, (k.shape[2], -1)).sum(-1)
        return qk.transpose(1, 2), k[..., 0].transpose(1, 2)


class Gate(nn.Module):
    """A scorer with a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(8, 1)

    def scores(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        q, k = tokens.q, tokens.k
        qk = self.gate(q).squeeze(-1).unflatten(-1, (k.shape[2], -1)).amax(-1)
        return qk.transpose(1, 2), self.gate(k).squeeze(-1).transpose(1, 2)


@dataclass(frozen=True)
class CoarsestAlone:
    """Selects the entries of the coarsest level, whatever the scores; fewer rows than TopK."""

    tile_local: ClassVar[bool] = True

    def n_rows(self, pyramid: Pyramid) -> int:
        return pyramid.size(pyramid.levels - 1)

    def reference(self, qk: Tensor, kq: Tensor, pyramid: Pyramid, n_covered: int) -> Tensor:
        first = pyramid.offset(pyramid.levels - 1)
        return torch.arange(first, pyramid.n_entries, device=qk.device).expand(*qk.shape[:2], -1)

    def kernel(self, qk: Tensor, kq: Tensor, pyramid: Pyramid, n_covered: int) -> tuple[Tensor, Tensor]:
        row_of_entry = torch.arange(pyramid.n_entries, device=qk.device, dtype=torch.int32)
        row_of_entry = (row_of_entry - pyramid.offset(pyramid.levels - 1)).clamp(min=-1)
        indices = self.reference(qk, kq, pyramid, n_covered)
        return indices.int(), row_of_entry.expand(*qk.shape[:2], -1).contiguous()


def run(layer, tensors, grad):
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    out = layer(*leaves)
    return out, *torch.autograd.grad(out, leaves, grad)


def layers(**settings):
    return [
        LighthouseAttention(**cases.options(PYRAMID), backend=backend, dense="math", **settings)
        for backend in ("triton", "reference")
    ]


def check_alike(tensors, **settings):
    grad = torch.randn_like(tensors[0])
    found, want = (run(layer, tensors, grad) for layer in layers(**settings))
    for a, b in zip(found, want, strict=True):
        assert cases.error(a, b) < 1e-5
    return found[0]


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """Register the scorers above for the tests of this file only."""
    monkeypatch.setattr(SCORERS, "_entries", dict(SCORERS._entries))
    SCORERS.add("test_first_channel")(FirstChannel)
    SCORERS.add("test_gate")(Gate)


@pytest.fixture
def tensors(device):
    return cases.draw_qkv(PYRAMID, device, heads=4, kv_heads=2, dim=8)


def test_a_registered_scorer_gives_the_references_results(tensors, poison):
    by_channel = check_alike(tensors, scorer="test_first_channel")
    assert cases.error(by_channel, layers()[1](*tensors)) > 1e-2  # norms select other entries


def test_a_scorer_may_have_parameters(tensors, device):
    gate = Gate().to(device)
    check_alike(tensors, scorer=gate)
    assert layers(scorer=gate)[0].scorer is gate and gate.gate.weight.grad is None
    assert isinstance(layers(scorer="test_gate")[0].scorer, Gate)


def test_the_fused_operator_equals_its_separate_steps(tensors, poison):
    """With norms, separate calls of score, select and gather give the same rows, bit for bit."""
    q, k, v = tensors
    sizes = cases.options(PYRAMID).values()
    fused = ops.gather_rows(q, k, v, *sizes, 1)
    qk, kq = (max_pooled(scores, PYRAMID) for scores in Norm().scores(Tokens(q, k, v, torch.arange(1024))))
    indices, row_of_entry = TopK().kernel(qk, kq, PYRAMID, 1)
    steps = *ops.gather_selected(q, k, v, row_of_entry, TopK().n_rows(PYRAMID), *sizes), indices, row_of_entry
    for a, b in zip(fused, steps, strict=True):
        assert torch.equal(a, b)


def test_a_selection_may_have_other_rows(tensors, poison):
    out = check_alike(tensors, selection=CoarsestAlone())
    assert (out[:, :3] == 0).all()  # the first window ends at position 3
    assert out.isfinite().all() and cases.error(out, layers()[1](*tensors)) > 1e-2


@pytest.mark.slow
def test_the_steps_compile_as_one_graph(tensors):
    layer = layers(scorer="test_first_channel")[0]
    grad = torch.randn_like(tensors[0])
    backend = "inductor" if cases.ON_GPU else "aot_eager"
    found = run(torch.compile(layer.__call__, fullgraph=True, backend=backend), tensors, grad)
    for a, b in zip(found, run(layer, tensors, grad), strict=True):
        assert cases.error(a, b) < 1e-6


def test_the_operators_keep_pytorchs_rules(tensors):
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    sizes = tuple(cases.options(PYRAMID).values())
    qk, kq = (torch.rand(1, 2, PYRAMID.n_entries - 1024, device=tensors[0].device) for _ in range(2))
    torch.library.opcheck(ops.select_rows, (qk, kq, 1024, *sizes, 1), test_utils=checks)
    row_of_entry = naive.select_rows(qk, kq, PYRAMID, 1)[1].int()
    leaves = [x.requires_grad_() for x in tensors]
    torch.library.opcheck(
        ops.gather_selected, (*leaves, row_of_entry, PYRAMID.n_selected, *sizes), test_utils=checks
    )


def test_an_unknown_scorer_is_refused():
    q = torch.zeros(1, 512, 2, 4)
    with pytest.raises(ValueError, match="scorer=nrom: must be one of norm"):
        lighthouse_attention(q, q, q, scorer="nrom", **cases.options(PYRAMID))


@pytest.mark.parametrize("scorer", ["dilated", "gla"])
def test_scores_of_documents_apart_are_those_of_each_alone(scorer):
    """Boundaries inside of the chunks of gated linear attention, at their borders, and none for long."""
    n, begins = 3 * CHUNK, [[8, 20, CHUNK, 2 * CHUNK + 4], [CHUNK // 2]]
    torch.manual_seed(0)
    q, k, v, x = (torch.randn(2, n, heads, 8) for heads in (4, 2, 2, 1))
    own = Gla(SimpleNamespace(dim=8, n_kv_heads=2)) if scorer == "gla" else Dilated()
    if scorer == "gla":
        nn.init.normal_(own.weight)

    def scores(rows, part, documents=None):
        tensors = (of[rows, part] for of in (q, k, v))
        positions = torch.arange(part.stop - part.start)
        return own.scores(
            Tokens(
                *tensors, positions, x[rows, part].flatten(2), dense_attention, documents=documents, align=4
            )
        )

    got = scores(slice(2), slice(0, n), documents_of(begins, n, most=8))
    for b, starts in enumerate(begins):
        bounds = [0, *starts, n]
        for begin, end in pairwise(bounds):
            alone = scores(slice(b, b + 1), slice(begin, end))
            for one, other in zip(got, alone, strict=True):
                torch.testing.assert_close(one[b, :, begin:end], other[0], rtol=1e-4, atol=1e-5)


def test_dilated_scores_need_documents_that_begin_at_multiples_of_the_dilation():
    q, k, v = (torch.randn(1, 8, 1, 4) for _ in range(3))
    tokens = Tokens(q, k, v, torch.arange(8), attend=dense_attention)
    with pytest.raises(ValueError, match="=2: the scorer dilated needs a multiple of 4"):
        Dilated().scores(tokens._replace(documents=documents_of([[2]], 8, most=2), align=2))
