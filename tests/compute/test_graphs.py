"""Graphed passes: the same losses and gradients as plain ones, and plain ones where recording fails."""

from types import SimpleNamespace

import pytest
import torch

from lhtrain.attention import LighthouseAttention
from lhtrain.attention.documents import documents_of, positions_in_documents
from lhtrain.compute.captured import is_captured, most_tokens, obstacle
from lhtrain.compute.graphs import CudaRecorder, GraphedPasses, Inputs, graphs_for, plain_passes
from lhtrain.conf.schema import ComputeConfig, CudaGraph, ModelConfig
from lhtrain.model.decoder import GPT

SIZES = {"dim": 16, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "head_dim": 8, "ffn_dim": 32}
CONFIG = ModelConfig(name="t", seq_len=512, vocab_size=64, tie_embeddings=True, **SIZES)
PARTS = [(0, 0.25), (1, 0.75)]  # the micro-batches of a step: seed and weight
CPU, GPU = torch.device("cpu"), torch.device("cuda")


class Replay:
    """Does the work again, and writes the results where the recording left them, as a graph does."""

    def __init__(self, run, parameters, before):
        self.run, self.parameters, self.adds = run, parameters, before is not None
        kept = [None if one.grad is None else one.grad.clone() for one in parameters]
        self.loss = run()
        self.grads = [parameter.grad for parameter in parameters]
        for grad, value in zip(self.grads, kept, strict=True):  # recording does no work
            if grad is not None:
                grad.copy_(torch.full_like(grad, torch.nan) if value is None else value)

    def replay(self):
        if self.adds:
            self.loss.copy_(self.run())
            return
        for parameter in self.parameters:
            parameter.grad = None
        self.loss.copy_(self.run())
        for parameter, grad in zip(self.parameters, self.grads, strict=True):
            if grad is not None:
                grad.copy_(parameter.grad)


class FakeRecorder:
    def __init__(self, model, fails_at=None):
        self.parameters, self.fails_at = list(model.parameters()), fails_at
        self.recorded, self.freed = 0, 0

    def rehearse(self, run):
        run()
        if self.fails_at == "rehearse":
            raise RuntimeError("called a synchronizing operation\nmore")

    def record(self, run, before):
        if self.fails_at == ("record", before is None):
            if before is None:
                run()  # leaves gradients without values
            raise RuntimeError("capture failed")
        self.recorded += 1
        replay = Replay(run, self.parameters, before)
        return replay, replay.loss

    def forget(self):
        self.freed += 1


def model_on(device, attend=None, dtype=torch.float32):
    model = GPT(CONFIG, dtype)
    model.init_weights(0)
    model.attend_with(attend or LighthouseAttention(levels=2, pooling=4, budget=128))
    return model.to(device)


def inputs_of(seed, device=CPU, n=2, apart=False):
    tokens = torch.randint(0, 64, (n, 513), generator=torch.Generator().manual_seed(seed)).to(device)
    documents = positions = None
    if apart:
        begins = [[8 * (seed + 1), 400], *([] for _ in range(n - 1))]
        documents = type(found := documents_of(begins, 512, 4))(*(x.to(device) for x in found))
        positions = positions_in_documents(documents.starts)
    return Inputs(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), positions, documents)


def steps(model, passes, device=CPU, n_steps=3, apart=False):
    """Do steps of two micro-batches with plain gradient descent; return the losses and the weights."""
    losses = []
    for step in range(n_steps):
        for seed, weight in PARTS:
            loss = passes(model, inputs_of(10 * step + seed, device, apart=apart), weight, 1e-3)
            losses.append(loss.item())
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.data -= 0.1 * parameter.grad
            parameter.grad = None
    return losses, [parameter.detach().cpu() for parameter in model.parameters()]


def assert_same(found, expected):
    assert found[0] == expected[0]
    assert all(torch.equal(one, two) for one, two in zip(found[1], expected[1], strict=True))


@pytest.mark.parametrize("apart", [False, True], ids=["together", "apart"])
def test_results_are_those_of_plain_passes(apart):
    model = model_on(CPU)
    recorder = FakeRecorder(model)
    found = steps(model, GraphedPasses(model, recorder), apart=apart)
    assert recorder.recorded == 2  # one that writes the gradients, one that adds
    assert_same(found, steps(model_on(CPU), plain_passes, apart=apart))


@pytest.mark.parametrize("fails_at", ["rehearse", ("record", True), ("record", False)])
def test_a_pass_that_cannot_be_recorded_runs_plainly_with_one_line(fails_at):
    model, said = model_on(CPU), []
    passes = GraphedPasses(model, FakeRecorder(model, fails_at))
    passes.say = said.append
    assert_same(steps(model, passes), steps(model_on(CPU), plain_passes))
    (line,) = said
    assert "synchronizing" in line or "capture failed" in line
    assert "more" not in line and "compute.cuda_graph" in line


def test_another_stage_records_again_and_the_same_one_does_not():
    model = model_on(CPU)
    recorder = FakeRecorder(model)
    passes = GraphedPasses(model, recorder)
    passes.enter("lighthouse")
    steps(model, passes, n_steps=1)
    passes.enter("lighthouse")
    steps(model, passes, n_steps=1)
    assert (recorder.recorded, recorder.freed) == (2, 0)
    passes.enter("recovery")
    assert recorder.freed == 1
    model.attend_with(LighthouseAttention(levels=2, pooling=2, budget=128))
    found = steps(model, passes, n_steps=1)
    assert recorder.recorded == 4
    other = model_on(CPU)
    steps(other, plain_passes, n_steps=1)
    steps(other, plain_passes, n_steps=1)
    other.attend_with(LighthouseAttention(levels=2, pooling=2, budget=128))
    assert_same(found, steps(other, plain_passes, n_steps=1))


@pytest.mark.parametrize("other", [{"n": 1}, {"apart": True}], ids=["size", "documents"])
def test_micro_batches_of_another_form_have_a_graph_of_their_own(other):
    model, plain = model_on(CPU), model_on(CPU)
    recorder = FakeRecorder(model)
    passes = GraphedPasses(model, recorder)
    for changes in ({}, other, {}, other):
        inputs = inputs_of(0, **changes)
        found, expected = (run(on, inputs, 1.0, 0.0) for run, on in ((passes, model), (plain_passes, plain)))
        assert found == expected
        for parameter in (*model.parameters(), *plain.parameters()):
            parameter.grad = None
    assert recorder.recorded == 2


def test_a_frozen_parameter_gets_no_gradient():
    model = model_on(CPU)
    model.freeze(["blocks.0.*"])
    passes = GraphedPasses(model, FakeRecorder(model))
    for seed, weight in PARTS:
        passes(model, inputs_of(seed), weight, 0.0)
    frozen = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert frozen == {name for name, _ in model.named_parameters() if name.startswith("blocks.0.")}


def test_a_large_micro_batch_and_foreign_gradients_run_plainly():
    model = model_on(CPU)
    recorder = FakeRecorder(model)
    passes = GraphedPasses(model, recorder, most_tokens=512)
    passes(model, inputs_of(0), 1.0, 0.0)  # 2 * 512 tokens
    passes(model, inputs_of(0, n=1), 1.0, 0.0)  # adds to gradients that no graph wrote
    assert recorder.recorded == 0
    expected = model_on(CPU)
    plain_passes(expected, inputs_of(0), 1.0, 0.0)
    plain_passes(expected, inputs_of(0, n=1), 1.0, 0.0)
    pairs = zip(model.parameters(), expected.parameters(), strict=True)
    assert all(torch.equal(one.grad, two.grad) for one, two in pairs)


def test_the_configuration_decides():
    assert "not on a GPU" in obstacle(ComputeConfig(), 1, on_gpu=False)
    assert obstacle(ComputeConfig(), 1) is None
    assert "ranks" in obstacle(ComputeConfig(), 2)
    assert "offload" in obstacle(ComputeConfig(offload=True), 1)
    assert "float8" in obstacle(ComputeConfig(float8=True), 1)
    assert most_tokens(ComputeConfig(), 1) == 32_768
    assert most_tokens(ComputeConfig(cuda_graph=CudaGraph.on), 1) == float("inf")
    assert most_tokens(ComputeConfig(cuda_graph=CudaGraph.on), 2) == 0
    assert most_tokens(ComputeConfig(cuda_graph=CudaGraph.off), 1) == 0
    assert graphs_for(model_on(CPU), ComputeConfig(), 1, CPU) is None
    stage = SimpleNamespace(batch_tokens=2 * 32_768, grad_accum=2)
    assert is_captured(stage, ComputeConfig(), 1)
    stage.grad_accum = 1
    assert not is_captured(stage, ComputeConfig(), 1)


ATTENTIONS = {
    "published": LighthouseAttention(levels=2, pooling=4, budget=128),
    "windowed": LighthouseAttention(levels=2, pooling=4, budget=128, window=16),
    "own_queries": LighthouseAttention(levels=2, pooling=4, budget=128, window=128, own_queries=True),
    "strictly_causal": LighthouseAttention(levels=2, pooling=4, budget=128, window=16, strictly_causal=True),
}


@pytest.mark.gpu
@pytest.mark.parametrize("apart", [False, True], ids=["together", "apart"])
@pytest.mark.parametrize("kind", ATTENTIONS)
def test_a_gpu_gives_the_same_results(kind, apart):
    """With bfloat16, in which all kernels run. Gradients are added in any order, so only nearly the same."""
    options = {"dtype": torch.bfloat16, "attend": ATTENTIONS[kind]}
    model, said = model_on(GPU, **options), []
    passes = GraphedPasses(model, CudaRecorder())
    passes.say = said.append
    losses, weights = steps(model, passes, GPU, apart=apart)
    plain_losses, plain_weights = steps(model_on(GPU, **options), plain_passes, GPU, apart=apart)
    assert said == [] and len(passes._graphs) == 2
    assert losses == pytest.approx(plain_losses, rel=2e-3)
    for one, two in zip(weights, plain_weights, strict=True):
        torch.testing.assert_close(one, two, rtol=2e-2, atol=2e-4)


@pytest.mark.gpu
def test_an_attention_that_waits_for_the_device_runs_plainly_on_a_gpu():
    def attend(q, k, v, where):
        return v.repeat_interleave(2, 2) * float(q.sum().item() > -1e9)

    model, said = model_on(GPU, attend), []
    passes = GraphedPasses(model, CudaRecorder())
    passes.say = said.append
    found = steps(model, passes, GPU)
    assert len(said) == 1 and not passes._graphs
    assert found[0] == pytest.approx(steps(model_on(GPU, attend), plain_passes, GPU)[0], rel=1e-5)


@pytest.mark.gpu
def test_another_stage_frees_the_memory_of_graphs():
    model = model_on(GPU, dtype=torch.bfloat16)
    steps(model, plain_passes, GPU, n_steps=1)  # allocates workspaces
    before = torch.cuda.memory_allocated()
    passes = GraphedPasses(model, CudaRecorder())

    def left_after_a_stage():
        passes.enter("lighthouse")
        steps(model, passes, GPU)
        assert len(passes._graphs) == 2
        passes.enter("recovery")
        return torch.cuda.memory_allocated() - before

    # Workspaces of matrix products on the graphs' stream stay, one of this thread and one of autograd's.
    left = left_after_a_stage()
    assert left <= 2 * 2**25
    assert left_after_a_stage() - left < 2**20
