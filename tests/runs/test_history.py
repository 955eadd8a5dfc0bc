"""history.jsonl: the starts of a run and the changed settings that were accepted."""

import json

from lhtrain.runs.changes import Change
from lhtrain.runs.history import History, as_records


def test_the_latest_accepted_value_of_a_key_counts(tmp_path):
    history = History(tmp_path / "history.jsonl")
    assert history.records() == [] and history.accepted() == {} and history.n_ranks() is None
    history.add("start", changed=[], ranks=2)
    history.add("start", changed=as_records([Change("optim.lr", 1e-3, 1e-4)]), ranks=4)
    history.add("extend", changed=as_records([Change("run.steps", 8, 16), Change("optim.lr", 1e-4, 1e-5)]))
    assert history.accepted() == {"optim.lr": 1e-5, "run.steps": 16}
    assert history.accepted("start") == {"optim.lr": 1e-4}
    assert history.n_ranks() == 4 and not history.has_checkpoint()
    record = history.records()[0]
    assert {"time", "command", "cwd", "host", "versions", "ranks"} <= record.keys()


def test_damaged_lines_are_skipped(tmp_path):
    path = tmp_path / "history.jsonl"
    path.write_bytes(
        b'\xff\xfe\n[1]\n{"event": "start", "changed": 3}\n{"event": "checkpoint"}\n{"event": "st'
    )
    history = History(path)
    assert history.has_checkpoint() and history.accepted() == {}
    history.add("start", changed=[])
    assert json.loads(path.read_bytes().split(b"\n")[-2])["event"] == "start"
