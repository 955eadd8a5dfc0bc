"""Parts of a run: what is checked and noted when they are built."""

from types import SimpleNamespace

import pytest
import torch

from lhtrain.attention import dense
from lhtrain.attention.dense import FULL_ATTENTION
from lhtrain.build import _check_apart, _graph_notes, _padding_notes, _short_documents, full_attention
from lhtrain.compute.fill import compose_config
from lhtrain.conf.schema import ComputeConfig, CudaGraph
from lhtrain.conf.stage_data import RUN
from lhtrain.data import SequenceOrder
from lhtrain.errors import RunError
from lhtrain.stage import Stage, stages_of
from lhtrain.stage_data import StageData
from tests.data.order.test_sequences import numbered_split


def test_much_padding_is_noted_with_its_cause():
    def notes(padding, by_alignment=0.0, packing="spread", n_blocks=1000):
        order = SimpleNamespace(padding=padding, padding_by_alignment=by_alignment, alignment=16)
        order.packing, order.n_blocks = packing, n_blocks
        return _padding_notes(order)

    assert notes(0.01) == notes(0.2, n_blocks=3) == notes(0.2, packing="best_fit") == notes(0.05, 0.04) == []
    (note,) = notes(0.23, by_alignment=0.22)
    assert note.startswith("data.documents=apart: 22% of the positions are padding, because")
    assert "multiple of 16" in note
    (note,) = notes(0.08, by_alignment=0.01)
    assert note.startswith("data.packing=spread: 7.0% of the positions are padding; data.packing=best_fit")
    assert len(notes(0.2, by_alignment=0.1)) == 2


def test_documents_that_are_short_for_the_length_are_noted(tmp_path):
    """Sixteen documents of 64 tokens fill a sequence of 1,024, in which a token could attend to 512."""
    short, long = (numbered_split(tmp_path / str(n), [n] * (16384 // n)) for n in (64, 1024))
    orders = {RUN: SequenceOrder(short, {1024, 64}, 0), "second": SequenceOrder(long, 1024, 0)}
    settings = {"first": SimpleNamespace(seq_len=1024), "second": SimpleNamespace(seq_len=1024)}
    config = SimpleNamespace(stages=settings)
    (note,) = _short_documents(config, StageData({"first": RUN, "second": "second"}, {}, orders))
    assert note.startswith("data: the documents are short for seq_len=1024: the longest has 6")
    assert "attends to 3" in note and "data.documents=together" in note
    settings["first"].seq_len = 64  # a stage whose sequences are as short as its documents
    assert _short_documents(config, StageData({"first": RUN, "second": "second"}, {}, orders)) == []


def test_attention_that_does_not_keep_documents_apart_is_refused():
    stages = {name: Stage(name, kind, 64, 64, 1) for name, kind in (("a", "dense"), ("b", "chunked"))}
    _check_apart({"a": FULL_ATTENTION}, stages)
    with pytest.raises(RunError, match=r"attention=chunked of .* does not keep"):
        _check_apart({"a": FULL_ATTENTION, "b": lambda q, k, v, where: q}, stages)


def test_graphs_that_a_run_cannot_have_are_noted_if_they_are_wanted():
    wanted = ComputeConfig(cuda_graph=CudaGraph.on)
    assert _graph_notes(wanted, 1, on_gpu=True) == []
    (note,) = _graph_notes(wanted, 1, on_gpu=False)
    assert note.startswith("compute.cuda_graph=on: the run is not on a GPU")
    assert _graph_notes(ComputeConfig(), 1, on_gpu=False) == []


def test_full_attention_takes_flash_attention_4_where_a_graph_hides_its_host(monkeypatch):
    monkeypatch.setattr(dense, "fa4_runs", lambda: True)
    monkeypatch.setattr(dense, "check_dense_backend", lambda backend: None)  # neither package nor GPU is here
    gpu = SimpleNamespace(device=torch.device("cuda"), size=1)

    def backend(*settings, world=gpu):
        config = compose_config(["model=gpt_130m", "run.steps=4", *settings])
        return full_attention(config, stages_of(config), torch.bfloat16, world).backend

    short = ("model.seq_len=4096", "run.batch_tokens=16384")
    assert backend(*short) == "fa4"
    assert backend(*short, "compute.cuda_graph=off") == backend(*short, "model.head_dim=96") == "auto"
    assert backend(*short, world=SimpleNamespace(device=torch.device("cpu"), size=1)) == "auto"
    assert backend(*short, world=SimpleNamespace(device=torch.device("cuda"), size=2)) == "auto"
    large = ("model.seq_len=4096", "run.batch_tokens=65536", "run.grad_accum=1")
    assert backend(*large) == "auto"
    assert backend("model.seq_len=16384") == "auto"  # which takes it at this length anyway
