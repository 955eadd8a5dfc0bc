"""Samples in the training loop."""

import json

import pytest
import torch

from lhtrain.compute.fill import compose_config, filled
from lhtrain.distributed.world import Ranks, World
from lhtrain.health.hang import Watchdog
from lhtrain.report.json_lines import JsonLines
from lhtrain.train import Trainer
from tests.distributed.ranks import on_ranks

TINY = [
    *("model.seq_len=2048", "model.dim=32", "model.n_layers=2", "model.ffn_dim=64", "run.device=cpu"),
    *("model.dense_layers=[0]", "lighthouse.levels=2", "lighthouse.pooling=2", "lighthouse.budget=1024"),
    *("run.batch_tokens=4096", "eval.tokens=2048", "eval.every=100", "checkpoint.every=100", "run.name=t"),
]
SAMPLES = ["samples.prompts=[line,'']", "samples.every=3", "samples.tokens=12"]


def train(folder, name, *settings):
    text = folder / "text"
    if not text.exists():
        text.mkdir()
        for number in range(4):
            (text / f"{number}.txt").write_text(f"line {number} of a text, and more of it\n" * 600)
    data = ["data=text", f"data.path={text}", f"data.cache_dir={folder / 'cache'}"]
    config = filled(compose_config([*data, *TINY, *settings, f"run.dir={folder / name}"]))
    world = World(Ranks(), torch.device("cpu"))
    Trainer(config, folder / name, world, Watchdog(config.watchdog, folder / name, 0)).run()
    return rows_of(folder / name)


def rows_of(run):
    path = run / "samples.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def losses(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(row["kind"], row["step"], row.get("loss"), row.get("val_loss")) for row in rows]


@pytest.mark.slow
def test_samples_come_every_few_steps_and_at_the_end_of_a_stage(tmp_path, capsys):
    rows = train(
        tmp_path, "run", *SAMPLES, "run.steps=8", "stages.lighthouse.steps=4", "samples.temperature=0"
    )
    assert [(row["step"], row["stage"], row["prompt"]) for row in rows] == [
        (step, stage, prompt)
        for step, stage in ((3, "lighthouse"), (4, "lighthouse"), (6, "recovery"), (8, "recovery"))
        for prompt in ("line", "")
    ]
    assert all(row["attention"] == "full" and isinstance(row["text"], str) for row in rows)
    assert "sample    step 3: 'line' -> " in capsys.readouterr().out
    without = train(tmp_path, "without", "run.steps=8", "stages.lighthouse.steps=4")
    assert not without and losses(tmp_path / "run") == losses(tmp_path / "without")


@pytest.mark.slow
def test_strictly_causal_stages_use_their_layers(tmp_path):
    strict = ["stage=lighthouse", "lighthouse.strictly_causal=true", "lighthouse.tile=1024"]
    rows = train(tmp_path, "run", *SAMPLES, *strict, "run.steps=2")
    assert [row["attention"] for row in rows] == ["strict", "strict"]


@pytest.mark.slow
def test_a_scorer_that_needs_other_tokens_has_samples_of_full_attention(tmp_path):
    own = ["stage=lighthouse", "lighthouse.strictly_causal=true", "lighthouse.scorer=dilated"]
    rows = train(tmp_path, "run", *SAMPLES, *own, "lighthouse.tile=1024", "run.steps=1")
    assert all(row["attention"] == "full" and isinstance(row["text"], str) for row in rows) and rows


def sharded(folder):
    """On a rank: two runs with weights over two ranks, and with sequences over two ranks."""
    world = World.start(torch.device("cpu"))
    for name, settings in {"fsdp": ["parallel.dp_shard=2"], "ring": ["parallel.cp=2"]}.items():
        data = ["data=text", f"data.path={folder / 'text'}", f"data.cache_dir={folder / 'cache'}"]
        words = [*data, *TINY, *SAMPLES, *settings, "stage=dense", "run.steps=2", "samples.temperature=0"]
        config = filled(compose_config([*words, f"run.dir={folder / name}"]), 2)
        watchdog = Watchdog(config.watchdog, folder / name, world.rank)
        Trainer(config, folder / name, world, watchdog).run()


@pytest.mark.slow
def test_several_ranks_write_what_one_writes(tmp_path):
    want = train(tmp_path, "alone", *SAMPLES, "stage=dense", "run.steps=2", "samples.temperature=0")
    on_ranks(sharded, 2, tmp_path, folder=tmp_path)
    assert rows_of(tmp_path / "fsdp") == rows_of(tmp_path / "ring") == want and len(want) == 2


def test_repeated_steps_replace_their_rows(tmp_path):
    file = JsonLines(tmp_path / "samples.jsonl")
    file.keep_until(3)
    assert not file.path.exists()
    file.add([{"step": step} for step in (2, 4, 6)])
    with file.path.open("a") as stream:
        stream.write('{"step": 3')  # a process was killed while it wrote
    file.keep_until(4)
    assert file.path.read_text() == '{"step": 2}\n{"step": 4}\n'
