"""`lhtrain export`: what transformers loads is the model that was trained."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from lhtrain import checkpoint, cli
from lhtrain.conf.schema import ModelConfig
from lhtrain.export import export
from lhtrain.model import GPT

SIZES = {"dim": 32, "n_layers": 3, "n_heads": 4, "n_kv_heads": 2, "head_dim": 16, "ffn_dim": 80}
FULL = {"name": "t", "seq_len": 64, "vocab_size": 300, "rope_theta": 5e5, "norm_eps": 1e-6} | SIZES


def saved(folder, attention="dense", tokenizer="bytes", **changes):
    """A checkpoint of a run of one stage, as the saver writes it; and its model."""
    config = FULL | changes
    model = GPT(ModelConfig(**config))
    model.init_weights(3)
    torch.nn.init.normal_(model.norm.weight, 1, 0.1)
    path = checkpoint.folder_of(folder / "checkpoints", 7)
    aside = path.with_name(".writing-it")
    tensors = checkpoint.tensors_of(model, torch.optim.AdamW(model.parameters()))
    torch.distributed.checkpoint.save(tensors, checkpoint_id=aside, no_dist=True)
    state = {
        "progress": {"step": 7, "stages": [{"name": "it"}]},
        "config": {
            "model": config,
            "data": {"tokenizer": tokenizer},
            "stages": {"it": {"attention": attention}},
        },
    }
    checkpoint.publish(aside, path, state, checkpoint.entries(aside, "*.distcp"), keep=1)
    return path, model


@pytest.mark.parametrize("tied", [False, True])
def test_transformers_loads_the_same_model(tmp_path, tied):
    path, model = saved(tmp_path, tie_embeddings=tied)
    notes = export(path, tmp_path / "out")
    llama, report = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert llama.dtype == torch.float32 and llama.config.eos_token_id == 256
    tokens = torch.randint(0, 300, (2, 50), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(llama(tokens).logits, model(tokens), rtol=1e-5, atol=1e-5)
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in notes[0]


def test_in_bfloat16_and_from_the_newest_checkpoint_of_a_run(tmp_path):
    _, model = saved(tmp_path)
    export(tmp_path, tmp_path / "out", "bfloat16")
    llama = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert llama.dtype == torch.bfloat16
    assert torch.equal(llama.model.embed_tokens.weight, model.embedding.weight.bfloat16())


def test_a_model_that_never_had_full_attention_is_told_of(tmp_path):
    path, _ = saved(tmp_path, attention="lighthouse")
    assert any("stage=recovery" in note for note in export(path, tmp_path / "out"))
    path, _ = saved(tmp_path / "dense")
    assert not any("stage=recovery" in note for note in export(path, tmp_path / "other"))


def test_the_tokenizers_file_comes_along(tmp_path):
    from tokenizers import Tokenizer, models

    file = tmp_path / "tokenizer.json"
    vocabulary = {"<|endoftext|>": 0, "a": 1, "b": 2}
    Tokenizer(models.BPE(vocabulary, [])).save(str(file))
    content = json.loads(file.read_text())
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    content["added_tokens"] = [{"id": 0, "content": "<|endoftext|>", **special}]
    file.write_text(json.dumps(content))
    path, _ = saved(tmp_path, tokenizer=str(file))
    export(path, tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").read_text() == file.read_text()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["runs/none"], "needs RUN FOLDER"),
        (["runs/none", "out", "dtype=int8"], "dtype=int8: must be one of float32, bfloat16"),
        (["runs/none", "out"], "checkpoint runs/none: no such folder"),
        (["runs/none", "."], "must be a new or an empty folder"),
    ],
)
def test_mistakes_are_named(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["lhtrain", "export", *arguments])
    with pytest.raises(SystemExit):
        cli.main()
    assert message in capsys.readouterr().err
