"""From the arguments of `lhtrain [train]` to those that Hydra gets."""

import json
import sys

import pytest

from lhtrain import cli
from lhtrain.commands import train
from lhtrain.runs.run_dir import claim


@pytest.fixture
def started(monkeypatch, tmp_path):
    """Returns the arguments that Hydra would get, instead of training."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "begin_training", lambda: None)
    got: list[list[str]] = []
    monkeypatch.setattr(train, "hydra_main", lambda: got.append(sys.argv[1:]))

    def start(*arguments):
        monkeypatch.setattr(sys, "argv", ["lhtrain"])
        cli.main(["train", *arguments])
        return got[-1]

    return start


def test_hydra_gets_text_as_it_was_typed(started):
    assert "run.name='2024_11_05'" in started("run.name=2024_11_05", "run.dir=r")


def test_config_dir_is_used_in_a_resume_too(started, monkeypatch, tmp_path):
    """With --config-dir the settings are composed; without it only the run's own configuration is used."""
    monkeypatch.setattr(train, "continues", lambda settings: pytest.fail("--config-dir was ignored"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "config.yaml").write_text("")
    got = started("--config-dir", "mine", "run.dir=r", "resume=auto")
    assert any("mine" in setting for setting in got) and "resume=auto" in got


def test_runs_that_start_in_the_same_second_get_different_folders(tmp_path):
    claimed = [claim(tmp_path / "runs" / "now") for _ in range(3)]
    assert [path.name for path in claimed] == ["now", "now_2", "now_3"]
    assert claim(tmp_path / "a", "_sweep") == tmp_path / "a" and (tmp_path / "a_sweep").is_dir()


def test_a_sweep_whose_folder_contains_runs_is_refused(started, tmp_path, capsys):
    (tmp_path / "s_sweep" / "lr_0.002" / "checkpoints").mkdir(parents=True)
    (tmp_path / "s_sweep" / "lr_0.002" / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(SystemExit):
        started("-m", "run.dir=s", "optim.lr=1e-3,2e-3")
    assert "s_sweep/lr_0.002, which already contains a run" in capsys.readouterr().err


def test_a_sweep_over_weights_of_different_models_is_refused(started, tmp_path, capsys):
    """Hydra composes all its runs with the same settings."""
    for name, dim in (("a", 64), ("b", 32), ("c", 64)):
        (tmp_path / name).mkdir()
        state = {"config": {"model": {"dim": dim, "ffn_dim": 96}, "data": {}}}
        (tmp_path / name / "state.json").write_text(json.dumps(state))
    assert "model.dim=64" in started("-m", "run.dir=s", "init_from=a,c")
    with pytest.raises(SystemExit):
        started("-m", "run.dir=s", "init_from=a,b")
    assert "init_from=b: brings other settings than a" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-m", "--cfg", "job"], "leave one of them out"),
        (["--resolve"], "need --cfg job"),
        (["--frobnicate"], "--frobnicate: no such option of lhtrain train"),
        (["-m", "stage=glob(x*)"], "stage=glob(x*): matches nothing"),
        (["run.dir="], "run.dir=: must not be empty"),
        (["foo"], "'foo': must be a setting, KEY=VALUE"),
        (["run.dir=r", "resume=[auto"], "resume=[auto"),
        (["run.dir=r", "resume=auto,force"], "resume=auto,force"),
    ],
)
def test_arguments_that_cannot_be_run(started, capsys, arguments, message):
    with pytest.raises(SystemExit) as ended:
        started(*arguments)
    assert ended.value.code == 2 and message in capsys.readouterr().err


def test_a_glob_of_presets_is_a_sweep(started):
    assert "stage=glob(d*)" in started("-m", "stage=glob(d*)", "run.dir=g")
