"""FLOPs of a step, compared with PyTorch's own counter."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lhtrain.attention import dense_attention
from lhtrain.attention.strict import exact_ranges, far_ranges
from lhtrain.compute.device import peak_flops
from lhtrain.compute.flops import step_flops
from lhtrain.compute.memory import parameters
from lhtrain.conf.schema import ModelConfig
from lhtrain.kernels.pyramid import Pyramid
from lhtrain.kernels.scores import Tokens
from lhtrain.kernels.scores.dilated import Dilated
from lhtrain.kernels.scores.gla import Gla
from lhtrain.model.decoder import GPT
from lhtrain.registry import ATTENTIONS
from lhtrain.stage import Stage

SIZES = {"dim": 32, "n_layers": 3, "n_heads": 4, "n_kv_heads": 4, "head_dim": 8, "ffn_dim": 64}
MODEL = ModelConfig(
    name="t", seq_len=512, vocab_size=96, dense_layers=[1], qkv_bias=True, qk_norm=True, **SIZES
)


def stage(kind):
    pyramid = Pyramid(512, levels=2, pooling=4, budget=128) if kind == "lighthouse" else None
    return Stage(
        "s", kind, 512, 1024, grad_accum=1, steps=1, lr_scale=1.0, pyramid=pyramid, dense_layers=(1,)
    )


@pytest.mark.parametrize("kind", ["dense", "lighthouse"])
@pytest.mark.parametrize("window", [1, 100, 511, 512])
def test_a_sliding_layer_counts_the_keys_that_each_position_has(window, kind):
    sliding = replace(MODEL, sliding_window=window, sliding_layers=[0, 2], dense_layers=[])
    pairs = 2 * sum(min(position + 1, window) for position in range(512))  # two sequences
    pairs = 512**2 if window == 512 else pairs  # full attention counts half a matrix
    plain = replace(MODEL, qkv_bias=False, qk_norm=False)
    of_weights = 6 * 1024 * (sum(parameters(plain)) - 96 * 32 - 7 * 32)  # but the embedding and the norms
    one = replace(stage(kind), dense_layers=(1,))
    full = 3 * 2 * 2 * MODEL.n_heads * MODEL.head_dim * 512**2
    near = 3 * 2 * 4 * MODEL.n_heads * MODEL.head_dim * pairs
    assert step_flops(sliding, one) == of_weights + full + near


@pytest.mark.parametrize("kind", ["dense", "lighthouse"])
def test_agrees_with_pytorchs_counter(kind):
    """PyTorch counts reference attention as products of whole matrices, which is twice the causal half."""
    model = GPT(MODEL)
    model.attend_with(ATTENTIONS[kind].of(stage(kind), "auto"))
    tokens = torch.randint(0, 96, (2, 512))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.loss(tokens, tokens).backward()
    counted = {str(op): flops for op, flops in counter.get_flop_counts()["Global"].items()}
    assert counted.keys() == {"aten.mm", "aten.addmm", "aten.bmm"}  # addmm: the output weight's gradient
    products = counted["aten.mm"] + counted["aten.addmm"]
    assert step_flops(MODEL, stage(kind)) == products + counted["aten.bmm"] // 2


FROZEN = [
    ["embedding", "blocks.0"],
    ["embedding", "blocks.0-1", "blocks.2.attention", "blocks.2.attention_norm"],
    ["embedding", "blocks.0.attention_norm", "blocks.0.attention.w?.weight", "head"],
    ["embedding", "blocks", "norm"],
    ["blocks.*.attention.wq", "blocks.1.ffn.up", "head"],
    ["embedding", "blocks", "head"],
]


@pytest.mark.parametrize("frozen", FROZEN)
def test_gradients_that_frozen_parameters_do_not_need_are_not_counted(frozen):
    """Nor computed: the counter sees what PyTorch does."""
    model, frozen_stage = GPT(MODEL), replace(stage("dense"), frozen=tuple(frozen))
    model.attend_with(ATTENTIONS["dense"].of(frozen_stage, "auto"))
    model.freeze(frozen)
    tokens = torch.randint(0, 96, (2, 512))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.loss(tokens, tokens).backward()
    counted = counter.get_flop_counts()["Global"]
    matrices = sum(flops for op, flops in counted.items() if "bmm" not in str(op))
    attention = sum(flops for op, flops in counted.items() if "bmm" in str(op))
    assert step_flops(MODEL, frozen_stage) == matrices + attention // 2
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("window", [1, 100, 511])
def test_a_window_adds_the_keys_that_each_position_has_in_it(window):
    published, windowed = stage("lighthouse"), replace(stage("lighthouse"), window=window)
    pairs = 2 * sum(min(position + 1, window) for position in range(512))  # two sequences
    layers = MODEL.n_layers - len(MODEL.dense_layers)
    near = 3 * layers * 4 * MODEL.n_heads * MODEL.head_dim * pairs
    assert step_flops(MODEL, windowed) == step_flops(MODEL, published) + near
    assert windowed.n_attended == published.n_attended


@pytest.mark.parametrize("kind", ["dense", "lighthouse"])
def test_documents_apart_count_their_own_pairs_alone(kind):
    """A share of the products of attention, and of a window at most that; weights count as before."""
    none, some, every = (step_flops(MODEL, stage(kind), share) for share in (0.0, 0.25, 1.0))
    assert every == step_flops(MODEL, stage(kind))
    assert some - none == pytest.approx((every - none) / 4)
    narrow, wide = (replace(stage("lighthouse"), window=window) for window in (1, 511))
    assert step_flops(MODEL, narrow, 0.5) > step_flops(MODEL, stage("lighthouse"), 0.5)
    assert step_flops(MODEL, wide, 0.01) < step_flops(MODEL, wide)


def counted(scorer):
    """Forward FLOPs of a scorer on one sequence of 512 tokens, by PyTorch's counter."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 512, MODEL.n_heads, MODEL.head_dim) for _ in range(3))
    tokens = Tokens(q, k, v, torch.arange(512), torch.randn(1, 512, MODEL.dim), dense_attention)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        scorer.scores(tokens)
    return counter.get_total_flops()


def test_a_scorer_adds_its_forward_pass():
    norm, layers = step_flops(MODEL, stage("lighthouse")), MODEL.n_layers - len(MODEL.dense_layers)
    for_scores = {
        name: step_flops(MODEL, replace(stage("lighthouse"), scorer=name)) - norm
        for name in ("dilated", "gla", "position", "recent")
    }
    # The counter counts whole matrices instead of their causal halves.
    assert for_scores["dilated"] == 2 * layers * counted(Dilated()) // 2
    # The chunked form multiplies more than a recurrence; step_flops counts the recurrence.
    per_token = 2 * 4 * MODEL.n_heads * MODEL.head_dim**2 + 2 * MODEL.dim * MODEL.n_kv_heads
    assert for_scores["gla"] == 2 * layers * 512 * per_token <= 2 * layers * counted(Gla(MODEL))
    assert for_scores["position"] == for_scores["recent"] == 0


def test_a_window_over_the_whole_sequence_is_full_attention():
    whole = replace(stage("lighthouse"), window=512)
    assert whole.n_attended == 512 and step_flops(MODEL, whole) == step_flops(MODEL, stage("dense"))


@pytest.mark.parametrize("window", [0, 50, 200])
def test_a_strictly_causal_layer_counts_the_keys_that_its_queries_see(window):
    pyramid = Pyramid(512, 3, 2, 64, tile=16)
    strict = replace(stage("lighthouse"), pyramid=pyramid, window=window, strictly_causal=True)
    ranges = exact_ranges(torch.arange(512), pyramid.tile_tokens, window)
    far = far_ranges(torch.arange(128), pyramid, window, pyramid.n_selected // pyramid.n_tiles)
    pairs = sum(int((r.hi - r.lo).sum()) for r in (ranges, far))
    full = replace(strict, dense_layers=(0, 1, 2))
    weights = step_flops(MODEL, full) - 3 * 2 * 3 * 2 * 4 * 8 * 512**2  # of two sequences and three layers
    attention = step_flops(MODEL, replace(strict, dense_layers=())) - weights
    # The last position of a tile counts with this tile here, and with the next tile in step_flops.
    assert attention == pytest.approx(3 * 3 * 2 * 4 * 4 * 8 * pairs, rel=0.02)


def test_rows():
    assert stage("dense").n_attended == 512
    assert stage("lighthouse").n_attended == 512 // 4 + 4 * 128


def test_a_cpu_has_no_peak():
    assert peak_flops(torch.device("cpu")) is None


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
    ],
)
def test_the_peak_of_a_board_is_its_own(name, tflops, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda")) == tflops * 1e12


@pytest.mark.parametrize("name", ["NVIDIA GTX 1080", "NVIDIA H100 80GB HBM3 MIG 1g.10gb"])
def test_an_unknown_board_and_a_part_of_one_have_no_peak(name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda")) is None
