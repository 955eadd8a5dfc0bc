"""profile.steps in the real command: on one rank and on two, and after a resume."""

import gzip
import json

import pytest

pytestmark = pytest.mark.slow
PARTS = ("data", "forward", "backward", "clip", "optimizer")


def _spans(path):
    """The names and times of the spans in a trace, in order of time."""
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    found = [event for event in events if event.get("cat") == "user_annotation"]
    return sorted((event["ts"], event["dur"], event["name"]) for event in found)


def check_trace(path, steps, micro_batches=1):
    """The trace has each part of exactly these steps, inside the span of its step."""
    found = _spans(path)
    whole = [span for span in found if span[2].startswith("ProfilerStep#")]
    assert [name for _, _, name in whole] == [f"ProfilerStep#{step}" for step in steps]
    for begin, duration, _ in whole:
        inside = [name for at, _, name in found if begin < at < begin + duration and name in PARTS]
        assert inside == ["data", *["forward", "backward"] * micro_batches, "clip", "optimizer"]
    assert sum(name in PARTS for _, _, name in found) == len(whole) * (3 + 2 * micro_batches)


def test_a_run_profiles_its_steps_and_a_resumed_one_the_rest(lhtrain):
    whole = lhtrain("profiled", "run.steps=6", "profile.steps=[2,3]", "eval.every=100")
    folder = whole.path / "profile"
    check_trace(folder / "rank_00000.steps_2-3.pt.trace.json.gz", [2, 3], micro_batches=2)
    assert whole.summary["profile"]["steps"] == [2, 3]
    assert "Kineto" not in whole.err and "USDT" not in whole.err, whole.err
    again = lhtrain.bare("extend", str(whole.path), "steps=+2", "profile.steps=[6,8]")
    assert again.returncode == 0, again.stderr
    assert "step 6 is already done; the trace begins with 7" in again.stdout
    check_trace(folder / "rank_00000.steps_7-8.pt.trace.json.gz", [7, 8], micro_batches=2)


def test_each_rank_writes_its_own_trace(lhtrain):
    run = lhtrain("profiled_ranks", "run.steps=2", "profile.steps=[2,2]", "run.grad_accum=1", ranks=2)
    names = sorted(path.name for path in (run.path / "profile").iterdir())
    assert names == [f"rank_0000{rank}.steps_2-2.pt.trace.json.gz" for rank in range(2)]
    for name in names:
        check_trace(run.path / "profile" / name, [2])
    assert "Kineto" not in run.err and "USDT" not in run.err, run.err
