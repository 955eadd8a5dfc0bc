"""Runs on a GPU: those in float32 have the losses of the CPU, and the profiler sees the GPU."""

import gzip
import json
import pickle
from collections import Counter

import pytest
import torch

from lhtrain import checkpoint, train
from lhtrain.compute.fill import compose_config
from lhtrain.distributed.world import Ranks, World
from lhtrain.health.hang import Watchdog

pytestmark = [pytest.mark.slow, pytest.mark.gpu]
GPU = "cuda"
SETTINGS = [
    *("model.seq_len=512", "model.dim=32", "model.n_layers=2", "model.n_heads=2", "model.ffn_dim=64"),
    *("lighthouse.levels=2", "lighthouse.budget=128", "run.steps=8", "run.batch_tokens=1024", "run.name=t"),
    *(
        "stages.lighthouse.fraction=0.5",
        "eval.tokens=1024",
        "eval.every=4",
        "eval.tasks=[]",
        "run.log_every=1",
    ),
    *("checkpoint.every=4", "compute.compile=off"),
]
FEATURES = {
    "muon": ["optim=muon", "optim.ema=0.7"],
    "muon_int8": ["optim=muon", "optim.state=int8"],
    "int8": ["optim.state=int8", "optim.groups={blocks.1: 0.5}"],
    "bfloat16": ["optim.state=bfloat16", "optim.betas=[0.9,0.99]"],
    "mup": ["optim.mup=true", "optim.mup_base_width=16", "optim.ema=0.7"],
    "frozen": [
        "stages.lighthouse.frozen=[embedding,blocks.0.ffn]",
        "stages.recovery.frozen=[blocks.1]",
        "optim.ema=0.7",
    ],
    "sliding": ["model.sliding_window=100", "model.sliding_layers=[1]", "lighthouse.window=64"],
    "own_data": ["stages.recovery.data.source=text", "stages.recovery.data.path={folder}/other.txt"],
}
NAMES = ("loss", "grad_norm", "val_loss", "average_val_loss")


@pytest.fixture
def trainer(tmp_path):
    (tmp_path / "text").mkdir()
    for number in range(10):
        lines = [f"line {i}: the {i % 7}th of {i % 11} things\n" for i in range(number, 4000, 10)]
        (tmp_path / "text" / f"{number}.txt").write_text("".join(lines))
    (tmp_path / "other.txt").write_text("".join(f"{i} apples and {i * i} pears\n" for i in range(2000)))
    data = ["data=text", f"data.path={tmp_path / 'text'}", f"data.cache_dir={tmp_path / 'cache'}"]

    def make(name, device, *settings):
        settings = [one.replace("{folder}", str(tmp_path)) for one in settings]
        overrides = [*data, *SETTINGS, f"run.dir={tmp_path / name}", f"run.device={device}", *settings]
        config = compose_config(overrides)
        device = torch.device(device, 0) if device == "cuda" else torch.device(device)
        watchdog = Watchdog(config.watchdog, tmp_path / name, 0)
        return train.Trainer(config, tmp_path / name, World(Ranks(), device), watchdog)

    return make


def numbers(trainer):
    """The losses and gradient norms of a run; nan: not in this row."""
    lines = trainer.dir.metrics.read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if row["kind"] in ("train", "validation")]
    return torch.tensor([[row.get(name, torch.nan) for name in NAMES] for row in rows])


@pytest.mark.parametrize("name", FEATURES)
def test_a_run_has_the_losses_of_the_cpu_and_a_resumed_one_too(trainer, name):
    settings = ["compute.precision=float32", *FEATURES[name]]
    on_cpu, on_gpu = trainer("cpu", "cpu", *settings), trainer("gpu", GPU, *settings)
    for run in (on_cpu, on_gpu):
        run.run()
    assert len(numbers(on_cpu)) >= 10
    torch.testing.assert_close(numbers(on_gpu), numbers(on_cpu), rtol=0.02, atol=0, equal_nan=True)
    middle, last = checkpoint.complete(on_gpu.dir.checkpoints)
    last.rename(last.parent / "kept")
    again = trainer("gpu", GPU, *settings, "resume=auto")
    assert again.start.path == middle
    again.run()
    torch.testing.assert_close(numbers(again), numbers(on_cpu), rtol=0.02, atol=0, equal_nan=True)


def test_a_trace_has_kernels_and_a_memory_snapshot_has_allocations(trainer):
    run = trainer("profiled", GPU, "profile.steps=[4,5]")
    summary = run.run()
    trace = run.dir.profile / "rank_00000.steps_4-5.pt.trace.json.gz"
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    found = Counter(event.get("cat") for event in events)
    assert found["kernel"] > 100 and found["cuda_runtime"] > 100 and found["gpu_memcpy"], found
    steps = {event["name"] for event in events if str(event.get("name")).startswith("ProfilerStep#")}
    assert steps == {"ProfilerStep#4", "ProfilerStep#5"}
    with trace.with_name("rank_00000.steps_4-5.memory.pickle").open("rb") as file:
        snapshot = pickle.load(file)
    assert sum(segment["allocated_size"] for segment in snapshot["segments"]) > 0
    actions = Counter(entry["action"] for device in snapshot["device_traces"] for entry in device)
    assert actions["alloc"] > 100 and actions["free_completed"] > 100, actions
    assert all(operator["seconds"] > 0 for operator in summary["profile"]["operators"])
