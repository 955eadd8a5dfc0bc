"""Checkpoints: exact round trip, the newest undamaged one, names, errors."""

import errno
import json
import os
import shutil

import pytest
import torch

from lhtrain import checkpoint
from lhtrain.checkpoint import all_ranks, hashed, manifest, retry
from lhtrain.checkpoint.model_settings import LAYOUT, TRAINED_FOR, differing_settings
from lhtrain.checkpoint.saver import Saver
from lhtrain.errors import RunError
from tests.checkpoint.made import (
    ALONE,
    OF_RANK_0,
    SMALL,
    Trained,
    copy,
    flip,
    problem_of,
    replace_by,
    rewrite,
    saved,
    train,
    truncate,
)


def test_training_continues_bit_for_bit(tmp_path):
    one = Trained()
    train(one, 3, seed=1)
    (path,) = saved(tmp_path, tensors=one.tensors)
    expected = train(one, 4, seed=2)
    other = Trained(seed=5)
    train(other, 1, seed=3)
    assert checkpoint.read_state(path)["progress"]["step"] == 1
    checkpoint.load(path, other.tensors)
    assert train(other, 4, seed=2) == expected
    assert other.model.head.weight is other.model.embedding.weight


def test_training_continues_while_it_is_written(tmp_path):
    """The checkpoint has the state at the call, and the running model is unchanged."""
    one, two = Trained(), Trained()
    train(one, 2, seed=1), train(two, 2, seed=1)
    saver = Saver(tmp_path, 9, ALONE)
    saver.save(1, one.tensors, {})
    assert train(one, 3, seed=2) == train(two, 3, seed=2)
    saver.finish()
    assert saver.saved.count == 1 and saver.saved.bytes > 0 and saver.saved.write_seconds > 0
    three = Trained(seed=9)
    checkpoint.load(checkpoint.folder_of(tmp_path, 1), three.tensors)
    fresh = Trained()
    train(fresh, 2, seed=1)
    for name, tensor in fresh.tensors.items():
        assert torch.equal(tensor, three.tensors[name]), name


def test_a_checkpoint_holds_no_pickle_and_only_named_files(tmp_path):
    (path,) = saved(tmp_path, tensors=Trained().tensors)
    assert sorted(file.name for file in path.iterdir()) == ["manifest.json", OF_RANK_0, "state.json"]
    manifest = json.loads((path / "manifest.json").read_text())
    size = sum(tensor.nbytes for tensor in Trained().tensors.values())
    assert manifest["files"][OF_RANK_0]["bytes"] == size == (path / OF_RANK_0).stat().st_size


@pytest.mark.parametrize("small_pieces", [False, True])
def test_dtypes_scalars_and_empty_tensors(tmp_path, monkeypatch, small_pieces):
    """Pieces smaller than a row of a tensor, and rows that cross pieces."""
    if small_pieces:
        for module in (hashed, manifest):
            monkeypatch.setattr(module, "PIECE", 5)
    tensors = {
        "model.low": torch.randn(3, 5).bfloat16(),
        "model.half": torch.randn(7).half(),
        "model.double": torch.randn(2, 2, 2, dtype=torch.float64),
        "model.turned": torch.randn(4, 3).t(),
        "model.one": torch.tensor(1.5),
        "model.none": torch.zeros(0, 4),
        "model.flags": torch.tensor([True, False, True]),
        "model.counts": torch.arange(5),
        "model.bytes": torch.arange(3, dtype=torch.uint8),
    }
    (path,) = saved(tmp_path, tensors=tensors)
    assert problem_of(path) is None
    filled = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    checkpoint.load(path, filled)
    for name, tensor in tensors.items():
        assert torch.equal(filled[name], tensor), name


def test_the_newest_are_kept(tmp_path):
    saved(tmp_path, steps=(1, 2, 10, 9), keep=2)
    assert [path.name for path in checkpoint.complete(tmp_path)] == ["step_00000009", "step_00000010"]


def test_the_one_just_written_is_never_deleted(tmp_path):
    """Later steps of another run do not cause this run's checkpoints to be deleted."""
    saved(tmp_path, steps=(500, 3), keep=1)
    assert [path.name for path in checkpoint.complete(tmp_path)] == ["step_00000003", "step_00000500"]


@pytest.mark.parametrize(
    "name",
    [
        "step_best",
        "step_00000002.bak",
        "step_2",
        "step_0000000002",
        "step_００００００７",
        "xstep_00000009",
        "best",
    ],
)
def test_names_that_are_not_the_programs_are_left_alone(tmp_path, name):
    (first,) = saved(tmp_path)
    copy(first, tmp_path / name)
    (path,) = saved(tmp_path, steps=(2,), keep=1)
    assert checkpoint.complete(tmp_path) == [path]
    assert checkpoint.newest_sound(tmp_path, ALONE) == (path, [])
    truncate(path)
    with pytest.raises(RunError, match="no undamaged checkpoint is left"):
        checkpoint.newest_sound(tmp_path, ALONE)
    assert problem_of(tmp_path / name) is None, "a copy can be given by its name"


def test_checkpoints_are_ordered_by_number(tmp_path):
    paths = saved(tmp_path, steps=(99_999_999, 100_000_000))
    assert checkpoint.complete(tmp_path) == paths
    assert checkpoint.newest_sound(tmp_path, ALONE)[0] == paths[1]


def test_what_a_killed_run_left_is_removed(tmp_path):
    (path,) = saved(tmp_path / "here")
    folder, other = tmp_path / "here", tmp_path / "elsewhere"
    copy(path, other)
    copy(path, folder / ".writing-step_00000002")
    copy(path, folder / ".deleting-step_00000000.1")
    copy(path, folder / ".replaced-step_00000001")
    path.rename(folder / ".replaced-step_00000004")
    (folder / ".writing-step_00000003").write_text("a stray file")
    (folder / ".writing-step_00000005").symlink_to(other)
    (folder / ".writing-notes").write_text("somebody's")
    assert checkpoint.tidy(folder) == []
    assert sorted(p.name for p in folder.iterdir()) == [".writing-notes", "step_00000001", "step_00000004"]
    assert problem_of(other) is None, "a link's target stays"


def test_damaged_ones_are_renamed_when_an_undamaged_one_is_found(tmp_path):
    sound, cut, flipped = saved(tmp_path, steps=(1, 2, 3))
    truncate(cut), flip(flipped)
    found, notes = checkpoint.newest_sound(tmp_path, ALONE)
    assert found == sound and checkpoint.complete(tmp_path) == [sound]
    assert (
        f"step_00000003 is damaged and was renamed to damaged-step_00000003: {OF_RANK_0} was altered"
        in notes[0]
    )
    assert (
        f"step_00000002 is damaged and was renamed to damaged-step_00000002: {OF_RANK_0} is truncated"
        in notes[1]
    )
    names = [path.name for path in checkpoint.leftovers(tmp_path)]
    assert names == ["step_00000001", "damaged-step_00000002", "damaged-step_00000003"]


def test_damage_that_loading_finds_leads_to_an_older_one(tmp_path):
    sound, flipped = saved(tmp_path, steps=(1, 2))
    flip(flipped)
    filled, tried = {name: torch.full_like(tensor, 7) for name, tensor in SMALL.items()}, []

    def load(path):
        tried.append(path)
        checkpoint.load(path, filled)

    found, notes = checkpoint.newest_sound(tmp_path, ALONE, load)
    assert found == sound and tried == [flipped, sound] and f"{OF_RANK_0} was altered" in notes[0]
    assert all(torch.equal(filled[name], SMALL[name]) for name in SMALL)
    flip(sound)
    with pytest.raises(RunError, match=f"step_00000001: {OF_RANK_0} was altered"):
        checkpoint.newest_sound(tmp_path, ALONE, load)


def test_a_load_reads_and_hashes_each_byte_once(tmp_path, monkeypatch):
    """Rows that lie in two pieces, small tensors in one piece, and a file longer than the buffer."""
    monkeypatch.setattr(hashed, "PIECE", 4096)
    monkeypatch.setattr(manifest, "PIECE", 4096)
    monkeypatch.setattr(all_ranks, "THREADS", 1)
    tensors = {"model.a": torch.randn(50, 77), "model.b": torch.randn(3), "model.c": torch.randn(5, 7, 80)}
    (path,) = saved(tmp_path, tensors=tensors)
    read, hashes, preadv, digest = [], [], os.preadv, hashed.digest
    monkeypatch.setattr(os, "preadv", lambda *a: (read.append(preadv(*a)), read[-1])[1])
    monkeypatch.setattr(hashed, "digest", lambda content: (hashes.append(len(content)), digest(content))[1])
    filled = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    checkpoint.load(path, filled)
    assert all(torch.equal(filled[name], tensors[name]) for name in tensors)
    size = sum(tensor.nbytes for tensor in tensors.values())
    assert sum(read) == sum(hashes) == size and max(hashes) == 4096


def test_threads_share_the_bytes_and_not_the_count():
    shared = []
    all_ranks.in_parallel(lambda part: shared.append(list(part)), range(8), [90, 1, 1, 1, 1, 1, 1, 4])
    assert sorted(shared) == [[], [], [0], [1, 2, 3, 4, 5, 6, 7]]
    all_ranks.in_parallel(lambda part: shared.append(list(part)), [])


def test_if_all_are_damaged_nothing_is_renamed_however_often_it_is_tried(tmp_path):
    paths = saved(tmp_path, steps=(1, 2))
    truncate(paths[0]), (paths[1] / "manifest.json").unlink()
    for _ in range(2):
        with pytest.raises(RunError) as refused:
            checkpoint.newest_sound(tmp_path, ALONE)
        assert "step_00000002: manifest.json is missing" in str(refused.value)
        assert f"step_00000001: {OF_RANK_0} is truncated" in str(refused.value)
        assert sorted(tmp_path.iterdir()) == paths == checkpoint.leftovers(tmp_path)


def test_one_without_a_manifest_is_damaged_not_absent(tmp_path):
    sound, bare = saved(tmp_path, steps=(1, 2))
    (bare / "manifest.json").unlink()
    assert checkpoint.complete(tmp_path) == [sound] and checkpoint.leftovers(tmp_path) == [sound, bare]
    found, notes = checkpoint.newest_sound(tmp_path, ALONE)
    assert (
        found == sound
        and "step_00000002 is damaged and was renamed to damaged-step_00000002: manifest.json is missing"
        in notes[0]
    )


def test_the_same_step_damaged_twice_is_renamed_twice(tmp_path):
    for _ in range(2):
        sound, damaged = saved(tmp_path, steps=(1, 2))
        flip(damaged)
        found, notes = checkpoint.newest_sound(tmp_path, ALONE)
        assert found == sound and len(notes) == 1
    assert (tmp_path / "damaged-step_00000002.1").is_dir(), "neither is lost"


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ESTALE, errno.EMFILE])
@pytest.mark.parametrize("call", ["open", "preadv"])
def test_an_error_of_the_file_system_is_not_damage(tmp_path, monkeypatch, number, call):
    paths, real, tries = saved(tmp_path, steps=(1, 2)), getattr(os, call), []
    monkeypatch.setattr(retry, "PAUSE", 0)

    def broken(file, *arguments, **options):
        if call == "preadv" or str(file).endswith(f"2/{OF_RANK_0}"):
            tries.append(file)
            raise OSError(number, os.strerror(number), None if call == "preadv" else file)
        return real(file, *arguments, **options)

    with monkeypatch.context() as broken_disk:
        broken_disk.setattr(os, call, broken)
        with pytest.raises(RunError) as refused:
            checkpoint.newest_sound(tmp_path, ALONE)
    file = paths[1] / (OF_RANK_0 if call == "open" else "state.json")
    assert f"[Errno {number}] {os.strerror(number)}" in str(refused.value)
    assert str(file) in str(refused.value) or call == "preadv"
    assert sorted(tmp_path.iterdir()) == paths and len(tries) >= retry.TRIES
    assert checkpoint.newest_sound(tmp_path, ALONE) == (paths[1], [])


def test_an_error_that_passes_is_not_noticed(tmp_path, monkeypatch):
    (path,), real, left = saved(tmp_path), os.preadv, [2]
    monkeypatch.setattr(retry, "PAUSE", 0)

    def passing(*arguments):
        if left[0]:
            left[0] -= 1
            raise OSError(errno.EIO, "Input/output error")
        return real(*arguments)

    monkeypatch.setattr(os, "preadv", passing)
    assert checkpoint.newest_sound(tmp_path, ALONE) == (path, [])


def test_a_checkpoint_of_a_later_version_is_refused_and_left_alone(tmp_path):
    paths = saved(tmp_path, steps=(1, 2))
    rewrite(paths[1], lambda tree: tree.update(format=9))
    with pytest.raises(RunError, match=r"manifest\.json has format 9; this version of lhtrain reads 2 and 3"):
        checkpoint.newest_sound(tmp_path, ALONE)
    assert sorted(tmp_path.iterdir()) == paths


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, f"{OF_RANK_0} is truncated: it has 27 of the 28 bytes"),
        (flip, f"{OF_RANK_0} was altered"),
        (lambda path: (path / "state.json").unlink(), "state.json is missing"),
        (lambda path: (path / "manifest.json").write_text("{"), "manifest.json is damaged"),
        (
            lambda path: (path / "manifest.json").write_text('{"files": {}}'),
            "manifest.json does not describe",
        ),
        (lambda path: flip(path, "manifest.json"), "manifest.json is damaged"),
        (lambda path: rewrite(path, lambda tree: tree.update(format=9)), "manifest.json has format 9"),
        (
            lambda path: rewrite(path, lambda tree: tree.update(format=9), "state.json"),
            "state.json has format",
        ),
        (lambda path: shutil.rmtree(path), "no such folder"),
        (lambda path: (shutil.rmtree(path), path.write_text("")), "this is a file, not a folder"),
    ],
)
def test_a_fault_is_named_and_so_is_the_older_undamaged_one(tmp_path, damage, message):
    sound, middle, newest = saved(tmp_path, steps=(1, 2, 3))
    truncate(middle)
    damage(newest)
    with pytest.raises(
        RunError, match=f"step_00000003: {message}.*; the newest undamaged one before it is {sound}"
    ):
        checkpoint.read_state(newest)
    truncate(sound)
    with pytest.raises(RunError, match="there is no older undamaged one"):
        checkpoint.read_state(newest)


def test_the_files_of_another_step_or_run_are_found(tmp_path):
    six, eight = saved(tmp_path, steps=(6, 8))
    (other,) = saved(tmp_path / "other", steps=(8,), tensors={"model.w": torch.ones(2, 3)} | SMALL)
    shutil.copy(six / "state.json", eight / "state.json")
    assert problem_of(eight).startswith("state.json was altered")
    shutil.rmtree(eight), copy(six, eight)
    assert problem_of(eight) == "manifest.json is of step 6, but the folder's name is of step 8"
    assert problem_of(copy(six, tmp_path / "step_best")) is None
    (ones,) = saved(tmp_path / "ones", steps=(8,), tensors={name: t + 1 for name, t in SMALL.items()})
    shutil.copy(other / OF_RANK_0, ones / OF_RANK_0)
    assert problem_of(ones).startswith(f"{OF_RANK_0} was altered")


@pytest.mark.parametrize("kind", ["directory", "link", "pipe"])
@pytest.mark.parametrize("name", [OF_RANK_0, "state.json", "manifest.json"])
def test_only_regular_files_are_read(tmp_path, kind, name):
    (path,) = saved(tmp_path)
    replace_by(kind, path / name, tmp_path)
    words = {"directory": "is a directory", "link": "is a symbolic link", "pipe": "is a pipe"}[kind]
    assert problem_of(path).startswith(f"{name} {words}")
    with (
        pytest.raises(RunError, match=f"{name} {words}") if name != "state.json" else pytest.raises(RunError)
    ):
        checkpoint.load(path, SMALL) if name != "state.json" else checkpoint.state_of(path)


def test_what_is_damaged_after_it_was_checked_is_not_loaded(tmp_path):
    (path,) = saved(tmp_path)
    assert problem_of(path) is None
    flip(path)
    with pytest.raises(RunError, match=f"{OF_RANK_0} was altered"):
        checkpoint.load(path, {name: torch.zeros_like(tensor) for name, tensor in SMALL.items()})


def test_a_run_directory_given_for_a_checkpoint(tmp_path):
    (path,) = saved(tmp_path / "checkpoints")
    for folder in (tmp_path, tmp_path / "checkpoints"):
        with pytest.raises(RunError, match=f"the newest checkpoint in this folder is {path}"):
            checkpoint.read_state(folder)
    with pytest.raises(RunError, match="a checkpoint is a folder such as RUN/checkpoints/step_00000100"):
        checkpoint.read_state(tmp_path / "nothing")


def test_published_and_imported_weights_that_are_no_checkpoint_name_the_import(tmp_path):
    published, (imported,) = tmp_path / "published", saved(tmp_path / "imported")
    published.mkdir()
    (published / "config.json").write_text("{}")
    with pytest.raises(RunError, match=rf"manifest\.json is missing; .*`lhtrain import {published} DIR`"):
        checkpoint.read_state(published)
    imported = imported.rename(tmp_path / "weights")
    (imported / "imported").mkdir()
    (imported / "state.json").write_text("{}")
    with pytest.raises(RunError, match=r"state\.json is truncated.*; write it again with `lhtrain import`"):
        checkpoint.read_state(imported)


def test_another_models_checkpoint_names_the_tensors(tmp_path):
    (path,) = saved(tmp_path, tensors=Trained().tensors)
    with pytest.raises(
        RunError, match=r"embedding.weight: \(32, 16\) in the checkpoint, \(32, 24\) in this model.* more"
    ):
        checkpoint.load(path, Trained(dim=24).tensors)
    smaller = {name: tensor for name, tensor in Trained().tensors.items() if ".blocks.1." not in name}
    with pytest.raises(RunError, match=r"blocks\.1\.attention\.wk\.weight: not in this model"):
        checkpoint.load(path, smaller)


def test_optional_tensors_may_be_on_one_side_alone(tmp_path):
    ones, zeros = torch.ones(2), torch.zeros(2)
    (path,) = saved(tmp_path, tensors={"model.w": ones, "model.a.extra.w": ones})
    with pytest.raises(RunError, match=r"extra\.w: not in this model"):
        checkpoint.load(path, {"model.w": zeros.clone()})
    tensors = {"model.w": zeros.clone(), "model.b.extra.w": zeros.clone()}
    with pytest.raises(RunError, match=r"b\.extra\.w: not in the checkpoint"):
        checkpoint.load(path, tensors)
    checkpoint.load(path, tensors, optional=[".extra."])
    assert tensors["model.w"].tolist() == [1, 1] and tensors["model.b.extra.w"].tolist() == [0, 0]
    with pytest.raises(RunError, match=r"w: \(2,\) in the checkpoint, \(3,\) in this model"):
        checkpoint.load(path, {"model.w": ones, "model.a.extra.w": torch.zeros(3)}, optional=[".extra."])


def test_whole_numbers_are_not_loaded_as_fractions(tmp_path):
    (path,) = saved(tmp_path, tensors={"model.w": torch.arange(3)})
    with pytest.raises(RunError, match=r"w: torch.int64 in the checkpoint, torch.float32 in this model"):
        checkpoint.load(path, {"model.w": torch.zeros(3)})


def test_a_copy_of_weights_may_have_another_precision(tmp_path):
    (path,) = saved(tmp_path, tensors={"model.w": torch.tensor([1.5, 2.25])})
    low = {"model.w": torch.zeros(2, dtype=torch.bfloat16)}
    checkpoint.load(path, low)
    assert low["model.w"].tolist() == [1.5, 2.25]


def test_settings_that_shapes_do_not_show_are_compared():
    saved_one = {"n_heads": 4, "n_kv_heads": 4, "head_dim": 8, "rope_theta": 1e4, "norm_eps": 1e-5, "dim": 32}
    now = saved_one | {"n_heads": 8, "n_kv_heads": 8, "head_dim": 4, "rope_theta": 5e5}
    assert differing_settings(saved_one, now, LAYOUT) == [
        "model.n_heads: 4 -> 8",
        "model.n_kv_heads: 4 -> 8",
        "model.head_dim: 8 -> 4",
    ]
    assert differing_settings(saved_one, now, TRAINED_FOR) == ["model.rope_theta: 10000.0 -> 500000.0"]
    assert differing_settings(saved_one, dict(saved_one), LAYOUT + TRAINED_FOR) == []


def test_state_of_another_kind_is_refused(tmp_path):
    for number, change in enumerate([{"progress": [1]}, {"config": None}, {"data": 3}], 1):
        (path,) = saved(tmp_path, steps=(number,))
        rewrite(path, lambda tree, change=change: tree.update(change), "state.json")
        assert problem_of(path) == f"state.json: {next(iter(change))} must be " + (
            "text" if "data" in change else "an object"
        )
    for progress in ({"step": -1}, {"step": 1, "position": "9"}, {"step": True}, {"position": 1e9}):
        (path,) = saved(tmp_path, steps=(1,))
        rewrite(path, lambda tree, progress=progress: tree.update(progress=progress), "state.json")
        assert problem_of(path).startswith("state.json: progress.")


def test_a_state_that_lacks_something_is_named(tmp_path):
    for take in (lambda: {}["stages"], lambda: [].stages, lambda: 1 + "", lambda: int("x")):
        refused = pytest.raises(RunError, match=r"step_1: state\.json must be as lhtrain writes it")
        with refused, checkpoint.as_written(tmp_path / "step_1"):
            take()
