"""The command for preparing data that a message prints."""

import shlex
from dataclasses import fields

import pytest

from lhtrain.compute.fill import compose_config
from lhtrain.conf.compose import data_config
from lhtrain.conf.rules import machine as here
from lhtrain.data import DataError, open_corpus
from lhtrain.data.prepare.recipe import Recipe


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe("stdlib", max_tokens=5000),
        Recipe("hf", name="allenai/c4", subset="en", max_tokens=51_000_000_000),
        Recipe("hf", name="o/n", revision="1e5", split="train[:10%]", streaming=False),
        Recipe(
            "files", path=["a b", "it's", "proj[v2]", "2024_11_05", "a~/x", "ü=1"], filters=["score >= 3"]
        ),
        Recipe("text", path="-dash", tokenizer="gpt2", bos=True, max_documents=7),
    ],
)
def test_a_shell_and_hydra_read_the_same_recipe_from_the_command(recipe, monkeypatch):
    monkeypatch.setattr(here, "_unreadable", lambda path: None)  # the paths do not exist
    lhtrain, data, prepare, *overrides = shlex.split(recipe.command("out put", "$cache"))
    assert (lhtrain, data, prepare) == ("lhtrain", "data", "prepare")
    read = data_config(overrides)
    assert read.out == "out put" and read.cache_dir == "$cache"
    assert Recipe(**{field.name: getattr(read, field.name) for field in fields(Recipe)}) == recipe


def test_starting_the_paper_experiment_prints_the_command(tmp_path):
    settings = vars(compose_config(["experiment=paper_98k", f"data.cache_dir={tmp_path}"]).data)
    with pytest.raises(DataError) as error:
        open_corpus(**settings)
    wanted = "lhtrain data prepare data=hf data.name=allenai/c4 data.subset=en data.max_tokens=51000000000"
    assert str(error.value).splitlines()[1].strip() == f"{wanted} data.cache_dir={tmp_path}"
