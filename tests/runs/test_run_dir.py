"""Settings that a resumed run must share with the saved run, and the copy of the tokenizer."""

import pytest
from tokenizers import Tokenizer, models

from lhtrain.data.tokenizers.named import open_tokenizer
from lhtrain.runs.changes import differing
from lhtrain.runs.run_dir import RunDir, keep_files

SAVED = {
    "model": {"dim": 64},
    "lighthouse": {},
    "stages": {"one": {"grad_accum": 1, "seq_len": 256}},
    "data": {
        "path": "edu",
        "tokenizer": "prepared:edu",
        "out": None,
        "workers": None,
        "mix": {"web": {"path": "web", "weight": 3}},
    },
    "optim": {"lr": 1e-3},
    "run": {"dir": "runs/a", "seed": 0},
}


def test_data_paths_may_change():
    moved = {"path": "/d/edu", "tokenizer": "prepared:/d/edu", "out": "/d", "workers": 2}
    data = moved | {"mix": {"web": {"path": "/d/web", "weight": 3}}}
    assert differing(SAVED, SAVED | {"data": data, "run": {"dir": "runs/b", "seed": 0}}) == []


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ({}, {"compute": {"float8": True}}, ["compute.float8: False -> True"]),
        ({"compute": {"float8": True}}, {"compute": {"float8": True}}, []),
        (
            {"compute": {"precision": "float32"}},
            {"compute": {"precision": "bfloat16"}},
            ["compute.precision: float32 -> bfloat16"],
        ),
        ({"compute": {"precision": "auto"}}, {"compute": {"precision": "bfloat16"}}, []),
        ({"compute": {"recompute": "none"}}, {"compute": {"recompute": "full", "offload": True}}, []),
        ({"parallel": {"cp": 1}}, {"parallel": {"cp": 2}}, []),
        ({"lighthouse": {"backend": "auto"}}, {"lighthouse": {"backend": "torch"}}, []),
        (
            {"parallel": {"cp": 1}, "lighthouse": {"selection": "local"}},
            {"parallel": {"cp": 2}, "lighthouse": {"selection": "local"}},
            ["parallel.cp: 1 -> 2"],
        ),
    ],
)
def test_compute_settings_may_change_if_only_rounding_changes(before, after, expected):
    saved = SAVED | {"stages": {"one": {"attention": "lighthouse"}}}
    assert [str(change) for change in differing(saved | before, saved | after)] == expected


def test_local_selection_is_compared_only_for_lighthouse_stages():
    local = SAVED | {"lighthouse": {"selection": "local"}, "stages": {"one": {"attention": "dense"}}}
    assert differing(local | {"parallel": {"cp": 1}}, local | {"parallel": {"cp": 2}}) == []


def test_settings_that_change_results_are_returned():
    data = SAVED["data"] | {"mix": {"web": {"path": "web", "weight": 1}}, "tokenizer": "bytes"}
    found = differing(SAVED, SAVED | {"data": data, "run": {"dir": "runs/a", "seed": 1}})
    assert [str(change) for change in found] == [
        "data.mix.web.weight: 3 -> 1",
        "data.tokenizer: prepared: -> bytes",
        "run.seed: 0 -> 1",
    ]


def test_a_run_keeps_its_tokenizer_file(tmp_path):
    file, run_dir = tmp_path / "mine.json", RunDir(tmp_path / "run")
    run_dir.path.mkdir()
    keep_files(run_dir, open_tokenizer("bytes"))
    assert not any(run_dir.path.iterdir())
    tokenizer = Tokenizer(models.BPE())
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.save(str(file))
    run_dir.tokenizer.symlink_to(tmp_path / "precious")
    keep_files(run_dir, open_tokenizer(str(file)))
    assert run_dir.tokenizer.read_bytes() == file.read_bytes()
    assert not (tmp_path / "precious").exists() and not run_dir.tokenizer.is_symlink()
