"""profile.steps: traces of the steps asked for, and what is left of them after a resume."""

import gzip
import json

import pytest
import torch

from lhtrain import profiler
from lhtrain.compute.fill import compose_config
from lhtrain.conf.problems import ConfigError
from lhtrain.conf.schema import ProfileConfig
from lhtrain.distributed.world import Ranks, World


def spans(path):
    """The names and times of the spans in a trace, in order of time."""
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    found = [event for event in events if event.get("cat") == "user_annotation"]
    return sorted((event["ts"], event["dur"], event["name"]) for event in found)


@pytest.fixture
def made(tmp_path):
    def make(done=0, **config):
        told = []
        world = World(Ranks(), torch.device("cpu"))
        made = profiler.StepProfiler(
            ProfileConfig(**config), tmp_path, world, done, lambda *values: told.append(values)
        )
        made.told = told
        return made

    return make


def run(profiler, steps):
    with profiler:
        for step in steps:
            with profiler.step(step), profiler.span("forward"):
                torch.ones(64, 64) @ torch.ones(64, 64)


def test_the_trace_has_the_steps_asked_for_and_no_others(made, tmp_path):
    profiled = made(steps=[3, 4])
    run(profiled, range(1, 7))
    (path,) = tmp_path.iterdir()
    assert path.name == "rank_00000.steps_3-4.pt.trace.json.gz"
    assert [name for _, _, name in spans(path)] == ["ProfilerStep#3", "forward", "ProfilerStep#4", "forward"]
    ((about, lines),) = profiled.told
    assert about["steps"] == [3, 4] and about["trace"] == path.name
    (product,) = (operator for operator in about["operators"] if operator["name"] == "aten::mm")
    assert product["calls"] == 2 and 0 < product["share"] < 1
    assert str(path) in lines[0] and any("aten::mm" in line for line in lines)
    assert "no memory snapshot" in lines[-1]


def test_with_stacks_only_operators_are_listed(made, tmp_path):
    profiled = made(steps=[2, 2], stacks=True)
    run(profiled, range(1, 3))
    (path,) = tmp_path.iterdir()
    assert b"python_function" in gzip.decompress(path.read_bytes())
    names = [operator["name"] for operator in profiled.told[0][0]["operators"]]
    assert "aten::mm" in names and all(name.startswith("aten::") for name in names)


def test_without_steps_nothing_is_recorded_or_written(made, tmp_path, monkeypatch):
    monkeypatch.setattr(profiler, "record_function", None)
    monkeypatch.setattr(profiler, "profile", None)
    profiled = made()
    run(profiled, range(1, 4))
    assert not profiled.told and not profiled.notes(9) and not list(tmp_path.iterdir())


def test_a_run_that_ends_early_or_fails_writes_the_steps_that_it_did(made, tmp_path):
    run(made(steps=[2, 9]), range(1, 4))
    assert [path.name for path in tmp_path.iterdir()] == ["rank_00000.steps_2-3.pt.trace.json.gz"]
    failing = made(steps=[5, 9])
    with pytest.raises(MemoryError), failing, failing.step(5):
        raise MemoryError
    assert (tmp_path / "rank_00000.steps_5-5.pt.trace.json.gz").exists()


@pytest.mark.parametrize(
    ("done", "begins", "note"), [(0, 2, None), (2, 3, "begins with 3"), (4, None, "no step is profiled")]
)
def test_after_a_resume_the_steps_that_are_left_are_profiled(made, tmp_path, done, begins, note):
    profiled = made(done, steps=[2, 4])
    run(profiled, range(done + 1, 7))
    found = [path.name for path in tmp_path.iterdir()]
    assert found == ([f"rank_00000.steps_{begins}-4.pt.trace.json.gz"] if begins else [])
    assert [note in line for line in profiled.notes(9)] == ([True] if note else [])


def test_a_trace_that_begins_after_the_run_is_mentioned(made):
    assert "ends with step 5" in made(steps=[7, 8]).notes(5)[0]


def test_a_folder_that_cannot_be_written_does_not_end_the_run(made, tmp_path):
    profiled = made(steps=[1, 1])
    profiled.folder = tmp_path / "file"
    profiled.folder.write_text("")
    run(profiled, range(1, 3))
    ((about, lines),) = profiled.told
    assert "not written" in lines[-1] and "trace" not in about


@pytest.mark.parametrize("steps", ["[3]", "[0,3]", "[4,3]", "[1,101]", "[1,2,3]"])
def test_steps_that_make_no_sense_are_refused(steps):
    with pytest.raises(ConfigError, match=r"profile\.steps"):
        compose_config([f"profile.steps={steps}"])
