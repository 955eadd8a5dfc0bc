"""What the program says when a run ends badly."""

import errno
import sys

import pytest
import torch
from omegaconf import OmegaConf

import lhtrain.commands.help
from lhtrain.cli import fail, in_words, main, out_of_memory
from lhtrain.compute.advice import advice
from lhtrain.conf.compose import check_overrides, compose_config
from lhtrain.files import NotRegular
from lhtrain.runs.run_dir import claim


def test_out_of_memory_says_what_helps(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (0, 80 * 10**9))
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 6.00 GiB. GPU 0 has …")
    composed = compose_config(["model=lighthouse_530m", "run.dir=d", "run.name=n"])
    said = out_of_memory(error, composed).splitlines()
    assert said[0] == "CUDA out of memory." and "the GPU has 80 GB" in said[1]
    assert any("compute.recompute=full " in line and line.endswith("fits") for line in said)


def test_out_of_memory_counts_the_ranks_that_are_there(monkeypatch):
    """A sequence for each of two, weights and optimizer in halves: what dp_shard=2 says of itself."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (0, 80 * 10**9))
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    settings = ["model=lighthouse_530m", "run.batch_tokens=196608", "run.dir=d", "run.name=n"]
    told = compose_config([*settings, "parallel.dp_shard=2"], 2, 80 * 10**9)
    given = check_overrides(settings)
    said = out_of_memory(torch.OutOfMemoryError("CUDA out of memory."), given).splitlines()
    assert said[1:] == advice(told, 80)


def test_ranks_that_do_not_come_are_said():
    composed = OmegaConf.create({"parallel": {"timeout": 3}})
    error = torch.distributed.DistStoreError("Timed out; 1/2 clients joined.")
    assert in_words(error, lambda: composed) == "the ranks did not meet within parallel.timeout=3 s: " + str(
        error
    )


def test_faults_of_the_disk_are_said_and_bugs_leave_their_traceback():
    full = OSError(errno.ENOSPC, "No space left on device", "runs/a/summary.tmp")
    assert in_words(full, OmegaConf.create) == str(full)
    link = NotRegular(errno.ELOOP, "is a symbolic link, must be a regular file", "runs/a/history.jsonl")
    immutable = PermissionError(errno.EPERM, "Operation not permitted", "runs/a/checkpoints")
    for error in (link, immutable):
        assert in_words(error, OmegaConf.create) == str(error)
    for replaced in (errno.ENOENT, errno.EISDIR):
        with_name = OSError(replaced, "no such thing", "r/metrics.jsonl")
        assert in_words(with_name, OmegaConf.create) == str(with_name)
        assert in_words(OSError(replaced, "no such thing"), OmegaConf.create) is None
    assert in_words(OSError(errno.EBADF, "Bad file descriptor"), OmegaConf.create) is None
    assert in_words(ZeroDivisionError(), OmegaConf.create) is None


@pytest.fixture
def started(monkeypatch, tmp_path):
    """What Hydra would get of a command line, instead of a run."""
    from lhtrain import cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "begin_training", lambda: None)
    got: list[list[str]] = []
    monkeypatch.setattr(cli, "_hydra_main", lambda: got.append(sys.argv[1:]))

    def start(*arguments):
        monkeypatch.setattr(sys, "argv", ["lhtrain"])
        cli.train(list(arguments))
        return got[-1]

    return start


def test_hydra_gets_text_as_it_was_typed(started):
    assert "run.name='2024_11_05'" in started("run.name=2024_11_05", "run.dir=r")


def test_runs_that_start_in_the_same_second_have_a_folder_each(tmp_path):
    claimed = [claim(tmp_path / "runs" / "now") for _ in range(3)]
    assert [path.name for path in claimed] == ["now", "now_2", "now_3"]
    assert claim(tmp_path / "a", "_sweep") == tmp_path / "a" and (tmp_path / "a_sweep").is_dir()


def test_a_sweep_with_runs_in_its_folder_starts_nothing(started, tmp_path, capsys):
    (tmp_path / "s_sweep" / "1" / "checkpoints").mkdir(parents=True)
    (tmp_path / "s_sweep" / "1" / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(SystemExit):
        started("-m", "run.dir=s", "optim.lr=1e-3,2e-3")
    assert "s_sweep/1, which holds one already: resume=auto continues" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-m", "--cfg", "job"], "leave one of them out"),
        (["--resolve"], "go with --cfg job"),
        (["--frobnicate"], "unrecognized arguments: --frobnicate"),
        (["-m", "stage=glob(x*)"], "stage=glob(x*): matches nothing that is there"),
        (["run.dir="], "run.dir=: must not be empty"),
        (["foo"], "'foo': must be a setting, KEY=VALUE"),
        (["run.dir=r", "resume=[auto"], "resume=[auto"),
        (["run.dir=r", "resume=auto,force"], "resume=auto,force"),
    ],
)
def test_arguments_that_cannot_be_run(started, capsys, arguments, said):
    with pytest.raises(SystemExit) as ended:
        started(*arguments)
    assert ended.value.code == 2 and said in capsys.readouterr().err


def test_a_glob_of_choices_is_a_sweep(started):
    assert "stage=glob(d*)" in started("-m", "stage=glob(d*)", "run.dir=g")


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({}, "lhtrain: wrong"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "lhtrain: wrong"),
        ({"RANK": "1", "WORLD_SIZE": "2"}, ""),  # the first rank says it
        ({"RANK": "1"}, "lhtrain: rank 1: wrong"),
        ({"RANK": "5", "WORLD_SIZE": "2"}, "lhtrain: rank 5: wrong"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, "lhtrain: rank x: wrong"),
        ({"SLURM_STEP_ID": "0", "SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, ""),
        ({"SLURM_STEP_ID": "0", "SLURM_PROCID": "x", "SLURM_NTASKS": "1"}, "lhtrain: rank x: wrong"),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, "lhtrain: wrong"),  # a shell within a job
    ],
)
def test_an_error_is_never_silent_where_there_may_be_no_first_rank(monkeypatch, capsys, variables, words):
    for name in ("RANK", "WORLD_SIZE", "SLURM_STEP_ID", "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        fail("wrong")
    assert capsys.readouterr().err.strip() == words


def test_a_full_disk_behind_stdout_is_one_sentence(monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(lhtrain.commands.help, "show", full)
    monkeypatch.setattr(sys, "argv", ["lhtrain", "help"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1 and "No space left on device" in capsys.readouterr().err
