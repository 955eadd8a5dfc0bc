"""Errors of settings: every problem is listed once, with key, value and rule."""

import re

import pytest

from lhtrain.conf.compose import check_overrides, search_path
from lhtrain.conf.problems import ConfigError
from lhtrain.conf.rules.cluster import slurm_seconds
from lhtrain.conf.rules.tracking import tracker_names

MODELS = ("gpt_tiny", "gpt_130m", "gpt_350m", "gpt_1b", "llama3_8b", "lighthouse_530m")
STAGES = ("dense", "lighthouse", "recovery", "two_stage", "curriculum", "ladder", "windowed")
STAGES += ("extend", "extend_long")


def problems(*overrides):
    with pytest.raises(ConfigError) as caught:
        check_overrides(list(overrides))
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("stage", STAGES)
def test_every_model_fits_every_stage(model, stage):
    check_overrides([f"model={model}", f"stage={stage}"])


@pytest.mark.parametrize(
    "override", ["experiment=paper_98k", "experiment=smoke", "optim=paper", "logger=wandb", "cluster=gpu8"]
)
def test_the_other_groups_compose(override):
    check_overrides([override])


def test_one_error_lists_every_problem():
    found = problems(
        "model.n_layer=12",
        "optim.lr=fast",
        "lighthouse.budget=100",
        "model=gpt_9b",
        "foo=1",
        "run.device=tpu",
        "stage=2",
    )
    assert sorted(found) == sorted(
        [
            f"model=gpt_9b: must be one of {', '.join(sorted(MODELS))}",
            f"stage=2: must be one of {', '.join(sorted(STAGES))}",
            "model.n_layer=12: no such key; did you mean model.n_layers?",
            "optim.lr=fast: must be a number",
            "foo=1: no such key",
            "run.device=tpu: must be one of auto, cpu, cuda",
            "stages.lighthouse.budget=100: must be a positive multiple of 128",
        ]
    )


def test_an_unknown_key_is_refused_with_a_plus_too():
    assert problems("+foo=1", "+optim.lrr=1", "+stages.recovery.lr_scael=2") == [
        "stages.recovery.lr_scael=2: no such key; did you mean stages.recovery.lr_scale?",
        "optim.lrr=1: no such key; did you mean optim.lr?",
        "foo=1: no such key",
    ]


def test_an_unknown_stage_is_reported_with_the_stages_of_the_run():
    (found,) = problems("stages.foo.steps=3")
    assert found.startswith("stages.foo.steps=3: ") and "'foo'" in found and "lighthouse, recovery" in found


def test_own_files_are_checked_like_the_others(tmp_path):
    (tmp_path / "stage").mkdir()
    (tmp_path / "stage" / "mine.yaml").write_text("# @package stages\nall: {attention: dense}\n")
    own = search_path(str(tmp_path))
    assert list(check_overrides([own, "stage=mine"]).stages) == ["all"]
    assert problems("stage=mine", "model.n_layer=3", own, "optim.lr=fast") == [
        "model.n_layer=3: no such key; did you mean model.n_layers?",
        "optim.lr=fast: must be a number",
    ]


def test_the_error_has_the_number_of_problems_and_that_nothing_was_started():
    with pytest.raises(ConfigError, match="2 problems in the configuration; nothing was started"):
        check_overrides(["foo=1", "bar=2"])


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["model.seq_len=4100"], "stages.lighthouse.seq_len=4100: must be a multiple of pooling^(levels-1)"),
        (["lighthouse.budget=192"], "budget=192: must be a positive multiple of 128"),
        (["lighthouse.budget=512"], "budget=512: must be at most the coarsest level's"),
        (["lighthouse.budget=384", "model.seq_len=8192"], "must divide into budget / 128 = 3 equal tiles"),
        (["lighthouse.window=-1"], "window=-1: must be at least 0"),
        (["stages.lighthouse.window=-1"], "window=-1: must be at least 0"),
        (["lighthouse.levels=1"], "levels=1: must be at least 2"),
        (["lighthouse.pooling=3"], "pooling=3: must be a power of two"),
        (["model.n_kv_heads=3"], "model.n_heads=2: must be a multiple of model.n_kv_heads=3"),
        (["model.n_heads=3"], "model.dim=128: must be a multiple of model.n_heads=3"),
        (["model.head_dim=15"], "model.head_dim=15: must be even"),
        (
            ["model.dense_layers=[0,1,-2,-1]"],  # of 4 layers
            "model.dense_layers=[0, 1, -2, -1]: names every layer, so stage lighthouse has no layer",
        ),
        (
            ["model.sliding_window=64", "model.sliding_window_pattern=5"],  # of 4 layers
            "model.sliding_window_pattern=5: leaves no layer for Lighthouse Attention",
        ),
        (["model.n_layers=1", "model.dense_layers=[-1]"], "model.dense_layers=[-1]: names every layer"),
        (["model.dense_layers=[0,4]"], "model.dense_layers=[0, 4]: there is no layer 4: model.n_layers=4"),
        (["optim.eps=1e-300"], "optim.eps=1e-300: must be at least 1e-37"),
        (["model.norm_eps=1e-50"], "model.norm_eps=1e-50: must be at least 1e-37"),
        (["model.vocab_size=200"], "model.vocab_size=200: must be at least the tokenizer's 257"),
        (
            ["stages.lighthouse.steps=500"],
            "run.steps=200: must be more than the steps of the other stages (lighthouse 500)",
        ),
        (
            ["stage=dense", "stages.dense.steps=20"],
            "run.steps=200: must equal the sum of its stages' steps (dense 20 = 20)",
        ),
        (["stages.lighthouse.fraction=null"], "stages=lighthouse, recovery: only one stage may leave"),
        (
            ["stages.recovery.steps=10", "stages.recovery.tokens=4096"],
            "stages.recovery.tokens=4096: the length of a stage is either steps or tokens",
        ),
        (["stages.recovery.tokens=100000", "stages.lighthouse.tokens=300000"], "lighthouse 74 + recovery 25"),
        (
            ["stages.recovery.warmup_steps=76"],
            "stages.recovery.warmup_steps=76: must be at most 75, the steps of the stage",
        ),
        (
            ["stages.lighthouse.dense_layers=[0,1,2,-1]"],
            "stages.lighthouse.dense_layers=[0, 1, 2, -1]: names every layer",
        ),
        (["stages.lighthouse.fraction=1.5"], "stages.lighthouse.fraction=1.5: must be above 0 and at most 1"),
        (["stages.recovery.lr_scale=0"], "stages.recovery.lr_scale=0.0: must be greater than 0"),
        (
            ["run.grad_accum=3", "run.batch_tokens=4096"],
            "=4096: must be a multiple of seq_len * grad_accum = 4096 * 3; run.grad_accum=auto",
        ),
        (["stages.recovery.seq_len=3072", "run.batch_tokens=12288"], "seq_len=3072: must divide the seq_len"),
        (["stage=ladder", "model.seq_len=1000"], "model.seq_len to a multiple of 16, such as 992 or 1008"),
        (["stage=extend", "model.seq_len=512"], "use a seq_len of at least 2048, or fewer levels"),
        (["stage=extend", "model.seq_len=512"], "or a smaller tile, and a budget that is a multiple of it"),
        (["run.steps=0"], "run.steps=0: must be at least 1"),
        (["optim.lr=-1"], "optim.lr=-1.0: must be greater than 0"),
        (["optim.lr=inf"], "optim.lr=inf: must be greater than 0 and finite"),
        (["optim.warmup_fraction=0.9"], "plus optim.warmup_fraction=0.9 must be at most 1"),
        (["optim.betas=[0.9]"], "optim.betas=[0.9]: must be two numbers"),
        (["optim.betas=[0.9,1.0]"], "optim.betas=[0.9, 1.0]: each must be at least 0 and below 1"),
        (["data=text"], "data.path=null: data.source=text needs a file or folder"),
        (["data.tokenizer=gpt9"], "data.tokenizer=gpt9: must be one of bytes, gpt2"),
        (["data.val_fraction=1"], "data.val_fraction=1.0: must be above 0 and below 1"),
        (["lighthouse.backend=cuda9"], "lighthouse.backend=cuda9: must be one of"),
        (
            ["lighthouse.scorer=dilated", "model.seq_len=258", "lighthouse.levels=2", "lighthouse.pooling=2"],
            "seq_len=258: must be a multiple of 4 for the scorer dilated",
        ),
        (
            ["lighthouse.scorer=dilated", "model.seq_len=4100", "lighthouse.levels=2", "parallel.cp=2"],
            "seq_len=4100: must be a multiple of 16 for the scorer dilated",
        ),
        (["lighthouse.scorer=nrom"], "lighthouse.scorer=nrom: must be one of norm"),
        (["parallel.cp=0"], "parallel.cp=0: must be at least 1"),
        (["parallel.dp_shard=0"], "parallel.dp_shard=0: must be at least 1, or -1"),
        (["parallel.cp=4", "parallel.cp_attention=ulysses"], "parallel.cp=4 must divide model.n_heads=2"),
        (
            ["parallel.dp_shard=2", "run.batch_tokens=12288"],
            "seq_len * data-parallel ranks = 4096 * 2; nearest: 8192 or 16384",
        ),
        (["parallel.cp=3"], "seq_len=4096: must be a multiple of 2 * parallel.cp = 6"),
        (
            ["parallel.cp=2"],
            "budget=128: must give each of the 2 * parallel.cp = 4 chunks of a sequence whole tiles; "
            "no budget does with seq_len=4096; use a seq_len of at least 8192, or a smaller cp",
        ),
        (
            ["parallel.cp=2", "model.seq_len=32768", "lighthouse.budget=256"],
            "whole tiles; nearest: 512 or 1024",
        ),
        (
            ["parallel.cp=2", "model.seq_len=32768", "lighthouse.budget=512", "lighthouse.window=8193"],
            "stages.lighthouse.window=8193: must be at most 8192",
        ),
        (["guard.max_skips=0"], "guard.max_skips=0: must be at least 1"),
        (["cluster.nodes=0"], "cluster.nodes=0: must be at least 1"),
        (["cluster.gpus_per_node=-1"], "cluster.gpus_per_node=-1: must be at least 0"),
        (["cluster.launch=mpirun"], "cluster.launch=mpirun: must be one of torchrun, srun"),
        (["cluster.time=1h"], "cluster.time=1h: must be MINUTES, HOURS:MINUTES:SECONDS or DAYS-"),
        (["cluster.time=5"], "cluster.time=5: must be longer than cluster.signal_seconds=300"),
        (["cluster.signal_seconds=70000"], "cluster.signal_seconds=70000: must be at most SLURM's 65535"),
        (["cluster.memory=lots"], "cluster.memory=lots: must be a number with K, M, G or T, or 0 for all"),
        (["cluster.module=a/b.py"], "cluster.module=a/b.py: must be the dotted name of a Python module"),
        (["cluster.partition='a\nb'"], "cluster.partition='a\\nb': must be printable, on one line"),
        (["cluster.extra_args=['qos=x']"], "cluster.extra_args='qos=x': each must be one option"),
        (["cluster.srun_args=['--x\n--y']"], "cluster.srun_args='--x\\n--y': each must be one option"),
        (["logger.kinds.wandbb=true"], "logger.kinds.wandbb=True: no such tracker; must be one of wandb"),
        (["logger=wandb", "logger.tags=[ok,'']"], "logger.tags='': each must have 1 to 64 characters"),
        (["logger=wandb", f"logger.tags=[{'x' * 65}]"], "': each must have 1 to 64 characters, but has 65"),
        (["logger=wandb", "logger.tags=['a\nb']"], r"logger.tags='a\nb': each must be printable"),
        (["logger=wandb", "logger.project=a/b"], "logger.project=a/b: must not contain any of / \\ # ? % :"),
        (["logger=wandb", f"logger.project={'x' * 129}"], ": must have 1 to 128 characters, but has 129"),
        (["logger=wandb", "logger.project=''"], "logger.project=: must have 1 to 128 characters"),
        (["logger=wandb", "logger.entity='a:b'"], "logger.entity=a:b: must not contain any of"),
        (["logger=wandb", "logger.group=' '"], "logger.group= : must have 1 to 128 characters"),
        (["logger=wandb", "logger.mode=off"], "logger.mode=off: must be one of offline, online, disabled"),
    ],
)
def test_rules_name_the_key_and_the_value(overrides, expected):
    assert any(expected in line for line in problems(*overrides))


def test_a_value_that_breaks_two_rules_is_reported_once():
    assert problems("model.seq_len=0", "run.batch_tokens=4096") == ["model.seq_len=0: must be at least 1"]


def test_lengths_that_divide_the_longest_one_add_nothing_to_the_message():
    (message,) = problems("stage=ladder", "run.batch_tokens=5000")
    assert message.startswith("run.batch_tokens=5000: must be a multiple of seq_len = 4096; nearest: 4096 or")


def test_init_needs_a_checkpoint():
    (message,) = problems("init=weights")
    assert message.startswith("init=weights: ") and "set init_from=" in message
    assert [one.partition(":")[0] for one in problems("init=average", "init_from=null")] == ["init=average"]


def test_the_mesh_is_compared_with_the_ranks():
    def said(n_ranks, *overrides):
        try:
            check_overrides([*overrides], n_ranks=n_ranks)
        except ConfigError as error:
            return str(error)
        return ""

    assert "dp_shard * cp=2 * -1 * 1: their product must be the number of ranks, 1" in said(
        1, "parallel.dp_replicate=2"
    )
    assert "torchrun --nproc-per-node=N" in said(1, "parallel.dp_shard=2", "run.batch_tokens=8192")
    assert said(2, "parallel.dp_shard=2", "run.batch_tokens=8192") == said(1) == ""
    assert "data-parallel ranks = 4096 * 4; nearest: 16384" in said(4, "run.batch_tokens=8192")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 5400),
        ("90:30", 5430),
        ("1:30:00", 5400),
        ("2-0", 172800),
        ("1-2:30", 95400),
        ("1-2:30:05", 95405),
        ("", None),
        ("1d", None),
        ("1:2:3:4", None),
    ],
)
def test_time_limits_of_slurm_are_converted_to_seconds(text, seconds):
    assert slurm_seconds(text) == seconds


@pytest.mark.parametrize(
    ("typed", "rule"),
    [
        ("p=k/+d;", "p=k/+d;: no such key"),
        ("optim.lrr=3;", "no such key; did you mean optim.lr?"),
        ("stage=;", "stage=;: must be one of curriculum, dense"),
        ("optim.lr=3;", "optim.lr=3;: must be a number"),
    ],
)
def test_a_setting_that_hydra_cannot_parse_is_reported_by_its_key(typed, rule):
    with pytest.raises(ConfigError, match=re.escape(rule)):
        check_overrides([typed])


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ([], []),
        (["logger=wandb"], ["wandb"]),
        (["logger.kind=jsonl"], ["jsonl"]),
        (["logger=[wandb,tensorboard]"], ["tensorboard", "wandb"]),
        (["logger=[wandb,tensorboard]", "logger.kinds.wandb=false"], ["tensorboard"]),
        (["logger.kinds={jsonl: true, wandb: true}"], ["jsonl", "wandb"]),
        (["logger=wandb", "logger.kinds.jsonl=true"], ["wandb", "jsonl"]),
    ],
)
def test_several_trackers(settings, names):
    assert tracker_names(check_overrides(settings).logger) == names
