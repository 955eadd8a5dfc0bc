"""Which settings must be the same on all ranks."""

import json

import pytest

from lhtrain.conf.compose import check_overrides
from lhtrain.distributed import agreement
from lhtrain.distributed.agreement import differences, settings


def said(*overrides):
    """What a rank with these settings says, as it arrives at the others."""
    return json.loads(
        json.dumps(settings(check_overrides(["stage=dense", "run.dir=d", "run.name=n", *overrides])))
    )


@pytest.mark.parametrize(
    "override",
    [
        *("optim.lr=0.5", "optim.betas=[0.8,0.9]", "optim.z_loss=0.1", "run.steps=7", "run.seed=7"),
        *("run.batch_tokens=131072", "run.log_every=7", "eval.every=7", "eval.tokens=65536"),
        *("checkpoint.every=7", "checkpoint.keep=7", "parallel.reduce_always=true", "parallel.timeout=700"),
        *("model.n_layers=7", "compute.precision=bfloat16", "guard.max_skips=7", "watchdog.step=7"),
        *("data.val_fraction=0.2", "resume=auto", "init_from=a", "stages.dense.lr_scale=2"),
    ],
)
def test_what_decides_a_run_or_when_ranks_meet_is_compared(override):
    lines = differences([said(), said(override)])  # of several keys, where others follow from it
    assert any(line.startswith(f"{override.partition('=')[0]}: ") for line in lines)
    assert all(line.endswith(" on rank 1") for line in lines)


@pytest.mark.parametrize(
    "override",
    [
        *("run.dir=e", "run.name=m", "data.cache_dir=c", "data.workers=2"),
        *("logger.mode=online", "cluster.partition=p"),
    ],
)
def test_what_only_rank_0_uses_and_places_of_data_may_differ(override):
    assert differences([said(), said(override)]) == []


def test_many_differences_are_cut_and_counted():
    class Everyone:
        def exchange(self, mine, timeout):
            return [{f"key{number}": rank for number in range(50)} for rank in range(2)]

    with pytest.raises(agreement.Disagreement) as found:
        agreement.agree(Everyone(), {})
    lines = str(found.value).splitlines()
    assert len(lines) == 1 + agreement.MOST_LINES + 1 and lines[-1].strip() == "and 30 more"


def test_long_values_are_cut_but_compared_whole():
    long = "x" * 500
    (line,) = differences([{"key": f"{long}a"}, {"key": f"{long}b"}])
    assert len(line) < 400


def test_other_code_is_seen(tmp_path, monkeypatch):
    """The same version with a changed file: what an edit on one machine makes."""
    (tmp_path / "top").mkdir()
    (tmp_path / "data").symlink_to("top")  # as the package's folders are
    (tmp_path / "__init__.py").write_text("")
    (tmp_path / "data" / "a.py").write_text("a = 1\n")
    monkeypatch.setattr(agreement.lhtrain, "__file__", str(tmp_path / "__init__.py"))
    digest = agreement.code_digest.__wrapped__
    before = digest()
    (tmp_path / "notes.txt").write_text("no code")
    assert digest() == before
    (tmp_path / "data" / "a.py").write_text("a = 2\n")
    assert digest() != before
