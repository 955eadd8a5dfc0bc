"""`plugins=[MODULE]`: a module outside the package adds names that a configuration may use."""

import sys

import pytest

from lhtrain.conf.compose import check_overrides
from lhtrain.conf.problems import ConfigError
from lhtrain.registry import ATTENTIONS, OPTIMIZERS, SCORERS, TRACKERS
from lhtrain.runs.changes import as_container, differing
from lhtrain.runs.own_config import load
from lhtrain.runs.run_dir import RunDir

PLUGIN = """
from lhtrain.registry import ATTENTIONS, OPTIMIZERS, SCORERS, TRACKERS

@ATTENTIONS.add("sliding")
class Sliding: ...

@SCORERS.add("lottery")
class Lottery: ...

@OPTIMIZERS.add("lion")
class Lion:
    @staticmethod
    def problems(options):
        for name, value in options.items():
            if name != "momentum":
                yield name, value, "no such option of lion"

@TRACKERS.add("csv")
class Csv: ...
"""
NAMED = [
    "optim.kind=lion",
    "logger.kind=csv",
    "lighthouse.scorer=lottery",
    "stages.recovery.attention=sliding",
]


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """The name of a plugin in the current folder; the names that it adds are removed after the test."""
    (tmp_path / "planted_plugin.py").write_text(PLUGIN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for registry in (ATTENTIONS, SCORERS, OPTIMIZERS, TRACKERS):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    yield "planted_plugin"
    sys.modules.pop("planted_plugin", None)


def problems(*overrides):
    with pytest.raises(ConfigError) as caught:
        check_overrides(list(overrides))
    return [str(problem) for problem in caught.value.problems]


def test_a_plugin_adds_all_four_kinds(plugin):
    config = check_overrides([f"plugins=[{plugin}]", *NAMED, "optim.options.momentum=0.9"])
    assert config.stages["recovery"].attention == "sliding"
    assert {stage.scorer for stage in config.stages.values()} == {"lottery"}
    assert (config.optim.kind, config.logger.kind, config.plugins) == ("lion", "csv", [plugin])
    assert config.optim.options == {"momentum": 0.9}


def test_without_the_plugin_its_names_are_refused(plugin):
    assert sorted(problems(*NAMED)) == [
        "lighthouse.scorer=lottery: must be one of norm, dilated, gla, position, recent",
        "logger.kind=csv: must be one of none, wandb, tensorboard, jsonl",
        "optim.kind=lion: must be one of adamw, muon",
        "stages.recovery.attention=sliding: must be one of dense, lighthouse",
    ]


def test_for_a_mistyped_name_the_nearest_is_suggested(plugin):
    (found,) = problems(f"plugins=[{plugin}]", "stages.recovery.attention=slidding")
    assert found.endswith("must be one of dense, lighthouse, sliding; did you mean sliding?")


def test_a_plugin_that_cannot_be_imported_is_a_problem(tmp_path, monkeypatch):
    (tmp_path / "broken_plugin.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    missing, broken = problems("plugins=[no_such_plugin,broken_plugin]")
    assert missing.startswith(
        "plugins=no_such_plugin: cannot be imported (ModuleNotFoundError: No module named"
    )
    assert broken.startswith(
        "plugins=broken_plugin: cannot be imported (ZeroDivisionError: division by zero)"
    )


def test_the_plugin_decides_which_options_are_refused(plugin):
    named = [f"plugins=[{plugin}]", "optim.kind=lion", "logger.kind=csv"]
    assert problems(*named, "optim.options={momentum: 1, beta: 2}", "logger.options.any=1") == [
        "optim.options.beta=2: no such option of lion"
    ]


def test_the_objects_of_lhtrain_have_no_options():
    assert problems("optim.options.momentum=0.9", "stages.recovery.options.window=3") == [
        "optim.options.momentum=0.9: optimizer adamw: has no options",
        "stages.recovery.options.window=3: attention dense and scorer norm: has no options",
    ]


def test_a_file_of_options_keeps_their_types(plugin, tmp_path):
    (tmp_path / "optim").mkdir()
    text = "kind: lion\noptions: {momentum: {rate: 1e-3, steps: 10, on: true, name: '010', few: [1, a]}}\n"
    (tmp_path / "optim" / "lion.yaml").write_text(text)
    config = check_overrides([f"hydra.searchpath=[file://{tmp_path}]", f"plugins=[{plugin}]", "optim=lion"])
    options = {"momentum": {"rate": 0.001, "steps": 10, "on": True, "name": "010", "few": [1, "a"]}}
    assert config.optim.options == options


def test_a_saved_configuration_loads_its_plugins_and_takes_new_options(plugin, tmp_path):
    from omegaconf import OmegaConf

    config = check_overrides([f"plugins=[{plugin}]", *NAMED, "optim.options.momentum=0.9"])
    OmegaConf.save(OmegaConf.create(as_container(config)), RunDir(tmp_path).config)
    sys.modules.pop(plugin)
    for registry in (ATTENTIONS, SCORERS, OPTIMIZERS, TRACKERS):
        registry._entries = {
            name: entry for name, entry in registry._entries.items() if registry.is_ours(name)
        }
    again = load(tmp_path, ["optim.options.momentum=0.5"])
    assert again.optim.options == {"momentum": 0.5}
    changes = differing(as_container(config), as_container(again))
    assert [str(change) for change in changes] == ["optim.options.momentum: 0.9 -> 0.5"]


def test_a_run_older_than_plugins_does_not_differ():
    config = as_container(check_overrides([]))
    older = as_container(check_overrides([]))
    del older["plugins"], older["optim"]["kind"], older["optim"]["options"], older["logger"]["options"]
    for stage in older["stages"].values():
        del stage["options"]
    assert differing(older, config) == []
