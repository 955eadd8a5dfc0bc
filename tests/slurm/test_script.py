"""Tests of the script as text: its #SBATCH lines, and that values cannot break out of their quotes."""

import json
import os
import re
import shlex
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from lhtrain.checkpoint.saver import Saver
from lhtrain.cli import main
from lhtrain.commands.table import COMMANDS
from lhtrain.compute.fill import compose_config, filled
from lhtrain.conf.compose import check_overrides
from lhtrain.conf.paths import with_absolute_paths
from lhtrain.conf.problems import ConfigError
from lhtrain.conf.schema import ClusterConfig, Launch, Resume
from lhtrain.distributed.world import Ranks, World
from lhtrain.errors import Ended, RunError
from lhtrain.quote import override
from lhtrain.runs.changes import as_container
from lhtrain.slurm import quote
from lhtrain.slurm.attempt import begin
from lhtrain.slurm.script import Job, render
from lhtrain.slurm.submit import check, prepare, prepare_own, submit

HOSTILE = [
    "two words",
    "it's",
    'a "quote"',
    "$(touch x)",
    "`touch x`",
    "${HOME}",
    "a;touch x",
    "line\ntouch x",
    "-rf",
    "back\\slash",
    "back\\'slash",
    "trailing\\",
    "#comment",
    "*",
    "ünïcode",
    "=,[]{}:",
]


def job(**changes):
    standard = Job(
        name="gpt",
        run_dir=Path("/runs/one"),
        work_dir=Path("/work"),
        cluster=ClusterConfig(),
        overrides=["stage=two_stage"],
        python="/usr/bin/python3",
        version="lhtrain 1",
    )
    return replace(standard, **changes)


def directives(script):
    return [line for line in script.splitlines() if line.startswith("#SBATCH")]


def arrays_of(script, tmp_path):
    """Return the values that bash assigns to the script's variables."""
    script = script.replace("cd -- ", "work_dir=")
    begins = script.index("# Ask the run directory")
    overrides = script[script.index("overrides=(") : script.index("\n)\n", script.index("overrides=(")) + 3]
    text = script[:begins].replace(" || exit 1", "") + overrides
    text += 'printf "%s\\0" "$run_dir" "$python" "$work_dir" "${overrides[@]}"'
    done = subprocess.run(["bash", "-c", text], capture_output=True, cwd=tmp_path, check=True)
    assert not list(tmp_path.iterdir()), "a value was executed"
    return done.stdout.decode().split("\0")[:-1]


@pytest.mark.parametrize("text", HOSTILE)
def test_every_path_and_override_comes_out_of_bash_as_it_went_in(text, tmp_path):
    run_dir, work_dir, python = Path("/runs") / text, Path("/work") / text, f"/bin/{text}"
    overrides = [f"run.name={text}", text]
    script = render(
        job(name=text, run_dir=run_dir, work_dir=work_dir, python=python, overrides=overrides, version=text)
    )
    found = arrays_of(script, tmp_path)
    assert found[:3] == [str(run_dir), python, str(work_dir)]
    assert found[3:5] == overrides and found[-1] == "resume=auto"
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    for line in directives(script):
        assert shlex.split(line, comments=False)[1].startswith("--")


@pytest.mark.parametrize("text", [text for text in HOSTILE if "${" not in text])
def test_hydra_reads_the_run_directory_back(text):
    config = compose_config([f"run.dir={override('/runs/' + text)}", f"run.name={override(text)}"])
    assert config.run.dir == f"/runs/{text}" and config.run.name == text


@pytest.mark.parametrize("text", HOSTILE)
def test_a_job_name_is_one_word_without_dashes_in_front(text):
    name = quote.job_name(text)
    assert name and not name.startswith("-") and shlex.split(name) == [name] and name.isprintable()


def test_the_request_to_slurm():
    cluster = ClusterConfig(
        nodes=2,
        gpus_per_node=8,
        cpus_per_task=64,
        memory="0",
        time="24:00:00",
        partition="gpu",
        account="a b",
        constraint="a100&nvlink",
        exclusive=True,
        signal_seconds=120,
        extra_args=["--mail-type=FAIL", "--comment=two words"],
    )
    found = [
        line.removeprefix("#SBATCH ").split("  #")[0] for line in directives(render(job(cluster=cluster)))
    ]
    assert found == [
        "--job-name=gpt",
        "--nodes=2",
        "--ntasks-per-node=1",
        "--cpus-per-task=64",
        "--gres=gpu:8",
        "--mem=0",
        "--time=24:00:00",
        "--partition=gpu",
        '--account="a b"',
        '--constraint="a100&nvlink"',
        "--exclusive",
        "--signal=USR1@120",
        "--requeue",
        "--output=%j.out",
        "--open-mode=append",
        "--mail-type=FAIL",
        '"--comment=two words"',
    ]


def test_torchrun_is_one_task_a_node_and_srun_one_a_rank():
    cluster = ClusterConfig(nodes=2, gpus_per_node=8)
    by_torchrun = render(job(cluster=cluster))
    assert "--ntasks=2 --ntasks-per-node=1" in by_torchrun
    assert "torch.distributed.run --nnodes=2 --nproc-per-node=8" in by_torchrun
    by_srun = render(job(cluster=replace(cluster, launch=Launch.srun)))
    assert "--ntasks=16 --ntasks-per-node=8" in by_srun and "MASTER_PORT" in by_srun
    assert "torch.distributed.run" not in by_srun
    alone = render(job(cluster=ClusterConfig(gpus_per_node=1)))
    assert "torch.distributed.run" not in alone and "--ntasks=1" in alone


def test_what_the_script_says_itself_is_not_taken_from_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rendered, config = prepare(["run.dir=mine", "resume=never", "run.steps=40"])
    assert rendered.overrides == ["run.steps=40"]
    assert rendered.run_dir == tmp_path / "mine" and config.run.steps == 40
    assert f"run.dir={tmp_path}/mine" in render(rendered).replace("'", "")


def test_a_folder_of_own_settings_goes_with_the_job(tmp_path):
    stage = tmp_path / "my own" / "stage"
    stage.mkdir(parents=True)
    (stage / "mine.yaml").write_text("# @package stages\nall: {attention: dense}\n")
    rendered, config = prepare(["stage=mine"], config_dirs=[str(tmp_path / "my own")])
    assert list(config.stages) == ["all"]
    assert list(compose_config(rendered.overrides).stages) == ["all"]


@pytest.mark.parametrize("name", ["a%j", "a\\\\b", "\\${HOME}"])
def test_a_run_directory_that_slurm_or_hydra_would_change_is_refused(name):
    with pytest.raises(ConfigError, match=r"run\.dir.*must not contain"):
        prepare([f"run.dir='{name}'"])


@pytest.mark.slow
def test_dry_run_prints_the_script_and_writes_nothing(tmp_path):
    from tests.slurm.cluster import command

    settings = ("cluster=gpu8", "cluster.nodes=4", "run.dir=mine", "run.batch_tokens=131072")
    refused = command("submit", "--dry-run", *settings[:-1], "run.batch_tokens=12288", cwd=tmp_path)
    assert refused.returncode == 2 and "data-parallel ranks = 4096 * 32; nearest: 131072" in refused.stderr
    done = command("submit", "--dry-run", *settings, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("#!/bin/bash\n") and "#SBATCH --nodes=4" in done.stdout
    assert f"run_dir={tmp_path}/mine" in done.stdout
    assert not (tmp_path / "mine").exists()


@pytest.mark.slow
def test_without_sbatch_the_error_names_dry_run(tmp_path):
    from tests.slurm.cluster import command

    nowhere = os.environ | {"PATH": str(tmp_path)}
    done = command("submit", "run.dir=mine", cwd=tmp_path, env=nowhere)
    assert done.returncode == 1 and "there is no sbatch" in done.stderr and "--dry-run" in done.stderr
    assert not (tmp_path / "mine").exists()


def test_a_run_directory_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: "sbatch")
    with pytest.raises(RunError, match=r"run.dir=/dev/null/x: /dev/null must be a writable folder"):
        submit(*prepare(["run.dir=/dev/null/x"]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["submit", "cluster.nodez=2"], "cluster.nodez=2: no such key; did you mean cluster.nodes?"),
        (["submit", "-m", "optim.lr=1,2"], "lhtrain -m starts a sweep"),
        (["submit", "--dryrun"], "--dryrun: no such option"),
        (
            ["sumbit"],
            "slurm 'sumbit'; did you mean submit? (commands: submit, resume, extend, status)",
        ),
    ],
)
def test_wrong_arguments(arguments, expected, tmp_path):
    from tests.slurm.cluster import command

    done = command(*arguments, cwd=tmp_path)
    assert done.returncode == 2 and expected in done.stderr


def run_of(path, steps=20, done=20):
    """Make the directory of a run that has done `done` of `steps` steps, with a checkpoint."""
    config = filled(check_overrides([*SMALL, f"run.steps={steps}"]), 1)
    saved = as_container(with_absolute_paths(config))
    state = {"progress": {"step": done}, "config": saved, "data": "0" * 32}
    saver = Saver(path / "checkpoints", 3, World(Ranks(), torch.device("cpu")))
    saver.save(done, {"weight": torch.zeros(1)}, state)
    saver.finish()
    (path / "config.yaml").write_text(OmegaConf.to_yaml(saved))
    (path / "summary.json").write_text(json.dumps({"finished": done == steps, "steps": done}))
    return path


SMALL = ["stage=dense", "model.seq_len=256", "run.batch_tokens=512"]


def test_a_finished_run_is_refused_with_how_to_lengthen_it(tmp_path):
    run = run_of(tmp_path / "a b")
    message = re.escape(f"lhtrain slurm extend '{run}' steps=+N")
    for given in ([], [*SMALL, "run.steps=20"]):
        with pytest.raises(RunError, match=message):
            check(*prepare([*given, f"run.dir='{run}'"]))
    longer = [*SMALL, "run.steps=40", f"run.dir='{run}'"]
    with pytest.raises(RunError, match=r"run\.steps: 20 -> 40"):
        check(*prepare(longer))
    job, config = prepare([*longer, "resume=force"])
    check(job, config)
    assert job.resume == "force" and "resume=force\n" in render(job) and '  "resume=$resume"\n' in render(job)


@pytest.mark.parametrize(
    ("given", "status", "message"),
    [
        (["steps=+4", "optim.lr=7e-4"], 1, "optim.lr: 0.001 -> 0.0007"),  # +4 again would add 4 more
        (["steps=4_"], 2, "must be +N"),
        (["steps=4"], 2, "steps=4: must be at least 20"),
    ],
)
def test_a_run_is_not_lengthened_in_vain(tmp_path, given, status, message):
    run = run_of(tmp_path / "run")
    with pytest.raises(Ended) as ended:
        COMMANDS["extend"].run([str(run), *given])
    assert ended.value.code == status and message in ended.value.message
    assert "steps: 20" in (run / "config.yaml").read_text()


def test_what_the_checkpoint_would_refuse_is_refused_at_submission(tmp_path):
    run = run_of(tmp_path / "run", done=10)
    same = [*SMALL, "run.steps=20", f"run.dir={run}"]
    check(*prepare([*same, "cluster.nodes=1", "run.name=other"]))
    for more, message in (
        (["optim.lr=7e-4"], r"optim\.lr: 0\.001 -> 0\.0007"),
        (["run.steps=5", "resume=force"], "has already done 10 steps"),
        (["resume=never"], "already contains a run"),
    ):
        with pytest.raises(RunError, match=message):
            check(*prepare([*same, *more]))
    for resume in ("force", "restart"):
        job, config = prepare([*same, "optim.lr=7e-4", f"resume={resume}"])
        check(job, config)
        assert job.resume == resume
    (run / "checkpoints" / "step_00000010").rename(run / "checkpoints" / "damaged-step_00000010")
    with pytest.raises(RunError, match="no undamaged checkpoint is left"):
        check(*prepare(same))


def test_a_run_directory_alone_is_continued_with_its_own_configuration(tmp_path):
    run = run_of(tmp_path / "it's", done=10)
    quoted = override(str(run))
    (tmp_path / "empty").mkdir()
    for job, config in (
        prepare([f"run.dir={quoted}", "cluster.time=2:00:00"]),
        prepare_own(run, ["cluster.time=2:00:00"]),
    ):
        check(job, config)
        assert config.model.seq_len == 256 and config.run.steps == 20 and config.resume is Resume.auto
        assert job.own and job.run_dir == run and "--time=2:00:00" in render(job)
        arguments = arrays_of(render(job), tmp_path / "empty")[3:]
        assert arguments == ["resume", str(run), "cluster.time=2:00:00", "resume=auto"]
    job, _ = prepare_own(run, ["optim.lr=1e-4", "resume=force"])
    assert job.resume == "force" and job.overrides == ["optim.lr=1e-4"]
    with pytest.raises(RunError, match="give the directory of a run"):
        prepare_own(tmp_path / "none", [])


def test_a_run_that_has_not_started_needs_its_settings_again(tmp_path):
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "config.yaml").write_text("run: {steps: 20}")
    with pytest.raises(RunError, match="not started, so it has no config"):
        check(*prepare([f"run.dir={tmp_path}", "cluster.nodes=1"]))
    check(*prepare([f"run.dir={tmp_path}", *SMALL]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resume"], "slurm resume: needs DIR"),
        (["resume", "none"], "none does not exist: give the directory of a run"),
        (["extend", "none"], "needs steps=+N"),
        (["extend", "none", "steps=+5"], "there is no sbatch"),
    ],
)
def test_wrong_directories(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(SystemExit):
        main(["slurm", *arguments])
    assert message in capsys.readouterr().err


def test_examples_of_the_help_are_read_as_they_are_typed(tmp_path):
    """The examples are split as a shell does, which removes their quotes."""
    help_text = COMMANDS["slurm"].details
    keys = help_text[help_text.index("Settings that are changed most often") :]
    words = [word for word in shlex.split(keys) if "=" in word]
    config = compose_config([word for word in words if word.startswith("cluster.") and "NAME" not in word])
    assert config.cluster.extra_args == ["--mail-type=FAIL"] and config.cluster.setup == ["module load cuda"]


def test_no_planted_link_is_followed(tmp_path, monkeypatch):
    """A link in the run directory must not make a submission overwrite a file elsewhere."""
    bin_, run, precious = tmp_path / "bin", tmp_path / "run", tmp_path / "precious"
    bin_.mkdir(), (run / "slurm").mkdir(parents=True)
    (bin_ / "sbatch").write_text("#!/bin/sh\necho 17\n")
    (bin_ / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_}:/usr/bin:/bin")
    precious.write_text("mine")
    for name in ("job.sh", "config.yaml", "version.json", "job", "attempts.json"):
        (run / "slurm" / name).symlink_to(precious)
    assert submit(*prepare([*SMALL, f"run.dir={run}"])) == "17"
    begin(run, "17", 3)
    assert precious.read_text() == "mine"
    assert not any(path.is_symlink() for path in (run / "slurm").iterdir())
