"""The folders of a sweep are named by what was swept."""

import pytest

from lhtrain.conf.typed.sweep import sweep_of
from lhtrain.conf.typed.sweep_names import NAME, name_of, names_of


def names(*overrides):
    return [path.name for path in sweep_of([*overrides, "run.dir=s"]).dirs]


def test_names_have_the_swept_settings_alone_in_the_order_of_their_keys():
    assert names("optim.lr=1e-3,2e-3", "lighthouse.budget=128,256", "run.steps=2") == [
        "budget_128__lr_0.001",
        "budget_256__lr_0.001",
        "budget_128__lr_0.002",
        "budget_256__lr_0.002",
    ]
    assert names("model=gpt_tiny,gpt_130m") == ["model_gpt_tiny", "model_gpt_130m"]
    assert names("run.steps=2") == ["0"], "nothing was swept"
    assert names("run.seed=1,1") == ["0", "1"], "two runs would have the same name"


def test_keys_are_shortened_as_far_as_they_differ():
    keys = ["stages.lighthouse.steps", "stages.recovery.steps", "optim.lr"]
    job = ["stages.lighthouse.steps=1", "stages.recovery.steps=2", "optim.lr=3", "run.steps=4"]
    assert name_of(job, keys) == "lr_3__lighthouse.steps_1__recovery.steps_2"


@pytest.mark.parametrize(
    "value", ["a/b", "../x", "a b", "[0,-1]", "{a: 1}", "ü", "x" * 200, "'a,b'", "$HOME", "a\nb"]
)
def test_names_are_safe_and_differ(value):
    first, second = (name_of([f"k={text}"], ["k"]) for text in (value, value + "y"))
    assert first != second and len(first) <= NAME
    assert all(c.isascii() and (c.isalnum() or c in "._+-") for c in first)


def test_a_long_name_is_shortened_and_differs():
    keys = [f"key{n}" for n in range(30)]
    jobs = [[f"{key}=value{last if key == 'key29' else ''}" for key in keys] for last in (1, 2)]
    assert len(set(names_of(jobs, keys))) == 2 and all(len(name) <= NAME for name in names_of(jobs, keys))


def test_a_folder_name_of_the_user_stays():
    sweep = sweep_of(["optim.lr=1e-3,2e-3", "hydra.sweep.subdir=mine_${hydra.job.num}"])
    assert sweep.dirs == [] and sweep.subdir == []
