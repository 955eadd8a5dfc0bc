"""config.json of a published model: which family it is, and the same decoder in lhtrain's settings."""

import json
from pathlib import Path
from typing import Any

from lhtrain.conf.schema import ModelConfig
from lhtrain.errors import RunError
from lhtrain.files import read_regular
from lhtrain.interop.families import ALLOWED, DEFAULTS, FAMILIES, Family
from lhtrain.interop.published_rope import read_rope

NUMBERS = ("rms_norm_eps", "initializer_range", "rope_theta")
SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "intermediate_size": "ffn_dim",
}
OPTIONAL_SIZES = ("num_key_value_heads", "head_dim")
MOST = 2**26  # bytes of config.json


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file. Raises RunError: it cannot be read or is not a JSON object."""
    try:
        content = json.loads(read_regular(path.resolve(), MOST))  # a cache of the hub has links
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path}: must be a JSON file ({error})") from error
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror or error})") from error
    if not isinstance(content, dict):
        raise RunError(f"{path}: must contain a JSON object")
    return content


def family_in(config: dict[str, Any], where: Path) -> Family:
    """Return the family of a config.json. Raises RunError: it is not one of `FAMILIES`."""
    kind = config.get("model_type")
    if isinstance(kind, str) and kind in FAMILIES:
        return FAMILIES[kind]
    known = ", ".join(FAMILIES)
    why = ""
    if "moe" in str(kind).lower() or "mixtral" in str(kind).lower():
        why = "; models with a mixture of experts cannot be imported"
    elif isinstance(config.get("text_config"), dict):
        why = "; models that read images or sound cannot be imported"
    raise RunError(f"{where}: model_type={kind}: must be one of {known}{why}")


def model_of(config: dict[str, Any], family: Family, where: Path, name: str) -> ModelConfig:
    """Return the shape of the published model.

    Args:
        config: content of config.json.
        family: its family.
        where: the path of config.json, for messages.
        name: becomes model.name.

    Raises RunError: lhtrain does not have such a decoder; all reasons are named.
    """
    known: dict[str, Any] = (
        DEFAULTS | family.defaults | {key: value for key, value in config.items() if value is not None}
    )
    if "sliding_window" in config and config["sliding_window"] is None:
        known["sliding_window"] = None
    if problems := _wrong_values(config, known):
        raise RunError(f"{where}: {'; '.join(problems)}")
    heads = known["num_attention_heads"]
    try:
        sliding = _sliding_layers(known, family)
        rope_theta, rope_scaling = read_rope(known, known["max_position_embeddings"])
    except (TypeError, ValueError) as error:
        raise RunError(f"{where}: {error}") from error
    return ModelConfig(
        name=name,
        seq_len=known["max_position_embeddings"],
        n_kv_heads=known.get("num_key_value_heads", heads),
        head_dim=known.get("head_dim", known["hidden_size"] // heads),
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        norm_eps=float(known["rms_norm_eps"]),
        tie_embeddings=bool(known["tie_word_embeddings"]),
        sliding_window=known["sliding_window"] if sliding else None,
        sliding_layers=sliding,
        init_std=float(known["initializer_range"]) or 0.02,
        qkv_bias=family.qkv_bias,
        qk_norm=family.qk_norm,
        **{ours: known[theirs] for theirs, ours in SIZES.items()},
    )


def _wrong_values(config: dict[str, Any], known: dict[str, Any]) -> list[str]:
    """Return a text for each value that no decoder of lhtrain has. known: `config` with defaults."""
    sizes = ("max_position_embeddings", *SIZES, *(key for key in OPTIONAL_SIZES if key in known))
    return [
        *(
            f"{key}={config[key]}: {why}"
            for key, (allowed, why) in ALLOWED.items()
            if key in config and config[key] not in allowed
        ),
        *(
            f"{key}={known.get(key)}: must be a whole number above 0"
            for key in sizes
            if not _is_size(known.get(key))
        ),
        *(
            f"{key}={known.get(key)}: must be a number"
            for key in NUMBERS
            if type(known.get(key)) not in (int, float)
        ),
    ]


def _is_size(value: Any) -> bool:
    return type(value) is int and value > 0


def _sliding_layers(known: dict[str, Any], family: Family) -> list[int]:
    """Return the layers that attend to a sliding window, from 0.

    A window as long as the context never hides a token from the model, so no layer slides then.

    Raises ValueError: this decoder does not have such layers.
    """
    window, n_layers = known.get("sliding_window"), known["num_hidden_layers"]
    kinds = known.get("layer_types") or []
    if other := sorted({kind for kind in kinds if kind not in ("full_attention", "sliding_attention")}):
        rule = "layers have full attention (full_attention) or a sliding window (sliding_attention)"
        raise ValueError(f"layer_types: has {other[0]}; {rule}")
    if kinds and len(kinds) != n_layers:
        raise ValueError(f"layer_types: has {len(kinds)} entries; num_hidden_layers={n_layers}")
    if kinds:
        layers = [layer for layer, kind in enumerate(kinds) if kind == "sliding_attention"]
    elif family.window_flag:
        first = known.get("max_window_layers", 0) if known.get(family.window_flag) else n_layers
        layers = list(range(first, n_layers)) if window is not None else []
    else:
        layers = list(range(n_layers)) if window is not None else []
    if layers and not _is_size(window):
        raise ValueError(f"sliding_window={window}: must be a whole number above 0")
    if not layers or window >= known["max_position_embeddings"]:
        return []
    if family.slides == "" or (family.slides == "all" and len(layers) != n_layers):
        rule = f"model_type={family.model_type} of transformers has no such layers"
        raise ValueError(f"sliding_window={window} in {len(layers)} of {n_layers} layers: {rule}")
    if family.window_flag and not known.get(family.window_flag):
        raise ValueError(f"layer_types: has sliding_attention, and {family.window_flag} is not true")
    return layers
