"""What `init_from` brings: the shape of its model, and the tokenizer of imported weights."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lhtrain.conf.problems import Problem
from lhtrain.conf.schema import ModelConfig
from lhtrain.conf.typed.overrides import Setting
from lhtrain.conf.typed.own_files import documents
from lhtrain.conf.typed.paths import expanded

# Keys of the model that the weights fix. The others may be changed.
FIXED = (
    *("vocab_size", "dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "ffn_dim", "tie_embeddings"),
    *("qkv_bias", "qk_norm"),
)
MOST = 2**28  # bytes of state.json


def brought(config: DictConfig, settings: list[Setting]) -> list[Setting]:
    """Return settings that the checkpoint `init_from` gives, where the user gives none.

    Args:
        config: composed of `settings`.
        settings: as typed. With a typed preset, model=NAME, the model is that preset's.
    """
    path = config.init_from
    state = _state(path) if isinstance(path, str) else None
    if state is None:
        return []
    typed = {setting.key for setting in settings}
    keys = typed | {key for document in documents() for key in document.lines}
    values: dict[str, Any] = {}
    if "model" not in typed:
        known = ModelConfig.__dataclass_fields__
        saved = {key: value for key, value in state["config"]["model"].items() if key in known}
        values |= {f"model.{key}": value for key, value in saved.items()}
    if state.get("imported"):
        values |= {"data.documents": "apart"} | _tokenizer(config, state["config"]["data"], path)
    return [Setting.of(f"{key}={_written(value)}") for key, value in values.items() if key not in keys]


def _written(value: Any) -> str:
    """Return a value of state.json as it would be typed."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_written(child)}" for key, child in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_written, value)) + "]"
    return value if isinstance(value, str) else json.dumps(value)


def _tokenizer(config: DictConfig, data: dict[str, Any], path: str) -> dict[str, Any]:
    """Return the settings of the imported tokenizer, unless prepared data bring their own."""
    file = Path(expanded(path)) / "tokenizer.json"
    if OmegaConf.is_interpolation(config.data, "tokenizer") or not file.is_file():
        return {}
    out = {"data.tokenizer": str(file), "data.bos": bool(data.get("bos"))}
    return out | ({"data.eos": data["eos"]} if data.get("eos") else {})


def contradictions(model: ModelConfig, path: str | None, preset: str | None = None) -> Iterator[Problem]:
    """Yield a problem for each key of the model that does not fit the weights of `init_from`.

    preset: NAME of a typed model=NAME, which then is the one problem.
    """
    state = _state(path) if path else None
    if state is None:
        return
    saved = state["config"]["model"]
    others = [key for key in FIXED if saved.get(key) not in (None, getattr(model, key))]
    if preset is not None and others:
        differ = ", ".join(f"{key} {getattr(model, key)}, not {saved[key]}" for key in others)
        rule = f"init_from={path} brings the shape of its model, and the preset has another one ({differ}); "
        yield Problem("model", preset, f"{rule}leave model={preset} out")
        return
    for key in others:
        rule = f"the weights of init_from={path} have {saved[key]}; leave this setting out"
        yield Problem(f"model.{key}", getattr(model, key), rule)


def _state(path: str) -> dict[str, Any] | None:
    """Return state.json of a checkpoint; None if it is not one, which the start of the run reports."""
    try:
        file = Path(expanded(path)) / "state.json"
        state: Any = json.loads(file.read_bytes()) if file.stat().st_size <= MOST else None
        if isinstance(state["config"]["model"], dict) and isinstance(state["config"]["data"], dict):
            return dict(state)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    return None
