"""Renamed keys: the old name works, with a hint, on the command line, in files and in saved runs."""

import pytest
from hydra import compose

from lhtrain.conf import renamed
from lhtrain.conf.compose import check_overrides, hydra, search_path
from lhtrain.conf.explain import explain
from lhtrain.conf.problems import ConfigError
from lhtrain.conf.typed.own_files import read
from lhtrain.runs.changes import as_container, differing
from lhtrain.runs.own_config import load
from lhtrain.runs.run_dir import RunDir


@pytest.fixture(autouse=True)
def planted(monkeypatch):
    monkeypatch.setattr(
        renamed,
        "RENAMED",
        {
            "optim.learning_rate": "optim.lr",
            "safety": "guard",
            "stages.NAME.length": "stages.NAME.seq_len",
            "optim.length": "run.steps",
        },
    )
    renamed.hint.cache_clear()


def test_the_command_line_accepts_the_old_name_with_one_hint(capsys):
    config = check_overrides(["optim.learning_rate=1e-4", "safety.max_skips=7", "stages.recovery.length=512"])
    assert (config.optim.lr, config.guard.max_skips, config.stages["recovery"].seq_len) == (1e-4, 7, 512)
    check_overrides(["optim.learning_rate=1e-4"])
    assert capsys.readouterr().err.splitlines() == [
        "lhtrain: optim.learning_rate is now optim.lr; the old name works in this release",
        "lhtrain: safety.max_skips is now guard.max_skips; the old name works in this release",
        "lhtrain: stages.recovery.length is now stages.recovery.seq_len; the old name works in this release",
    ]


def test_a_wrong_value_is_reported_under_the_new_name():
    with pytest.raises(ConfigError, match=r"optim\.lr=-1.0: must be greater than 0"):
        check_overrides(["optim.learning_rate=-1"])


def test_a_file_may_have_the_old_name(tmp_path, capsys):
    (tmp_path / "optim").mkdir()
    file = tmp_path / "optim" / "mine.yaml"
    file.write_text("learning_rate: 1e-4\neps: 1e-9\n")
    config = check_overrides([search_folder(tmp_path), "optim=mine"])
    assert (config.optim.lr, config.optim.eps) == (1e-4, 1e-9)
    assert f"{file}: optim.learning_rate is now optim.lr" in capsys.readouterr().err
    file.write_text("learning_rate: -1\n")
    with pytest.raises(ConfigError, match=r"mine.yaml:1: optim.lr=-1.0: must be greater than 0"):
        check_overrides([search_folder(tmp_path), "optim=mine"])


def search_folder(folder):
    return search_path(str(folder))


def test_a_key_that_was_moved_to_another_group_is_reported(tmp_path):
    (tmp_path / "optim").mkdir()
    (tmp_path / "optim" / "mine.yaml").write_text("length: 5\n")
    with pytest.raises(ConfigError, match=r"optim.length=5: no such key; it is now run.steps"):
        check_overrides([search_folder(tmp_path), "optim=mine"])


def test_a_saved_run_with_old_names_does_not_differ(tmp_path):
    now = as_container(check_overrides([]))
    before = as_container(check_overrides([]))
    before["optim"]["learning_rate"] = before["optim"].pop("lr")
    before["safety"] = before.pop("guard")
    assert differing(before, now) == []
    text = "stages: {b: {length: 512, attention: dense}, a: {attention: dense}}\nsafety: {max_skips: 7}\n"
    content = read(text.encode(), "config.yaml", "").typed()
    assert list(content["stages"]) == ["b", "a"]  # the order of the stages is kept
    assert (content["stages"]["b"]["seq_len"], content["guard"]) == (512, {"max_skips": 7})


def test_resume_accepts_the_old_name(tmp_path):
    from omegaconf import OmegaConf

    OmegaConf.save(OmegaConf.create(as_container(check_overrides([]))), RunDir(tmp_path).config)
    assert load(tmp_path, ["optim.learning_rate=1e-4"]).optim.lr == 1e-4


def test_if_both_names_are_present_the_new_one_is_used():
    for tree in ({"learning_rate": 1, "lr": 2}, {"lr": 2, "learning_rate": 1}):
        assert renamed.current_tree({"optim": tree}) == {"optim": {"lr": 2}}


def test_help_explains_the_key_by_either_name():
    with hydra():
        config = compose("config")
    assert explain("optim.learning_rate", config) == explain("optim.lr", config)
