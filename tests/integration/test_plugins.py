"""The real command with an attention kind, a scorer, an optimizer and a tracker from a module of a user's."""

import json
import shutil
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SETTINGS = [
    "plugins=[my_plugin]",
    *("lighthouse.scorer=weighted", "stages.recovery.attention=chunked", "stages.recovery.options.width=256"),
    *("optim.kind=sgd", "optim.options.momentum=0.5", "logger.kind=lines", "logger.options.file=rows.txt"),
    *("run.steps=6", "checkpoint.every=2", "eval.every=100"),
]


def test_a_run_of_plugins_by_configuration_alone(lhtrain):
    """It trains, is killed, resumes to the same numbers and is exported without the scorer's parameters."""
    shutil.copy(Path(__file__).with_name("plugin.py"), lhtrain.folder / "my_plugin.py")
    whole = lhtrain("plugins", *SETTINGS)
    assert whole.summary["finished"] and [stage["attention"] for stage in whole.summary["stages"]] == [
        *("lighthouse", "chunked")
    ]
    lines = [json.loads(line) for line in (whole.path / "rows.txt").read_text().splitlines()]
    assert lines[-1] == {"finished": True}
    assert [row["step"] for row in lines[:-1] if row["kind"] == "train"] == [1, 2, 3, 4, 5, 6]
    manifest = json.loads((whole.path / "checkpoints/step_00000006/manifest.json").read_text())
    names = {name for name in manifest["tensors"] if ".attention.scorer." in name}
    assert "model.blocks.0.attention.scorer.weight" in names
    assert {"optimizer.velocity.blocks.0.attention.wq.weight"} <= manifest["tensors"].keys()

    lhtrain.kill_after("plugins_killed", 5, *SETTINGS)
    assert lhtrain("plugins_killed", *SETTINGS, "resume=auto").trace == whole.trace

    done = lhtrain.bare("export", str(whole.path), str(lhtrain.folder / "exported"))
    assert done.returncode == 0, done.stderr


def test_a_name_that_the_plugin_does_not_add_is_refused(lhtrain):
    shutil.copy(Path(__file__).with_name("plugin.py"), lhtrain.folder / "my_plugin.py")
    refused = lhtrain.bare("plugins=[my_plugin]", "optim.kind=sdg", "run.dir=never")
    assert refused.returncode == 2 and "optim.kind=sdg" in refused.stderr and "sgd" in refused.stderr
