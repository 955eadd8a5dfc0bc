"""The decoder in the terms of Hugging Face transformers: names of weights, config.json.

Lighthouse Attention has no weights of its own, and the decoder is Llama's, with its rotary embedding by
halves: only names change.
"""

from typing import Any

from lhtrain.conf.schema import ModelConfig

# Modules of GPT and of a block -> of transformers' LlamaForCausalLM and LlamaDecoderLayer.
OF_MODEL = {"embedding": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
OF_BLOCK = {
    "attention_norm": "input_layernorm",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn.gate": "mlp.gate_proj",
    "ffn.up": "mlp.up_proj",
    "ffn.down": "mlp.down_proj",
}


def llama_name(parameter: str) -> str:
    """The name in LlamaForCausalLM of a `parameter` of `lhtrain.model.decoder.GPT`."""
    module = parameter.removesuffix(".weight")
    if not module.startswith("blocks."):
        return f"{OF_MODEL[module]}.weight"
    _, number, part = module.split(".", 2)
    return f"model.layers.{number}.{OF_BLOCK[part]}.weight"


def llama_config(
    model: ModelConfig,
    dtype: str = "float32",
    eos: int | None = None,
    bos: int | None = None,
    longest: int | None = None,
) -> dict[str, Any]:
    """The config.json of the same decoder.

    Args:
        eos, bos: the tokens that end and begin a document; None where there is none.
        longest: tokens of the longest sequences that it was trained on; None: model.seq_len.
    """
    return {
        **_architecture(model),
        "vocab_size": model.vocab_size,
        "hidden_size": model.dim,
        "intermediate_size": model.ffn_dim,
        "num_hidden_layers": model.n_layers,
        "num_attention_heads": model.n_heads,
        "num_key_value_heads": model.n_kv_heads,
        "head_dim": model.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": longest or model.seq_len,
        "rms_norm_eps": model.norm_eps,
        "rope_theta": model.rope_theta,  # as transformers 4 reads it; the next line as 5 does
        "rope_parameters": {"rope_type": "default", "rope_theta": model.rope_theta},
        "tie_word_embeddings": model.tie_embeddings,
        "initializer_range": model.init_std,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "dtype": dtype,
        "torch_dtype": dtype,
    }


def _architecture(model: ModelConfig) -> dict[str, Any]:
    """Llama, where transformers accepts it.

    transformers 5 refuses a Llama whose hidden_size is not a multiple of its heads, although head_dim is
    given. Its Mistral has no such rule, and is the same decoder when it has no sliding window.
    """
    if model.dim % model.n_heads == 0:
        biases = {"attention_bias": False, "mlp_bias": False}
        return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **biases}
    return {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": None}
