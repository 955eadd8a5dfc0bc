"""Tests that transformers loads the same model from `lhtrain export` as was trained."""

import dataclasses
import errno
import json
import os
import shutil
import weakref

import pytest
import safetensors.torch
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from lhtrain import checkpoint, cli
from lhtrain.conf.schema import ModelConfig
from lhtrain.errors import RunError
from lhtrain.interop import export, transformers_folder
from lhtrain.interop.exported_weights import ExportedWeights
from tests.interop.made import DENSE, LIGHTHOUSE, saved


def same(place, model, dtype=None):
    """Check that the exported folder gives the logits of `model`; return the model of transformers."""
    llama, report = AutoModelForCausalLM.from_pretrained(place, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    tokens = torch.randint(0, 300, (2, 50), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(llama(tokens).logits, model(tokens), rtol=1e-5, atol=1e-5)
    return llama


@pytest.mark.parametrize("tied", [False, True])
def test_transformers_loads_the_same_model(tmp_path, tied):
    path, model = saved(tmp_path, tie_embeddings=tied)
    notes = export(path, tmp_path / "out")
    llama = same(tmp_path / "out", model)
    assert llama.dtype == torch.float32 and llama.config.eos_token_id == 256
    assert llama.config.bos_token_id is None
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in notes[0]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("naïve <|endoftext|>")["input_ids"] == list("naïve <|endoftext|>".encode())
    assert GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == 256


# transformers refuses a Llama whose width is not a multiple of its number of heads.
@pytest.mark.parametrize("heads", [{"n_heads": 3, "n_kv_heads": 3}, {"n_heads": 6, "n_kv_heads": 2}])
def test_a_width_that_is_no_multiple_of_the_heads(tmp_path, heads):
    path, model = saved(tmp_path, **heads)
    export(path, tmp_path / "out")
    assert same(tmp_path / "out", model).config.model_type == "mistral"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer(" a b")["input_ids"] == list(b" a b")


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"sliding_layers": [0, 1, 2]}, "mistral"),
        ({"sliding_layers": [0, 2]}, "ministral"),
        ({"sliding_window_pattern": 2, "qkv_bias": True}, "qwen2"),
        ({"sliding_layers": [1], "qk_norm": True}, "qwen3"),
    ],
)
def test_sliding_layers(tmp_path, changes, kind):
    path, model = saved(tmp_path, sliding_window=8, **changes)
    export(path, tmp_path / "out")
    assert same(tmp_path / "out", model).config.model_type == kind


def test_weights_in_several_files(tmp_path):
    path, model = saved(tmp_path)
    export(path, tmp_path / "out", shard=20_000)
    files = sorted(file.name for file in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(files)
    assert index["metadata"]["total_size"] == 4 * sum(p.numel() for p in model.parameters())
    same(tmp_path / "out", model)


def test_only_the_weights_of_one_file_are_in_memory(tmp_path, monkeypatch):
    path, _ = saved(tmp_path)
    load, alive = checkpoint.load, weakref.WeakSet()

    def loads(path, tensors, **options):
        assert not alive, "weights of an earlier file are still in memory"
        alive.update(tensors.values())
        load(path, tensors, **options)

    monkeypatch.setattr(checkpoint, "load", loads)
    export(path, tmp_path / "out", shard=20_000)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 2


def test_weights_that_do_not_belong_to_the_model(tmp_path):
    path, _ = saved(tmp_path)
    described = json.loads((path / "state.json").read_text())["config"]["model"]
    config = ModelConfig(**described)
    ExportedWeights(path, config, torch.float32)
    for change, message in (({"n_layers": 1}, "not in this model"), ({"ffn_dim": 8}, "in this model")):
        with pytest.raises(RunError, match=message):
            ExportedWeights(path, dataclasses.replace(config, **change), torch.float32)


def test_in_bfloat16_and_from_the_newest_checkpoint_of_a_run(tmp_path):
    _, model = saved(tmp_path)
    export(tmp_path, tmp_path / "out", "bfloat16")
    llama = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert llama.dtype == torch.bfloat16
    assert torch.equal(llama.model.embed_tokens.weight, model.embedding.weight.bfloat16())


@pytest.mark.parametrize(
    ("stages", "done", "length", "warned"),
    [
        ({"a": LIGHTHOUSE, "b": DENSE}, ["a"], 128, True),
        ({"a": LIGHTHOUSE, "b": DENSE}, ["a", "b"], 128, False),
        ({"a": DENSE, "b": DENSE | {"seq_len": 256}}, ["a"], 64, False),  # b, the longest, has not run
        ({"b": DENSE}, [{"name": "a", "settings": LIGHTHOUSE}, "b"], 128, False),  # a: of an earlier plan
        ({"b": DENSE}, ["b", {"name": "a", "settings": LIGHTHOUSE}], 128, True),
        ({"b": DENSE}, ["a"], 512, False),  # a is not recorded: model.seq_len is used
    ],
)
def test_the_stages_that_ran_decide(tmp_path, stages, done, length, warned):
    records = [({"name": item} if isinstance(item, str) else item) | {"steps": 3} for item in done]
    path, _ = saved(tmp_path, stages=stages, done=records, seq_len=512)
    notes = export(path, tmp_path / "out")
    assert any("stage=recovery" in note for note in notes) == warned
    config, tokenizer = (
        json.loads((tmp_path / "out" / name).read_text()) for name in ("config.json", "tokenizer_config.json")
    )
    assert config["max_position_embeddings"] == tokenizer["model_max_length"] == length


def test_the_sequences_before_init_from_count(tmp_path):
    path, _ = saved(tmp_path / "before", stages={"it": LIGHTHOUSE})
    state = checkpoint.state_of(path)
    state["config"]["init_from"], state["config"]["stages"] = str(path), {"it": DENSE}
    assert transformers_folder.longest(state) == 128
    shutil.rmtree(path)
    assert transformers_folder.longest(state) == 64


def test_the_card_says_what_the_model_is(tmp_path):
    path, _ = saved(tmp_path, stages={"it": LIGHTHOUSE}, name="my | model\n# x")
    export(path, tmp_path / "out", "bfloat16")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "# my \\| model # x\n" in card and "secret" not in card
    for text in ("after step 7", "| it | [Lighthouse]", "| 128 | 7 | 700 | 2.5000 | 2.2500 |", "bfloat16"):
        assert text in card
    assert "300 rows for 257 tokens" in card and "llama.cpp" in card and "stage=recovery" in card


@pytest.mark.parametrize("moved", [False, True])
def test_the_tokenizers_file_comes_along(tmp_path, moved):
    from tokenizers import Tokenizer, models

    file = tmp_path / "tokenizer.json"
    vocabulary = {"<|endoftext|>": 0, "a": 1, "b": 2}
    Tokenizer(models.BPE(vocabulary, [])).save(str(file))
    content = json.loads(file.read_text())
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    content["added_tokens"] = [{"id": 0, "content": "<|endoftext|>", **special}]
    file.write_text(json.dumps(content))
    original = file.read_text()
    path, _ = saved(tmp_path / "run", tokenizer=str(file))
    if moved:  # the run's own copy is used
        shutil.move(file, tmp_path / "run" / "tokenizer.json")
        file.write_text("{}")
    export(path, tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").read_text() == original
    assert json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"] == 0


def test_any_name_of_a_run_and_a_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for run in ("lr=0.1 ü'\"", "-run"):
        saved(tmp_path / run)
        for source in (run, f"{run}/checkpoints", f"{run}/checkpoints/step_00000007", f"~/{run}"):
            source = f"./{source}" if source.startswith("-") else source
            for target in ("./a=b", "~/out put", "ä/é", f"{run}/exported"):
                cli.main(["export", source, f"./{target}".replace("./~", "~")])
                assert "LlamaForCausalLM" in capsys.readouterr().out
                place = tmp_path / target.removeprefix("~/")
                assert (place / "config.json").exists()
                shutil.rmtree(place)


def test_a_checkpoint_that_training_deletes_meanwhile(tmp_path, monkeypatch):
    saved(tmp_path, step=3)
    load = checkpoint.load

    def rotate_first(path, tensors, **options):
        monkeypatch.setattr(checkpoint, "load", load)
        saved(tmp_path, step=4)
        shutil.rmtree(path)
        load(path, tensors, **options)

    monkeypatch.setattr(checkpoint, "load", rotate_first)
    assert "step_00000004" in export(tmp_path, tmp_path / "out")[0]

    def always(path, tensors, **options):
        shutil.rmtree(path)
        saved(tmp_path, step=int(path.name[5:]) + 1)
        load(path, tensors, **options)

    monkeypatch.setattr(checkpoint, "load", always)
    with pytest.raises(RunError, match=r"deleted its checkpoints.*checkpoint\.keep"):
        export(tmp_path, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_disk_that_is_full(tmp_path, monkeypatch):
    path, _ = saved(tmp_path / "run")

    def full(tensors, file, metadata):
        file.write_bytes(b"half")
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(
        RunError, match=r"out: could not be written \(.*No space left.*GB of free space"
    ) as error:
        export(path, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert sorted(place.name for place in tmp_path.iterdir()) == ["run"]
    monkeypatch.undo()

    def read_only(path, *args):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)

    monkeypatch.setattr(os, "rename", read_only)
    with pytest.raises(RunError, match="Read-only file system"):
        export(path, tmp_path / "out")
    assert sorted(place.name for place in tmp_path.iterdir()) == ["run"]


@pytest.mark.parametrize("place", ["run", "run/checkpoints/out", "run/checkpoints/step_00000007/out", "out"])
def test_a_place_where_it_cannot_go(tmp_path, place):
    path, _ = saved(tmp_path / "run")
    if place == "out":
        export(path, tmp_path / place)
    before = sorted(str(file) for file in tmp_path.rglob("*"))
    for source in (path, tmp_path / "run", tmp_path / "run" / "checkpoints"):
        with pytest.raises(RunError, match=r"must be a new or an empty folder|must not be in"):
            export(source, tmp_path / place)
    assert sorted(str(file) for file in tmp_path.rglob("*")) == before


def test_a_run_without_a_checkpoint_yet(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(RunError, match="has no finished checkpoint yet"):
        export(tmp_path / "run", tmp_path / "out")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["runs/none"], "needs RUN FOLDER"),
        (["runs/none", "out", "dtype=int8"], "dtype=int8: must be one of float32, bfloat16"),
        (["runs/none", "out"], "checkpoint runs/none: no such folder"),
        (["runs/none", "full"], "must be a new or an empty folder"),
        (["runs/none", "out", "dtyp=float32"], "dtyp: no such setting"),
        (["runs/none", "a=b"], "contains = as ./a=b"),
        (["runs/none", "-x"], "-x: no such option"),
        (["runs/none", ""], "FOLDER: must not be empty"),
        (["runs/none", "out", "max_shard_size=5"], "max_shard_size=5: must be"),
    ],
)
def test_mistakes_are_named(arguments, message, capsys, monkeypatch, tmp_path):
    (tmp_path / "full" / "of").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        cli.main(["export", *arguments])
    assert message in capsys.readouterr().err
