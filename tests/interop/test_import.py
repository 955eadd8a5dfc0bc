"""Imported models have the logits that transformers computes, and so have models that are exported again."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from lhtrain import checkpoint
from lhtrain.conf.schema import ModelConfig
from lhtrain.errors import RunError
from lhtrain.interop import export
from lhtrain.interop.importer import import_model
from lhtrain.interop.published import open_published
from lhtrain.model.decoder import GPT
from tests.interop.published import MODELS, TEMPLATE, as_transformers_4, change, published

TOKENS = torch.randint(0, 256, (2, 50), generator=torch.Generator().manual_seed(1))


def opened(path):
    """Return the model in the checkpoint `path`."""
    model = GPT(ModelConfig(**checkpoint.read_state(path)["config"]["model"]))
    model.rope = replace(model.rope, seq_len=TOKENS.shape[1])  # for rope_type=dynamic
    checkpoint.load(path, {f"model.{name}": parameter.data for name, parameter in model.named_parameters()})
    return model


def same(ours, theirs):
    with torch.no_grad():
        torch.testing.assert_close(ours(TOKENS), theirs(TOKENS).logits.float(), rtol=1e-5, atol=1e-5)


def loaded(folder, dtype=torch.float32):
    """Return the model in `folder` as transformers loads it, with nothing missing or ignored."""
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, dtype=dtype)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    return model


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("name", MODELS)
def test_logits_of_each_family_there_and_back(tmp_path, name, version):
    theirs = published(tmp_path / "hf", name)
    if version == 4:
        as_transformers_4(tmp_path / "hf")
    import_model(str(tmp_path / "hf"), tmp_path / "ckpt")
    same(opened(tmp_path / "ckpt"), theirs)
    export(tmp_path / "ckpt", tmp_path / "back")
    again = loaded(tmp_path / "back")
    assert type(again) is type(theirs)
    with torch.no_grad():
        torch.testing.assert_close(again(TOKENS).logits, theirs(TOKENS).logits, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_keep_their_type(tmp_path, dtype):
    published(tmp_path / "hf", "smollm2", dtype, shard="10KB")
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 2
    notes = import_model(str(tmp_path / "hf"), tmp_path / "ckpt")
    assert dtype in notes[0]
    weights = json.loads((tmp_path / "ckpt" / "manifest.json").read_text())["tensors"]
    assert {tensor["dtype"] for tensor in weights.values()} == {dtype}
    same(opened(tmp_path / "ckpt"), loaded(tmp_path / "hf"))
    export(tmp_path / "ckpt", tmp_path / "back", shard=10_000)
    there, back = (loaded(tmp_path / place, getattr(torch, dtype)) for place in ("hf", "back"))
    for one, other in zip(there.parameters(), back.parameters(), strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other)


def test_what_an_export_carries_on(tmp_path):
    published(tmp_path / "hf")
    change(tmp_path / "hf" / "config.json", eos_token_id=[256, 7], _name_or_path="/home/somebody/secret")
    change(tmp_path / "hf" / "generation_config.json", temperature=0.6, do_sample=True)
    (tmp_path / "hf" / "README.md").write_text("---\nlicense: llama3.2\nlanguage: [en]\n---\n# A model\n")
    (tmp_path / "hf" / "LICENSE").write_text("the license")
    import_model(str(tmp_path / "hf"), tmp_path / "ckpt")
    shutil.rmtree(tmp_path / "hf")
    export(tmp_path / "ckpt", tmp_path / "back")
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert config["eos_token_id"] == [256, 7] and "secret" not in str(config)
    assert GenerationConfig.from_pretrained(tmp_path / "back").temperature == 0.6
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "back")
    assert tokenizer.chat_template == TEMPLATE and tokenizer("<|endoftext|>")["input_ids"] == [256]
    assert (tmp_path / "back" / "LICENSE").read_text() == "the license"
    card = (tmp_path / "back" / "README.md").read_text()
    assert "license: llama3.2\n" in card and "Base model: hf" in card and str(tmp_path) not in card


def test_the_state_has_the_architecture_and_the_tokenizer(tmp_path):
    published(tmp_path / "hf", "qwen3-tied")
    import_model(str(tmp_path / "hf"), tmp_path / "ckpt")
    state = checkpoint.read_state(tmp_path / "ckpt")
    model, data = state["config"]["model"], state["config"]["data"]
    assert model["qk_norm"] and model["tie_embeddings"] and model["seq_len"] == 64
    assert data == {"tokenizer": str(tmp_path / "ckpt" / "tokenizer.json"), "bos": False, "eos": None}
    assert state["tokenizer"]["name"] == data["tokenizer"] and state["tokenizer"]["eos"] == 256
    assert state["data"] is None and state["progress"]["step"] == 0
    assert state["imported"]["family"] == "qwen3" and state["imported"]["config"]["hidden_size"] == 32


def test_a_tokenizer_that_begins_texts_with_a_token(tmp_path):
    published(tmp_path / "hf")
    content = json.loads((tmp_path / "hf" / "tokenizer.json").read_text())
    bos = content["added_tokens"][0] | {"id": 257, "content": "<s>"}
    content["added_tokens"].append(bos)
    content["model"]["vocab"]["<s>"] = 257
    begin = {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": begin,
        "pair": begin,
        "special_tokens": {"<s>": {"id": "<s>", "ids": [257], "tokens": ["<s>"]}},
    }
    (tmp_path / "hf" / "tokenizer.json").write_text(json.dumps(content))
    notes = import_model(str(tmp_path / "hf"), tmp_path / "ckpt")
    state = checkpoint.read_state(tmp_path / "ckpt")
    assert state["config"]["data"]["bos"] is True and state["tokenizer"]["bos"] == 257
    assert any("data.bos=true" in note for note in notes)


def test_a_model_without_a_tokenizer(tmp_path):
    published(tmp_path / "hf", tokenizer=False)
    notes = import_model(str(tmp_path / "hf"), tmp_path / "ckpt")
    assert any("no tokenizer.json" in note for note in notes)
    assert checkpoint.read_state(tmp_path / "ckpt")["tokenizer"] is None
    notes = export(tmp_path / "ckpt", tmp_path / "back")
    assert any("no tokenizer is exported" in note for note in notes)
    assert not (tmp_path / "back" / "tokenizer.json").exists()


def test_other_end_of_text_tokens_are_noted(tmp_path):
    published(tmp_path / "hf", eos_token_id=7)
    notes = import_model(str(tmp_path / "hf"), tmp_path / "ckpt")
    assert any("data.eos=7" in note for note in notes)


def test_an_import_that_fails_leaves_nothing(tmp_path, monkeypatch):
    published(tmp_path / "hf")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lhtrain.checkpoint.writer.describe", full)
    with pytest.raises(RunError, match="No space left"):
        import_model(str(tmp_path / "hf"), tmp_path / "ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_places_where_it_cannot_go(tmp_path):
    published(tmp_path / "hf")
    with pytest.raises(RunError, match="must be a new or an empty folder"):
        import_model(str(tmp_path / "hf"), tmp_path / "hf")
    with pytest.raises(RunError, match="name of a checkpoint"):
        import_model(str(tmp_path / "hf"), tmp_path / "step_00000100")
    with pytest.raises(RunError, match=r"revision=v1: applies only to hub:NAME"):
        import_model(str(tmp_path / "hf"), tmp_path / "ckpt", "v1")


def test_weights_are_read_without_a_checkpoint(tmp_path):
    published(tmp_path / "hf", "qwen2", "bfloat16", shard="10KB")
    found = open_published(tmp_path / "hf")
    model = GPT(found.model)
    found.load({name: parameter.data for name, parameter in model.named_parameters()})
    same(model, loaded(tmp_path / "hf"))
    assert found.tokenizer == tmp_path / "hf" / "tokenizer.json" and found.dtype == "bfloat16"
