"""What is measured, and how much of it fits."""

from dataclasses import replace

from lhtrain.conf.schema import EvalConfig
from lhtrain.evaluation.plan import Plan, default_lengths, fitted

PLAN = Plan(("loss_by_position", "recall", "passkey"), 4096, (1024, 4096), (0.1, 0.9), 4)


def cost(plan):
    return sum(length * count for length, count in plan.passes())


def test_lengths_are_doubled_up_to_the_context():
    assert default_lengths(6000) == (1024, 2048, 4096, 6000)
    assert default_lengths(1024) == (1024,) and default_lengths(256) == (256,)
    plan = Plan.of(EvalConfig(lengths=[512, 256, 512], tasks=["recall", "recall"], depths=[0.9, 0.1]), 256)
    assert (plan.lengths, plan.tasks, plan.depths) == ((256, 512), ("recall",), (0.1, 0.9))


def test_short_contexts_are_parts_of_the_context():
    assert (PLAN.short, PLAN.tail) == (2048, 512)
    longer = replace(PLAN, context=98_304)
    assert (longer.short, longer.tail) == (4096, 1024)


def test_a_length_beyond_the_context_is_left_out_first():
    config = EvalConfig(lengths=[1024, 8192], tasks=["loss_by_position", "recall"])
    plan = Plan.of(config, 4096)
    assert plan.longest == 8192 and plan.beyond == replace(plan, context=8192, longest=0)
    assert list(plan.passes())[:2] == [(4096, 16), (8192, 16)]
    assert fitted(plan, cost(plan), cost) == plan
    assert fitted(plan, cost(plan) - 1, cost) == replace(plan, longest=0)
    assert Plan.of(EvalConfig(lengths=[1024, 4096]), 4096).beyond is None
    assert Plan.of(EvalConfig(), 4096).beyond is None


def test_passes_are_counted_for_each_task():
    assert list(replace(PLAN, tasks=("loss_by_position",)).passes()) == [(4096, 16)]
    recall = list(replace(PLAN, tasks=("recall",)).passes())
    assert recall == [(1024, 3 * (8 + 4)), (4096, 3 * (8 + 4))]
    assert list(replace(PLAN, tasks=()).passes()) == []


def test_samples_and_then_tasks_are_reduced_to_fit():
    assert fitted(PLAN, cost(PLAN), cost) == PLAN
    half = fitted(PLAN, cost(PLAN) - 1, cost)
    assert half == replace(PLAN, samples=2)
    single = replace(PLAN, samples=1)
    fewer = fitted(PLAN, cost(single) - 1, cost)
    assert fewer.tasks == PLAN.tasks[:2]
    assert fitted(PLAN, cost(replace(single, tasks=PLAN.tasks[:1])) - 1, cost) is None
