"""Opening a trained model: its weights, stages and tokenizer."""

import pytest
import torch

from lhtrain.attention.dense import FULL_ATTENTION
from lhtrain.errors import RunError
from lhtrain.interop import export
from lhtrain.opened import open_trained
from tests.interop.made import DENSE, LIGHTHOUSE, saved

CPU = torch.device("cpu")
LAYER = {"levels": 2, "pooling": 4, "budget": 16, "scorer": "norm", "cover_prefix": True}
STRICT = LIGHTHOUSE | LAYER | {"tile": 4, "strictly_causal": True, "window": 8}


def opened(place, dtype=torch.float32, **settings):
    path, model = saved(place, **settings)
    return path, model, open_trained(place, CPU, dtype)


@pytest.mark.parametrize("tied", [False, True])
def test_the_model_is_the_one_that_was_saved(tmp_path, tied):
    path, model, got = opened(tmp_path, tie_embeddings=tied)
    assert got.path == path and got.tokenizer.name == "bytes" and got.longest == 64
    tokens = torch.arange(40).view(2, 20)
    with torch.no_grad():
        assert torch.equal(got.model(tokens), model(tokens))
    assert (got.model.head.weight is got.model.embedding.weight) == tied


def test_weights_that_are_rounded_once_give_the_outputs_of_training(tmp_path):
    _, model, got = opened(tmp_path, torch.bfloat16)
    model.dtype = torch.bfloat16
    with torch.no_grad():
        assert torch.equal(got.model(torch.arange(20)[None]), model(torch.arange(20)[None]))


def test_stages_are_those_that_ran_with_the_settings_of_then(tmp_path):
    now = DENSE | {"seq_len": 32}
    done = [{"name": "a", "settings": STRICT}, {"name": "b", "settings": DENSE}, {"name": "c"}]
    done = [stage | {"steps": 3 if stage["name"] != "c" else 0} for stage in done]
    _, _, got = opened(tmp_path, stages={"b": now, "c": now}, done=done)
    strict, dense = got.stages
    assert (strict.name, strict.pyramid.tile, strict.window, strict.strictly_causal) == ("a", 4, 8, True)
    assert (dense.name, dense.seq_len, dense.pyramid) == ("b", 64, None)
    assert got.attention(strict).strictly_causal and got.attention(None) is FULL_ATTENTION


def test_a_stage_brings_its_positions_and_dense_layers(tmp_path):
    strict = STRICT | {"rope_theta": 2e5, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}
    first = {"name": "a", "steps": 3, "settings": strict | {"dense_layers": [0]}}
    last = {"name": "b", "steps": 3, "settings": DENSE | {"rope_theta": 3e5}}
    got = opened(tmp_path, stages={}, done=[first, last])[2]
    assert (got.model.rope.theta, got.model.rope.scaling) == (3e5, None)
    got.enter(got.stages[0])
    assert (got.model.rope.theta, got.model.rope.scaling["factor"]) == (2e5, 2.0)
    attends = [block.attention.attend for block in got.model.blocks]
    assert attends[0] is FULL_ATTENTION and all(attend.strictly_causal for attend in attends[1:])
    got.enter(None)
    assert all(block.attention.attend is FULL_ATTENTION for block in got.model.blocks)
    assert got.model.rope.theta == 3e5


def test_a_stage_has_the_data_that_its_checkpoint_records(tmp_path):
    """A key of another version does not count."""
    data = {"source": "text", "path": "x", "mix": None, "of_another_version": 1}
    path, _ = saved(tmp_path, stages={"it": {"attention": "dense", "seq_len": 64, "data": data}})
    (stage,) = open_trained(path, CPU, torch.float32).stages
    assert stage.data == {"source": "text", "path": "x"}


def test_a_layer_that_omits_keys_has_their_defaults(tmp_path):
    stages = {"it": STRICT}  # the configuration changed after the stage ran
    done = [{"name": "it", "steps": 3, "settings": LIGHTHOUSE | LAYER | {"budget": 128, "seq_len": 512}}]
    stage = opened(tmp_path, stages=stages, done=done)[2].stages[0]
    assert (stage.window, stage.strictly_causal, stage.pyramid.tile) == (0, False, 128)


@pytest.mark.parametrize("tied", [False, True])
def test_an_exported_folder_is_the_model_that_was_exported(tmp_path, tied):
    path, model = saved(tmp_path, tie_embeddings=tied, rope_theta=3e5)
    export(path, tmp_path / "out")
    got = open_trained(tmp_path / "out", CPU, torch.float32)
    assert (got.stages, got.longest, got.tokenizer.eos) == ((), 64, 256)
    assert got.tokenizer.decode(got.tokenizer.encode("naïve")) == "naïve"
    with torch.no_grad():
        torch.testing.assert_close(got.model(torch.arange(20)[None]), model(torch.arange(20)[None]))


def test_a_folder_without_a_checkpoint_is_an_error(tmp_path):
    with pytest.raises(RunError, match="no such folder"):
        open_trained(tmp_path / "none", CPU, torch.float32)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(RunError, match="no finished checkpoint yet"):
        open_trained(tmp_path, CPU, torch.float32)


def test_the_rotary_embedding_is_that_of_the_last_stage_that_ran(tmp_path):
    scaling = {"rope_type": "linear", "factor": 2.0}
    done = [
        {"name": "short", "steps": 3, "settings": DENSE | {"rope_theta": 1e4}},
        {"name": "long", "steps": 1, "settings": DENSE | {"rope_theta": 5e6, "rope_scaling": scaling}},
        {"name": "later", "steps": 0, "settings": DENSE | {"rope_theta": 7e6}},
    ]
    _, _, got = opened(tmp_path, done=done)
    assert (got.config.rope_theta, got.config.rope_scaling) == (5e6, scaling)
    assert (got.model.rope.theta, got.model.rope.scaling) == (5e6, scaling)


def test_a_stage_with_own_queries_keeps_them(tmp_path):
    own = LIGHTHOUSE | LAYER | {"tile": 4, "queries": "own", "window": 32}
    got = opened(tmp_path, stages={}, done=[{"name": "a", "steps": 3, "settings": own}])[2]
    assert got.stages[0].own_queries and got.attention(got.stages[0]).own_queries
