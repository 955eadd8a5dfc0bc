"""Models that cannot be imported: the error names what is wrong."""

import json

import pytest
import safetensors.torch
import torch

from lhtrain.errors import RunError
from lhtrain.interop.published import open_published
from tests.interop.published import change, published

ONE = "model.safetensors"


def weights_of(folder):
    return safetensors.torch.load_file(folder / ONE)


def save(weights, folder):
    safetensors.torch.save_file(weights, folder / ONE, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("llama", {"model_type": "gemma2"}, "model_type=gemma2: must be one of llama, mistral"),
        ("llama", {"model_type": "qwen3_moe"}, "mixture of experts"),
        ("llama", {"model_type": "llava", "text_config": {"a": 1}}, "images or sound"),
        ("llama", {"num_local_experts": 8}, "num_local_experts=8: .*mixture of experts"),
        ("llama", {"attention_bias": True}, "attention_bias=True: .*output projection"),
        ("qwen3", {"attention_bias": True}, "attention_bias=True"),
        ("llama", {"mlp_bias": True}, "mlp_bias=True"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act=gelu: .*silu"),
        ("llama", {"partial_rotary_factor": 0.5}, r"partial_rotary_factor=0\.5"),
        ("llama", {"quantization_config": {"quant_method": "awq"}}, "quantization_config=.*awq"),
        ("llama", {"hidden_size": "32"}, "hidden_size=32: must be a whole number"),
        ("llama", {"num_hidden_layers": None}, "num_hidden_layers=None: must be a whole number"),
        ("llama", {"sliding_window": 32}, "sliding_window=32 in 2 of 2 layers: model_type=llama"),
        (
            "mistral",
            {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 8},
            "sliding_window=8 in 1 of 2 layers: model_type=mistral",
        ),
        ("ministral", {"layer_types": ["sliding_attention"], "sliding_window": 8}, "has 1 entries"),
        (
            "qwen3",
            {"layer_types": ["sliding_attention"] * 2, "sliding_window": 8, "use_sliding_window": False},
            "use_sliding_window is not true",
        ),
        ("ministral", {"layer_types": ["full_attention", "linear_attention"]}, "linear_attention"),
        ("llama", {"rope_parameters": {"rope_type": "longrope", "factor": 2}}, "rope_type=longrope"),
        ("llama", {"rope_parameters": {"rope_type": "linear", "alpha": 2, "factor": 2}}, "alpha"),
        ("llama", {"rope_parameters": {"rope_type": "linear"}}, "factor"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
            "partial_rotary",
        ),
        (
            "llama",
            {"num_attention_heads": 8, "head_dim": None},
            r"k_proj\.weight has the shape \[32, 32\], .*\[16, 32\]",
        ),
        ("llama", {"rms_norm_eps": "abc"}, "rms_norm_eps=abc: must be a number"),
        ("llama", {"rope_parameters": {"rope_theta": "x"}}, "rope_theta=x: must be a number"),
        ("mistral", {"sliding_window": "x"}, "config.json: "),
        ("ministral", {"layer_types": 5}, "config.json: "),
        ("llama", {"model_type": ["llama"]}, "model_type=.*must be one of"),
        ("llama", {"vocab_size": 301}, r"embed_tokens\.weight has the shape \[300, 32\].*\[301, 32\]"),
        ("llama", {"num_hidden_layers": 3}, r"missing: model\.layers\.2\..* and \d+ more"),
        ("llama", {"num_hidden_layers": 1}, r"not in a model of this family: model\.layers\.1\."),
        ("qwen2", {"model_type": "llama"}, r"not in a model of this family: .*bias"),
        ("llama", {"model_type": "qwen3", "head_dim": 8}, r"missing: .*q_norm"),
    ],
)
def test_configurations(tmp_path, name, values, message):
    published(tmp_path, name)
    change(tmp_path / "config.json", **values)
    with pytest.raises(RunError, match=message):
        open_published(tmp_path)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("mistral", {"sliding_window": 64}),  # as long as the context: it hides nothing
        ("qwen2", {"use_sliding_window": False, "sliding_window": 8, "layer_types": None}),
        (
            "qwen2",
            {"use_sliding_window": True, "max_window_layers": 2, "sliding_window": 8, "layer_types": None},
        ),
        ("llama", {"hidden_act": "swish"}),
    ],
)
def test_configurations_that_are_the_same_decoder(tmp_path, name, values):
    published(tmp_path, name)
    change(tmp_path / "config.json", **{"sliding_window": None} if "sliding_window" in values else {})
    plain = open_published(tmp_path).model
    change(tmp_path / "config.json", **values)
    assert open_published(tmp_path).model == plain


@pytest.mark.parametrize(
    ("name", "values", "layers"),
    [
        ("mistral", {"sliding_window": 32}, [0, 1]),
        ("ministral", {"layer_types": ["full_attention", "sliding_attention"]}, [1]),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 1, "layer_types": None}, [1]),
    ],
)
def test_sliding_layers(tmp_path, name, values, layers):
    published(tmp_path, name)
    change(tmp_path / "config.json", **{"sliding_window": 8} | values)
    model = open_published(tmp_path).model
    assert model.sliding_layers == layers and model.sliding_window == values.get("sliding_window", 8)


def test_all_reasons_are_named_at_once(tmp_path):
    published(tmp_path)
    change(tmp_path / "config.json", mlp_bias=True, hidden_act="gelu")
    with pytest.raises(RunError, match=r"hidden_act=gelu.*mlp_bias=True"):
        open_published(tmp_path)


def test_quantized_weights(tmp_path):
    published(tmp_path)
    weights = weights_of(tmp_path)
    save(weights | {"model.layers.0.mlp.up_proj.qweight": torch.zeros(8, dtype=torch.int32)}, tmp_path)
    with pytest.raises(RunError, match="qweight belongs to quantized weights"):
        open_published(tmp_path)
    save(weights | {"model.norm.weight": torch.zeros(32, dtype=torch.int8)}, tmp_path)
    with pytest.raises(RunError, match=r"model\.norm\.weight has the type I8"):
        open_published(tmp_path)


def test_a_tied_head_in_the_file(tmp_path):
    published(tmp_path, "smollm2")
    weights = weights_of(tmp_path)
    save(weights | {"lm_head.weight": weights["model.embed_tokens.weight"].clone()}, tmp_path)
    open_published(tmp_path)
    save(weights | {"lm_head.weight": torch.zeros(300, 32)}, tmp_path)
    with pytest.raises(RunError, match=r"lm_head\.weight differs.*tie_word_embeddings"):
        open_published(tmp_path)


def test_buffers_of_old_files_are_ignored(tmp_path):
    published(tmp_path)
    weights = weights_of(tmp_path)
    save(weights | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)}, tmp_path)
    assert "inv_freq" not in str(open_published(tmp_path).weights.keys())


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("pytorch_model.bin", "pickled files alone.*save_pretrained"),
        ("model-Q4_K.gguf", "GGUF"),
        ("consolidated.safetensors", "other names of weights"),
        ("adapter_config.json", "LoRA"),
        ("weights.safetensors", r"it has weights\.safetensors"),
        ("note.txt", "must contain model.safetensors"),
    ],
)
def test_folders_without_weights_that_can_be_read(tmp_path, file, message):
    published(tmp_path)
    (tmp_path / ONE).rename(tmp_path / file)
    with pytest.raises(RunError, match=message):
        open_published(tmp_path)


def test_folders_that_are_no_models(tmp_path):
    with pytest.raises(RunError, match="must be a folder"):
        open_published(tmp_path / "none")
    with pytest.raises(RunError, match=r"must contain model\.safetensors"):
        open_published(tmp_path)
    published(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(RunError, match=r"config\.json: must be a JSON file"):
        open_published(tmp_path)


def test_files_that_are_damaged_or_missing(tmp_path):
    published(tmp_path / "one")
    file = tmp_path / "one" / ONE
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    with pytest.raises(RunError, match=r"model\.safetensors: is damaged"):
        open_published(tmp_path / "one")
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")
    with pytest.raises(RunError, match="git lfs pull"):
        open_published(tmp_path / "one")
    published(tmp_path / "two", shard="10KB")
    index = tmp_path / "two" / "model.safetensors.index.json"
    names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    (tmp_path / "two" / names[1]).unlink()
    with pytest.raises(RunError, match=f"{names[1]}: is missing"):
        open_published(tmp_path / "two")
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": "../one/model.safetensors"}}))
    with pytest.raises(RunError, match=r"must be a \.safetensors file beside it"):
        open_published(tmp_path / "two")
