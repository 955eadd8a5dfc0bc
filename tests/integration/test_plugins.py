"""The real command with the attention kind, scorer, optimizer and tracker of docs/extending.md."""

import json

import pytest

from tests.docs.test_extending import code

pytestmark = pytest.mark.slow

MODULES = ["my_attention", "my_scorer", "my_optimizer", "my_tracker"]
SETTINGS = [
    f"plugins=[{','.join(MODULES)}]",
    *("lighthouse.scorer=weighted", "stages.recovery.attention=chunked", "stages.recovery.options.width=256"),
    *("optim.kind=sgd", "optim.options.momentum=0.5", "logger.kind=lines", "logger.options.file=rows.txt"),
    *("run.steps=6", "checkpoint.every=2", "eval.every=100"),
]


@pytest.fixture(autouse=True)
def modules(lhtrain):
    for module in MODULES:
        (lhtrain.folder / f"{module}.py").write_text(code(f"{module}.py"))


def test_a_run_of_plugins_by_configuration_alone(lhtrain):
    """The run is killed, resumes with the same results and is exported without the scorer's parameters."""
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

    # A recovery stage without a Lighthouse stage has no scorers and loads all other weights.
    start = f"init_from={whole.path / 'checkpoints/step_00000006'}"
    recovered = lhtrain("recovered", *SETTINGS, "stage=recovery", "run.steps=1", start)
    assert recovered.status == 0 and recovered.summary["finished"]

    done = lhtrain.bare("export", str(whole.path), str(lhtrain.folder / "plugins_exported"))
    assert done.returncode == 0, done.stderr


def test_a_name_that_the_plugin_does_not_add_is_refused(lhtrain):
    refused = lhtrain.bare("plugins=[my_optimizer]", "optim.kind=sdg", "run.dir=never")
    assert refused.returncode == 2 and "optim.kind=sdg" in refused.stderr and "sgd" in refused.stderr
