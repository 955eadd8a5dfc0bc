"""The scorers compared with simple implementations: token by token, or with full matrices of scores."""

from types import SimpleNamespace

import pytest
import torch

from lhtrain.attention import LighthouseAttention, dense_attention, lighthouse_attention
from lhtrain.attention.where import Where
from lhtrain.kernels.pyramid import Pyramid
from lhtrain.kernels.scores import Tokens, gla, is_token_local
from lhtrain.kernels.scores.dilated import Dilated
from lhtrain.kernels.scores.gla import Gla, linear_attention
from lhtrain.kernels.scores.norm import Norm
from lhtrain.kernels.scores.positional import Position, Recent, hash32
from tests.kernels import cases

PYRAMID = Pyramid(1024, 2, 4, 128)
HEADS, GROUPS, DIM, WIDTH = 4, 2, 8, 24


def draw(device, batch=2, seq_len=96, dtype=torch.float32):
    shapes = [(batch, seq_len, heads, DIM) for heads in (HEADS, GROUPS, GROUPS)]
    q, k, v = (torch.randn(shape, device=device).to(dtype) for shape in shapes)
    x = torch.randn(batch, seq_len, WIDTH, device=device).to(dtype)
    return Tokens(q, k, v, torch.arange(seq_len, device=device), x, dense_attention)


def new_gla(device):
    scorer = Gla(SimpleNamespace(n_kv_heads=GROUPS, dim=WIDTH)).to(device)
    torch.nn.init.normal_(scorer.weight)
    return scorer


def by_head(tokens):
    """Return float64 q, k, v (B, H, T, D), with a key and a value for each query head."""
    repeats = HEADS // GROUPS
    q, k, v = tokens.q, tokens.k.repeat_interleave(repeats, 2), tokens.v.repeat_interleave(repeats, 2)
    return [x.double().transpose(1, 2) for x in (q, k, v)]


def scores_of(attended):
    """Return the norms of outputs (B, H, T, D), the maximum over each group: (B, G, T)."""
    return attended.norm(dim=-1).unflatten(1, (GROUPS, -1)).amax(2)


def test_dilated_scores_are_norms_of_attention_to_every_fourth_token(device):
    tokens = draw(device)
    q, k, v = by_head(tokens)
    place = torch.arange(96, device=device)
    distance = place[:, None] - place
    seen = (distance >= 0) & (distance % 4 == 0)

    def attend(q, k, v):
        weights = (q @ k.mT * DIM**-0.5).masked_fill(~seen, -torch.inf).softmax(-1)
        return weights @ v

    for got, want in zip(Dilated().scores(tokens), (attend(q, k, v), attend(k, q, v)), strict=True):
        assert got.dtype == torch.float32 and cases.error(got, scores_of(want)) < 1e-5


def recurrent(q, k, v, log_gates, state=None):
    """Gated linear attention of (..., T, D), token by token."""
    state = q.new_zeros(*q.shape[:-2], DIM, DIM) if state is None else state
    outs = []
    for t in range(q.shape[-2]):
        state = state * log_gates[..., t, None, None].exp() + k[..., t, :, None] * v[..., t, None, :]
        outs.append((q[..., t, None, :] @ state).squeeze(-2) * DIM**-0.5)
    return torch.stack(outs, -2), state


@pytest.mark.parametrize(("chunk", "segment"), [(256, 2**17), (16, 2**17), (7, 32)])
def test_gla_scores_are_norms_of_the_recurrence(device, chunk, segment, monkeypatch):
    """With one chunk, with several, and with several that do not divide a segment."""
    monkeypatch.setattr(gla, "CHUNK", chunk)
    monkeypatch.setattr(gla, "SEGMENT", segment)
    tokens, scorer = draw(device), new_gla(device)
    q, k, v = by_head(tokens)
    gates = (tokens.x.double() @ scorer.weight.double().T).sigmoid().log() / 16
    gates = gates.repeat_interleave(HEADS // GROUPS, 2).transpose(1, 2)
    wanted = recurrent(q, k, v, gates)[0], recurrent(k, q, v, gates)[0]
    for got, want in zip(scorer.scores(tokens), wanted, strict=True):
        assert got.dtype == torch.float32 and cases.error(got, scores_of(want)) < 1e-5


def test_linear_attention_continues_from_a_state(device, monkeypatch):
    monkeypatch.setattr(gla, "CHUNK", 8)
    q, k, v = (torch.randn(2, 3, 20, DIM, device=device) for _ in range(3))
    gates, state = -3 * torch.rand(2, 3, 20, device=device), torch.randn(2, 3, DIM, DIM, device=device)
    wide = [x.double() for x in (q, k, v, gates, state)]
    for got, want in zip(linear_attention(q, k, v, gates, state), recurrent(*wide), strict=True):
        assert cases.error(got, want) < 1e-5
    assert cases.error(gla.final_state(k, v, gates), recurrent(*wide[:4])[1]) < 1e-5


def test_gates_that_close_at_once_give_no_infinity(device):
    """A gate of exp(-100) forgets everything before it."""
    q, k, v = (torch.randn(1, 300, DIM, device=device) for _ in range(3))
    out, state = linear_attention(q, k, v, torch.full((1, 300), -100.0, device=device))
    assert cases.error(out, (q * k).sum(-1, keepdim=True) * v * DIM**-0.5) < 1e-5
    assert cases.error(state, k[:, -1, :, None] * v[:, -1, None, :]) < 1e-5


def test_bfloat16_scores_are_near_those_of_float32(device):
    scorer, tokens = new_gla(device), draw(device, dtype=torch.bfloat16)
    wide = tokens._replace(**{name: getattr(tokens, name).float() for name in ("q", "k", "v", "x")})
    for one in (scorer, Dilated()):
        for got, want in zip(one.scores(tokens), one.scores(wide), strict=True):
            assert got.dtype == torch.float32 and cases.error(got, want) < 2e-2


def test_the_choice_by_position_is_fixed_and_even(device):
    first, second = Position().scores(draw(device)), Position().scores(draw(device))
    assert torch.equal(first[0], second[0]) and first[0] is first[1]
    tokens = draw(device)._replace(positions=torch.arange(2**20, 2**20 + 96, device=device))
    assert not torch.equal(Position().scores(tokens)[0], first[0])  # other positions, other scores
    some = Position().scores(tokens._replace(positions=torch.arange(2**16, device=device)))[0][0]
    assert (some[0] != some[1]).float().mean() > 0.99  # each head has its own choice
    assert 0 <= some.min() < 1e-3 and 0.999 < some.max() < 1
    assert some.mean() == pytest.approx(0.5, abs=0.01) and some.std() == pytest.approx(12**-0.5, abs=0.01)
    assert torch.corrcoef(torch.stack([some[0, :-1], some[0, 1:]]))[0, 1].abs() < 0.02


def test_the_hash_is_the_published_one(device):
    """The expected values use Python's integers, which do not overflow."""

    def mixed(x):
        for _ in range(2):
            x = ((x >> 16) ^ x) * 0x45D9F3B % 2**32
        return (x >> 16) ^ x

    numbers = [0, 1, 2, 12_345, 2**31, 2**32 - 1]
    assert hash32(torch.tensor(numbers, device=device)).tolist() == [mixed(x) for x in numbers]


def test_recent_keeps_the_last_tokens_of_a_tile(device):
    tokens = draw(device)
    qk, kq = Recent().scores(tokens)
    assert torch.equal(qk, kq) and (qk.diff() > 0).all() and qk.shape == (2, GROUPS, 96)
    q, k, v = cases.draw_qkv(PYRAMID, device)
    layer = {**cases.options(PYRAMID), "backend": "reference", "cover_prefix": False, "scorer": "recent"}
    out = lighthouse_attention(q, k, v, **layer)
    for first, same in ((512, True), (516, False)):  # the last 128 of 256 windows (4 tokens) are expanded
        means = [x.clone() for x in (q, k, v)]
        for x in means:
            x[:, :first] = x[:, :first].unflatten(1, (-1, 4)).mean(2).repeat_interleave(4, 1)
        assert (cases.error(out, lighthouse_attention(*means, **layer)) < 1e-5) == same


@pytest.mark.parametrize("name", ["dilated", "gla", "position", "recent"])
def test_kernels_and_reference_agree(name, device, poison):
    q, k, v = cases.draw_qkv(PYRAMID, device, heads=HEADS, kv_heads=GROUPS, dim=DIM)
    x = torch.randn(1, 1024, WIDTH, device=device)
    where = Where((q, q), new_gla(device) if name == "gla" else None, torch.arange(1024, device=device), x)
    found = [
        LighthouseAttention(
            **cases.options(PYRAMID), scorer=None if name == "gla" else name, backend=backend, dense="math"
        )(q, k, v, where)
        for backend in ("triton", "reference")
    ]
    by_norms = lighthouse_attention(q, k, v, **cases.options(PYRAMID), backend="reference", dense="math")
    assert cases.error(*found) < 1e-5 < 1e-2 < cases.error(found[0], by_norms)


def test_which_scorers_are_token_local(device):
    assert all(is_token_local(scorer) for scorer in (Norm(), Position(), Recent()))
    assert not any(is_token_local(scorer) for scorer in (Dilated(), new_gla(device), SimpleNamespace()))


def test_the_error_names_what_a_scorer_lacks(device):
    with pytest.raises(ValueError, match=r"scorer=gla: .*layer's input"):
        new_gla(device).scores(draw(device)._replace(x=None))
    with pytest.raises(ValueError, match=r"seq_len=98: .*multiple of 4"):
        Dilated().scores(draw(device, seq_len=98))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dilated", "gla", "position", "recent"])
def test_a_layer_compiles_as_one_graph(name, device):
    q, k, v = cases.draw_qkv(PYRAMID, device, heads=HEADS, kv_heads=GROUPS, dim=DIM)
    where = Where((q, q), new_gla(device), torch.arange(1024, device=device), torch.randn(1, 1024, WIDTH))
    where = where._replace(scorer=where.scorer if name == "gla" else None, x=where.x.to(device))
    layer = LighthouseAttention(**cases.options(PYRAMID), scorer=None if name == "gla" else name)
    backend = "inductor" if cases.ON_GPU else "aot_eager"
    got = torch.compile(layer.__call__, fullgraph=True, backend=backend)(q, k, v, where)
    assert cases.error(got, layer(q, k, v, where)) < 1e-5
