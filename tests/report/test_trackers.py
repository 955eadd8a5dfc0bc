"""What trackers get, and their failures. Other tests use the real Weights & Biases offline."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from lhtrain.conf.schema import LoggerConfig, LoggerMode
from lhtrain.registry import TRACKERS, load_plugins
from lhtrain.report.heat_map import heat_maps, pictures, tables
from lhtrain.report.scalars import scalars
from lhtrain.report.trackers import Trackers

ONLINE = LoggerConfig(kind="wandb", mode=LoggerMode.online)
ROW = {"kind": "train", "step": 1, "stage": "[/a]", "loss": 2.0, "mfu": None}
STAGE = {"name": "[/a]", "tokens_per_second": None, "loss_mean": 2.0, "val_loss": None}


class Service:
    """A fake of the wandb package: records the calls, and raises `error` in the method `fails_in`."""

    Error = type("Error", (Exception,), {})

    def __init__(self, fails_in="", error=None):
        self.fails_in, self.error = fails_in, error or self.Error("No API key configured.")
        self.asked, self.rows, self.ends, self.summary, self.torn_down = [], [], [], {}, 0

    def _do(self, what):
        if self.fails_in == what:
            raise self.error

    def teardown(self, exit_code):
        self.torn_down += 1
        raise self.error or AssertionError

    def Table(self, columns, data):
        return columns, data

    def Image(self, pixels):
        return pixels.shape

    def init(self, **settings):
        self._do("init")
        self.asked.append(settings)
        return SimpleNamespace(
            id="abc",
            define_metric=lambda *_, **__: self._do("define_metric"),
            log=lambda row: self._do("log") or self.rows.append(row),
            finish=lambda exit_code: self._do("finish") or self.ends.append(exit_code),
            summary=self.summary,
        )


@pytest.fixture
def opened(tmp_path, monkeypatch):
    def start(service, config=ONLINE, name="name"):
        monkeypatch.setitem(sys.modules, "wandb", service)
        printed = []
        tracker = Trackers(config, name, tmp_path, {}, printed.append)
        tracker.start()
        return tracker, printed

    return start


@pytest.mark.parametrize("mode", LoggerMode)
def test_a_resumed_run_continues_the_same_wandb_run(opened, mode):
    service = Service()
    for _ in range(2):
        opened(service, LoggerConfig(kind="wandb", mode=mode))
    again = "allow" if mode is LoggerMode.online else None
    assert [(asked["id"], asked["resume"]) for asked in service.asked] == [(None, None), ("abc", again)]


@pytest.mark.parametrize("content", [b"", b" \n"])
def test_an_empty_id_file_is_ignored(opened, tmp_path, content):
    (tmp_path / "wandb_id.txt").write_bytes(content)
    service = Service()
    opened(service)
    assert service.asked[0]["id"] is None


def test_names_and_values_are_made_acceptable(opened):
    service = Service()
    tracker, _ = opened(service, name="a\n" + "x" * 500)
    tracker.take(ROW)
    tracker.finish({"stages": [STAGE]})
    assert len(service.asked[0]["name"]) == 128 and "\n" not in service.asked[0]["name"]
    assert service.rows == [{"step": 1, "train/stage": "[/a]", "train/loss": 2.0}]
    assert service.ends == [0]


ERRORS = [Service.Error("No key."), OSError(28, "No space left"), ValueError(), RuntimeError("a\n" * 99)]


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("where", ["init", "define_metric", "log", "finish"])
def test_a_failure_is_reported_once_and_training_continues(opened, where, error):
    service = Service(where, error)
    tracker, printed = opened(service)
    for _ in range(3):
        tracker.take(ROW)
    tracker.finish({"stages": [STAGE]})
    (line,) = printed
    assert line.startswith("warning   logger=wandb ") and "\n" not in line and " : " not in line
    assert ("ValueError" in line) == isinstance(error, ValueError)
    assert line.endswith("; logger.mode=offline needs no account")
    assert len(service.rows) == (3 if where == "finish" else 0)
    assert service.torn_down == (where in ("log", "finish"))


def test_an_unreadable_id_file_is_reported(opened, tmp_path):
    (tmp_path / "wandb_id.txt").write_bytes(b"\xff\xfe")
    tracker, printed = opened(Service())
    tracker.take(ROW)
    assert len(printed) == 1


def test_without_a_tracker_nothing_is_printed(opened):
    tracker, printed = opened(Service("init"), LoggerConfig())
    tracker.take(ROW)
    tracker.finish(None)
    assert not printed


PLUGIN = """
from lhtrain.registry import TRACKERS

@TRACKERS.add("mine")
class Mine:
    def __init__(self, config, name, run_dir, settings):
        self.file = run_dir / "mine.txt"
        self.file.write_text(f"{name} {config.options['team']} {settings}")

    def log(self, row):
        if row["step"] == 2:
            raise OSError("no network")
        self.file.write_text(str(row["step"]))

    def finish(self, summary):
        self.file.write_text("finished")

    def abandon(self):
        self.file.write_text("abandoned")
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    (tmp_path / "tracker_of_a_user.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(TRACKERS, "_entries", dict(TRACKERS._entries))
    load_plugins(["tracker_of_a_user"])
    monkeypatch.delitem(sys.modules, "tracker_of_a_user")
    return LoggerConfig(kind="mine", options={"team": "x"})


def test_a_plugin_tracker_gets_rows_until_it_fails(plugin, opened, tmp_path):
    tracker, printed = opened(None, plugin)
    kept = tmp_path / "mine.txt"
    assert kept.read_text() == "name x {}"
    tracker.take(ROW)
    assert kept.read_text() == "1" and not printed
    tracker.take(ROW | {"step": 2})
    tracker.take(ROW | {"step": 3})
    tracker.finish(None)
    assert kept.read_text() == "abandoned"
    (line,) = printed
    assert line.startswith("warning   logger=mine failed: no network; training continues")


def test_one_that_fails_does_not_stop_another(opened, tmp_path):
    tracker, printed = opened(
        Service("log"), LoggerConfig(kind="wandb", kinds={"jsonl": True, "wandb": True})
    )
    for step in (1, 2):
        tracker.take(ROW | {"step": step})
    tracker.finish(None)
    assert len(printed) == 1 and "logger=wandb" in printed[0]
    lines = (tmp_path / "scalars.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"step": step, "train/loss": 2.0} for step in (1, 2)]


TRAIN = {"kind": "train", "step": 3, "stage": "a", "tokens": 30, "loss": 2.5, "lr": 0.1, "grad_norm": 1.0}
TRAIN |= {"tokens_per_second": 5e4, "mfu": 0.4, "peak_memory_gb": 60.5, "seconds": 1.0}
VALIDATION = {"kind": "validation", "step": 3, "stage": "a", "val_loss": 2.0, "val_bits_per_byte": 1.5}
KNOWN = {"train/loss": 2.5, "lr": 0.1, "tokens_per_second": 5e4, "mfu": 0.4, "memory": 60.5, "tokens": 30}


def test_rows_have_the_names_that_people_know():
    assert scalars(TRAIN).items() >= KNOWN.items() | {"train/lr": 0.1, "train/mfu": 0.4}.items()
    assert scalars(VALIDATION).items() >= {"val/loss": 2.0, "validation/val_loss": 2.0}.items()
    rows = [
        {"kind": "evaluation", "step": 3, "attention": name, "passkey": 0.5}
        for name in ("full", "lighthouse")
    ]
    assert [*map(scalars, rows)] == [{"evaluation/full/passkey": 0.5}, {"evaluation/lighthouse/passkey": 0.5}]
    assert scalars({"kind": "changed", "step": 3, "changed": ["a"], "flag": True, "none": None}) == {}


def cell(length, depth, exact, pairs=1):
    return {"pairs": pairs, "length": length, "depth": depth, "loss": 1.0, "exact": exact, "n": 4}


RECALL = {"exact": 0.5, "cells": [cell(1024, 0.0, 1.0), cell(1024, 1.0, None), cell(2048, 1.0, 0.25)]}
BUCKETS = {"buckets": [{"begin": 0, "end": 64, "loss": 3.0}]}
RESULT = {"step": 3, "full": {"recall": RECALL, "loss_by_position": BUCKETS}, "lighthouse": None}
SAMPLE = {"prompt": "a*", "text": "b\n# c"}


def test_an_evaluation_has_tables_and_heat_maps():
    assert [(table.name, table.rows[-1]) for table in tables(RESULT)] == [
        ("full/recall", [1, 2048, 1.0, 1.0, 0.25, 4]),
        ("full/loss_by_position", [0, 64, 3.0]),
    ]
    (heat_map,) = heat_maps(RESULT["full"])
    assert (heat_map.name, heat_map.lengths, heat_map.depths) == ("recall_1", [1024, 2048], [0.0, 1.0])
    assert heat_map.shares == [[1.0, None], [None, 0.25]]
    ((name, pixels),) = pictures(RESULT)
    assert name == "full/recall_1" and pixels.dtype == np.uint8 and pixels.shape[2] == 3 and pixels.std() > 10


def test_wandb_gets_tables_images_and_samples(opened):
    service = Service()
    tracker, printed = opened(service)
    tracker.evaluated(3, RESULT)
    tracker.sampled(3, [SAMPLE])
    evaluation, samples = service.rows
    assert evaluation["evaluation/full/recall"][0] == ["pairs", "length", "depth", "loss", "exact", "n"]
    assert len(evaluation["evaluation/full/recall_1_map"]) == 3 and evaluation["step"] == 3
    assert samples["samples"] == (["prompt", "text"], [["a*", "b\n# c"]]) and not printed


def test_tensorboard_files_can_be_read_back(opened, tmp_path):
    """A resumed run replaces what it had written for the steps that it repeats."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for losses in ({1: 9.0, 2: 8.0, 3: 7.0}, {3: 2.5, 4: 2.0}):  # the second process resumes from step 2
        tracker, printed = opened(None, LoggerConfig(kind="tensorboard"))
        for step, loss in losses.items():
            tracker.take(TRAIN | {"step": step, "loss": loss})
        tracker.take(VALIDATION | {"step": step})
        tracker.evaluated(step, RESULT)
        tracker.sampled(step, [SAMPLE])
        tracker.finish(None)
        assert not printed
    read = EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    assert [(e.step, e.value) for e in read.Scalars("train/loss")] == [(1, 9), (2, 8), (3, 2.5), (4, 2)]
    assert [(e.step, e.value) for e in read.Scalars("val/loss")] == [(4, 2.0)]
    assert {*KNOWN, "train/mfu", "validation/val_loss"} <= set(read.Tags()["scalars"])
    texts = {tag.removesuffix("/text_summary"): read.Tensors(tag)[-1] for tag in read.Tags()["tensors"]}
    assert (
        b"| 1 | 2048 | 1.0 | 1.0 | 0.25 | 4 |" in texts["evaluation/full/recall"].tensor_proto.string_val[0]
    )
    assert texts["samples/0"].tensor_proto.string_val[0] == b"    a*b\n    # c\n"
    assert [image.step for image in read.Images("evaluation/full/recall_1")] == [4]


def test_lines_of_repeated_steps_are_replaced(opened, tmp_path):
    path = tmp_path / "scalars.jsonl"
    for steps in ([1, 2, 3], [3, 4]):
        tracker, _ = opened(None, LoggerConfig(kind="jsonl"))
        for step in steps:
            tracker.take(TRAIN | {"step": step})
        with path.open("a") as file:
            file.write('{"step": ')  # a process was killed while it wrote
    *lines, last = path.read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4] and last == '{"step": '
    assert json.loads(lines[0]).items() >= KNOWN.items()
