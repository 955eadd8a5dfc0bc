"""The tasks on several ranks against the same tasks on one: sharded weights, and shared sequences."""

import json

import pytest
import torch

from lhtrain.build import build
from lhtrain.compute.fill import compose_config, filled
from lhtrain.distributed.world import World
from lhtrain.evaluation import LoopTasks
from tests.distributed.ranks import DEVICE, on_ranks

pytestmark = pytest.mark.slow

TINY = [
    *("model.seq_len=2048", "model.dim=32", "model.n_layers=2", "model.n_heads=4", "model.ffn_dim=64"),
    *("lighthouse.levels=2", "lighthouse.pooling=2", "lighthouse.budget=512", "model.init_std=0.2"),
    *("run.steps=10", "run.batch_tokens=8192", f"run.device={DEVICE}", "compute.precision=float32"),
    *("compute.compile=off", "eval.share=1.0", "eval.samples=1", "eval.depths=[0.5]"),
    "eval.tasks=[loss_by_position,gain_of_context,recall,passkey,copy,long_ppl]",
]
JOBS = {
    "fsdp": ["parallel.dp_shard=2"],
    "replicas": ["parallel.dp_replicate=2"],
    "ring": ["parallel.cp=2", "parallel.cp_attention=ring"],
}


def measured(folder, overrides, world):
    data = ["data=text", f"data.path={folder / 'text'}", f"data.cache_dir={folder / 'cache'}"]
    config = filled(compose_config([*data, *TINY, f"run.dir={folder / 'r'}", "run.name=t", *overrides]))
    data, engine = build(config, world)
    tasks = LoopTasks(config, data, engine)
    stage = engine.stages["lighthouse"]
    engine.enter(stage)
    step = tasks.schedule.ends[0]
    return tasks.measure(stage, tasks.plan(step, stage), step)


def on_rank(folder):
    world = World.start(torch.device(DEVICE))
    return {name: measured(folder, overrides, world) for name, overrides in JOBS.items()}


def numbers(tree):
    """Yield all numbers of a result in order; text as it is."""
    if isinstance(tree, dict | list):
        for child in tree.values() if isinstance(tree, dict) else tree:
            yield from numbers(child)
    else:
        yield tree


def test_several_ranks_measure_what_one_measures(tmp_path):
    (tmp_path / "text").mkdir()
    for number in range(12):
        lines = (f"line {i}: the {i % 7}th of {i % (9 + number)} things\n" for i in range(400))
        (tmp_path / "text" / f"{number}.txt").write_text("".join(lines))
    alone = measured(tmp_path, [], World.start(torch.device(DEVICE)))
    assert alone["full"]["recall"]["cells"] and alone["lighthouse"]["loss_by_position"]["documents"]
    assert alone["full"]["loss_by_position"] != alone["lighthouse"]["loss_by_position"]
    json.dumps(alone)
    for of_rank in on_ranks(on_rank, 2, tmp_path, folder=tmp_path):
        for name, result in of_rank.items():
            for key in ("full", "lighthouse"):
                got, wanted = list(numbers(result[key])), list(numbers(alone[key]))
                assert got == pytest.approx(wanted, rel=1e-4, abs=1e-5), (name, key)
