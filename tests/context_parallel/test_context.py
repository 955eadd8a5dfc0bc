"""Attention over context-parallel ranks against one rank's, forward and backward."""

import pytest
import torch
import torch.distributed as dist

from lhtrain.attention import DenseAttention, LighthouseAttention
from lhtrain.context_parallel import block, over_ranks, pick_method, positions
from lhtrain.context_parallel.block import block_backward, block_forward
from lhtrain.context_parallel.layout import shared_out, whole
from lhtrain.distributed.world import World, close
from lhtrain.kernels.selection.topk import TopK
from tests.distributed.ranks import DEVICE, on_ranks

HEADS, DIM, BATCH, SEQ_LEN = 4, 8, 2, 4096
CASES = [
    (layer, method, n_kv)
    for layer in ("dense", "lighthouse", "uncovered")
    for method, n_kv in (("ring", 1), ("ulysses", 4))
]


def layer_of(kind, size):
    """A chunk is one tile, so that every chunk's budget is the least there is."""
    if kind == "dense":
        return DenseAttention()
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


KERNELS = ["cpu", pytest.param("flash", marks=pytest.mark.gpu), pytest.param("fa4", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("dim", [64, 12, 2])
@pytest.mark.parametrize("n_kv", [4, 2])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_part_of_the_keys_is_the_naive_one(kernel, causal, n_kv, dim, monkeypatch):
    """Also with head dims that "flash" does not take by itself; the CPU's kernel stands in for it here."""
    on_gpu = kernel != "cpu"
    if kernel == "fa4" and dim != 64:
        pytest.skip("fa4 is taken for head dims of 64 and 128 alone")
    monkeypatch.setitem(block.MULTIPLES, "cpu", 8)
    torch.manual_seed(0)
    device, dtype = ("cuda", torch.bfloat16) if on_gpu else ("cpu", torch.float32)
    keys = 96 if causal else 160
    q, grad = (torch.randn(2, 96, 4, dim, device=device, dtype=dtype) for _ in range(2))
    k, v = (torch.randn(2, keys, n_kv, dim, device=device, dtype=dtype) for _ in range(2))
    got = block_forward(q, k, v, causal, kernel)
    want = block_forward(q, k, v, causal, "naive")
    # As if other parts had been merged in: the backward must use the lse and the output it is given.
    out, lse = want[0] * 0.5, want[1] + 0.7
    got += block_backward(grad, q, k, v, out, lse, causal, kernel)
    want += block_backward(grad, q, k, v, out, lse, causal, "naive")
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2 if on_gpu else 1e-5, atol=2e-2 if on_gpu else 1e-5)


@pytest.mark.parametrize("causal", [True, False])
def test_the_naive_kernel_stores_the_scores_of_a_part_of_the_queries(causal, monkeypatch):
    """All of them would take 77 GB where two ranks share 98,304 tokens in float32 on a GPU."""
    torch.manual_seed(0)
    keys = 50 if causal else 70
    q, grad = (torch.randn(2, 50, 4, DIM) for _ in range(2))
    k, v = (torch.randn(2, keys, 2, DIM) for _ in range(2))
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    want = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in leaves), is_causal=causal, enable_gqa=True
    ).transpose(1, 2)
    monkeypatch.setattr(block, "NAIVE_SCORES", 7 * 2 * 4 * keys)
    out, lse = block_forward(q, k, v, causal, "naive")
    assert len(block._query_chunks(q, k)) == 8
    grads = block_backward(grad, q, k, v, out, lse, causal, "naive")
    expected = (want, *torch.autograd.grad(want, leaves, grad))
    for one, other in zip((out, *grads), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize(("dim", "kernel"), [(64, "flash"), (12, "flash"), (256, "flash"), (264, "naive")])
def test_every_head_dim_has_a_kernel_on_a_gpu(dim, kernel):
    q = torch.zeros(1, 256, 2, dim, device="cuda", dtype=torch.bfloat16)
    assert block.block_kernel(q) == kernel
    out, lse = block_forward(q, q, q, True, kernel)
    grads = block_backward(q, q, q, q, out, lse, True, kernel)
    assert out.shape == q.shape and all(grad.shape == q.shape for grad in grads)
