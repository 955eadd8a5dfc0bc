"""`lhtrain help TOPIC`: keys, groups, presets, and what is close to a wrong name."""

from enum import Enum

import pytest
from hydra import compose

from lhtrain.conf.compose import hydra
from lhtrain.conf.explain import entry, explain, explain_topic, no_such_topic
from lhtrain.conf.keys import all_keys, is_container, type_of


@pytest.fixture(scope="module")
def config():
    with hydra():
        return compose("config")


@pytest.mark.parametrize("key", sorted(all_keys()))
def test_every_key_has_a_meaning_and_a_default(config, key):
    assert ": " in explain(key, config).splitlines()[0]
    if is_container(type_of(key)):
        return
    found = entry(key, config)
    assert found.meaning and found.type and (found.default or found.default_source)
    if isinstance(type_of(key), type) and issubclass(type_of(key), Enum):
        assert len(found.choices) == len(type_of(key)) and all(found.choices.values())


@pytest.mark.parametrize(
    ("key", "lines"),
    [
        ("optim.betas", ["type list of 2 numbers", "bounds at least 0 and below 1", "default [0.9, 0.95]"]),
        ("model.n_kv_heads", ["default 2, the value of model.n_heads"]),
        (
            "model.n_heads",
            ["set by model=gpt_130m: 12", "rules model.n_heads must be a multiple of model.n_kv_heads"],
        ),
        ("run.seed", ["type whole number", "default 0"]),
        ("run.dir", ["type text", "default runs/${now:"]),
        ("data.path", ["type text, or a list of texts, or null", "set by data=code: a value is needed"]),
        ("lighthouse.scorer", ["choices norm, dilated, gla, position, recent, or a name that a plugin adds"]),
        ("compute.recompute", ["choices", "full keep only the input"]),
        ("stages.lighthouse.budget", ["see lighthouse.budget: number of entries", "default 128, computed"]),
        ("stages.short.seq_len", ["default the value of model.seq_len", "set by stage=curriculum: ${div:"]),
        ("stages.NAME.fraction", ["set by stage=curriculum: stages.short.fraction=0.25"]),
    ],
)
def test_a_key_shows_its(config, key, lines):
    text = [" ".join(line.split()) for line in explain(key, config).splitlines()]
    for expected in lines:
        assert any(line.startswith(expected) for line in text), text


@pytest.mark.parametrize(
    ("topic", "parts"),
    [
        ("cluster", ["cluster=NAME picks one", "  gpu8 ", "  cluster.nodes ", "number of nodes"]),
        ("stage", ["stage=NAME picks one", "  curriculum "]),
        ("stages.lighthouse", ["  stages.lighthouse.steps "]),
        ("model=gpt_350m", ["model=gpt_350m: 309 M", "  model.n_layers      24"]),
        ("gpt_350m", ["model=gpt_350m: 309 M"]),
        ("optim.lr=3", ["optim.lr: peak learning rate"]),
        ("experiment=paper_98k", ["  model             lighthouse_530m", "  run.steps         16000"]),
    ],
)
def test_a_topic_shows(config, topic, parts):
    text = explain_topic(topic, config)
    assert all(part in text for part in parts), text
    assert max(map(len, text.splitlines())) <= 110


@pytest.mark.parametrize(
    ("topic", "near"),
    [
        ("optim.lrr", "optim.lr"),
        ("model=gpt_35m", "model=gpt_350m"),
        ("gpt_350", "gpt_350m"),
        ("stages.recovery.frction", "stages.recovery.fraction"),
    ],
)
def test_a_wrong_topic_names_the_nearest(config, topic, near):
    assert explain_topic(topic, config) is None
    assert f"did you mean {near}?" in no_such_topic(topic)
    assert "did you mean export?" in no_such_topic("exprt", ["export"])
