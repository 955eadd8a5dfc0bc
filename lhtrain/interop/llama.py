"""Names of weights and config.json of the decoder for Hugging Face transformers.

The decoder is the same as Llama's, with rotary embedding on the halves of a head, and the exported model has
full attention. So the export only renames weights.
"""

from typing import Any

from lhtrain.conf.schema import ModelConfig

# Modules of GPT and Block, and the modules of LlamaForCausalLM and LlamaDecoderLayer in transformers.
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
    """Return the name in LlamaForCausalLM of a `parameter` of `lhtrain.model.decoder.GPT`."""
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
    """Return the content of config.json for the same decoder in transformers.

    Args:
        model: sizes of the model.
        dtype: data type of the exported weights.
        eos, bos: the tokens that end and begin a document; None if there is none.
        longest: length in tokens of the longest training sequences; None means model.seq_len.
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
        "rope_theta": model.rope_theta,  # for transformers 4; the next line is for transformers 5
        "rope_parameters": {"rope_type": "default", "rope_theta": model.rope_theta},
        "tie_word_embeddings": model.tie_embeddings,
        "initializer_range": model.init_std,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "dtype": dtype,
        "torch_dtype": dtype,
    }


def _architecture(model: ModelConfig) -> dict[str, Any]:
    """Return the keys that select Llama, or Mistral if transformers does not accept these sizes for Llama.

    transformers 5 refuses a Llama whose hidden_size is not a multiple of its number of heads, even if
    head_dim is given. Its Mistral accepts it and, without a sliding window, is the same decoder.
    """
    if model.dim % model.n_heads == 0:
        biases = {"attention_bias": False, "mlp_bias": False}
        return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **biases}
    return {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": None}
