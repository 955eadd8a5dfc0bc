"""The loss of each token of a model against a plain computation."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lhtrain.attention.dense import FULL_ATTENTION
from lhtrain.conf.schema import ModelConfig
from lhtrain.distributed.mesh import RankSlice
from lhtrain.evaluation.attention import FullAttention, StageAttention, length_problem, stage_at
from lhtrain.evaluation.judge import Judge
from lhtrain.kernels.pyramid import Pyramid
from lhtrain.model.decoder import GPT
from lhtrain.model.loss import per_token_losses
from lhtrain.stage import Stage

SIZES = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "ffn_dim": 64}
CPU = torch.device("cpu")


@pytest.fixture
def model():
    model = GPT(ModelConfig(name="t", seq_len=64, vocab_size=100, **SIZES))
    model.init_weights(1)
    torch.nn.init.normal_(model.head.weight, std=0.5)
    return model


def sequences(count, length):
    return np.random.default_rng(0).integers(100, size=(count, length + 1))


@pytest.mark.parametrize("among", [None, torch.tensor([3, 7, 50])])
@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_losses_by_chunks_are_those_of_all_logits(chunk, among):
    hidden, weight = torch.randn(30, 16), torch.randn(60, 16)
    targets = torch.arange(30) if among is None else among.repeat(10)
    losses, right = per_token_losses(hidden, weight, targets, among, chunk)
    logits = hidden @ weight.T
    torch.testing.assert_close(losses, F.cross_entropy(logits, targets, reduction="none"))
    best = logits.argmax(-1) if among is None else among[logits[:, among].argmax(-1)]
    assert torch.equal(right, best == targets)


@pytest.mark.parametrize("batch_tokens", [1, 70, 1000])
@pytest.mark.parametrize("last", [None, 5])
def test_scores_are_those_of_the_model(model, batch_tokens, last):
    rows = sequences(5, 32)
    judge = Judge(model, FullAttention(), CPU, batch_tokens)
    scored = judge(rows.__getitem__, 5, 32, last)
    tokens = torch.from_numpy(rows)
    with torch.no_grad():
        logits = model(tokens[:, :-1])
    losses = F.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")[:, -(last or 32) :]
    torch.testing.assert_close(scored.losses, losses)
    assert torch.equal(scored.right, (logits.argmax(-1) == tokens[:, 1:])[:, -(last or 32) :])


def test_the_model_is_as_before(model):
    marks = [object() for _ in model.blocks]
    for block, mark in zip(model.blocks, marks, strict=True):
        block.run = block.attention.attend = mark
    Judge(model, FullAttention(), CPU, 64)(sequences(1, 32).__getitem__, 1, 32)
    assert [block.run for block in model.blocks] == marks == [b.attention.attend for b in model.blocks]


def stage(length=4096, budget=256, window=0, levels=2, pooling=4, scorer="norm"):
    pyramid = Pyramid.of(length, levels, pooling, budget, None, False)
    return Stage("a", "lighthouse", length, length, 1, pyramid=pyramid, window=window, scorer=scorer)


def test_the_share_of_selected_entries_stays_at_other_lengths():
    assert stage_at(stage(), 4096) == stage()
    assert stage_at(stage(), 8192).pyramid.budget == 512
    assert stage_at(stage(), 2048).pyramid.budget == 128
    assert stage_at(stage(), 1024).pyramid.budget == 128  # the smallest
    assert stage_at(stage(), 256) is None  # shorter than a tile of the coarsest level
    assert stage_at(stage(window=512), 512) is None  # all of it is in the window
    assert stage_at(stage(), 4096 * 3 // 2).pyramid.budget == 384


def test_a_length_that_the_scorer_cannot_divide_has_full_attention():
    short = stage(260, 128, levels=2, pooling=2, scorer="dilated")
    assert stage_at(short, 258) is None and stage_at(replace(short, scorer="norm"), 258) is not None


def test_lengths_must_divide_into_windows_and_chunks():
    assert length_problem(stage(levels=3), 1024) is None
    assert "multiple of 16" in length_problem(stage(levels=3), 1000)
    assert "multiple of 16" in length_problem(stage(scorer="dilated"), 1028)
    assert length_problem(Stage("d", "dense", 64, 64, 1), 1001) is None


def test_a_stage_s_attention_is_that_of_its_layers_at_each_length():
    at = StageAttention(stage(), "auto")
    assert at(2048).layers.budget == 128 and at(2048).dense is FULL_ATTENTION and not at(2048).shared
    assert at(256).layers is FULL_ATTENTION
    assert at(2048).layers is at(2048).layers


@pytest.mark.parametrize(("method", "length", "shared"), [
    ("ring", 512, True), ("ring", 256, False), ("ring", 64, True), ("ulysses", 256, True),
])  # fmt: skip
def test_ranks_share_a_sequence_whose_chunks_are_as_long_as_the_sliding_window(method, length, shared):
    """Chunks of 128, 64 and 16 tokens; the window hides nothing of 64 tokens."""
    mesh = SimpleNamespace(slice=SimpleNamespace(cp_size=2), method=method, attention=lambda attend: attend)
    assert FullAttention(mesh, 100)(length).shared is shared
    assert StageAttention(stage(), "auto", mesh, 100)(length).shared <= shared
    assert FullAttention(mesh)(length).shared


@pytest.mark.parametrize("count", [1, 5, 16])
def test_ranks_divide_the_sequences(count):
    """Each is on one rank, and all ranks do as many passes, of at most 3 sequences of 100 tokens."""
    judge, found = Judge(None, None, None, batch_tokens=350), []
    for rank in range(3):
        judge.part = RankSlice(dp_rank=rank, dp_size=3)
        found.append(list(judge._batches(count, 100)))
    assert len({len(batches) for batches in found}) == 1
    assert max(len(batch) for batches in found for batch in batches) == min(-(-count // 3), 3)
    assert sorted(n for batches in found for batch in batches for n in batch) == list(range(count))
