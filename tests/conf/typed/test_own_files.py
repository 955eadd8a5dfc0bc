"""Mistakes in a user's file are reported with the file, the line and the key."""

import pytest

from lhtrain.conf.compose import check_overrides, search_path
from lhtrain.conf.problems import ConfigError

GLOBAL = "# @package _global_\n"
STAGES = "# @package stages\n"


def problems(folder, group, content, *more, choice=None):
    (folder / group).mkdir()
    data = content if isinstance(content, bytes) else content.encode()
    (folder / group / "mine.yaml").write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        check_overrides([search_path(str(folder)), choice or f"{group}=mine", *more])
    return [str(problem) for problem in caught.value.problems]


# Content of a file below the line '# @package _global_' -> the line with the mistake, and the rule.
EXPERIMENTS = {
    "compute:\n  compile: offf\n": "3: compute.compile=offf: must be one of auto",
    "run:\n  steps: 1e1\n": "3: run.steps=1e1: must be a whole number, written in digits: 10",
    "run:\n  stepps: 3\n": "3: run.stepps=3: no such key; did you mean run.steps?",
    "run:\n\tsteps: 3\n": "3: contains a tab",
    "run:\n  steps: 3\n  steps: 4\n": "4: run.steps: is also on line 3",
    "run:\n  steps: 3\n name: x\n": "4: expected <block end>",
    "run: [\n": "3: expected the node content",
    "run: 'abc\n": "3: found unexpected end of stream",
    "- a\n": "2: must contain KEY: VALUE lines",
    "run: null\n": "2: run=null: is empty",
    "run: {name: !!python/name:os.system }\n": "only plain YAML",
    "a: &x\n  b: *x\n": "2: must not contain itself",
    "run: {name: *nope}\n": "2: found undefined alias 'nope'",
    "[" * 3000: "must not be nested so deeply",
    "run: {name: a}\n---\nrun: {name: b}\n": "3: but found another document",
    "run:\n  steps: -1\n": "3: run.steps=-1: must be at least 1",
    "run: {name: '${no}'}\n": "2: run.name=${no}: Interpolation key 'no' not found",
    "run:\n  steps: [1, 2]\n": "3: run.steps=['1', '2']: must be a whole number",
    "logger: {tags: a}\n": "2: logger.tags=a: must be a list [A,B]",
    "defaults:\n  - override /model: nope\n": "2: Could not find 'model/nope'",
    "defaults: 5\n": "2: Invalid defaults list",
    "hydra:\n  foo: 1\n": "2: Key 'foo' not in 'HydraConf'",
    "run: {name: 'a\0b'}\n": "mine.yaml: is not YAML",
}
WITHOUT_HEADER = [
    ("experiment", "run:\n  steps: 3\n", "1: the first line must be '# @package _global_'"),
    ("experiment", "# @package\nrun: {steps: 3}\n", "1: '# @package' must be '# @package NAME'"),
    ("experiment", b"\xff\xfe", "mine.yaml: must be UTF-8 text"),
    ("stage", "short:\n  attention: dense\n", "1: the first line must be '# @package stages'"),
    ("cluster", "time: 1h\n", "1: cluster.time=1h: must be MINUTES, HOURS:MINUTES:SECONDS"),
    ("cluster", "cluster:\n  time: 10\n", "1: cluster.cluster={'time': '10'}: no such key"),
    ("logger", "kind: none\nmode: off\n", "2: logger.mode=off: must be one of offline"),
]
STAGE_FILES = {
    "short:\n  attention: dens\n": "3: stages.short.attention=dens: must be one of dense",
    "attention: dense\n": "2: stages.attention=dense: must contain keys, such as",
}


@pytest.mark.parametrize(
    ("group", "content", "expected"),
    [
        *(("experiment", GLOBAL + content, expected) for content, expected in EXPERIMENTS.items()),
        *(("stage", STAGES + content, expected) for content, expected in STAGE_FILES.items()),
        *WITHOUT_HEADER,
    ],
)
def test_a_mistake_is_reported_with_its_file_and_line(tmp_path, monkeypatch, group, content, expected):
    monkeypatch.chdir(tmp_path)
    (found,) = problems(tmp_path, group, content)
    assert found.startswith(f"{group}/mine.yaml") and expected in found


def test_all_mistakes_of_files_and_the_command_line_are_reported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = f"{GLOBAL}run:\n  steps: 1e1\n  dirr: x\nmodel: {{n_layer: 3}}\n"
    assert problems(tmp_path, "experiment", content, "optim.lr=fast") == [
        "experiment/mine.yaml:3: run.steps=1e1: must be a whole number, written in digits: 10",
        "experiment/mine.yaml:4: run.dirr=x: no such key; did you mean run.dir?",
        "experiment/mine.yaml:5: model.n_layer=3: no such key; did you mean model.n_layers?",
        "optim.lr=fast: must be a number",
    ]


def test_a_value_of_the_command_line_is_not_reported_with_a_file(tmp_path):
    found = problems(tmp_path, "experiment", f"{GLOBAL}run:\n  steps: 3\n", "run.steps=-1")
    assert found == ["run.steps=-1: must be at least 1"]


def test_lines_without_indentation_are_reported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    empty, unknown = problems(tmp_path, "experiment", f"{GLOBAL}run:\nsteps: 3\n")
    assert empty.startswith("experiment/mine.yaml:2: run=null: ") and "indented" in empty
    assert unknown.startswith("experiment/mine.yaml:3: steps=3: no such key")


def test_a_file_with_the_name_of_a_preset_is_refused(tmp_path):
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster" / "gpu8.yaml").write_text("nodes: 3\n")
    with pytest.raises(ConfigError, match="would not be read: a preset has this name"):
        check_overrides([search_path(str(tmp_path)), "cluster=gpu8"])


def test_a_main_file_with_the_name_of_lhtrains_is_refused(tmp_path):
    """It is found after lhtrain's own, which would be read instead."""
    (tmp_path / "config.yaml").write_text("run: {steps: 3}\n")
    with pytest.raises(ConfigError, match=r"config\.yaml would not be read: .* experiment=config"):
        check_overrides([search_path(str(tmp_path))])


@pytest.mark.parametrize(
    "header", [GLOBAL, f"# what it is for\n\n{GLOBAL}", "#@package _global_\n", "\ufeff" + GLOBAL]
)
def test_a_header_may_follow_other_comments(tmp_path, header):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(f"{header}run: {{steps: 3}}\n")
    assert check_overrides([search_path(str(tmp_path)), "experiment=mine"]).run.steps == 3


def test_a_user_may_have_a_group_of_their_own(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "short.yaml").write_text("# @package run\nsteps: 3\n")
    assert check_overrides([search_path(str(tmp_path)), "+mine=short"]).run.steps == 3


def test_numbers_of_a_rope_scaling_are_numbers(tmp_path):
    (tmp_path / "model").mkdir()
    text = "defaults: [gpt_tiny]\nrope_scaling:\n  rope_type: yarn\n  factor: 2.5\n  truncate: false\n"
    text += "  original_max_position_embeddings: 256\n"
    (tmp_path / "model" / "mine.yaml").write_text(text)
    scaling = check_overrides([search_path(str(tmp_path)), "model=mine"]).model.rope_scaling
    want = {"rope_type": "yarn", "factor": 2.5, "truncate": False, "original_max_position_embeddings": 256}
    assert scaling == want
