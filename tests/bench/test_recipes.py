"""The comparison of recipes: its stages, its rival attention and its rows."""

import dataclasses
import importlib.util
import json
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
import yaml

from lhtrain.attention.documents import documents_of
from lhtrain.attention.where import Where
from lhtrain.attention.window_kernels import naive_window
from lhtrain.conf.schema import StageConfig
from lhtrain.registry import ATTENTIONS

BENCH = Path(__file__).parents[2] / "scripts" / "bench"
STAGES = BENCH / "recipes" / "stage"


def module(name):
    spec = importlib.util.spec_from_file_location(name, BENCH / f"{name}.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.fixture
def recipes(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))  # as for a script in this folder
    yield module("recipes")
    sys.modules.pop("rows", None)


def test_every_recipe_has_its_stages_and_no_file_is_left_over(recipes):
    named = {recipe.stage for study in recipes.STUDIES.values() for recipe in study.values()}
    assert named | {"lengths"} == {path.stem for path in STAGES.glob("*.yaml")}  # lengths is for train.py


@pytest.mark.parametrize("path", sorted(STAGES.glob("*.yaml")), ids=lambda path: path.stem)
def test_stages_have_keys_of_the_schema(path):
    known = {field.name for field in dataclasses.fields(StageConfig)}
    stages = yaml.safe_load(path.read_text())
    assert stages and all(set(stage) <= known and "attention" in stage for stage in stages.values())
    assert sum(stage.get("fraction", 0) for stage in stages.values()) < 1


def test_a_window_alone_attends_to_the_window_of_its_document(monkeypatch):
    monkeypatch.setattr(ATTENTIONS, "_entries", dict(ATTENTIONS._entries))  # the module adds to it
    layer = module("window_alone").WindowAlone(5)
    q, k, v = (torch.randn(2, 40, heads, 8) for heads in (4, 2, 2))
    torch.testing.assert_close(layer(q, k, v), naive_window(q, k, v, 5)[0])
    documents = documents_of([[0, 16], [0]], 40, 4)
    out = layer(q, k, v, Where((q, q), documents=documents))
    torch.testing.assert_close(out[:1, 16:], naive_window(*(x[:1, 16:] for x in (q, k, v)), 5)[0])
    torch.testing.assert_close(out[1:], naive_window(*(x[1:] for x in (q, k, v)), 5)[0])


def test_a_row_has_the_numbers_of_the_run_and_of_its_evaluation(recipes, tmp_path):
    stages = [
        {"name": "a", "steps": 6, "seq_len": 64, "wall_clock_seconds": {"compute": 3.0}},
        {"name": "b", "steps": 1, "seq_len": 128, "wall_clock_seconds": {"compute": 1.0}},
    ]
    switch = {"val_loss_before": 2.5, "val_loss_after": 2.75}
    summary = {"name": "n", "tokens": 4096, "stages": stages, "switches": [{}, switch]}
    cells = [
        {"length": 64, "exact": 0.75, "loss": 1.0},
        {"length": 128, "exact": 0.5, "loss": 2.0},
        {"length": 128, "exact": 0.0, "loss": 4.0},
    ]
    full = {
        "loss_by_position": {"loss": 2.0, "last": {"loss": 1.5}},
        "recall": {"exact": 0.5, "cells": cells},
    }
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "eval.json").write_text(json.dumps({"context": 128, "full": full, "lighthouse": None}))
    arguments = Namespace(study="extend", model="", seed=1, csv=tmp_path / "rows.csv")
    row = recipes.row_of(arguments, "it", recipes.Recipe("full", "dense"), tmp_path, "command")
    found = [row[key] for key in ("val_loss", "val_loss_far", "recall", "recall_far", "seconds", "tokens")]
    assert found == [2.0, 1.5, 0.5, 0.25, 4.0, 4096]
    assert (row["switch_before"], row["switch_after"], row["tokens_per_second"]) == (2.5, 2.75, 1024)
    assert (row["recall_near"], row["recall_loss_far"]) == (0.75, 3.0)
    assert row["stages"] == "a: 6 x 64 tokens, 0.500 s; b: 1 x 128 tokens, 1.000 s"
    assert not recipes.is_done(arguments, "command")
    recipes.append(arguments.csv, recipes.COLUMNS, [row])
    assert recipes.is_done(arguments, "command") and not recipes.is_done(arguments, "another")
