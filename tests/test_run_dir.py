"""Which settings a resumed run must share with the saved one."""

from lhtrain.run_dir import differing

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
    assert differing(SAVED, SAVED | {"data": data, "run": {"dir": "runs/a", "seed": 1}}) == [
        "data.mix.web.weight: 3 -> 1",
        "data.tokenizer: prepared: -> bytes",
        "run.seed: 0 -> 1",
    ]
