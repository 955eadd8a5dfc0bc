"""Frozen parameters and all optimizers: several ranks against one rank, and resumed runs."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from lhtrain import checkpoint
from lhtrain.compute.fill import compose_config, filled
from lhtrain.distributed.world import World
from lhtrain.health.hang import Watchdog
from lhtrain.model.decoder import GPT
from lhtrain.model.optimizer import build_optimizer
from lhtrain.train import Trainer
from tests.distributed.ranks import DEVICE, on_ranks
from tests.small_texts import write_texts

pytestmark = pytest.mark.slow

# The first stage trains nothing up to block 1 and no root parameter, so that FSDP begins with a group without
# gradients; then blocks whose turn comes later, and a block between others; then everything but one matrix.
FROZEN = ("[embedding,norm,head,blocks.0]", "[blocks.1,blocks.*.attention_norm]", "[blocks.2.ffn.up]")
STAGES = ",".join(
    f"s{number}: {{attention: dense, steps: 2, frozen: {patterns}}}" for number, patterns in enumerate(FROZEN)
)
ARGS = [
    *("model.seq_len=128", "model.dim=32", "model.n_layers=3", "model.n_heads=2", "model.ffn_dim=64"),
    *("model.tie_embeddings=false", "optim.groups={blocks.2: 0.5}"),
    *("stage=dense", "~stages.dense", f"+stages={{{STAGES}}}", "run.steps=6", "run.batch_tokens=1024"),
    *("eval.tokens=512", "eval.every=1", "eval.tasks=[]", "checkpoint.every=1", "checkpoint.keep=9"),
    *("compute.precision=float32", "compute.compile=off", f"run.device={DEVICE}", "optim.warmup_fraction=0"),
]
JOBS = {
    "recomputed": ["compute.recompute=full", "run.grad_accum=2"],
    "offloaded": ["compute.recompute=full", "compute.offload=true", "parallel.dp_replicate=2"],
}
# 37 rows of some matrices: not a multiple of the ranks. Three matrices of a kind: one rank gets more of them.
MUON = ["optim=muon", "model.ffn_dim=37", "optim.lr=3e-3"]
INT8 = ["optim.state=int8"]
MUON_JOBS = {"muon": MUON, "muon_replicas": [*MUON, "parallel.dp_replicate=2"]}


def config_of(folder, name, overrides=()):
    data = ["data=text", f"data.path={folder / 'text'}", f"data.cache_dir={folder / 'cache'}"]
    return filled(compose_config([*data, *ARGS, f"run.dir={folder / name}", "run.name=t", *overrides]))


def train(folder, jobs):
    world = World.start(torch.device(DEVICE))
    for name, overrides in jobs.items():
        config = config_of(folder, name, overrides)
        Trainer(config, folder / name, world, Watchdog(config.watchdog, folder / name, world.rank)).run()


def numbers(path):
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return torch.tensor([row[k] for row in rows for k in ("loss", "grad_norm", "val_loss") if k in row])


def tensors(folder, name, step, overrides=()):
    config = config_of(folder, "unused", overrides)
    model = GPT(config.model)
    out = checkpoint.tensors_of(model, build_optimizer(model, config.optim))
    checkpoint.load(folder / name / "checkpoints" / f"step_{step:08}", out)
    return {key: tensor.clone() for key, tensor in out.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("frozen")
    write_texts(folder / "text", 900)
    train(folder, {"alone": [], "muon_alone": MUON, "int8_alone": INT8})
    return folder


def test_a_stage_changes_only_what_it_trains(folder):
    """State too: a parameter that is first trained in a later stage begins then, as at step 1 of a run."""
    config, at = config_of(folder, "unused"), {step: tensors(folder, "alone", step) for step in (2, 4, 6)}
    model = GPT(config.model)
    model.init_weights(config.run.seed)
    before = {f"model.{name}": parameter.detach() for name, parameter in model.named_parameters()}
    trained = dict.fromkeys(before, 0)
    for step, stage in zip((2, 4, 6), config.stages.values(), strict=True):
        model.freeze(stage.frozen)
        for name, parameter in model.named_parameters():
            key = f"model.{name}"
            assert torch.equal(at[step][key], before[key]) != parameter.requires_grad, (step, name)
            trained[key] += 2 * parameter.requires_grad
            assert at[step][f"optimizer.step.{name}"].item() == trained[key], (step, name)
        before = at[step]


def test_two_ranks_train_as_one(folder, tmp_path):
    on_ranks(train, 2, folder, JOBS | MUON_JOBS | {"int8": INT8}, folder=tmp_path)
    want = numbers(folder / "alone")
    weights = tensors(folder, "alone", 6)
    for name in JOBS:
        torch.testing.assert_close(
            numbers(folder / name), want, rtol=2e-4, atol=0, msg=lambda m, n=name: n + m
        )
        for key, tensor in tensors(folder, name, 6).items():
            torch.testing.assert_close(tensor, weights[key], rtol=1e-2, atol=2e-4, msg=lambda m, k=key: k + m)
    # Newton-Schulz is in bfloat16, which may round gradients that differ in their last bits to other numbers.
    want = numbers(folder / "muon_alone")
    for name in MUON_JOBS:
        torch.testing.assert_close(
            numbers(folder / name), want, rtol=2e-3, atol=0, msg=lambda m, n=name: n + m
        )
    got, want = (tensors(folder, name, 6, MUON) for name in ("muon", "muon_alone"))
    assert any(name.startswith("optimizer.momentum.") for name in want)
    for key, tensor in got.items():
        torch.testing.assert_close(tensor, want[key], rtol=2e-2, atol=2e-3, msg=lambda m, k=key: k + m)
    torch.testing.assert_close(numbers(folder / "int8"), numbers(folder / "int8_alone"), rtol=2e-4, atol=0)
    got, want = (tensors(folder, name, 6, INT8) for name in ("int8", "int8_alone"))
    for key, tensor in got.items():
        if "_codes." in key:
            assert (tensor == want[key]).float().mean() > 0.98, key
        else:
            torch.testing.assert_close(tensor, want[key], rtol=1e-2, atol=2e-4, msg=lambda m, k=key: k + m)


@pytest.mark.parametrize(
    ("run", "cut", "overrides"),
    [("alone", 2, []), ("alone", 3, []), ("muon_alone", 3, MUON), ("int8_alone", 3, INT8)],
)
def test_resumed_inside_and_between_stages(folder, run, cut, overrides):
    """Bit for bit, from the checkpoint of step `cut`."""
    path = folder / f"{run}_cut_{cut}"
    shutil.copytree(folder / run, path)
    for step in range(cut + 1, 7):
        shutil.rmtree(path / "checkpoints" / f"step_{step:08}")
    train(folder, {path.name: ["resume=auto", *overrides]})
    got, want = tensors(folder, path.name, 6, overrides), tensors(folder, run, 6, overrides)
    assert all(torch.equal(got[key], want[key]) for key in want)


def test_state_of_what_was_never_trained_begins_when_a_changed_run_trains_it(folder):
    """A run whose stages all freeze block 0 has no state for it; continued with other stages, it gets one."""
    first = [f"stages.s{number}.frozen=[blocks.0]" for number in range(3)]
    train(folder, {"never": [*first, "run.steps=6", "run.name=never"]})
    path = folder / "never" / "checkpoints" / "step_00000006"
    saved = checkpoint.opened(path).tensors
    assert "model.blocks.0.ffn.up.weight" in saved and "optimizer.exp_avg.blocks.1.ffn.up.weight" in saved
    assert not any(name.startswith("optimizer.") and ".blocks.0." in name for name in saved)
    train(folder, {"after": [f"init_from={path}", "init=all"]})
    got = tensors(folder, "after", 6)
    assert got["optimizer.step.blocks.0.ffn.up.weight"].item() == 4
    assert got["optimizer.step.blocks.2.ffn.down.weight"].item() == 12
