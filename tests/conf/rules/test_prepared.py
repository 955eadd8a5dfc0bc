"""Settings beside prepared data, which bring their tokenizer; the key of the end-of-text token."""

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
            r"data\.tokenizer=gpt2: the data in .*web were prepared with bytes, which fixes it",
        ),
        (["data.tokenizer={file}"], r"data\.tokenizer=.*: the data in .* were prepared with bytes"),
        (["data.tokenizer=/no/such.json"], r"data\.tokenizer=/no/such.json: must be an existing file"),
        (["data.bos=true"], r"data\.bos=True: does not go with data="),
        (["data.eos=x"], r"data\.eos=x: does not go with data="),
        (["data.column=body"], r"data\.column=body: does not go with data="),
        (["data.max_tokens=9"], r"data\.max_tokens=9: does not go with data="),
    ],
)
@pytest.mark.parametrize("kind", ["prepared", "mix"])
def test_what_the_folder_fixed_cannot_be_set(folder, tmp_path, kind, settings, message):
    file = tokenizer_file(tmp_path / "tokenizer.json", "</s>")
    where = f"data.path={folder}" if kind == "prepared" else f"data.mix={{web: {{path: {folder}}}}}"
    with pytest.raises(ConfigError, match=message):
        check_overrides([f"data={kind}", where, *(setting.format(file=file) for setting in settings)])


@pytest.mark.parametrize("settings", [[], ["data.tokenizer=bytes"]])
def test_the_folders_own_tokenizer_can_be_named(folder, settings):
    check_overrides(["data=prepared", f"data.path={folder}", *settings])


def test_a_folder_of_a_file_with_an_end_of_text_of_its_own(tmp_path):
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
def test_the_end_of_text_is_asked_for(tmp_path, settings, message):
    file = tokenizer_file(tmp_path / "tokenizer.json", "<fin>")
    with pytest.raises(ConfigError, match=message):
        check_overrides([f"data.tokenizer={file}", *settings])
    check_overrides([f"data.tokenizer={file}", 'data.eos="<fin>"'])
    check_overrides([f"data.tokenizer={file}", "data.eos=256"])


def test_the_end_of_text_of_other_tokenizers_is_theirs():
    with pytest.raises(
        ConfigError, match=r"data\.eos=x: applies only to a tokenizer\.json; data\.tokenizer=bytes"
    ):
        check_overrides(["data.eos=x"])


def test_a_weight_with_too_small_a_share(tmp_path):
    """It would have no turn of its own, or one that is not its share."""
    mix = f"{{web: {{path: {tmp_path}, weight: 1}}, code: {{path: {tmp_path}, weight: 1e-7}}}}"
    with pytest.raises(ConfigError, match=r"data\.mix\.code\.weight=1e-07: must be at least 1 / 262,144"):
        check_overrides(["data=mix", f"data.mix={mix}"])


@pytest.mark.parametrize(
    "mix", ["{a: 5}", "{a: [1]}", "{a: null}", "{a: {path: null}}", "{a: {path: [x]}}", "5"]
)
@pytest.mark.parametrize("more", [[], ["data.tokenizer=gpt2"]])
def test_a_mixture_of_another_shape_is_a_problem_of_the_mixture(mix, more):
    with pytest.raises(ConfigError, match=r"data\.mix.*: (must be|needs at least)"):
        check_overrides(["data=mix", f"data.mix={mix}", *more])


@pytest.mark.parametrize("kind", ["prepared", "mix"])
def test_a_folder_that_is_not_there_is_no_matter_of_the_tokenizer(tmp_path, kind):
    where = f"data.path={tmp_path}" if kind == "prepared" else f"data.mix={{a: {{path: {tmp_path}}}}}"
    with pytest.raises(ConfigError, match=r"meta\.json") as error:
        check_overrides([f"data={kind}", where, "data.tokenizer=bytes"])
    assert "data.tokenizer=" not in str(error.value)
