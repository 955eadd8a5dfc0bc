"""Small random models of each family, saved as Hugging Face transformers saves them."""

import json

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lhtrain.interop import bpe

SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "eos_token_id": 256,
    "bos_token_id": None,
    "pad_token_id": None,
}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
SLIDES = ["sliding_attention", "full_attention"]
OWN_HEAD = {"head_dim": 16, "tie_word_embeddings": False}
YARN = {"factor": 4.0, "original_max_position_embeddings": 16}
# Name -> model_type, changes of `SIZES`, rotary embedding.
MODELS = {
    "llama": ("llama", {"num_key_value_heads": 4}, {}),
    "llama3": ("llama", {}, {"rope_type": "llama3", "rope_theta": 5e5} | LLAMA3),
    "llama-linear": ("llama", {}, {"rope_type": "linear", "factor": 4.0}),
    "llama-dynamic": ("llama", {"max_position_embeddings": 32}, {"rope_type": "dynamic", "factor": 2.0}),
    "llama-yarn": ("llama", {}, {"rope_type": "yarn", "rope_theta": 1e4} | YARN),
    "llama-yarn-mscale": ("llama", {}, {"rope_type": "yarn", "mscale": 1.0, "mscale_all_dim": 0.8} | YARN),
    "smollm2": (
        "llama",
        {"num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": True},
        {},
    ),
    "mistral": ("mistral", {"sliding_window": None, "head_dim": 16, "tie_word_embeddings": False}, {}),
    "ministral": (
        "ministral",
        {"layer_types": ["full_attention"] * 2, "head_dim": 16, "tie_word_embeddings": False},
        {},
    ),
    "mistral-sliding": ("mistral", {"sliding_window": 5} | OWN_HEAD, {}),
    "ministral-sliding": ("ministral", {"sliding_window": 5, "layer_types": SLIDES} | OWN_HEAD, {}),
    "qwen2-sliding": (
        "qwen2",
        {
            "use_sliding_window": True,
            "sliding_window": 7,
            "max_window_layers": 1,
            "tie_word_embeddings": False,
        },
        {"rope_theta": 1e6},
    ),
    "qwen3-sliding": (
        "qwen3",
        {"use_sliding_window": True, "sliding_window": 6, "layer_types": SLIDES} | OWN_HEAD,
        {"rope_theta": 1e6},
    ),
    "qwen2": ("qwen2", {"tie_word_embeddings": False}, {"rope_theta": 1e6}),
    "qwen2-tied": ("qwen2", {"tie_word_embeddings": True}, {"rope_type": "yarn", "rope_theta": 1e6} | YARN),
    "qwen3": ("qwen3", {"head_dim": 16, "tie_word_embeddings": False}, {"rope_theta": 1e6}),
    "qwen3-tied": ("qwen3", {"head_dim": 8, "tie_word_embeddings": True}, {"rope_theta": 1e6}),
}
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


def published(folder, name="llama", dtype="float32", shard="5GB", tokenizer=True, **changes):
    """Save the random model `name` of `MODELS` in `folder`; return the model of transformers."""
    kind, sizes, rope = MODELS[name]
    rope = {"rope_type": "default", "rope_theta": 1e4} | rope
    config = AutoConfig.for_model(kind, **(SIZES | sizes | {"rope_parameters": rope} | changes))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():  # other values than the initial ones, which hide errors of norms and biases
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=shard)
    if tokenizer:
        byte_tokenizer(folder)
    return model


def byte_tokenizer(folder):
    """Write the byte tokenizer as a tokenizer.json, with the files that published tokenizers have."""
    (folder / "tokenizer.json").write_text(json.dumps(bpe.of_bytes("<|endoftext|>", 256)))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|endoftext|>",
        "model_max_length": 64,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text(TEMPLATE)


def change(file, **values):
    """Change keys of a JSON file; a value of None removes the key."""
    content = json.loads(file.read_text()) | values
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def as_transformers_4(folder):
    """Rewrite config.json with the keys that transformers 4 has for the rotary embedding."""
    rope = json.loads((folder / "config.json").read_text())["rope_parameters"]
    theta, kind = rope.pop("rope_theta"), rope.pop("rope_type")
    scaling = None if kind == "default" else {"type": kind} | rope
    change(folder / "config.json", rope_parameters=None, rope_theta=theta, rope_scaling=scaling)
