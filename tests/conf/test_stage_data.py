"""The data of a stage: which keys it has of its own, and errors that name them."""

import pytest

from lhtrain.compute.fill import filled
from lhtrain.conf.compose import check_overrides, with_folders
from lhtrain.conf.paths import with_absolute_paths
from lhtrain.conf.problems import ConfigError
from lhtrain.conf.schema import DataConfig, StageDataConfig
from lhtrain.conf.stage_data import RUN, data_of, needs_other, owners
from lhtrain.data.prepare.pipeline import prepare
from lhtrain.data.prepare.recipe import Recipe
from lhtrain.runs.changes import as_container, differing
from lhtrain.runs.launch import settings
from lhtrain.runs.own_config import merged
from lhtrain.schedule import Schedule


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two folders that were prepared with the tokenizer `bytes`."""
    folder = tmp_path_factory.mktemp("stage_data")
    (folder / "a.txt").write_text("some words\n" * 900)
    for name in ("web", "books"):
        prepare(Recipe(source="text", path=str(folder / "a.txt")), folder / name, 1, progress=False)
    return folder


RUN_DATA = DataConfig(source="files", path="dump", column="body", max_tokens=9, tokenizer="gpt2", bos=True)


def test_without_keys_a_stage_has_the_data_of_the_run():
    assert data_of(RUN_DATA, StageDataConfig()) is RUN_DATA


def test_keys_that_are_null_are_those_of_the_run():
    data = data_of(RUN_DATA, StageDataConfig(long_fraction=0.0))
    assert data.long_fraction == 0.0 and (data.path, data.column, data.bos) == ("dump", "body", True)


def test_a_source_of_its_own_takes_no_keys_of_the_source_of_the_run():
    data = data_of(RUN_DATA, StageDataConfig(source="text"))
    assert (data.path, data.column, data.max_tokens) == (None, "text", None)
    assert (data.tokenizer, data.bos) == ("gpt2", True)


def test_prepared_data_have_a_tokenizer_of_their_own():
    """It is compared with that of the run when the folder is opened."""
    data = data_of(RUN_DATA, StageDataConfig(source="prepared", path="web"))
    assert (data.tokenizer, data.bos) == ("prepared:web", False)


def test_a_mixture_needs_no_source():
    data = data_of(RUN_DATA, StageDataConfig(mix={"a": {"path": "web"}}))
    assert (data.source, data.tokenizer, data.path) == ("mix", "prepared:web", None)


def test_stages_with_the_same_data_share_them(folder):
    same = [f"stages.{name}.data.{key}" for name in ("short", "recovery") for key in ("long_fraction=0.5",)]
    config = check_overrides(["data=text", f"data.path={folder / 'a.txt'}", "stage=windowed", *same])
    assert owners(config) == {"short": "short", "windowed": RUN, "recovery": "short"}
    again = [f"stages.windowed.data.path={folder / 'a.txt'}"]  # as the run has
    config = check_overrides(["data=text", f"data.path={folder / 'a.txt'}", "stage=windowed", *again])
    assert set(owners(config).values()) == {RUN}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "tokenizer=gpt2",
            r"is not a key of a stage: all stages have the same tokenizer; set data.tokenizer",
        ),
        ("documents=apart", r"is not a key of a stage: it is the same in all stages; set data.documents"),
        ("column=x", r"prepare the data .* then set stages.recovery.data.source=prepared"),
        ("sourc=x", r"no such key; did you mean stages\.recovery\.data\.source"),
        ("source=hf", r"must be one of stdlib, text, prepared, mix; other sources must be prepared"),
        ("path=x", r"is not used by data=stdlib.*set stages\.recovery\.data\.source too"),
        ("source=prepared", r"path=null: stages\.recovery\.data\.source=prepared needs the folder"),
        ("source=mix", r"stages\.recovery\.data\.mix=null: needs at least one source"),
        ("mix={a: {path: {web}, weight: -1}}", r"stages\.recovery\.data\.mix\.a\.weight=-1: must be"),
        ("mix={a: {path: nowhere}}", r"stages\.recovery\.data\.mix\.a\.path='nowhere': must be a folder"),
        ("{source: prepared, path: nowhere}", r"stages\.recovery\.data\.path=nowhere: .* must exist"),
        ("{source: text, path: nowhere}", r"stages\.recovery\.data\.path='nowhere': must exist"),
        ("bucket_weights=[1,2]", r"stages\.recovery\.data\.bucket_weights=\[1.0, 2.0\]: needs data\.buckets"),
        ("long_fraction=2", r"stages\.recovery\.data\.long_fraction=2.0: must be between 0 and 1"),
    ],
)
def test_errors_name_the_key_of_the_stage(folder, given, message):
    given = given.replace("{web}", str(folder / "web"))
    key = "stages.recovery.data" + ("=" if given.startswith("{") else ".")
    with pytest.raises(ConfigError, match=message) as error:
        check_overrides([f"{key}{given}"], here=True)
    assert len(error.value.problems) == 1


def test_a_folder_with_another_tokenizer(folder):
    own = ["stages.recovery.data.source=prepared", f"stages.recovery.data.path={folder / 'web'}"]
    check_overrides(own)
    with pytest.raises(
        ConfigError, match=r"stages\.recovery\.data\.path=.*was prepared with the tokenizer bytes"
    ):
        check_overrides([*own, "data.bos=true"])


def test_buckets_are_those_of_the_run():
    buckets = ["data.buckets=[4096]", "data.bucket_weights=[1,1]"]
    config = check_overrides([*buckets, "stages.recovery.data.bucket_weights=[0.4,0.6]"])
    assert data_of(config.data, config.stages["recovery"].data).bucket_weights == [0.4, 0.6]
    with pytest.raises(
        ConfigError, match=r"stages\.recovery\.data\.long_fraction=0\.5: does not go with data"
    ):
        check_overrides([*buckets, "stages.recovery.data.long_fraction=0.5"])


def test_problems_of_the_run_are_not_repeated_for_the_stage():
    with pytest.raises(ConfigError) as error:
        check_overrides(["data=text", "data.path=", "stages.recovery.data.long_fraction=0.5"])
    assert [problem.key for problem in error.value.problems] == ["data.path"]


def test_other_keys_are_no_keys_of_a_stage():
    assert needs_other("data.tokenizer") is needs_other("stages.x.data.mix") is None
    assert needs_other("stages.x.data.nonsense") is None


def test_in_a_file_of_the_user(folder, tmp_path):
    """The names of text keys keep their spelling, weights are numbers, and errors have a line."""
    file = tmp_path / "stage" / "mine.yaml"
    file.parent.mkdir()
    text = f"""# @package stages
first: {{attention: dense, fraction: 0.5}}
second:
  attention: dense
  data:
    mix: {{010: {{path: {folder / "web"}, weight: 3}}, b: {{path: {folder / "books"}}}}}
    long_fraction: 0.25
"""
    file.write_text(text)
    config = check_overrides(with_folders([str(tmp_path)], ["stage=mine"]))
    assert config.stages["second"].data.mix["010"]["weight"] == 3
    words = Schedule.of(filled(config)).stages["second"].data_in_words()
    assert words == "data of its own (mix 010 3, b 1; long_fraction 0.25)"
    assert any(words in line for line in Schedule.of(filled(config)).plan(0))
    file.write_text(text + "    tokenizer: gpt2\n")
    with pytest.raises(
        ConfigError, match=r"mine\.yaml:8: stages\.second\.data\.tokenizer=gpt2: is not a key"
    ):
        check_overrides(with_folders([str(tmp_path)], ["stage=mine"]))


def test_saved_settings_are_read_again(folder, monkeypatch):
    """Paths are absolute; they may differ between ranks and on resume, but weights may not on resume."""
    monkeypatch.chdir(folder)
    own = "stages.recovery.data.mix={{a: {{path: {}, weight: {}}}, b: {{path: books}}}}"
    config, moved, other = (
        filled(with_absolute_paths(check_overrides([own.format(*values)])))
        for values in (("web", 3), (folder / "books", 3), ("web", 2))
    )
    saved = as_container(config)
    assert saved["stages"]["recovery"]["data"]["mix"]["a"] == {"path": str(folder / "web"), "weight": 3}
    assert as_container(config) == as_container(merged(saved)._to_object())
    assert differing(saved, as_container(moved)) == [] and settings(config) == settings(moved)
    (change,) = differing(saved, as_container(other))
    assert str(change) == "stages.recovery.data.mix.a.weight: 3 -> 2"
    for stage in saved["stages"].values():  # of a version that did not have these keys
        del stage["data"]
    assert [change.key for change in differing(saved, as_container(config))] == [
        f"stages.recovery.data.mix.{name}.weight" for name in ("a",)
    ]
