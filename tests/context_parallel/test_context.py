"""Attention over context-parallel ranks against one rank's, forward and backward."""

import pytest
import torch
import torch.distributed as dist

from lhtrain.attention import DenseAttention, LighthouseAttention
from lhtrain.attention.sliding import SlidingAttention
from lhtrain.context_parallel import over_ranks, pick_method, positions
from lhtrain.context_parallel.layout import shared_out, whole
from lhtrain.distributed.world import World, close
from lhtrain.kernels.selection.topk import TopK
from tests.distributed.ranks import DEVICE, on_ranks

HEADS, DIM, BATCH, SEQ_LEN = 4, 8, 2, 4096
CASES = [
    (layer, method, n_kv)
    for layer in ("dense", "lighthouse", "uncovered", "windowed", "strictly causal", "sliding")
    for method, n_kv in (("ring", 1), ("ulysses", 4))
]


def layer_of(kind, size):
    """A chunk is one tile, so that every chunk's budget is the least there is."""
    if kind == "dense":
        return DenseAttention()
    if kind == "sliding":
        return SlidingAttention(200)
    if kind == "strictly causal":
        return LighthouseAttention(3, 2, 128, strictly_causal=True, window=200)
    if kind == "windowed":
        return LighthouseAttention(3, 2, 128, tile=16, window=200)
    return LighthouseAttention(levels=3, pooling=2, budget=256 * size, cover_prefix=kind == "lighthouse")


def run(attend, q, k, v, grad):
    leaves = [x.detach().clone().requires_grad_() for x in (q, k, v)]
    out = attend(*leaves)
    out.backward(grad)
    return [out.detach(), *(leaf.grad for leaf in leaves)]


def draw(n_kv_heads):
    torch.manual_seed(0)
    heads = (HEADS, n_kv_heads, n_kv_heads, HEADS)
    return [torch.randn(BATCH, SEQ_LEN, n, DIM).to(DEVICE) for n in heads]


def differences():
    """On a rank: each case's largest difference from one rank's result, relative to the largest value."""
    world = World.start(torch.device(DEVICE))
    rank, size = world.rank, world.size
    group, here = dist.group.WORLD.group_name, positions(SEQ_LEN, rank, size)
    out = {}
    for case in CASES:
        layer, method, n_kv = case
        tensors, plain = draw(n_kv), layer_of(layer, size)
        want = run(plain, *tensors)
        attend = over_ranks(plain, method, True, group, rank, size)
        got = run(attend, *(x[:, here] for x in tensors))
        pairs = zip(got, want, strict=True)
        out[case] = max(((a - b[:, here]).abs().max() / b.abs().max()).item() for a, b in pairs)
    close()
    return out


@pytest.mark.parametrize("size", [2, 4] if DEVICE == "cpu" else [2])
@pytest.mark.slow
def test_the_result_is_that_of_one_rank(size, tmp_path):
    by_rank = on_ranks(differences, size, folder=tmp_path)
    assert len(by_rank) == size and all(found.keys() == set(CASES) for found in by_rank)
    assert max(max(found.values()) for found in by_rank) < 1e-5, by_rank


def local_selection():
    """On a rank: with `exact` off, its two chunks; and each chunk alone, attending to all rows together."""
    world = World.start(torch.device(DEVICE))
    rank, size = world.rank, world.size
    here, layer = positions(SEQ_LEN, rank, size), layer_of("lighthouse", size)
    q, k, v, grad = draw(HEADS)
    attend = over_ranks(layer, "ulysses", False, dist.group.WORLD.group_name, rank, size)
    got = run(attend, *(x[:, here] for x in (q, k, v, grad)))[0]
    want = run(layer, q, k, v, grad)[0][:, here]
    close()
    chunk = SEQ_LEN // size // 2
    same = (got - want).abs().amax((0, 2, 3)) < 1e-5
    return [part.all().item() for part in (same[:chunk], same[chunk : chunk + 3])]


@pytest.mark.slow
def test_local_selection_is_one_ranks_in_the_first_chunk_alone(tmp_path):
    (head, tail_begins), (next_begins, _) = on_ranks(local_selection, 2, folder=tmp_path)
    assert head and not tail_begins and not next_begins


def test_a_selection_over_several_tiles_is_refused():
    class Everywhere(TopK):
        tile_local = False

    layer = LighthouseAttention(2, 4, 128, selection=Everywhere())
    with pytest.raises(
        ValueError, match="cp=2: needs a selection that stays within its tiles, which Everywhere does not"
    ):
        over_ranks(layer, "ring", True, "group", 0, 2)


def test_own_queries_in_a_ring_are_refused():
    layer = LighthouseAttention(2, 4, 128, window=1024, own_queries=True)
    with pytest.raises(ValueError, match="cp_attention=ring: layers with own_queries need ulysses"):
        over_ranks(layer, "ring", True, "group", 0, 2)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_layout_comes_apart_and_together(size):
    x = torch.arange(2 * 12 * size).view(2, -1)
    parts = torch.stack([x[:, positions(12 * size, rank, size)] for rank in range(size)])
    if size > 1:
        assert torch.equal(whole(parts), x) and torch.equal(shared_out(x, size), parts)
    assert torch.equal(
        torch.cat([positions(12 * size, r, size) for r in range(size)]).sort()[0], torch.arange(12 * size)
    )


def test_positions_that_cannot_be_shared_are_refused():
    with pytest.raises(ValueError, match="seq_len=10: must be a multiple of 2 \\* cp = 4"):
        positions(10, 0, 2)
    with pytest.raises(ValueError, match="rank=2: must be one of the 2"):
        positions(8, 2, 2)


def test_the_method_follows_the_heads():
    assert pick_method("auto", 8, 4, 4) == "ulysses"
    assert pick_method("auto", 8, 2, 4) == "ring" and pick_method("ring", 8, 8, 4) == "ring"
    with pytest.raises(ValueError, match="n_heads=8 and n_kv_heads=2 must be multiples of cp=4"):
        pick_method("ulysses", 8, 2, 4)
    with pytest.raises(ValueError, match="cp_attention=zigzag: must be one of auto, ring, ulysses"):
        pick_method("zigzag", 8, 8, 2)
