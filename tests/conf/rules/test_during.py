"""Rules on data.prepare=during."""

import pytest

from lhtrain.conf.compose import check_overrides
from lhtrain.conf.problems import ConfigError
from lhtrain.conf.rules.machine import data_here
from lhtrain.conf.schema import DataConfig

MIX = "data.mix={{web: {{{}}}}}"


def problems(*settings):
    with pytest.raises(ConfigError) as error:
        check_overrides(["data.prepare=during", *settings])
    return {problem.key: problem.rule for problem in error.value.problems}


@pytest.mark.parametrize(
    ("part", "key", "rule"),
    [
        ("source: text", "data.mix.web.path", "needs a file or folder"),
        ("source: hf", "data.mix.web.name", "needs the dataset"),
        ("source: hf, name: [5]", "data.mix.web.name", "must be a text"),
        ("source: prepared, path: .", "data.mix.web.source", "must be one of stdlib, text"),
        ("source: text, path: ., column: x", "data.mix.web.column", "is not used by data=text"),
        ("source: files, path: ., filters: [n]", "data.mix.web.filters", "COLUMN OPERATOR VALUE"),
        ("source: files, path: ., filters: n", "data.mix.web.filters", "a list of conditions"),
        ("source: files, path: ., streaming: 1", "data.mix.web.streaming", "must be true or false"),
        ("source: files, path: ., max_tokens: 1", "data.mix.web.max_tokens", "the keys are weight, source"),
        ("source: stdlib, weight: -1", "data.mix.web.weight", "greater than 0"),
    ],
)
def test_sources_of_a_mixture(part, key, rule):
    assert rule in problems("data=mix", MIX.format(part))[key]


def test_a_mixture_of_prepared_folders_alone_does_not_go_with_it():
    assert "needs a key source" in problems("data=mix", MIX.format("path: ."))["data.prepare"]


def test_a_mixture_has_the_tokenizer_of_its_prepared_folder_or_the_one_that_is_set():
    settings = ["data=mix", "data.prepare=during", MIX.format("source: stdlib")]
    check_overrides(settings)
    check_overrides([*settings, "data.tokenizer=gpt2"])
    both = "data.mix={web: {source: stdlib}, books: {path: /nowhere}}"
    assert "/nowhere" in problems("data=mix", both)["data.tokenizer"]


def test_files_of_a_source_of_a_mixture_must_exist(tmp_path):
    mix = {"web": {"source": "files", "path": str(tmp_path)}, "more": {"source": "text", "path": "/nowhere"}}
    [problem] = data_here(DataConfig(source="mix", mix=mix))
    assert problem.key == "data.mix.more.path" and "must exist" in problem.rule


def test_without_it_its_keys_have_no_effect():
    with pytest.raises(ConfigError, match=r"data.portion=5: is used only with data.prepare=during"):
        check_overrides(["data.portion=5"])
    with pytest.raises(ConfigError, match=r"data.mix.web=.*: needs data.prepare=during"):
        check_overrides(["data=mix", MIX.format("source: stdlib")])


def test_the_disk_space_must_hold_four_portions():
    assert "must be at least 0.00032" in problems("data.portion=40000", "data.keep_gb=0.0003")["data.keep_gb"]
