"""Recomputation, offloading and compilation change only time and memory, not the results."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch.utils.checkpoint import CheckpointPolicy

from lhtrain.attention import LighthouseAttention
from lhtrain.attention.documents import documents_of, positions_in_documents
from lhtrain.compute.apply import Offloaded, _attention_policy, _policy, apply, block_runner
from lhtrain.conf.schema import Compile, ComputeConfig, ModelConfig, Recompute
from lhtrain.model.decoder import GPT, run_plainly
from lhtrain.model.loss import chunk_loss

SIZES = {"dim": 16, "n_layers": 4, "n_heads": 2, "n_kv_heads": 1, "head_dim": 8, "ffn_dim": 32}
PARTS = {"tie_embeddings": True, "qkv_bias": True, "qk_norm": True}
CONFIG = ModelConfig(name="t", seq_len=512, vocab_size=64, dense_layers=[0], **PARTS, **SIZES)
CPU = torch.device("cpu")


def losses_and_gradients(compute=None, run_block=run_plainly):
    """Two accumulated micro-batches with a validation in between, in the order of a real run."""
    model = GPT(CONFIG)
    model.init_weights(0)
    model.attend_with(LighthouseAttention(levels=2, pooling=4, budget=128))
    for block in model.blocks:
        block.run = run_block
    if compute:
        apply(model, compute, CPU)
    tokens = torch.randint(0, 64, (2, 512), generator=torch.Generator().manual_seed(1))
    losses = []
    for part in (tokens, tokens.flip(1)):
        loss = model.loss(part, part.roll(1, 1), z_loss=1e-3)
        loss.backward()
        with torch.no_grad():
            losses += [loss.item(), model.loss(part, part).item()]
    return losses, [parameter.grad for parameter in model.parameters()]


KINDS = {
    "selective": ComputeConfig(compile=Compile.off, recompute=Recompute.selective),
    "attention": ComputeConfig(compile=Compile.off, recompute=Recompute.attention),
    "full": ComputeConfig(compile=Compile.off, recompute=Recompute.full),
    "every_third": ComputeConfig(compile=Compile.off, recompute=Recompute.full, recompute_every=3),
    "offload": ComputeConfig(compile=Compile.off, recompute=Recompute.full, offload=True),
    "offload_every_second": ComputeConfig(
        compile=Compile.off, recompute=Recompute.full, recompute_every=2, offload=True
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_results_equal_those_of_plain_blocks(kind):
    plain, other = losses_and_gradients(), losses_and_gradients(KINDS[kind])
    assert plain[0] == other[0]
    assert all(torch.equal(one, two) for one, two in zip(plain[1], other[1], strict=True))


@pytest.mark.parametrize("kind", ["selective", "attention", "full", "offload"])
def test_sliding_layers_are_recomputed_alike(kind, monkeypatch):
    slides = replace(CONFIG, sliding_window=50, sliding_layers=[2])
    monkeypatch.setitem(globals(), "CONFIG", slides)
    test_results_equal_those_of_plain_blocks(kind)


@pytest.mark.parametrize("kind", ["selective", "attention", "full", "offload"])
def test_documents_apart_are_recomputed_alike(kind):
    tokens = torch.randint(0, 64, (2, 512), generator=torch.Generator().manual_seed(1))
    documents = documents_of([[100, 357], [8]], 512, most=4)
    positions = positions_in_documents(documents.starts)
    found = []
    for compute in (ComputeConfig(compile=Compile.off, recompute=Recompute.none), KINDS[kind]):
        model = GPT(CONFIG)
        model.init_weights(0)
        apply(model, compute, CPU)
        loss = model.loss(tokens, tokens, positions, documents=documents)
        loss.backward()
        found.append([loss.detach(), *(parameter.grad for parameter in model.parameters())])
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


def saved_bytes(compute):
    """Bytes that the forward pass saves for the backward pass, without parameters."""
    model = GPT(CONFIG)
    model.init_weights(0)
    for block in model.blocks:
        block.run = block_runner(compute, CPU)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        hidden = model.hidden(torch.zeros(1, 512, dtype=torch.int64))
    return sum(kept.values()), hidden


def test_selective_recomputation_saves_rows_but_not_the_scattered_output():
    ops = pytest.importorskip("lhtrain.kernels.ops", reason="needs triton")
    kept, again = CheckpointPolicy.MUST_SAVE, CheckpointPolicy.PREFER_RECOMPUTE
    assert _policy(None, ops.gather_rows._opoverload) is kept
    assert _policy(None, ops.scatter_rows._opoverload) is again
    assert _policy(None, torch.ops.lhtrain.fa4.default) is kept
    assert _policy(None, torch.ops.aten.mm.default) is kept
    assert _policy(None, torch.ops.aten.silu.default) is again
    assert _attention_policy(None, torch.ops.lhtrain.fa4.default) is kept
    assert _attention_policy(None, torch.ops.aten.mm.default) is again


def test_recomputation_keeps_less():
    sizes = {name: saved_bytes(KINDS[name])[0] for name in ("full", "every_third", "offload")}
    plain = saved_bytes(ComputeConfig(compile=Compile.off))[0]
    assert sizes["offload"] <= sizes["full"] < sizes["every_third"] < plain
    assert sizes["full"] < plain / 5


def test_offloading_reuses_its_buffers_and_leaves_nothing_waiting():
    offloaded = Offloaded(run_plainly, CPU)
    losses_and_gradients(run_block=offloaded)
    assert len(offloaded.buffers) == 4 and not offloaded.waiting and not offloaded.fetched


def test_a_stage_with_another_sequence_length_reuses_the_buffers():
    """The second stage has the same number of tokens in sequences half as long; its gradients are right."""
    offloaded, model = Offloaded(run_plainly, CPU), GPT(CONFIG)
    model.init_weights(0)
    tokens = torch.randint(0, 64, (1, 512), generator=torch.Generator().manual_seed(1))
    for rows in (tokens, tokens.view(2, 256)):
        found = []
        for run in (offloaded, run_plainly):
            for block in model.blocks:
                block.run = run
            model.zero_grad()
            model.loss(rows, rows).backward()
            found.append([parameter.grad for parameter in model.parameters()])
        assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))
    assert len(offloaded.buffers) == CONFIG.n_layers


def test_blocks_that_attend_alike_share_a_graph():
    """Four blocks, one of them dense, with and without gradients: four graphs, without graph breaks."""
    graphs = []

    def backend(module, inputs):
        graphs.append(module)
        return module.forward

    torch._dynamo.reset()
    run = torch.compile(run_plainly, fullgraph=True, dynamic=False, backend=backend)
    plain, other = losses_and_gradients(), losses_and_gradients(run_block=run)
    assert plain[0] == pytest.approx(other[0], rel=1e-6)
    assert len(graphs) == 4


def test_validation_runs_the_compiled_loss():
    """Without compilation it would need four float32 copies of a chunk of logits."""
    model, compute = GPT(CONFIG), ComputeConfig(compile=Compile.on, recompute=Recompute.none)
    apply(model, compute, CPU)
    assert model.chunk_loss is not GPT(CONFIG).chunk_loss
    called = []
    model.chunk_loss = lambda *given: called.append(given) or chunk_loss(*given)
    for block in model.blocks:
        block.run = run_plainly
    tokens = torch.zeros(1, 512, dtype=torch.int64)
    with torch.no_grad():
        model.loss(tokens, tokens)
    assert len(called) == 1


@pytest.mark.parametrize(
    "recompute", [Recompute.none, Recompute.selective, Recompute.attention, Recompute.full]
)
@pytest.mark.slow
def test_compiled_blocks_agree(recompute):
    """This test runs the real compiler, on a CPU."""
    torch._dynamo.reset()
    plain = losses_and_gradients()
    other = losses_and_gradients(ComputeConfig(compile=Compile.on, recompute=recompute))
    assert plain[0] == pytest.approx(other[0], rel=1e-5)
    for one, two in itertools.islice(zip(plain[1], other[1], strict=True), 6):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5)
