"""The model families of Hugging Face transformers that are this decoder, and the names of their weights.

A family differs from the others by what its layers have (biases, normed queries and keys) and by the values
that transformers assumes for keys that config.json does not have.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Family:
    """One family.

    Attributes:
        model_type: in config.json.
        architecture: the class in transformers.
        qkv_bias, qk_norm: as in `ModelConfig`.
        defaults: values that transformers assumes for keys that config.json does not have.
        slides: which layers attend to the sliding window, if there is one: "" none, "all", or "some", which
            layer_types names.
        window_flag: key of config.json without which `sliding_window` has no effect; "": it always has one.
        no_window: keys of config.json that give all layers full attention.
        layer_types: whether config.json must name each layer's kind of attention for that, too.
    """

    model_type: str
    architecture: str
    qkv_bias: bool = False
    qk_norm: bool = False
    defaults: dict[str, Any] = field(default_factory=dict)
    slides: str = ""
    window_flag: str = ""
    no_window: dict[str, Any] = field(default_factory=dict)
    layer_types: bool = False


# Read in transformers 5.23, configuration_*.py. Sizes have no defaults here: config.json must have them.
FAMILIES = {
    family.model_type: family
    for family in (
        Family(  # Llama 1, 2, 3, SmolLM2 and many others
            "llama", "LlamaForCausalLM", defaults={"max_position_embeddings": 2048}
        ),
        Family(
            "mistral",
            "MistralForCausalLM",
            defaults={"max_position_embeddings": 2**17, "num_key_value_heads": 8, "sliding_window": 4096},
            slides="all",
            no_window={"sliding_window": None},
        ),
        Family(
            "ministral",
            "MinistralForCausalLM",
            defaults={"max_position_embeddings": 2**17, "num_key_value_heads": 8, "sliding_window": 4096},
            slides="some",
            layer_types=True,  # transformers fails without a sliding_window, even where no layer has one
        ),
        Family(  # Qwen2 and Qwen2.5
            "qwen2",
            "Qwen2ForCausalLM",
            qkv_bias=True,
            defaults={"max_position_embeddings": 2**15, "sliding_window": 4096, "max_window_layers": 28},
            slides="some",
            window_flag="use_sliding_window",
            no_window={"use_sliding_window": False},
        ),
        Family(
            "qwen3",
            "Qwen3ForCausalLM",
            qk_norm=True,
            defaults={
                "max_position_embeddings": 2**15,
                "head_dim": 128,
                "sliding_window": 4096,
                "max_window_layers": 28,
            },
            slides="some",
            window_flag="use_sliding_window",
            no_window={"use_sliding_window": False},
        ),
    )
}

# The same in all families.
DEFAULTS = {
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": False,
    "initializer_range": 0.02,
}

# Values that a key of config.json may have if it is there, and what another value would mean.
ALLOWED: dict[str, tuple[tuple[Any, ...], str]] = {
    "hidden_act": (("silu", "swish"), "the feed-forward layers are SwiGLU, with silu"),
    "attention_bias": ((False, None), "it adds a bias to the output projection of attention, too"),
    "mlp_bias": ((False, None), "the feed-forward layers have no biases"),
    "partial_rotary_factor": ((1, None), "all of a head is rotated"),
    "num_experts": ((0, 1, None), "models with a mixture of experts cannot be imported"),
    "num_local_experts": ((0, 1, None), "models with a mixture of experts cannot be imported"),
    "quantization_config": ((None, {}), "quantized weights cannot be trained; use the original weights"),
    "no_rope_layers": ((None, []), "all layers have rotary positions"),
}

# Modules of GPT and Block, and the modules of transformers' LlamaForCausalLM and LlamaDecoderLayer. The other
# families have the same names.
OF_MODEL = {"embedding": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
OF_BLOCK = {
    "attention_norm": "input_layernorm",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm",
    "attention.wo": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn.gate": "mlp.gate_proj",
    "ffn.up": "mlp.up_proj",
    "ffn.down": "mlp.down_proj",
}


def published_name(parameter: str) -> str:
    """Return the name in transformers of a `parameter` of `lhtrain.model.decoder.GPT`."""
    module, _, kind = parameter.rpartition(".")
    if not module.startswith("blocks."):
        return f"{OF_MODEL[module]}.{kind}"
    _, number, part = module.split(".", 2)
    return f"model.layers.{number}.{OF_BLOCK[part]}.{kind}"


def with_layers(family: Family, n_sliding: int, n_layers: int) -> Family:
    """Return the family with the same weights as `family` that can have so many sliding layers.

    Llama has none, in Mistral all layers slide or none does, and Ministral is Mistral with any layers.
    """
    if n_sliding == 0 or family.slides == "some" or (family.slides == "all" and n_sliding == n_layers):
        return family
    return FAMILIES["mistral" if n_sliding == n_layers else "ministral"]


def family_of(qkv_bias: bool, qk_norm: bool) -> Family | None:
    """Return the first family whose layers have these parts; None if there is none."""
    found = (one for one in FAMILIES.values() if (one.qkv_bias, one.qk_norm) == (qkv_bias, qk_norm))
    return next(found, None)
