"""optim.ema: the average of the weights in training, checkpoints, resumes, exports and new runs."""

import json

import pytest
import torch

from lhtrain import checkpoint, interop, train
from lhtrain.compute.fill import compose_config
from lhtrain.compute.trained import state_bytes
from lhtrain.conf.schema import ModelConfig
from lhtrain.distributed.average import WeightAverage, decay
from lhtrain.distributed.world import Ranks, World
from lhtrain.errors import RunError, UsageError
from lhtrain.health.hang import Watchdog
from lhtrain.model.decoder import GPT
from lhtrain.opened import open_trained
from tests.test_train import SETTINGS

EMA = 0.7
CPU = torch.device("cpu")


@pytest.fixture
def trainer(tmp_path):
    (tmp_path / "text").mkdir()
    for number in range(10):
        (tmp_path / "text" / f"{number}.txt").write_text(f"{number} and some more, " * 300)
    data = ["data=text", f"data.path={tmp_path / 'text'}", f"data.cache_dir={tmp_path / 'cache'}"]

    def make(name, *settings):
        config = compose_config([*data, *SETTINGS, f"run.dir={tmp_path / name}", *settings])
        return train.Trainer(
            config, tmp_path / name, World(Ranks(), CPU), Watchdog(config.watchdog, tmp_path, 0)
        )

    return make


def rows(trainer, kind="validation"):
    lines = trainer.dir.metrics.read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


def average_of(trainer):
    tensors = trainer.average.tensors().items()
    return {name.removeprefix("average."): t.clone() for name, t in tensors if not name.endswith(".updates")}


def test_the_average_is_that_of_the_plain_formula():
    config = ModelConfig("m", 64, 64, 16, 2, 2, 2, 8, 32)
    model = GPT(config)
    model.init_weights(0)
    average, want = WeightAverage(model, EMA), {}
    average.begin()
    for name, weight in model.named_parameters():
        want[name] = weight.detach().double()
    for step in range(1, 30):
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn_like(weight))
        average.update()
        kept = min(EMA, (1 + step) / (10 + step))
        for name, weight in model.named_parameters():
            want[name] = kept * want[name] + (1 - kept) * weight.detach().double()
    found = average.tensors()
    for name in want:
        torch.testing.assert_close(found[f"average.{name}"].double(), want[name], rtol=1e-5, atol=1e-5)
    assert decay(EMA, 1) == 2 / 11 and decay(EMA, 100) == EMA


def test_weights_and_average_change_places_and_back():
    model = torch.nn.Linear(3, 2)
    average = WeightAverage(model, EMA)
    average.begin()
    with torch.no_grad():
        model.weight.fill_(5)
    before, kept = model.weight.detach().clone(), average.tensors()["average.weight"].clone()
    with pytest.raises(ZeroDivisionError), average.in_place():
        assert torch.equal(model.weight, kept)
        _ = 1 / 0
    assert torch.equal(model.weight, before) and torch.equal(average.tensors()["average.weight"], kept)


def test_the_average_is_validated_and_changes_nothing_else(trainer):
    plain, with_average = trainer("plain"), trainer("ema", f"optim.ema={EMA}")
    plain.run()
    summary = with_average.run()
    pairs = zip(rows(plain), rows(with_average), strict=True)
    assert all(a["val_loss"] == b["val_loss"] and "average_val_loss" not in a for a, b in pairs)
    last = rows(with_average)[-1]["average_val_loss"]
    assert last == summary["stages"][-1]["average_val_loss"] != rows(with_average)[-1]["val_loss"]
    with with_average.average.in_place():
        assert with_average._validation_loss(with_average._enter(with_average.schedule.lookup(7))) == last


def test_a_resumed_run_has_the_same_average(trainer):
    whole = trainer("whole", f"optim.ema={EMA}")
    whole.run()
    middle, last = checkpoint.complete(whole.dir.checkpoints)
    want, want_rows = average_of(whole), [row["average_val_loss"] for row in rows(whole)]
    last.rename(last.parent / "kept")
    again = trainer("whole", f"optim.ema={EMA}", "resume=auto")
    assert again.start.path == middle and again.average.updates == 4
    again.run()
    assert [row["average_val_loss"] for row in rows(again)] == want_rows
    assert all(torch.equal(tensor, want[name]) for name, tensor in average_of(again).items())


def test_a_run_that_had_no_average_begins_one_from_its_weights(trainer):
    trainer("late").run()
    late = trainer("late", f"optim.ema={EMA}", "resume=force")
    assert late.average.updates == 0
    weights = dict(late.engine.model.named_parameters())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in average_of(late).items())
    with pytest.raises(RunError, match=r"optim\.ema: null -> 0\.7"):
        trainer("late", f"optim.ema={EMA}", "resume=auto")


def test_export_and_open_take_the_average_and_so_does_a_new_run(trainer, tmp_path):
    from safetensors.torch import load_file

    run = trainer("source", f"optim.ema={EMA}")
    run.run()
    path, want = run.dir.path, average_of(run)
    opened = open_trained(path, CPU, torch.float32, weights="average")
    for name, weight in opened.model.named_parameters():
        assert torch.equal(weight, want[name]), name
    weights = dict(run.engine.model.named_parameters())
    last = open_trained(path, CPU, torch.float32).model.named_parameters()
    assert all(torch.equal(weight, weights[name]) for name, weight in last)
    for kind, tensors in (("average", want), ("last", weights)):
        interop.export(path, tmp_path / kind, weights=kind)
        card = (tmp_path / kind / "README.md").read_text()
        record, other = run.progress.stages[-1], {"last": "average", "average": "last"}[kind]
        losses = {"last": f"{record.val_loss:.4f}", "average": f"{record.average_val_loss:.4f}"}
        assert losses[kind] in card and losses[other] not in card
        assert (f"moving average of those of training (optim.ema={EMA})" in card) is (kind == "average")
        found = load_file(tmp_path / kind / "model.safetensors")
        assert torch.equal(found["model.norm.weight"], tensors["norm.weight"])
    source = checkpoint.complete(run.dir.checkpoints)[-1]
    new = trainer("new", f"init_from={source}", "init=average")
    assert all(torch.equal(weight, want[name]) for name, weight in new.engine.model.named_parameters())
    assert "average of the weights" in new.start_note
    both = trainer("both", f"init_from={source}", f"optim.ema={EMA}")  # all: the average continues
    assert both.average.updates == 8 and torch.equal(average_of(both)["norm.weight"], want["norm.weight"])
    only = trainer("only", f"init_from={source}", f"optim.ema={EMA}", "init=weights")
    assert only.average.updates == 0
    assert torch.equal(average_of(only)["norm.weight"], weights["norm.weight"])


def test_a_run_without_an_average_is_named(trainer, tmp_path):
    run = trainer("none")
    run.run()
    source = checkpoint.complete(run.dir.checkpoints)[-1]
    with pytest.raises(RunError, match=r"weights=average: .* has no average"):
        open_trained(run.dir.path, CPU, torch.float32, weights="average")
    with pytest.raises(RunError, match=r"weights=average: .* has no average"):
        interop.export(run.dir.path, tmp_path / "exported", weights="average")
    with pytest.raises(RunError, match=r"init=average: .* has no average"):
        trainer("new", f"init_from={source}", "init=average")
    with pytest.raises(UsageError, match="must be one of last, average"):
        open_trained(run.dir.path, CPU, torch.float32, weights="mean")


def test_the_estimate_counts_the_average():
    plain, with_average = (compose_config(["run.device=cpu", *more]) for more in ([], ["optim.ema=0.9"]))
    with torch.device("meta"):
        n = GPT(plain.model).n_parameters()[0]
    assert state_bytes(with_average) - state_bytes(plain) == 4 * n


@pytest.mark.gpu
def test_a_gpu_averages_as_a_cpu_does_and_its_host_does_not_wait():
    draw, found = torch.Generator().manual_seed(0), []
    changes = [torch.randn(64, 32, generator=draw) for _ in range(20)]
    for device in ("cpu", "cuda"):
        model = torch.nn.Linear(32, 64, bias=False).to(device)
        torch.nn.init.ones_(model.weight)
        average, moves = WeightAverage(model, EMA), [change.to(device) for change in changes]
        average.begin()
        try:
            torch.cuda.set_sync_debug_mode("error")
            for move in moves:
                with torch.no_grad():
                    model.weight.add_(move)
                average.update()
            with average.in_place():
                inside = model.weight.detach().clone()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert torch.equal(inside, average.tensors()["average.weight"])
        assert not torch.equal(inside, model.weight)
        found.append(inside.cpu())
    torch.testing.assert_close(*found)
