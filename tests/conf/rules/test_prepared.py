"""Settings together with prepared data, which have their own tokenizer; the end-of-text token."""

import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from lhtrain.conf.compose import check_overrides
from lhtrain.conf.problems import ConfigError
from lhtrain.data.prepare.pipeline import prepare
from lhtrain.data.prepare.recipe import Recipe


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.txt").write_text("some words\n" * 9)
    prepare(Recipe(source="text", path=str(tmp_path / "a.txt")), tmp_path / "web", 1, progress=False)
    return tmp_path / "web"


def tokenizer_file(path, end):
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate([*letters, end])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens([end])
    tokenizer.save(str(path))
    return path


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["data.tokenizer=gpt2"],
            r"data\.tokenizer=gpt2: the data in .*web were prepared with bytes; do not set this key",
        ),
        (["data.tokenizer={file}"], r"data\.tokenizer=.*: the data in .* were prepared with bytes"),
        (["data.tokenizer=/no/such.json"], r"data\.tokenizer=/no/such.json: must be an existing file"),
        (["data.bos=true"], r"data\.bos=True: is not used by data="),
        (["data.eos=x"], r"data\.eos=x: is not used by data="),
        (["data.column=body"], r"data\.column=body: is not used by data="),
        (["data.max_tokens=9"], r"data\.max_tokens=9: is not used by data="),
    ],
)
@pytest.mark.parametrize("kind", ["prepared", "mix"])
def test_settings_of_prepared_data_cannot_be_changed(folder, tmp_path, kind, settings, message):
    file = tokenizer_file(tmp_path / "tokenizer.json", "</s>")
    where = f"data.path={folder}" if kind == "prepared" else f"data.mix={{web: {{path: {folder}}}}}"
    with pytest.raises(ConfigError, match=message):
        check_overrides([f"data={kind}", where, *(setting.format(file=file) for setting in settings)])


@pytest.mark.parametrize("settings", [[], ["data.tokenizer=bytes"]])
def test_the_tokenizer_of_the_folder_may_be_given(folder, settings):
    check_overrides(["data=prepared", f"data.path={folder}", *settings])


def test_a_folder_prepared_with_an_unusual_end_of_text_token(tmp_path):
    file = tokenizer_file(tmp_path / "tokenizer.json", "<fin>")
    (tmp_path / "a.txt").write_text("some words\n" * 9)
    recipe = Recipe(source="text", path=str(tmp_path / "a.txt"), tokenizer=str(file), eos="<fin>")
    prepare(recipe, tmp_path / "web", 1, progress=False)
    for settings in ([], [f"data.tokenizer={file}"]):
        check_overrides(["data=prepared", f"data.path={tmp_path / 'web'}", *settings])
    other = json.loads(file.read_text())
    other["model"]["vocab"]["word"] = 400
    (tmp_path / "other.json").write_text(json.dumps(other))
    with pytest.raises(
        ConfigError, match=r"data\.tokenizer=.*other\.json: the data in .* were prepared with"
    ):
        check_overrides(
            ["data=prepared", f"data.path={tmp_path / 'web'}", f"data.tokenizer={tmp_path / 'other.json'}"]
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([], r"data\.eos=null: .*no end-of-text token with a known name.*data\.eos=TOKEN.*'<fin>'"),
        (["data.eos=fin"], r"data\.eos=fin: .*must be the text or the id of a token .*'<fin>'"),
        (["data.eos=4000"], r"data\.eos=4000: .*must be the text or the id of a token"),
    ],
)
def test_an_unknown_end_of_text_token_must_be_given(tmp_path, settings, message):
    file = tokenizer_file(tmp_path / "tokenizer.json", "<fin>")
    with pytest.raises(ConfigError, match=message):
        check_overrides([f"data.tokenizer={file}", *settings])
    check_overrides([f"data.tokenizer={file}", 'data.eos="<fin>"'])
    check_overrides([f"data.tokenizer={file}", "data.eos=256"])


def test_the_end_of_text_token_of_other_tokenizers_cannot_be_set():
    with pytest.raises(
        ConfigError, match=r"data\.eos=x: applies only to a tokenizer\.json; data\.tokenizer=bytes"
    ):
        check_overrides(["data.eos=x"])


def test_a_weight_with_too_small_a_share_is_refused(tmp_path):
    """Its source would be read never, or more often than its share."""
    mix = f"{{web: {{path: {tmp_path}, weight: 1}}, code: {{path: {tmp_path}, weight: 1e-7}}}}"
    with pytest.raises(ConfigError, match=r"data\.mix\.code\.weight=1e-07: must be at least 1 / 262,144"):
        check_overrides(["data=mix", f"data.mix={mix}"])


@pytest.mark.parametrize(
    "mix", ["{a: 5}", "{a: [1]}", "{a: null}", "{a: {path: null}}", "{a: {path: [x]}}", "5"]
)
@pytest.mark.parametrize("more", [[], ["data.tokenizer=gpt2"]])
def test_a_mixture_of_a_wrong_form_is_refused(mix, more):
    with pytest.raises(ConfigError, match=r"data\.mix.*: (must be|needs at least)"):
        check_overrides(["data=mix", f"data.mix={mix}", *more])


@pytest.mark.parametrize("kind", ["prepared", "mix"])
def test_a_missing_folder_is_not_reported_for_the_tokenizer(tmp_path, kind):
    where = f"data.path={tmp_path}" if kind == "prepared" else f"data.mix={{a: {{path: {tmp_path}}}}}"
    with pytest.raises(ConfigError, match=r"meta\.json") as error:
        check_overrides([f"data={kind}", where, "data.tokenizer=bytes"])
    assert "data.tokenizer=" not in str(error.value)
