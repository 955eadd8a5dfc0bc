"""Which settings a resumed run must share with the saved one; what it keeps a copy of."""

from tokenizers import Tokenizer, models

from lhtrain.data.tokenizer import open_tokenizer
from lhtrain.run_dir import RunDir, differing, keep_tokenizer

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


def test_data_may_move():
    moved = {"path": "/d/edu", "tokenizer": "prepared:/d/edu", "out": "/d", "workers": 2}
    data = moved | {"mix": {"web": {"path": "/d/web", "weight": 3}}}
    assert differing(SAVED, SAVED | {"data": data, "run": {"dir": "runs/b", "seed": 0}}) == []


def test_what_decides_the_numbers_is_told():
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
    keep_tokenizer(run_dir, open_tokenizer("bytes"))
    assert not any(run_dir.path.iterdir())
    tokenizer = Tokenizer(models.BPE())
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.save(str(file))
    run_dir.tokenizer.symlink_to(tmp_path / "precious")
    keep_tokenizer(run_dir, open_tokenizer(str(file)))
    assert run_dir.tokenizer.read_bytes() == file.read_bytes()
    assert not (tmp_path / "precious").exists() and not run_dir.tokenizer.is_symlink()
