"""config.json of an exported model, for Hugging Face transformers 4 and 5.

The decoder is the same as that of the families in `families.py`, with rotary embedding on the halves of a
head, and the exported model has full attention in all layers but those with a sliding window. So the export
only renames weights.
"""

from typing import Any

from lhtrain.conf.schema import ModelConfig
from lhtrain.conf.sliding import sliding_layers
from lhtrain.errors import RunError
from lhtrain.interop.families import FAMILIES, Family, family_of, with_layers
from lhtrain.interop.published_rope import longest_for_rope, written_rope
from lhtrain.model.rope import Rope

# Keys of an imported config.json that would be wrong after training, or name files on another machine.
DROPPED = (
    *("_name_or_path", "_model_name_or_path", "auto_map", "transformers_version", "layer_types"),
    "original_max_position_embeddings",
)


def config_json(
    model: ModelConfig,
    dtype: str = "float32",
    eos: int | None = None,
    bos: int | None = None,
    longest: int | None = None,
    imported: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the content of config.json for the same decoder in transformers.

    Args:
        model: sizes of the model, and its rotary embedding.
        dtype: data type of the exported weights.
        eos, bos: the tokens that end and begin a document; None if there is none.
        longest: length in tokens of the longest training sequences; None means model.seq_len.
        imported: where the model began with an import, the "imported" of state.json. Its config.json is kept,
            with its special tokens, except what training changed.

    Raises RunError: no family of transformers has such a decoder.
    """
    rope = Rope.of(model)
    changed = {
        **_sizes(model),
        "max_position_embeddings": longest_for_rope(longest or model.seq_len, rope),
        "rms_norm_eps": model.norm_eps,
        **written_rope(rope),
        "tie_word_embeddings": model.tie_embeddings,
        "dtype": dtype,
        "torch_dtype": dtype,
    }
    if imported is not None:
        family = FAMILIES[imported["family"]]
        kept = {key: value for key, value in imported["config"].items() if key not in DROPPED}
        return kept | _of_family(family, model) | changed
    family = _family(model)
    own = _of_family(family, model)
    if family.model_type == "llama":
        own |= {"attention_bias": False, "mlp_bias": False}
    end = {
        "hidden_act": "silu",
        "initializer_range": model.init_std,
        "bos_token_id": bos,
        "eos_token_id": eos,
    }
    return own | changed | end


def _of_family(family: Family, model: ModelConfig) -> dict[str, Any]:
    """Return the keys that name the model's family and its sliding layers."""
    sliding, kinds = sliding_layers(model), ["full_attention"] * model.n_layers
    family = with_layers(family, len(sliding), model.n_layers)
    named = {"architectures": [family.architecture], "model_type": family.model_type}
    for layer in sliding:
        kinds[layer] = "sliding_attention"
    of_layers = {"layer_types": kinds} if family.layer_types or (sliding and family.slides == "some") else {}
    if not sliding:
        return named | family.no_window | of_layers
    flag: dict[str, Any] = {}
    if family.window_flag:  # versions of transformers without layer_types let all from this layer on slide
        flag = {family.window_flag: True, "max_window_layers": sliding[0]}
    return named | flag | {"sliding_window": model.sliding_window} | of_layers


def _sizes(model: ModelConfig) -> dict[str, int]:
    return {
        "vocab_size": model.vocab_size,
        "hidden_size": model.dim,
        "intermediate_size": model.ffn_dim,
        "num_hidden_layers": model.n_layers,
        "num_attention_heads": model.n_heads,
        "num_key_value_heads": model.n_kv_heads,
        "head_dim": model.head_dim,
    }


def _family(model: ModelConfig) -> Family:
    """Return the family of a model that was trained from scratch.

    transformers 5 refuses a Llama whose hidden_size is not a multiple of its number of heads, even if
    head_dim is given. Its Mistral accepts it and, without a sliding window, is the same decoder.
    """
    family = family_of(model.qkv_bias, model.qk_norm)
    if family is None:
        raise RunError(
            "model.qkv_bias=true and model.qk_norm=true: no model of transformers has both, so this one "
            "cannot be exported"
        )
    if family.model_type == "llama" and model.dim % model.n_heads:
        return FAMILIES["mistral"]
    return with_layers(family, len(sliding_layers(model)), model.n_layers)
