"""Starting in a run directory: continuing, refusing and starting over."""

import json
import re
from types import SimpleNamespace

import pytest
import torch

from lhtrain.checkpoint.saver import Saver
from lhtrain.compute.fill import compose_config, filled
from lhtrain.conf.schema import Init, Resume
from lhtrain.distributed import torchrun
from lhtrain.distributed.world import Ranks, World
from lhtrain.errors import RunError
from lhtrain.progress import DataPart, Progress
from lhtrain.runs import record, resume
from lhtrain.runs.changes import Change, all_differing, as_container, differing
from lhtrain.runs.checks import check_changes
from lhtrain.runs.history import History
from lhtrain.runs.own_config import load
from lhtrain.runs.record import record_start
from lhtrain.runs.resume import begin, find_start, resume_run, start_from
from lhtrain.runs.run_dir import RunDir
from lhtrain.runs.start import Start
from lhtrain.schedule import Schedule
from tests.checkpoint.made import saved

WORLD = World(Ranks(), torch.device("cpu"))


def rows(run_dir, *steps):
    run_dir.path.mkdir(exist_ok=True)
    run_dir.metrics.write_text("".join(json.dumps({"kind": "train", "step": n}) + "\n" for n in steps))


def test_a_new_directory_is_a_new_run(tmp_path):
    for how in (Resume.never, Resume.auto, Resume.force):
        assert find_start(RunDir(tmp_path / "new"), how, WORLD).how == "new run"


@pytest.mark.parametrize("name", ["step_00000004", "damaged-step_00000004"])
def test_a_directory_without_a_sound_checkpoint_is_refused_every_time(tmp_path, name):
    run_dir = RunDir(tmp_path)
    (run_dir.checkpoints / name).mkdir(parents=True)
    rows(run_dir, 1, 2, 3, 4)
    for how in (Resume.auto, Resume.force, Resume.never, Resume.auto):
        with pytest.raises(RunError, match="resume=restart"):
            find_start(run_dir, how, WORLD)
    assert run_dir.metrics.read_text().count("\n") == 4 and list(run_dir.checkpoints.iterdir())
    assert find_start(run_dir, Resume.restart, WORLD).how == "restarted"


def test_a_run_killed_before_its_first_checkpoint_starts_over(tmp_path):
    run_dir = RunDir(tmp_path / "run")
    rows(run_dir, 1, 2)
    History(run_dir.history).add("start", changed=[])
    assert find_start(run_dir, Resume.auto, WORLD).how == "new run"
    History(run_dir.history).add("checkpoint")
    with pytest.raises(RunError, match=r"reaches step 2, but .* has no checkpoint any more"):
        find_start(run_dir, Resume.auto, WORLD)


def test_a_checkpoint_is_found_after_an_interrupted_replacement(tmp_path):
    run_dir = RunDir(tmp_path)
    (path,) = saved(run_dir.checkpoints, steps=(4,))
    path.rename(path.with_name(f".replaced-{path.name}"))
    found = find_start(run_dir, Resume.auto, WORLD)
    assert (found.how, found.path) == ("resumed", path)


def test_older_directories_have_no_history(tmp_path):
    run_dir = RunDir(tmp_path / "run")
    rows(run_dir, 1, 2)
    run_dir.config.write_text("checkpoint: {every: 3}\n")
    assert find_start(run_dir, Resume.auto, WORLD).how == "new run"
    rows(run_dir, 1, 2, 3)
    with pytest.raises(RunError, match="resume=restart"):
        find_start(run_dir, Resume.auto, WORLD)


def test_the_order_of_stages_is_compared():
    config = as_container(compose_config(["run.steps=8"]))
    other = config | {"stages": dict(reversed(config["stages"].items()))}
    assert [str(change) for change in differing(config, other)] == [
        "stages: lighthouse, recovery -> recovery, lighthouse"
    ]


def test_settings_that_are_newer_than_the_run_count_as_their_defaults():
    now = as_container(compose_config(["run.steps=8"]))
    saved = json.loads(json.dumps(now))
    for group, key in (("data", "bos"), ("optim", "z_loss"), ("lighthouse", "selection"), ("run", "seed")):
        del saved[group][key]
    del saved["compute"], saved["stages"]["recovery"]["lr_scale"]
    assert differing(saved, now) == []
    now["optim"]["z_loss"] = 0.5
    assert [change.key for change in differing(saved, now)] == ["optim.z_loss"]


def test_a_key_of_a_stage_that_is_newer_than_the_run_is_no_change():
    now = as_container(compose_config(["run.steps=8"]))
    saved = json.loads(json.dumps(now))
    del saved["stages"]["recovery"]["queries"]
    assert all_differing(saved, now) == []
    now["stages"] |= {"new": now["stages"]["recovery"]}
    now["stages"]["recovery"] = now["stages"]["recovery"] | {"options": {"a": 1}}
    keys = [change.key for change in all_differing(saved, now)]
    assert "stages.new.queries" in keys and "stages.recovery.options.a" in keys


def test_a_fingerprint_of_data_is_explained(tmp_path):
    config = compose_config(["run.steps=8"])
    for key, explained in (("data", True), ("stages.recovery.data", True), ("data.bos", False)):
        with pytest.raises(RunError, match=key) as error:
            check_changes(tmp_path, {}, [Change(key, "a", "b")], RunDir(tmp_path), config)
        assert (f"{key}: other texts" in str(error.value)) is explained


@pytest.mark.parametrize("how", ["auto", "force"])
def test_a_model_of_another_shape_is_refused_and_force_is_not_advised(tmp_path, how):
    config = compose_config(["run.steps=8", f"resume={how}"])
    with pytest.raises(RunError, match="another shape") as error:
        check_changes(tmp_path, {}, [Change("model.dim", 128, 96)], RunDir(tmp_path), config)
    assert "\n  model.dim: 128 -> 96\nUse the saved values: " in str(error.value)


def test_a_run_keeps_the_packing_that_it_was_started_with():
    """Runs from before the key have `spread`; another packing or other buckets are a change."""
    now = as_container(compose_config(["run.steps=8"]))
    saved = json.loads(json.dumps(now))
    del saved["data"]["packing"], saved["data"]["buckets"], saved["data"]["bucket_weights"]
    assert differing(saved, now) == []
    settings = ["run.steps=8", "data.packing=best_fit", "data.buckets=[4096]"]
    assert [str(change) for change in differing(saved, as_container(compose_config(settings)))] == [
        "data.buckets: [] -> [4096]",
        "data.packing: spread -> best_fit",
    ]


def test_a_run_older_than_the_window_setting_has_no_window():
    now = as_container(compose_config(["run.steps=8"]))
    saved = as_container(compose_config(["run.steps=8"]))
    for settings in (saved["lighthouse"], *saved["stages"].values()):
        del settings["window"]
    assert differing(saved, now) == []
    now["stages"]["lighthouse"]["window"] = 512
    assert [str(change) for change in differing(saved, now)] == ["stages.lighthouse.window: 0 -> 512"]


def test_keys_of_stages_that_are_newer_than_the_run_count_as_the_values_of_the_run():
    now = as_container(compose_config(["run.steps=8", "model.rope_theta=5e5"]))
    saved = json.loads(json.dumps(now))
    for stage in saved["stages"].values():
        for key in ("rope_theta", "dense_layers", "lr", "warmup_steps", "schedule", "tokens"):
            del stage[key]
    assert differing(saved, now) == []
    now["stages"]["recovery"] |= {"rope_theta": 1e6, "warmup_steps": 3}
    assert [str(change) for change in differing(saved, now)] == [
        "stages.recovery.rope_theta: 500000.0 -> 1000000.0",
        "stages.recovery.warmup_steps: null -> 3",
    ]


def test_the_plan_names_stages_steps_and_learning_rates():
    config = compose_config(["run.steps=200", "optim.lr=0.01"])
    assert Schedule.of(config).plan(0) == [
        "lighthouse (lighthouse): steps 1 to 125, learning rate 0.001, up to 0.01 at step 10",
        "recovery (dense): steps 126 to 200, learning rate 0.01, constant until step 161, "
        "down to 0.00025 at step 200",
    ]
    assert Schedule.of(config).plan(199) == ["recovery (dense): steps 200 to 200, learning rate 0.00025"]


def test_an_earlier_attempt_and_an_earlier_configuration_are_kept(tmp_path):
    run_dir, config = RunDir(tmp_path / "run"), compose_config(["run.steps=8", "run.dir=x", "run.name=n"])
    about = {"ranks": 1, "data": "0" * 32}
    assert record_start(Start("new run"), run_dir, config, 0, about) == []
    rows(run_dir, 1, 2)
    config.optim.lr = 0.5
    printed = record_start(Start("new run"), run_dir, config, 0, about)
    assert "metrics.0001.jsonl" in printed[0] and (run_dir.path / "metrics.0001.jsonl").exists()
    assert "lr: 0.001" in (run_dir.path / "config.0001.yaml").read_text()
    assert "lr: 0.5" in run_dir.config.read_text()
    rows(run_dir, 1, 2)
    record_start(Start("restarted"), run_dir, config, 0, about)
    assert (run_dir.path / "earlier.0001" / "metrics.jsonl").exists() and not run_dir.metrics.exists()
    assert [record["how"] for record in History(run_dir.history).records()] == [
        "new run",
        "new run",
        "restarted",
    ]


def test_a_full_disk_at_the_start_leaves_the_configuration(tmp_path, monkeypatch):
    run_dir, config = RunDir(tmp_path / "run"), compose_config(["run.steps=8", "run.dir=x", "run.name=n"])
    record_start(Start("new run"), run_dir, config, 0, {})
    before, write = run_dir.config.read_text(), record.write_atomic

    def write_until_full(path, *args, **more):
        if path == run_dir.config:
            raise OSError(28, "No space left on device", str(path))
        write(path, *args, **more)

    monkeypatch.setattr(record, "write_atomic", write_until_full)
    config.optim.lr = 0.5
    with pytest.raises(OSError, match="No space left"):
        record_start(Start("new run"), run_dir, config, 0, {})
    assert run_dir.config.read_text() == before


def test_torchrun_starts_a_run_over_once(tmp_path, monkeypatch):
    """A later attempt of the same torchrun continues the run that the first attempt started over."""
    run_dir, config = RunDir(tmp_path / "run"), compose_config(["run.steps=8", "run.dir=x", "run.name=n"])
    rows(run_dir, 1, 2)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    for attempt, how in (("0", "restarted"), ("1", "restarted"), ("2", "new run")):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", attempt)
        found = find_start(run_dir, Resume.restart, WORLD)
        assert found.how == how
        if attempt == "1":  # attempt 0 failed before this
            record_start(found, run_dir, config, 0, {})
    (run_dir.path / torchrun.STARTED_OVER).write_text("another torchrun")
    assert find_start(run_dir, Resume.restart, WORLD).how == "restarted"


@pytest.mark.parametrize("name", ["config.yaml", "history.jsonl"])
def test_symbolic_links_are_not_followed(tmp_path, name):
    run_dir, config = RunDir(tmp_path / "run"), compose_config(["run.steps=8", "run.dir=x", "run.name=n"])
    run_dir.path.mkdir()
    victim = tmp_path / "victim"
    victim.write_text("precious: 1\n")
    (run_dir.path / name).symlink_to(victim)
    try:
        record_start(Start("new run"), run_dir, config, 0, {})
    except OSError as error:
        assert name in str(error) and "symbolic link" in str(error)
    assert victim.read_text() == "precious: 1\n"


TINY = ["data=text", "data.path=x", "stage=dense", "model.seq_len=256", "model.n_layers=2", "model.dim=32"]
TINY += ["model.ffn_dim=64", "run.batch_tokens=512", "run.steps=4", "run.device=cpu"]


@pytest.mark.parametrize("change", ["model.n_heads", "model.head_dim", "model.rope_theta", "lost"])
def test_init_from_compares_settings_that_shapes_do_not_show(tmp_path, monkeypatch, change):
    """Another layout of heads is refused; other training settings are noted; a damaged state is refused."""
    config = filled(compose_config([*TINY, "model.n_heads=4", f"run.dir={tmp_path}"]))
    saved = as_container(config)
    tensors = {"model.w": torch.ones(2), "optimizer.m.w": torch.ones(2)}
    progress = {"step": 3, "position": 1536, "stages": []}
    values = {"model.n_heads": 8, "model.head_dim": 4, "model.rope_theta": 5e5}
    if change in values:
        saved["model"][change.removeprefix("model.")] = values[change]
    else:
        del saved["stages"]
    saver = Saver(tmp_path / "other", 1, WORLD)
    saver.save(3, tensors, {"progress": progress, "config": saved, "data": "d"})
    saver.finish()
    path, corpus = tmp_path / "other" / "step_00000003", SimpleNamespace(fingerprint="d")
    if change == "model.rope_theta":
        begun, note = start_from(path, tensors, config, corpus, WORLD)
        assert begun.position == 1536 and "model.rope_theta: 500000.0 -> 10000.0" in note
        return
    with pytest.raises(RunError) as refused:
        start_from(path, tensors, config, corpus, WORLD)
    what = (
        f"{change}: {values[change]} -> " if change in values else "state.json must be as lhtrain writes it"
    )
    assert what in str(refused.value)


def test_the_keys_that_a_preset_sets_otherwise_than_the_weights_are_named(tmp_path):
    """A typed model=NAME has the shape of the weights, and other keys, which count."""
    config = filled(compose_config([*TINY, f"run.dir={tmp_path}"]))
    saved = as_container(config)
    saved["model"] |= {"seq_len": 1024, "norm_eps": 1e-6, "dense_layers": [0]}
    saver = Saver(tmp_path / "other", 1, WORLD)
    progress = {"step": 3, "position": 1536, "stages": []}
    tensors = {"model.w": torch.ones(2)}
    saver.save(3, tensors, {"progress": progress, "config": saved, "data": "d"})
    saver.finish()
    path, corpus = tmp_path / "other" / "step_00000003", SimpleNamespace(fingerprint="d")
    _, note = start_from(path, tensors, config, corpus, WORLD)
    for change in ("seq_len: 1024 -> 256", "norm_eps: 1e-06 -> 1e-05", "dense_layers: [0] -> []"):
        assert f"model.{change}" in note
    assert "those of this run count" in note


@pytest.mark.parametrize(("typed", "warns"), [([], 0), (["model.rope_theta=2e4"], 1)])
def test_a_higher_base_beside_the_scaling_of_the_weights_is_named(tmp_path, typed, warns):
    scaling = "model.rope_scaling={rope_type: linear, factor: 2}"
    saved = as_container(compose_config([*TINY, scaling]))["model"]
    assert len(resume._stretched_twice(saved, compose_config([*TINY, scaling, *typed]))) == warns
    assert resume._stretched_twice(saved, compose_config([*TINY, *typed])) == []


@pytest.mark.parametrize("same_order", [True, False])
def test_init_from_a_run_whose_stages_had_data_of_their_own(tmp_path, same_order):
    """The new run continues each source behind what was read of it, if the order is the same."""
    config = filled(compose_config([*TINY, f"run.dir={tmp_path}"]))
    settings = as_container(config)
    settings["run"]["seed"] += not same_order
    tensors = {"model.w": torch.ones(2), "optimizer.m.w": torch.ones(2)}
    part = {"owner": "recovery", "begin": 512, "read": {"web": 2}}
    progress = {"step": 3, "position": 1536, "stages": [], "data": part}
    saver = Saver(tmp_path / "other", 1, WORLD)
    state = {"progress": progress, "config": settings, "data": "d", "blocks_read": {"web": 2, "code": 4}}
    saver.save(3, tensors, state)
    saver.finish()
    path, corpus = tmp_path / "other" / "step_00000003", SimpleNamespace(fingerprint="d")
    begun, note = start_from(path, tensors, config, corpus, WORLD)
    assert begun.position == 1536 and ("in another order" in note) is not same_order
    read = DataPart("", 1536, {"web": 2, "code": 4}) if same_order else DataPart()
    assert begun.data == read


def test_the_scaling_of_the_rotary_embedding_is_read_as_it_was_written(tmp_path):
    scaling = "{rope_type: yarn, factor: 2.5, original_max_position_embeddings: 256, truncate: false}"
    config = filled(compose_config([*TINY, f"model.rope_scaling={scaling}", f"run.dir={tmp_path}"]))
    record_start(Start("new run"), RunDir(tmp_path), config, 0, {})
    assert load(tmp_path, []).model.rope_scaling == config.model.rope_scaling


@pytest.mark.parametrize(
    ("typed", "key"),
    [
        ("optim.groups={blocks.0: 0.5}", "optim.groups.blocks.0"),
        ("model.rope_scaling={rope_type: linear, factor: 2}", "model.rope_scaling.factor"),
    ],
)
def test_the_configuration_before_a_mapping_was_set_is_kept(tmp_path, typed, key):
    settings = [*TINY, f"run.dir={tmp_path}"]
    for more in ([], [typed]):
        config = filled(compose_config([*settings, *more]))
        record_start(Start("new run"), RunDir(tmp_path), config, 0, {})
    assert (tmp_path / "config.0001.yaml").exists()
    changed = History(RunDir(tmp_path).history).records()[-1]["changed"]
    assert key in {one["key"] for one in changed}


def test_weights_alone(tmp_path):
    config = filled(compose_config([*TINY, f"run.dir={tmp_path}"]))
    tensors = {"model.w": torch.ones(2), "optimizer.m.w": torch.ones(2)}
    saver = Saver(tmp_path / "other", 1, WORLD)
    progress = {"step": 3, "position": 1536, "stages": []}
    state = {"progress": progress, "config": as_container(config), "data": "d"}
    state["tokenizer"] = {"name": "old", "hash": "0", "eos": 2, "bos": None}
    saver.save(3, tensors, state)
    saver.finish()
    path = tmp_path / "other" / "step_00000003"
    corpus = SimpleNamespace(fingerprint="d", tokenizer=SimpleNamespace(fingerprint="1", name="new"))
    config.init = Init.weights
    mine = {"model.w": torch.zeros(2), "optimizer.m.w": torch.zeros(2)}
    config.init_from, start = str(path), Start("new run")
    begun, note = begin(start, RunDir(tmp_path), mine, config, corpus, WORLD)
    assert begun.position == 0 and mine["model.w"].all() and not mine["optimizer.m.w"].any()
    assert "the optimizer state is new" in note
    assert len(start.notes) == 1 and re.search(r"tokenizer new, .* trained with old", start.notes[0])
    saver.save(4, {"model.w": torch.ones(2)}, state | {"progress": progress | {"step": 4}})
    saver.finish()
    config.init = Init.all
    with pytest.raises(RunError, match=r"init=all: .* has weights alone"):
        start_from(path.with_name("step_00000004"), mine, config, corpus, WORLD)


def test_what_is_not_taken_from_a_checkpoint_is_named(tmp_path):
    """Weights of scorers are optional, so they are in the note; other optimizer state is refused."""
    config = filled(compose_config([*TINY, f"run.dir={tmp_path}"]))
    saver, ones = Saver(tmp_path / "other", 1, WORLD), torch.ones(2)
    scorer = "model.blocks.0.attention.scorer.gate.weight"
    progress = {"step": 3, "position": 1536, "stages": []}
    state = {"progress": progress, "config": as_container(config), "data": "d"}
    saver.save(3, {"model.w": ones, "optimizer.m.w": ones, "optimizer.v.w": ones, scorer: ones}, state)
    saver.finish()
    path, corpus = tmp_path / "other" / "step_00000003", SimpleNamespace(fingerprint="d")
    same = {"model.w": torch.zeros(2), "optimizer.m.w": torch.zeros(2), "optimizer.v.w": torch.zeros(2)}
    assert "; without 1 tensor of scorers" in start_from(path, same, config, corpus, WORLD)[1]
    other = {"model.w": torch.zeros(2), "optimizer.m.w": torch.zeros(2)}
    with pytest.raises(RunError, match=r"adamw optim.state=float32 \(m, v\), .* \(m\), .*init=weights"):
        start_from(path, other, config, corpus, WORLD)
    config.init = Init.weights
    start_from(path, other, config, corpus, WORLD)
    assert other["model.w"].all() and not other["optimizer.m.w"].any()
    other[scorer.replace("0", "1")] = ones
    assert "; with 1 new tensor of scorers" in start_from(path, other, config, corpus, WORLD)[1]


def test_optimizer_state_of_another_kind_is_named_by_its_settings(tmp_path):
    """On resume and with init_from; parameters that only one of the runs has trained so far do not count."""
    config = filled(compose_config([*TINY, "optim=muon", f"run.dir={tmp_path}"]))
    run_dir, ones = RunDir(tmp_path), torch.ones(2)
    saver, progress = Saver(run_dir.checkpoints, 1, WORLD), {"step": 3, "position": 1536, "stages": []}
    state = {"progress": progress, "config": as_container(config), "data": "d"}
    saver.save(3, {"model.a": ones, "model.b": ones, "optimizer.momentum.a": ones}, state)
    saver.finish()
    path, corpus = run_dir.checkpoints / "step_00000003", SimpleNamespace(fingerprint="d")
    adamw = {"model.a": ones, "model.b": ones, "optimizer.exp_avg.a": ones}
    config.optim.kind, config.resume = "adamw", Resume.force
    kinds = r"optim.kind=muon optim.state=float32, .* optim.kind=adamw optim.state=float32, .* init=weights"
    with pytest.raises(RunError, match=kinds):
        resume_run(Start("resumed", path), run_dir, adamw, config, corpus)
    with pytest.raises(RunError, match=kinds):
        start_from(path, adamw, config, corpus, WORLD)
    only_other = {"model.a": ones, "model.b": ones, "optimizer.exp_avg.b": ones}
    with pytest.raises(RunError, match=r"optimizer.exp_avg.b: not in the checkpoint"):
        start_from(path, only_other, config, corpus, WORLD)


def test_restart_with_init_from_is_still_a_restart(monkeypatch):
    """The earlier files must be moved aside; otherwise a later resume would continue the earlier run."""
    begun = Progress(position=512), "weights of another run"
    monkeypatch.setattr(resume, "start_from", lambda *_: begun)
    monkeypatch.setattr(resume.checkpoint, "state_of", lambda _: {"config": {"model": {}}})
    config = SimpleNamespace(init_from="other")
    for how, after in (("restarted", "restarted"), ("new run", "init_from")):
        run = Start(how)
        assert begin(run, None, None, config, None, None) == begun and run.how == after


def test_a_run_keeps_the_rotary_base_that_it_was_started_with(tmp_path):
    """An older version had another default: it is named as a change, and `resume` uses the saved one."""
    typed = [*TINY, "model.seq_len=4096", "run.batch_tokens=4096", f"run.dir={tmp_path}"]
    old = filled(compose_config([*typed, "model.rope_theta=10000"]))
    record_start(Start("new run"), RunDir(tmp_path), old, 0, {})
    assert load(tmp_path, []).model.rope_theta == load(tmp_path, []).stages["dense"].rope_theta == 10_000
    changed = differing(as_container(old), as_container(filled(compose_config(typed))))
    assert [str(change) for change in changed] == [
        "model.rope_theta: 10000.0 -> 33000.0",
        "stages.dense.rope_theta: 10000.0 -> 33000.0",
    ]
    assert differing(as_container(old), as_container(load(tmp_path, []))) == []
