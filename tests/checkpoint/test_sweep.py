"""Every file of a checkpoint of both formats, damaged in every way: never loaded, and named in the error."""

import random
import shutil
from pathlib import Path

import pytest
import torch

from lhtrain import checkpoint
from lhtrain.errors import RunError
from tests.checkpoint.made import ALONE, OF_RANK_0, SMALL, copy, flip, problem_of, replace_by, saved, truncate

FORMAT_2 = Path(__file__).parents[1] / "fixtures" / "checkpoint_format_2"
OLD = {
    "model.uneven": torch.zeros(5, 3),
    "model.one": torch.zeros(1, dtype=torch.bfloat16),
    "model.columns": torch.zeros(3, 4, dtype=torch.bfloat16),
    "optimizer.step.uneven": torch.tensor(0.0),
    "model.counts": torch.zeros(3, dtype=torch.int64),
}
FILES = {
    3: (OF_RANK_0, "state.json", "manifest.json"),
    2: ("__0_0.distcp", "__1_0.distcp", ".metadata", "state.json", "manifest.json"),
}
KINDS = ["cut", "emptied", "longer", "missing", "another's", "directory", "link", "pipe", "zeros"]


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """Checkpoints of another step and of another run, whose files replace the original ones."""
    folder = tmp_path_factory.mktemp("others")
    changed = {name: tensor + 1 for name, tensor in SMALL.items()}
    return {3: saved(folder, steps=(5,), tensors=changed)[0], 2: FORMAT_2 / "step_00000003"}


def sound(folder, version):
    """An undamaged checkpoint, and tensors to load it into."""
    if version == 3:
        return saved(folder, steps=(4,))[0], {name: torch.zeros_like(t) for name, t in SMALL.items()}
    return copy(FORMAT_2 / "step_00000004", folder / "step_00000004"), OLD


def damage(kind, path, name, other, elsewhere):
    file = path / name
    if kind == "cut":
        truncate(path, name)
    elif kind == "emptied":
        file.write_bytes(b"")
    elif kind == "longer":
        file.write_bytes(file.read_bytes() + b"\0")
    elif kind == "missing":
        file.unlink()
    elif kind == "another's":
        source = other / name
        shutil.copy(source if source.exists() else other / "__0_0.distcp", file)
    elif kind == "zeros":
        file.write_bytes(bytes(file.stat().st_size))
    else:
        replace_by(kind, file, elsewhere)


def names_the_file(found, name, version):
    """In format 2 the manifest has no hash: the error may begin with another file but names the manifest."""
    return found.startswith(name) or (version == 2 and name == "manifest.json" and "manifest" in found)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("version", "name"), [(version, name) for version in FILES for name in FILES[version]]
)
def test_no_damaged_file_is_loaded(tmp_path, others, version, name, kind):
    path, tensors = sound(tmp_path, version)
    assert problem_of(path) is None
    damage(kind, path, name, others[version], tmp_path)
    found = problem_of(path)
    assert found is not None and names_the_file(found, name, version) and "\n" not in found
    with pytest.raises(RunError) as refused:
        checkpoint.newest_sound(tmp_path, ALONE)
    assert f"step_00000004: {found}" in str(refused.value)
    with pytest.raises(RunError, match=r"checkpoint .*step_00000004: "):
        checkpoint.read_state(path)
    if name != "state.json":  # `load` does not read state.json
        with pytest.raises(RunError):
            checkpoint.load(path, {key: tensor.clone() for key, tensor in tensors.items()})


@pytest.mark.parametrize("version", FILES)
def test_no_flipped_byte_is_loaded(tmp_path, version):
    draw = random.Random(0)
    for name in FILES[version]:
        path, tensors = sound(tmp_path, version)
        size = (path / name).stat().st_size
        for at in {0, 1, size - 1, *(draw.randrange(size) for _ in range(20))}:
            flip(path, name, at)
            found = problem_of(path)
            assert found and names_the_file(found, name, version), f"byte {at} of {name}: {found}"
            flip(path, name, at)
        checkpoint.load(path, {key: tensor.clone() for key, tensor in tensors.items()})
        shutil.rmtree(path)
