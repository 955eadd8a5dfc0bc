"""The reference layer: recorded outputs, properties on random shapes, errors."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lhtrain.attention import Pyramid, dense_attention, lighthouse_attention, select
from lhtrain.kernels.scores.naive import norm_scores
from lhtrain.kernels.windows.naive import gather_pooled, scatter_back
from tests.attention import golden

SETTINGS = settings(max_examples=12, deadline=None, derandomize=True)


@pytest.mark.parametrize("number", golden.cases())
def test_reproduces_the_published_layer(number):
    case = golden.load(number)
    q, k, v, grad = case.inputs
    for tensor in (q, k, v):
        tensor.requires_grad_()
    assert torch.equal(select(*norm_scores(q, k), **case.sizes), case.indices)
    out = lighthouse_attention(q, k, v, cover_prefix=False, **case.sizes)
    out.backward(grad)
    for name, value in {"out": out, "dq": q.grad, "dk": k.grad, "dv": v.grad}.items():
        assert case.error(name, value) < 1e-5, name
        assert case.norm_error(name, value) < 1e-5, name


@st.composite
def pyramids(draw):
    """Valid sizes, small enough for a CPU."""
    levels = draw(st.integers(2, 4))
    pooling = draw(st.sampled_from([2, 4] if levels > 2 else [2, 4, 8]))
    tiles = draw(st.integers(1, 2))
    coarsest = tiles * draw(st.sampled_from([128, 130, 160]))
    return Pyramid(coarsest * pooling ** (levels - 1), levels, pooling, 128 * tiles).check()


def sizes(pyramid):
    return {"levels": pyramid.levels, "pooling": pyramid.pooling, "budget": pyramid.budget}


def draw_qkv(pyramid, seed, batch=1, heads=2, kv_heads=2, dim=8):
    make = torch.Generator().manual_seed(seed)
    shapes = [(batch, pyramid.seq_len, h, dim) for h in (heads, kv_heads, kv_heads)]
    return [torch.randn(shape, generator=make) for shape in shapes]


def level_and_entry(indices, pyramid):
    """Entry numbers -> (level, index within it)."""
    level = sum((indices >= pyramid.offset(lv)).long() for lv in range(1, pyramid.levels))
    offsets = torch.tensor([pyramid.offset(lv) for lv in range(pyramid.levels)])
    return level, indices - offsets[level]


def last_positions(indices, pyramid):
    level, entry = level_and_entry(indices, pyramid)
    return (entry + 1) * pyramid.pooling**level - 1


@SETTINGS
@given(pyramids(), st.integers(0, 99), st.booleans())
def test_selection_has_s_distinct_entries_in_post_order(pyramid, seed, cover_prefix):
    q, k, _ = draw_qkv(pyramid, seed)
    indices = select(*norm_scores(q, k), **sizes(pyramid), cover_prefix=cover_prefix)
    window = pyramid.pooling ** (pyramid.levels - 1)
    rows = pyramid.seq_len // window + (pyramid.levels - 1) * pyramid.pooling * pyramid.budget
    assert indices.shape == (1, 2, rows) and indices.dtype == torch.int64
    assert all(len(set(head.tolist())) == rows for head in indices[0])
    level, _ = level_and_entry(indices, pyramid)
    order = last_positions(indices, pyramid) * pyramid.levels + level
    assert (order.diff() > 0).all()


@SETTINGS
@given(pyramids(), st.integers(0, 99))
def test_kept_entries_form_a_forest(pyramid, seed):
    """Every kept entry below the coarsest level has siblings and parent kept; the coarsest are all kept."""
    q, k, _ = draw_qkv(pyramid, seed, heads=1, kv_heads=1)
    level, entry = level_and_entry(select(*norm_scores(q, k), **sizes(pyramid))[0, 0], pyramid)
    kept = [set(entry[level == lv].tolist()) for lv in range(pyramid.levels)]
    assert kept[-1] == set(range(pyramid.size(pyramid.levels - 1)))
    for finer, coarser in itertools.pairwise(kept):
        parents = {child // pyramid.pooling for child in finer}
        assert parents <= coarser and len(parents) == pyramid.budget
        assert finer == {p * pyramid.pooling + i for p in parents for i in range(pyramid.pooling)}


def test_selection_takes_the_highest_scores_and_the_lower_entry_of_equals():
    """One tile of 256, L = 2: half the expansions by qk, half by kq, all others tied at zero."""
    qk, kq = torch.zeros(1, 1, 512), torch.zeros(1, 1, 512)
    qk[0, 0, 400:420:2] = 1.0  # entries 200 ... 209
    kq[0, 0, 401:441:2] = 1.0  # entries 200 ... 219, of which 200 ... 209 are taken already
    indices = select(qk, kq, levels=2, pooling=2, budget=128)
    level, entry = level_and_entry(indices[0, 0], Pyramid(512, 2, 2, 128))
    expanded = sorted({child // 2 for child in entry[level == 0].tolist()})
    # qk: 200-209 and the first 54 ties; kq: 210-219 and the next 54 ties.
    assert expanded == [*range(108), *range(200, 220)]


@SETTINGS
@given(pyramids(), st.integers(0, 99), st.booleans())
def test_every_position_gets_an_output(pyramid, seed, cover_prefix):
    """All from p^(L-1) - 1 on; with cover_prefix all. With values of one an output counts its writers."""
    q, k, v = draw_qkv(pyramid, seed)
    v = torch.ones_like(v)
    count = lighthouse_attention(q, k, v, cover_prefix=cover_prefix, **sizes(pyramid))
    first = 0 if cover_prefix else pyramid.pooling ** (pyramid.levels - 1) - 1
    assert (count[:, first:] > 0.99).all() and (count < pyramid.levels + 0.01).all()


@SETTINGS
@given(pyramids(), st.integers(0, 99), st.integers(0, 10**6))
def test_no_value_leaks_backwards_for_a_fixed_selection(pyramid, seed, where):
    q, k, v = draw_qkv(pyramid, seed)
    indices = select(*norm_scores(q, k), **sizes(pyramid), cover_prefix=True)

    def layer(*qkv):
        return scatter_back(
            dense_attention(*(gather_pooled(x, indices, pyramid) for x in qkv)), indices, pyramid
        )

    position = where % pyramid.seq_len
    changed = [x.clone() for x in (q, k, v)]
    for x in changed:
        x[:, position:] += 1.0
    before, after = layer(q, k, v), layer(*changed)
    assert torch.equal(before[:, :position], after[:, :position])
    assert not torch.equal(before[:, position:], after[:, position:])


@SETTINGS
@given(pyramids(), st.integers(0, 99))
def test_grouped_heads_equal_repeated_kv_when_the_selections_agree(pyramid, seed):
    """Query heads of a group that are scaled copies of each other select alike up to that scale."""
    q, k, v = draw_qkv(pyramid, seed, heads=2, kv_heads=2)
    q = q.repeat_interleave(2, 2)
    grouped = lighthouse_attention(q, k, v, **sizes(pyramid))
    repeated = lighthouse_attention(q, *(x.repeat_interleave(2, 2) for x in (k, v)), **sizes(pyramid))
    torch.testing.assert_close(grouped, repeated, rtol=1e-5, atol=1e-6)


def test_a_group_scores_by_the_maximum_over_its_query_heads():
    q, k, _ = draw_qkv(Pyramid(512, 2, 2, 128), 0, heads=4, kv_heads=2)
    qk, kq = norm_scores(q, k)
    torch.testing.assert_close(qk[:, 1], q[:, :, 2:].norm(dim=-1).amax(-1))
    torch.testing.assert_close(kq[:, 1], k[:, :, 1].norm(dim=-1))


def test_gradient_flows_through_pooling_and_not_through_scores():
    """float64 gradcheck of gather and scatter for a fixed selection."""
    pyramid = Pyramid(512, 2, 4, 128).check()
    q, k, _ = draw_qkv(pyramid, 3, heads=1, kv_heads=1, dim=2)
    indices = select(*norm_scores(q, k), **sizes(pyramid))
    assert not indices.requires_grad
    x = torch.randn(1, 512, 1, 1, dtype=torch.float64, requires_grad=True)

    def there_and_back(x):
        return scatter_back(gather_pooled(x, indices, pyramid), indices, pyramid)

    assert torch.autograd.gradcheck(there_and_back, (x,), fast_mode=True)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"seq_len": 1000}, r"seq_len=1000: must be a multiple of pooling\^\(levels-1\) = 4\^2 = 16"),
        ({"budget": 100}, "budget=100: must be a positive multiple of 128"),
        (
            {"budget": 256},
            "budget=256: must be at most the coarsest level's .* = 128; use a seq_len of at least 4096.*=128",
        ),
        (
            {"seq_len": 7168, "budget": 384},
            "budget=384: the coarsest level's 448 entries must divide .* = 3 equal",
        ),
        ({"levels": 1}, "levels=1: must be at least 2"),
        ({"pooling": 3}, "pooling=3: must be a power of two"),
    ],
)
def test_sizes_that_do_not_fit_are_named(bad, message):
    args = {"seq_len": 2048, "levels": 3, "pooling": 4, "budget": 128} | bad
    scores = torch.zeros(1, 1, args.pop("seq_len"))
    with pytest.raises(ValueError, match=message):
        select(scores, scores, **args)


def test_unknown_names_are_refused():
    q = torch.zeros(1, 2048, 2, 4)
    for bad in ({"scorer": "nrom"}, {"backend": "cuda9"}):
        with pytest.raises(ValueError, match="must be one of"):
            lighthouse_attention(q, q, q, levels=3, pooling=4, budget=128, **bad)
    with pytest.raises(ValueError, match="n_heads=3"):
        lighthouse_attention(torch.zeros(1, 2048, 3, 4), q, q, levels=3, pooling=4, budget=128)
