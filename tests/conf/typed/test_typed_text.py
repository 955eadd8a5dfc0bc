"""Text values keep their spelling, on the command line and in the user's files."""

import os
import shlex

import pytest
import yaml

from lhtrain.conf.compose import check_overrides, data_config, search_path
from lhtrain.conf.keys import ONE_OR_MORE
from lhtrain.conf.problems import ConfigError
from lhtrain.conf.typed.overrides import spelled
from lhtrain.conf.typed.sweep import sweep_of
from lhtrain.quote import setting

# Texts that YAML or Hydra would read as numbers of several bases, dates or booleans.
TEXTS = [
    *(
        "2024_11_05",
        "2024-11-05",
        "3.10",
        "1e3",
        "010",
        "0x1F",
        "0o17",
        "1_000",
        "+1",
        ".5",
        "24:00:00",
        "1:30",
    ),
    *("true", "True", "yes", "no", "on", "off", "y", "nan", ".inf", "inf", "=", "1.", "12e03", "a~x"),
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def own(folder, group, text, name="mine"):
    (folder / group).mkdir(exist_ok=True)
    (folder / group / f"{name}.yaml").write_text(text)
    return search_path(str(folder))


@pytest.mark.parametrize("text", TEXTS)
def test_the_command_line_keeps_text(folder, text):
    config = check_overrides(
        ["data=text", f"data.path={text}", f"run.name={text}", f"cluster.account={text}"]
    )
    assert (config.data.path, config.run.name, config.cluster.account) == (text, text, text)
    config = check_overrides([f"data.val_path={text}", f"eval.data={text}"])
    assert (config.data.val_path, config.eval.data) == (text, text)


@pytest.mark.parametrize("text", TEXTS)
def test_a_file_of_the_user_keeps_text(folder, text):
    content = f"# @package _global_\nrun:\n  name: {text}\n  dir: r/{text}\nlogger:\n  tags: [{text}, b]\n"
    search = own(folder, "experiment", content + f"cluster:\n  account: {text}\n")
    config = check_overrides([search, "experiment=mine"])
    assert (config.run.name, config.run.dir, config.cluster.account) == (text, f"r/{text}", text)
    assert config.logger.tags == [text, "b"]


def test_cluster_settings_in_a_file_keep_text(folder):
    search = own(folder, "cluster", "time: 24:00:00\nmemory: 0\naccount: 0123\npython: ~/venv/bin/python\n")
    cluster = check_overrides([search, "cluster=mine"]).cluster
    assert (cluster.time, cluster.memory, cluster.account) == ("24:00:00", "0", "0123")
    assert cluster.python == os.path.expanduser("~/venv/bin/python")


def test_numbers_and_switches_of_files_have_their_types(folder):
    search = own(
        folder,
        "experiment",
        "# @package _global_\nrun: {steps: 1_000, batch_tokens: 8192}\noptim: {lr: 1e-3, betas: [.9, 0.95]}\n"
        "model: {n_layers: 010, tie_embeddings: off, dense_layers: [0, -1]}\ncompute: {compile: off}\n"
        "data:\n  path: ~\nlighthouse: {budget: null}\nwatchdog: {step: 1e2}\n",
    )
    config = check_overrides([search, "experiment=mine"])
    assert (config.run.steps, config.run.batch_tokens, config.optim.lr) == (1000, 8192, 1e-3)
    assert list(config.optim.betas) == [0.9, 0.95] and config.model.dense_layers == [0, -1]
    assert (config.model.n_layers, config.model.tie_embeddings) == (10, False)
    assert config.compute.compile.value == "off" and config.data.path is None
    assert config.watchdog.step == 100


@pytest.mark.parametrize("where", ["", "weight: 2", "weight: 2e0"])
def test_paths_of_a_mixture_keep_text(folder, where):
    part = f"path: 2024_11_05, {where}" if where else "path: 2024_11_05"
    text = f"data.mix={{a: {{{part}}}, b: {{path: ~/b}}}}"
    with pytest.raises(ConfigError) as error:  # because these folders do not exist
        check_overrides(["data=mix", text], here=True)
    said = str(error.value)
    assert "data.mix.a.path='2024_11_05'" in said and os.path.expanduser("'~/b'"[1:-1]) in said


ODD = [
    *("a b", "a=b", "it's", 'say "x"', "ü", "日本", "-dash", "[v2]", "a[1]", "$HOME", "${x}", "100%", "a\nb"),
    *(
        "a\tb",
        "a,b",
        "{a,b}",
        "(x)",
        "a:b",
        "a\\b",
        "a\\",
        "\\'",
        "~x",
        "#c",
        "true",
        "*",
        "a;b",
        "`id`",
        "!x",
    ),
    *("a|b", " lead", "trail ", "''", "choice(a,b)", "=x", "a\\,b", "'q'"),
]


@pytest.mark.parametrize("name", ODD)
def test_an_existing_path_is_not_parsed(folder, name):
    (folder / name).mkdir()
    (word,) = shlex.split(setting("data.path", name))
    for text in (word, f"data.path={name}"):
        assert data_config(["data=text", text]).path == name
    (here,) = shlex.split(setting("run.dir", name))
    assert check_overrides([here]).run.dir == name


@pytest.mark.parametrize("name", ODD)
def test_quoting_a_setting_twice_changes_nothing(name):
    once = spelled([f"data.path={name}", f"run.name={name}"])
    assert spelled(once) == once


def test_lists_null_and_quotes():
    def path(value):
        return check_overrides(["data=text", f"data.path={value}"]).data.path

    assert path("[2024_11_05,3.10]") == ["2024_11_05", "3.10"]
    assert path("[~/a, 'b,c', ü]") == [os.path.expanduser("~/a"), "b,c", "ü"]
    assert path("'null'") == "null" and path("nullable") == "nullable"
    with pytest.raises(ConfigError, match="needs a file or folder"):
        path("null")


@pytest.mark.parametrize("key", ONE_OR_MORE)
def test_lists_of_paths_are_checked_before_the_start(folder, key):
    """Texts of an evaluation would otherwise be missed at the end of the first stage."""
    source = [] if key != "data.path" else ["data=text"]
    for value, found in (("[2024_11_05,'a,b']", ["2024_11_05", "a,b"]), ("3.10", ["3.10"])):
        with pytest.raises(ConfigError) as error:
            check_overrides([*source, f"{key}={value}"], here=True)
        said = [str(problem) for problem in error.value.problems]
        assert len(said) == len(found)
        assert all(one.startswith(f"{key}='{path}': must") for one, path in zip(said, found, strict=True))
    with pytest.raises(ConfigError, match=rf"{key}=\[\]: |{key}=: |needs a file"):
        check_overrides([*source, f"{key}=[]"])


def test_home_is_expanded_in_every_path(folder):
    config = check_overrides(
        ["run.dir=~/r", "init_from=~/c", "data.cache_dir=~/k", "data.out=~/o", "data=text", "data.path=[~/a]"]
    )
    home = os.path.expanduser("~")
    got = (config.run.dir, config.init_from, config.data.cache_dir, config.data.out, *config.data.path)
    assert got == tuple(f"{home}/{name}" for name in "rckoa")
    (folder / "~").mkdir()
    assert check_overrides(["run.dir=~"]).run.dir == "~", "a folder with this name exists"


def test_values_of_a_sweep_keep_text(folder):
    search = own(
        folder,
        "experiment",
        "# @package _global_\nhydra:\n  sweeper:\n    params:\n"
        "      run.name: 007,2024_11_05\n      optim.lr: 1e-3,2e-3\n",
    )
    sweep = sweep_of([search, "experiment=mine", "cluster.account=010,1e3"])
    configs = [check_overrides(job) for job in sweep.jobs]
    assert {config.run.name for config in configs} == {"007", "2024_11_05"}
    assert {config.cluster.account for config in configs} == {"010", "1e3"}
    assert {config.optim.lr for config in configs} == {1e-3, 2e-3} and len(configs) == 8


def test_settings_of_hydra_keep_text_and_types(folder):
    from hydra import compose

    from lhtrain.conf.compose import hydra

    search = own(
        folder,
        "experiment",
        "# @package _global_\nhydra:\n  sweep: {dir: 2024_11_05}\n  job:\n    env_set: {A: 24:00:00, B: 010}"
        "\n  verbose: false\n",
    )
    with hydra():
        own_settings = compose("config", [search, "experiment=mine"], return_hydra_config=True).hydra
    assert own_settings.sweep.dir == "2024_11_05" and own_settings.verbose is False
    assert dict(own_settings.job.env_set) == {"A": "24:00:00", "B": "010"}


def test_a_resumed_run_keeps_text_in_its_config(tmp_path):
    from lhtrain.runs.changes import as_container
    from lhtrain.runs.own_config import load

    config = as_container(check_overrides([f"run.dir={tmp_path}", "run.name=n"]))
    written = (
        yaml.safe_dump(config)
        .replace("account: null", "account: 0123")
        .replace("time: null", "time: 24:00:00")
    )
    (tmp_path / "config.yaml").write_text(written)
    loaded = load(tmp_path, ["cluster.qos=1e3"])
    cluster = loaded.cluster
    assert (cluster.account, cluster.time, cluster.qos) == ("0123", "24:00:00", "1e3")
    assert loaded.model.n_layers == 4


@pytest.mark.parametrize("text", ["optim.betas=[0.9", "optim.lr=1e-3,2e-3", "optim.lr="])
def test_a_resumed_run_refuses_an_invalid_value_with_its_key(tmp_path, text):
    from lhtrain.runs.changes import as_container
    from lhtrain.runs.own_config import load

    config = as_container(check_overrides([f"run.dir={tmp_path}", "run.name=n"]))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ConfigError, match=r"1 problem in the configuration(.|\n)*optim\."):
        load(tmp_path, [text])
