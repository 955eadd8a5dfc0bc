"""Loading the configuration of a run directory, and extending the run; a refusal changes nothing."""

import pytest
from omegaconf import OmegaConf

from lhtrain.compute.fill import compose_config
from lhtrain.conf.problems import ConfigError
from lhtrain.errors import RunError
from lhtrain.runs.changes import as_container
from lhtrain.runs.extend import lengthen
from lhtrain.runs.own_config import load


@pytest.fixture
def run_dir(tmp_path):
    """The directory of a run of four steps, with its configuration and an empty checkpoint."""
    config = compose_config([f"run.dir={tmp_path}", "run.name=n", "stage=dense", "run.steps=4"])
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(as_container(config))))
    done = tmp_path / "checkpoints" / "step_00000004"
    done.mkdir(parents=True)
    (done / "manifest.json").write_text("{}")
    return tmp_path


@pytest.mark.parametrize("steps", ["1__0", "+1_", "_1", "+４", "9" * 5000, "1e1", "-1", ""])
def test_steps_that_are_no_number_are_refused(run_dir, steps):
    with pytest.raises(ConfigError, match=r"must be \+N .* or N "):
        lengthen(run_dir, steps)


@pytest.mark.parametrize("steps", ["99999999999999", "+2147483647"])
def test_a_longer_plan_that_breaks_a_rule_is_not_written(run_dir, steps):
    before = (run_dir / "config.yaml").read_bytes()
    with pytest.raises(ConfigError, match=r"run\.steps=.*at most"):
        lengthen(run_dir, steps)
    assert (run_dir / "config.yaml").read_bytes() == before
    assert not (run_dir / "history.jsonl").exists() and not (run_dir / "config.0001.yaml").exists()
    assert load(run_dir, []).run.steps == 4


@pytest.mark.parametrize(
    ("typed", "remedy"), [("stage=ladder", "init_from="), ("experiment=smoke", "single keys")]
)
def test_a_preset_for_a_run_that_continues_is_refused_with_what_can_be_set(run_dir, typed, remedy):
    with pytest.raises(ConfigError, match=f"{typed}: .*{remedy}"):
        load(run_dir, [typed])


def test_more_steps_are_refused_with_the_command_that_makes_a_run_longer(run_dir):
    two_stages = compose_config([f"run.dir={run_dir}", "run.name=n", "run.steps=4"])
    (run_dir / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(as_container(two_stages))))
    with pytest.raises(ConfigError, match=f"run.steps=6: .*lhtrain extend {run_dir} steps=6"):
        load(run_dir, ["run.steps=6"])
    with pytest.raises(ConfigError) as shorter:
        load(run_dir, ["run.steps=3"])
    assert "run.steps=3" in str(shorter.value) and "extend" not in str(shorter.value)


def test_a_run_that_set_init_without_init_from_resumes(run_dir):
    """Earlier versions accepted and ignored it."""
    saved = OmegaConf.load(run_dir / "config.yaml")
    saved.init = "weights"
    OmegaConf.save(saved, run_dir / "config.yaml")
    assert load(run_dir, []).init.name == "auto"
    with pytest.raises(ConfigError, match=r"init=all: .*set init_from="):
        load(run_dir, ["init=all"])


def test_the_scaling_of_a_run_can_be_changed(run_dir):
    """It is a mapping, which is replaced as a whole."""
    saved = OmegaConf.load(run_dir / "config.yaml")
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    saved.model.rope_scaling = saved.stages.dense.rope_scaling = yarn
    OmegaConf.save(saved, run_dir / "config.yaml")
    linear = {"rope_type": "linear", "factor": 2}
    found = load(run_dir, ["model.rope_scaling={rope_type: linear, factor: 2}"])
    assert found.model.rope_scaling == found.stages["dense"].rope_scaling == linear
    found = load(run_dir, ["model.rope_scaling=null"])
    assert found.model.rope_scaling is found.stages["dense"].rope_scaling is None
    found = load(run_dir, ["model.rope_scaling.factor=8"])
    assert found.model.rope_scaling == found.stages["dense"].rope_scaling == yarn | {"factor": 8}
    found = load(run_dir, ["stages.dense.rope_scaling.factor=8"])
    assert (found.model.rope_scaling, found.stages["dense"].rope_scaling["factor"]) == (yarn, 8)


def test_underscores_within_a_number_are_allowed(run_dir):
    lengthen(run_dir, "+1_0")
    assert load(run_dir, []).run.steps == 14


def test_a_restart_by_torchrun_adds_the_steps_once(run_dir, monkeypatch):
    """The earlier attempt may have died before or after its plan was written."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    for _ in range(2):
        lengthen(run_dir, "+10")
        assert load(run_dir, []).run.steps == 14
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    lengthen(run_dir, "+10")
    assert load(run_dir, []).run.steps == 24


def test_an_empty_configuration_and_a_file_as_a_directory_are_named(run_dir):
    with pytest.raises(RunError, match=r"config\.yaml is a file"):
        load(run_dir / "config.yaml", [])
    (run_dir / "config.yaml").write_text("")
    with pytest.raises(RunError, match=r"config\.yaml is empty"):
        load(run_dir, [])


def test_a_share_of_a_stage_with_saved_steps_is_refused(run_dir):
    with pytest.raises(ConfigError, match=r"stages\.dense\.fraction=0.5: has no effect, .*steps=4 is saved"):
        load(run_dir, ["stages.dense.fraction=0.5"])
    load(run_dir, ["stages.dense.fraction=1.0", "stages.dense.steps=null"])


def test_a_mapping_replaces_that_of_the_run(run_dir):
    """So groups of parameters can be removed; with Hydra's merge, groups={} would change nothing."""
    saved = OmegaConf.load(run_dir / "config.yaml")
    saved.optim.groups = {"embedding": 0.3, "blocks.*.ffn": {"lr_scale": 0.5, "weight_decay": 0}}
    OmegaConf.save(saved, run_dir / "config.yaml")
    assert load(run_dir, []).optim.groups == saved.optim.groups
    assert load(run_dir, ["optim.groups={}"]).optim.groups == {}
    assert load(run_dir, ["optim.groups={embedding: 0.5}"]).optim.groups == {"embedding": 0.5}
    changed = load(run_dir, ["optim.groups.embedding=0.5"]).optim.groups
    assert changed == {**saved.optim.groups, "embedding": 0.5}
    for typed in ("~optim.groups", "~optim.groups.embedding"):
        with pytest.raises(ConfigError, match=r"~optim\.groups.*optim\.groups=\{NAME: …\}"):
            load(run_dir, [typed])
