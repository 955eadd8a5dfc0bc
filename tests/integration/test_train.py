"""The real command: both stages, the files it writes, its settings and its errors."""

import itertools
import json
import re

import pytest
import yaml

pytestmark = pytest.mark.slow


def test_two_stages_train_and_the_loss_falls(undisturbed):
    stages = undisturbed.summary["stages"]
    assert [stage["name"] for stage in stages] == ["lighthouse", "recovery"]
    assert [stage["steps"] for stage in stages] == [8, 8]
    assert [stage["tokens"] for stage in stages] == [8 * 4096] * 2
    first, after_first, after_second = stages[0]["first_loss"], stages[0]["val_loss"], stages[1]["val_loss"]
    assert first > 5.0 and first > after_first + 0.2 > after_second + 0.4
    assert stages[1]["last_loss"] < stages[0]["last_loss"] < stages[0]["first_loss"]


def test_the_summary_accounts_for_the_time(undisturbed):
    summary = undisturbed.summary
    assert summary["finished"] and summary["steps"] == 16 and summary["tokens"] == 16 * 4096
    for stage in summary["stages"]:
        seconds = stage["wall_clock_seconds"]
        assert list(seconds) == ["total", "data", "compute", "validation", "evaluation", "checkpoint"]
        assert all(seconds[part] > 0 for part in seconds if part != "evaluation")  # the run is too short
        assert sum(seconds.values()) - seconds["total"] <= seconds["total"] + 0.01
        rate = stage["tokens"] / (seconds["data"] + seconds["compute"])
        assert stage["tokens_per_second"] == pytest.approx(rate, rel=0.05)
    assert summary["wall_clock_seconds"] == pytest.approx(
        sum(stage["wall_clock_seconds"]["total"] for stage in summary["stages"]), abs=0.01
    )
    assert {"torch", "python", "lhtrain"} <= summary["versions"].keys()
    assert summary["hardware"]["device"] == "cpu"


def test_metrics_have_a_row_a_step(undisturbed):
    train = [row for row in undisturbed.rows if row["kind"] == "train"]
    assert [row["step"] for row in train] == list(range(1, 17))
    assert train == [row for row in undisturbed.rows if "loss" in row]
    keys = {
        "step",
        "stage",
        "loss",
        "lr",
        "grad_norm",
        "tokens_per_second",
        "step_seconds",
        "tokens",
        "seconds",
    }
    assert all(keys <= row.keys() for row in train)
    assert [row["tokens"] for row in train] == [4096 * step for step in range(1, 17)]
    assert all(a["seconds"] <= b["seconds"] for a, b in itertools.pairwise(train))
    validated = [row["step"] for row in undisturbed.rows if row["kind"] == "validation"]
    assert validated == [6, 8, 12, 16]  # every 6 steps and at stage ends


def test_the_switch_is_recorded(undisturbed):
    (switch,) = undisturbed.summary["switches"]
    assert (switch["from"], switch["to"], switch["step"]) == ("lighthouse", "recovery", 8)
    losses = [row["loss"] for row in undisturbed.rows if row["kind"] == "train"]
    assert switch["loss_before"] == pytest.approx(sum(losses[:8]) / 8)
    assert switch["loss_after"] == pytest.approx(sum(losses[8:]) / 8)
    assert switch["val_loss_before"] == undisturbed.summary["stages"][0]["val_loss"]
    assert (
        0 < abs(switch["val_loss_after"] - switch["val_loss_before"]) < 1
    )  # different attention, same weights
    assert "lighthouse -> recovery" in undisturbed.out
    validated = {row["step"]: row["val_loss"] for row in undisturbed.rows if row["kind"] == "validation"}
    if steps := switch["steps_to_recover"]:
        assert validated[8 + steps] <= switch["val_loss_before"] < switch["val_loss_after"]


def test_the_run_directory_is_complete(undisturbed):
    names = {path.name for path in undisturbed.path.iterdir() if path.name != ".lock"}
    files = {"config.yaml", "history.jsonl", "loss.png", "metrics.jsonl", "summary.json"}
    assert names == files | {"checkpoints", "ranks"}
    config = yaml.safe_load((undisturbed.path / "config.yaml").read_text())
    assert config["stages"]["lighthouse"]["budget"] == 128 and config["stages"]["recovery"]["steps"] == 8
    assert config["model"]["vocab_size"] == 320
    assert (undisturbed.path / "loss.png").read_bytes().startswith(b"\x89PNG")
    # the last 3 of steps 5, 8 (a stage's end), 10, 15, 16
    assert undisturbed.checkpoints == ["step_00000010", "step_00000015", "step_00000016"]


def test_the_output_reads_well_in_a_file(undisturbed):
    assert "\x1b" not in undisturbed.out and "\r" not in undisturbed.out
    lines = undisturbed.out.splitlines()
    assert any("30,880 parameters, 20,640 without" in line for line in lines), lines
    assert sum(line.startswith("step") for line in lines) == 16
    assert all("left" in line for line in lines if line.startswith("step"))
    assert [line.split()[2] for line in lines if line.startswith("validated")] == ["6:", "8:", "12:", "16:"]
    assert any(line.strip("│ ").startswith("validation loss") for line in lines)
    assert max(len(line) for line in lines) <= 200


def test_the_same_seed_gives_the_same_losses_and_another_seed_others(lhtrain, undisturbed):
    assert lhtrain("again").trace == undisturbed.trace
    assert lhtrain("other_seed", "run.seed=1", "run.steps=2").rows[0]["loss"] != undisturbed.rows[0]["loss"]


def test_grad_accum_does_not_change_the_losses(lhtrain):
    """With full attention: with Lighthouse, rounding of a score could change a selection."""
    whole, parts = (
        lhtrain(f"accum_{n}", "stage=dense", "run.steps=8", f"run.grad_accum={n}") for n in (1, 2)
    )
    for ours, theirs in zip(whole.rows, parts.rows, strict=True):
        key = "loss" if ours["kind"] == "train" else "val_loss"
        assert ours[key] == pytest.approx(theirs[key], rel=1e-5)


def test_curriculum_changes_the_sequence_length_and_keeps_the_tokens(lhtrain):
    overrides = ["stage=curriculum", "run.steps=8", "run.log_every=3"]
    run = lhtrain("curriculum", *overrides)
    assert [stage["name"] for stage in run.summary["stages"]] == ["short", "lighthouse", "recovery"]
    assert [stage["steps"] for stage in run.summary["stages"]] == [2, 4, 2]
    assert run.summary["tokens"] == 8 * 4096
    # every third step, and the first and last of each stage
    assert [row["step"] for row in run.rows if row["kind"] == "train"] == [1, 2, 3, 6, 7, 8]
    assert len(run.summary["switches"]) == 2
    assert "seq_len 256" in run.out and "seq_len 2,048" in run.out


def test_recovery_starts_from_a_lighthouse_checkpoint(lhtrain, undisturbed):
    """Same weights, optimizer state and data position: the first loss equals that of the two-stage run."""
    first = lhtrain(
        "stage_one", "stage=lighthouse", "run.steps=8", "optim.warmup_fraction=0", "optim.decay_fraction=0"
    )
    source = first.path / "checkpoints" / "step_00000008"
    second = lhtrain("stage_two", "stage=recovery", "run.steps=2", f"init_from={source}")
    whole = lhtrain("whole_run", "run.steps=10", "stages.lighthouse.steps=8", "optim.warmup_fraction=0")
    loss = {
        name: [r["loss"] for r in run.rows if r["kind"] == "train"]
        for name, run in (("b", second), ("c", whole))
    }
    assert loss["b"][0] == loss["c"][8]
    assert "data continue at token 32,768" in second.out and "in another order" not in second.out
    shorter = lhtrain("shorter", "stage=recovery", "run.steps=1", f"init_from={source}", "model.seq_len=1024")
    assert "data continue at token 32,768, in another order" in shorter.out
    other = lhtrain("no_such", f"init_from={first.path}", status=1)
    assert f"the newest checkpoint in this folder is {source}" in other.err
    for name, typed, saved in (
        ("wrong_model", "model.dim=64", 32),
        ("another_model", "model.ffn_dim=32", 64),
    ):
        wrong = lhtrain(name, f"init_from={source}", typed, status=2)
        assert f"{typed}: the weights of init_from={source} have {saved}; leave this setting out" in wrong.err


def test_a_sweep_runs_every_combination(lhtrain):
    done = lhtrain("sweep", "-m", "run.steps=2", "optim.lr=1e-3,2e-3")
    folder = lhtrain.folder / "sweep_sweep"
    configs = sorted(folder.glob("*/config.yaml"))
    assert [path.parent.name for path in configs] == ["lr_0.001", "lr_0.002"]
    table = done.out[done.out.rindex("val loss") :]
    losses = [json.loads((path.parent / "summary.json").read_text())["val_loss"] for path in configs]
    best = min(zip(losses, ("lr_0.001", "lr_0.002"), strict=True))[1]
    assert table.splitlines()[1].startswith(best) and table.count("finished") == 2
    assert [yaml.safe_load(path.read_text())["optim"]["lr"] for path in configs] == [1e-3, 2e-3], done.out
    assert all((path.parent / "summary.json").exists() for path in configs)
    assert yaml.safe_load(configs[0].read_text())["run"]["dir"] == str(configs[0].parent)


def test_a_run_that_fails_does_not_end_its_sweep(lhtrain):
    empty = lhtrain.folder / "no_checkpoint"
    empty.mkdir()
    swept = lhtrain("half_sweep", "-m", "run.steps=2", f"init_from={empty},null", status=1)
    folder = lhtrain.folder / "half_sweep_sweep"
    assert re.search(rf"lhtrain: {folder}/init_from_\S*no_checkpoint\S*: ", swept.err), swept.err
    assert "Traceback" not in swept.err
    assert "the sweep has ended; some of its runs failed" in swept.err
    assert (folder / "init_from_null" / "summary.json").exists()


def test_a_sweep_with_one_bad_combination_starts_nothing(lhtrain):
    bad = lhtrain("bad_sweep", "-m", "lighthouse.budget=128,100", status=2)
    assert "budget=100: must be a positive multiple of 128" in bad.err
    assert not (lhtrain.folder / "bad_sweep_sweep").exists()


def test_a_poor_environment_and_names_of_every_kind(lhtrain, monkeypatch, tmp_path):
    """No home, no folder for matplotlib, and a terminal that cannot print a character of the name."""
    poor = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "MPLCONFIGDIR": "/proc/none", "TMPDIR": str(tmp_path)}
    environment = {key: value for key, value in lhtrain.environment.items() if key not in ("HOME", "DISPLAY")}
    monkeypatch.setattr(lhtrain, "environment", environment | poor)
    monkeypatch.setattr(lhtrain, "forked", False)
    run = lhtrain("poor", "run.name='é [/mnt/a] $x_ %s'", "run.steps=4", "stage=dense")
    assert run.summary["name"] == "é [/mnt/a] $x_ %s" and run.summary["finished"]
    assert "? [/mnt/a] $x_ %s: 4 steps" in run.out and (run.path / "loss.png").exists()
    assert "Traceback" not in run.err


def test_wandb_works_offline(lhtrain):
    run = lhtrain("wandb", "logger=wandb", "run.steps=4")
    assert run.summary["finished"]
    (logged,) = run.path.glob("wandb/offline-run-*/*.wandb")
    assert logged.stat().st_size > 1000


def test_help_is_for_newcomers(lhtrain):
    text = lhtrain.bare("--help").stdout
    for part in (
        "Examples",
        "stage: curriculum, dense, ",
        "run.dir=",
        "--cfg job",
    ):
        assert part in text
    assert len(text.splitlines()) < 55
    config = yaml.safe_load(lhtrain.bare("--cfg", "job").stdout)
    assert config["model"]["name"] == "gpt_tiny" and "hydra" not in config


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (
            ["frobnicate"],
            2,
            "no command 'frobnicate' (commands: compare, completion, data, env, estimate, eval, export, ",
        ),
        (["optim.lr=1,2"], 2, "optim.lr=1,2: several values need a sweep (add -m)"),
        (["model.n_layer=3", "nonsense=1"], 2, "2 problems in the configuration"),
        (["data=text", "data.path=/no/such/place"], 1, "data.path='/no/such/place'"),
        (["run.device=cuda"], 1, "run.device=cuda: PyTorch sees no CUDA device here"),
        (["resume=auto", "init_from=/no/such"], 1, "init_from='/no/such': no such folder; a checkpoint is"),
        (["data.path=a=b"], 2, "data.path=a=b: is not used by data=stdlib"),
        (["-m", "--cfg", "job", "optim.lr=1,2"], 2, "leave one of them out"),
        (["-m", "stage=glob(x*)"], 2, "stage=glob(x*): matches nothing"),
        (["--config-dir", "/no/such", "run.steps=1"], 2, "--config-dir=/no/such: no such folder"),
        (["run.dir=/dev/null/x"], 2, "run.dir=/dev/null/x: /dev/null must be a writable folder"),
    ],
)
def test_mistakes_end_with_one_message(lhtrain, arguments, status, message):
    import torch

    if "run.device=cuda" in arguments and torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    place = [f"run.dir={lhtrain.folder / 'mistake'}"] if "=" in arguments[0] else []
    done = lhtrain.bare(*place, *arguments)
    assert done.returncode == status
    assert message in done.stderr and "Traceback" not in done.stderr


def test_a_corpus_shorter_than_a_sequence_is_refused(lhtrain, tmp_path):
    (tmp_path / "short.txt").write_text("too short\n" * 10)
    run = lhtrain("too_short", f"data.path={tmp_path / 'short.txt'}", status=1)
    assert "need 2049" in run.err and not run.path.exists()


def test_a_directory_with_a_run_is_not_overwritten(lhtrain, undisturbed):
    before = (undisturbed.path / "metrics.jsonl").read_bytes()
    refused = lhtrain("undisturbed", status=1)
    assert "already contains a run; `lhtrain resume " in refused.err
    assert (undisturbed.path / "metrics.jsonl").read_bytes() == before


def test_a_diverging_run_stops_and_says_so(lhtrain):
    run = lhtrain("diverging", "optim.lr=1e30", "optim.warmup_fraction=0", status=1)
    assert "10 steps in a row, up to step 11, had a loss or gradient that was not finite" in run.err
    assert "there is no checkpoint to return to; a lower optim.lr" in run.err and "Traceback" not in run.err
    assert not list((run.path / "checkpoints").glob("step_*")), "none of weights that may be spoilt"


def test_a_refused_start_leaves_what_was_there(lhtrain):
    theirs = lhtrain.folder / "theirs" / "ranks" / "mine.csv"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("1,2")
    lhtrain("theirs", "init_from=nowhere", status=1)
    assert theirs.read_text() == "1,2"
