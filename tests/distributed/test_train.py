"""Whole runs on several ranks against the same run on one: losses, gradient norms, validation, weights."""

import json
from pathlib import Path

import pytest
import torch

from lhtrain import checkpoint
from lhtrain.compute.fill import compose_config, filled
from lhtrain.distributed.average import WeightAverage
from lhtrain.distributed.world import World
from lhtrain.health.hang import Watchdog
from lhtrain.model.decoder import GPT
from lhtrain.model.optimizer import build_optimizer
from lhtrain.train import Trainer
from tests.distributed.ranks import DEVICE, on_ranks
from tests.small_texts import write_texts

pytestmark = pytest.mark.slow

TOLERANCE = 2e-4  # relative, after 10 steps of AdamW in float32, whose first steps amplify rounding
# 2 W = 8 chunks of one tile each, the smallest budget for cp=4; the stage switch is in the middle.
TINY = [
    *("model.seq_len=2048", "model.dim=32", "model.n_layers=3", "model.n_heads=4", "model.ffn_dim=64"),
    *("lighthouse.levels=2", "lighthouse.pooling=2", "lighthouse.budget=1024", "model.dense_layers=[0]"),
    *("model.sliding_layers=[1]", "model.sliding_window=100", "optim.mup=true", "optim.mup_base_width=8"),
    *("run.steps=10", "run.batch_tokens=8192", f"run.device={DEVICE}"),
    *("eval.tokens=2048", "eval.every=100", "checkpoint.every=100"),
    *("model.n_kv_heads=2", "model.tie_embeddings=true", "compute.precision=float32", "compute.compile=off"),
    "optim.ema=0.8",
]
JOBS = {
    2: {
        "fsdp": ["parallel.dp_shard=2", "run.grad_accum=2"],
        "replicas": ["parallel.dp_replicate=2"],
        "ring": ["parallel.cp=2", "parallel.cp_attention=ring", "run.grad_accum=4"],
        "ulysses": ["parallel.cp=2", "parallel.reduce_always=true", "run.grad_accum=2"],
    },
    4: {
        "hsdp": ["parallel.dp_replicate=2"],
        "fsdp_ring": ["parallel.cp=2", "parallel.cp_attention=ring"],
        "hsdp_ulysses": ["parallel.dp_replicate=2", "parallel.cp=2"],
        "ring": ["parallel.cp=4", "run.grad_accum=2"],
    },
}
JOBS = {size: jobs for size, jobs in JOBS.items() if DEVICE == "cpu" or size <= torch.cuda.device_count()}


def config_of(folder, name, overrides):
    data = ["data=text", f"data.path={folder / 'text'}", f"data.cache_dir={folder / 'cache'}"]
    if "stage=dense" not in overrides:
        data.append("stages.lighthouse.fraction=0.5")
    return filled(compose_config([*data, *TINY, f"run.dir={folder / name}", "run.name=t", *overrides]))


def run(config, run_dir, world):
    Trainer(config, run_dir, world, Watchdog(config.watchdog, run_dir, world.rank)).run()


def train(folder, jobs):
    """On a rank: all jobs, one after the other."""
    world = World.start(torch.device(DEVICE))
    for name, overrides in jobs.items():
        run_dir = folder / f"{name}_{world.size}"
        run(config_of(folder, run_dir.name, overrides), run_dir, world)


def rows(path):
    kept = ("kind", "step", "stage", "tokens", "lr")
    numbers = ("loss", "grad_norm", "val_loss", "average_val_loss", "val_loss_before", "val_loss_after")
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [[row.get(key) for key in kept] for row in lines], [
        row[key] for row in lines for key in numbers if key in row
    ]


def weights(folder, path, overrides):
    config = config_of(folder, "unused", overrides)
    model = GPT(config.model)
    average = WeightAverage(model, config.optim.ema)
    tensors = checkpoint.tensors_of(model, build_optimizer(model, config.optim), average)
    checkpoint.load(path / "checkpoints" / "step_00000010", tensors)
    return {name: tensor.clone() for name, tensor in tensors.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    write_texts(folder / "text")
    return folder


@pytest.fixture(scope="module")
def alone(folder):
    """The run on one rank, the reference for the others."""
    run(config_of(folder, "alone", []), folder / "alone", World.start(torch.device(DEVICE)))
    return folder / "alone"


@pytest.mark.parametrize("size", JOBS)
def test_ten_steps_are_those_of_one_rank(folder, alone, size, tmp_path):
    """Across the stage switch: results do not depend on the mesh."""
    on_ranks(train, size, folder, JOBS[size], folder=tmp_path)
    for name, overrides in JOBS[size].items():
        path = folder / f"{name}_{size}"
        (labels, numbers), (want_labels, want) = rows(path), rows(alone)
        assert labels == want_labels, name
        torch.testing.assert_close(
            torch.tensor(numbers),
            torch.tensor(want),
            rtol=TOLERANCE,
            atol=0,
            msg=lambda m, n=name: f"{n}: {m}",
        )
        got, expected = weights(folder, path, overrides), weights(folder, alone, overrides)
        for key, tensor in got.items():
            error = (tensor - expected[key]).abs().max() / expected[key].abs().max()
            assert error < 1e-2, f"{name}: {key} {error}"
        summary = json.loads((path / "summary.json").read_text())
        assert summary["ranks"] == size and summary["tokens"] == 10 * 8192


OWN = ["stages.recovery.data.source=text", "stages.recovery.data.long_fraction=0.5"]


def test_a_stage_with_data_of_its_own_reads_the_same_on_two_ranks(folder, tmp_path):
    """Losses, gradients and weights are those of one rank, and the data that were read are the same."""
    (folder / "own").mkdir()
    for name in ("3.txt", "4.txt"):  # the run's data, too
        (folder / "own" / name).write_text((folder / "text" / name).read_text())
    for number in range(90):
        (folder / "own" / f"short{number}.txt").write_text(f"a short text, number {number}. " * 30)
    own = [*OWN, "run.steps=4", f"stages.recovery.data.path={folder / 'own'}"]
    run(config_of(folder, "own_alone", own), folder / "own_alone", World.start(torch.device(DEVICE)))
    on_ranks(train, 2, folder, {"own": [*own, "parallel.dp_shard=2"]}, folder=tmp_path)
    found = [folder / name for name in ("own_2", "own_alone")]
    (labels, numbers), (want_labels, want) = map(rows, found)
    assert labels == want_labels
    torch.testing.assert_close(torch.tensor(numbers), torch.tensor(want), rtol=TOLERANCE, atol=0)
    states = [checkpoint.read_state(path / "checkpoints" / "step_00000004") for path in found]
    assert states[0]["progress"]["data"] == states[1]["progress"]["data"]
    assert states[0]["progress"]["data"]["owner"] == "recovery"
    read = states[0]["blocks_read"]
    assert read == states[1]["blocks_read"] and sum(read.values()) == 4 * 8192 // 2048


class Poisoned(Trainer):
    """On the last rank, the batches at the positions `POISON` have a loss that is NaN."""

    def __init__(self, *args):
        super().__init__(*args)
        read = self.data.loader.micro_batches

        def poisoned(position, stage):
            batches, after = read(position, stage)
            if position in self.poison and self.world.rank == self.world.size - 1:
                batches = [batch._replace(loss_weight=float("nan")) for batch in batches]
            return batches, after

        self.data.loader.micro_batches = poisoned


def train_poisoned(folder, name, poison, overrides):
    """On a rank: a run of 8 steps of dense attention."""
    Poisoned.poison = poison
    world, run_dir = World.start(torch.device(DEVICE)), folder / name
    config = config_of(folder, name, ["stage=dense", "run.steps=8", *overrides])
    Poisoned(config, run_dir, world, Watchdog(config.watchdog, run_dir, world.rank)).run()


def labelled(path):
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [(row["kind"], row["step"]) for row in lines if row["kind"] != "validation"], lines


def test_a_step_that_is_not_finite_on_one_rank_is_left_out_on_all(folder, tmp_path):
    step = 8192
    on_ranks(train_poisoned, 2, folder, "poisoned", {3 * step}, [], folder=tmp_path)
    labels, lines = labelled(folder / "poisoned")
    want = [("train", n) for n in range(1, 9)]
    want[3] = ("skipped", 4)
    assert labels == want
    skipped = next(row for row in lines if row["kind"] == "skipped")
    assert (skipped["position"], skipped["end"]) == (3 * step, 4 * step)
    assert all(torch.tensor(row["loss"]).isfinite() for row in lines if row["kind"] == "train")


def test_too_many_in_a_row_go_back_and_past_their_data(folder):
    step, overrides = 8192, ["guard.max_skips=2", "checkpoint.every=2"]
    train_poisoned(folder, "rewound", {4 * step, 5 * step}, overrides)
    labels, lines = labelled(folder / "rewound")
    # Steps 5 and 6 are skipped. Step 6 is not saved; after the return to step 4, data after step 6 is read.
    assert labels == [
        *(("train", n) for n in (1, 2, 3, 4)),
        ("rewound", 4),
        *(("train", n) for n in (5, 6, 7, 8)),
    ]
    rewound = next(row for row in lines if row["kind"] == "rewound")
    assert (rewound["left"], rewound["position"], rewound["end"]) == (6, 4 * step, 6 * step)
    state = checkpoint.read_state(folder / "rewound" / "checkpoints" / "step_00000008")
    assert state["progress"]["position"] == 10 * step


def test_back_over_a_switch_to_other_data(folder):
    """The first steps of the stage are not finite: the run returns to the end of the stage before, and then
    its data continue behind those of the steps that were left out."""
    step, run_dir = 8192, folder / "rewound_switch"
    Poisoned.poison = {4 * step, 5 * step}
    overrides = ["run.steps=8", "guard.max_skips=2", "checkpoint.every=4"]
    overrides += [
        "stages.recovery.data.source=text",
        f"stages.recovery.data.path={folder / 'text' / '5.txt'}",
    ]
    config = config_of(folder, "rewound_switch", overrides)
    world = World.start(torch.device(DEVICE))
    Poisoned(config, run_dir, world, Watchdog(config.watchdog, run_dir, world.rank)).run()
    assert ("rewound", 4) in labelled(run_dir)[0]
    progress = checkpoint.read_state(run_dir / "checkpoints" / "step_00000008")["progress"]
    assert progress["position"] == 10 * step
    assert progress["data"]["owner"] == "recovery" and progress["data"]["begin"] == 4 * step


class Damaged(Poisoned):
    """The newest checkpoint is truncated before the run returns to it."""

    def _rewind(self):
        self.saver.wait()
        state = checkpoint.complete(self.dir.checkpoints)[-1] / "state.json"
        state.write_text(state.read_text()[:-1])
        super()._rewind()


def test_a_damaged_checkpoint_is_said_when_the_run_goes_back(folder, capsys):
    step, run_dir = 8192, folder / "damaged"
    Damaged.poison = {4 * step, 5 * step}
    overrides = ["stage=dense", "run.steps=8", "guard.max_skips=2", "checkpoint.every=2"]
    config = config_of(folder, "damaged", overrides)
    world = World.start(torch.device(DEVICE))
    Damaged(config, run_dir, world, Watchdog(config.watchdog, run_dir, world.rank)).run()
    assert ("rewound", 2) in labelled(run_dir)[0]
    said = " ".join(capsys.readouterr().out.split())
    assert "checkpoint step_00000004 is damaged and was renamed to damaged-step_00000004" in said
