"""The tasks of eval.tasks during a run: what fits into eval.share."""

import pytest

from lhtrain.compute.fill import compose_config
from lhtrain.conf.problems import ConfigError
from lhtrain.evaluation.loop import LoopTasks

SMALL = ["data=text", "data.path=.", "stage=curriculum", "run.steps=40", "stages.short.lr=1e-3"]


def tasks(*overrides):
    return LoopTasks(compose_config([*SMALL, *overrides]), None, None)


def measured(found):
    """The steps after which something is measured."""
    for step in range(1, 41):
        stage = found.schedule.stages[found.schedule.names[found.schedule.lookup(step - 1).stage]]
        if found.plan(step, stage) is not None:
            yield step


def test_a_share_that_is_too_small_is_named_with_one_that_is_enough():
    found = tasks("eval.tasks_every=20", "eval.share=0.001")
    assert not list(measured(found))
    (warning,) = found.warnings()
    assert warning.startswith(
        "eval.tasks_every=20: nothing is measured, because eval.share=0.001 is too small"
    )
    share = warning.partition("needs eval.share=")[2].split(",")[0]
    enough = tasks("eval.tasks_every=20", f"eval.share={share}")
    assert list(measured(enough)) == [20, 40] and enough.warnings() == []
    less = tasks("eval.tasks_every=20", f"eval.share={float(share) * 0.9}")
    assert less.warnings()


def test_stages_without_a_measurement_are_named():
    """A long stage costs more than a short one."""
    found = tasks("eval.tasks_every=10", "eval.share=0.1", "eval.tasks=[loss_by_position]")
    steps = list(measured(found))
    assert steps == [10] and "in stage lighthouse, recovery," in found.warnings()[0]


@pytest.mark.parametrize(
    ("overrides", "rule"),
    [
        (["eval.tasks_every=50"], "nothing is measured, because the run has 40 steps"),
        (["eval.tasks_every=1", "eval.share=0.5"], "for 40 measurements; needs fewer measurements"),
    ],
)
def test_measurements_that_never_fit_are_named(overrides, rule):
    assert rule in tasks(*overrides).warnings()[0]


def test_lengths_far_beyond_the_context_are_allowed_with_a_warning():
    longest = max(stage.seq_len for stage in tasks().schedule.stages.values())
    assert tasks(f"eval.lengths=[{2 * longest}]").warnings() == []
    with pytest.raises(ConfigError, match=r"eval\.beyond=2 times the context.*eval\.beyond=3\.1 allows"):
        tasks(f"eval.lengths=[{3 * longest + 64}]")
    (warning,) = tasks(f"eval.lengths=[{3 * longest}]", "eval.beyond=3").warnings()
    assert "3.0 times the context" in warning


@pytest.mark.parametrize("overrides", [[], ["eval.tasks=[]", "eval.tasks_every=10"]])
def test_a_run_that_asked_for_nothing_is_not_warned(overrides):
    """Without eval.tasks_every, docs/judging.md says that very short runs measure nothing."""
    found = tasks(*overrides, "eval.share=0.001")
    assert found.warnings() == [] and not list(measured(found))
