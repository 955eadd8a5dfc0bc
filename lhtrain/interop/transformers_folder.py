"""Export a checkpoint as a folder of Hugging Face transformers: weights, config, tokenizer, model card."""

import json
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from lhtrain import checkpoint
from lhtrain.conf.schema import ModelConfig
from lhtrain.errors import RunError
from lhtrain.interop.card import card
from lhtrain.interop.carried import carried_files
from lhtrain.interop.config_json import config_json
from lhtrain.interop.exported_weights import ExportedWeights
from lhtrain.interop.readers import readers_that_differ
from lhtrain.interop.source import State, model_config, own_tokenizer, read_newest
from lhtrain.interop.stored import INDEX
from lhtrain.interop.tokenizer import ExportedTokenizer, exported_tokenizer
from lhtrain.interop.trained import longest, stages
from lhtrain.interop.whole_folder import check_empty, staged

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SHARD = "5GB"


def export(
    source: Path,
    folder: Path,
    dtype: str | None = None,
    tokenizer: str | None = None,
    shard: str | int = SHARD,
    weights: str = "last",
) -> list[str]:
    """Write a checkpoint to `folder`. If this fails, `folder` is unchanged.

    Args:
        source: one checkpoint; or a run directory or its folder of checkpoints, for the newest one.
        dtype: of the weights, a key of `DTYPES`; None: that of the imported weights, else float32.
        tokenizer: a tokenizer.json in place of the run's own; "none": export without a tokenizer.
        shard: the largest size of a file of weights; bytes, or text such as "5GB".
        weights: "last", or "average": the moving average of the weights (optim.ema).

    Returns:
        Notes: what was written, and what users of the folder should know.

    Raises:
        RunError: there is no undamaged checkpoint, the folder is not empty or cannot be written, the
            tokenizer is not that of the run, or a package is missing.
    """
    if missing := [name for name in ("safetensors", "tokenizers") if find_spec(name) is None]:
        raise RunError(
            f"lhtrain export: needs the package {' and '.join(missing)}; pip install 'lhtrain[hf]'"
        )
    source, folder = source.expanduser(), folder.expanduser()
    check_empty(folder)
    _check_place(source, folder)
    write = partial(_write, folder=folder, dtype=dtype, tokenizer=tokenizer, shard=shard, kind=weights)
    _, _, notes = read_newest(source, write)
    return notes


def _write(
    path: Path,
    state: State,
    folder: Path,
    dtype: str | None,
    tokenizer: str | None,
    shard: str | int,
    kind: str,
) -> list[str]:
    """Write the checkpoint `path` to `folder` and return the notes. The weights are read file by file."""
    from safetensors import SafetensorError

    model, dtype = _checked(path, state), dtype or _dtype(state)
    weights = ExportedWeights(path, model, DTYPES[dtype], kind)
    its_tokenizer = exported_tokenizer(state, own_tokenizer(path), tokenizer)
    try:
        with staged(folder) as staging:
            spoilt = _write_weights(staging, weights, shard)
            first, files, notes = _description(path, state, model, weights, dtype, its_tokenizer, spoilt)
            for name, content in files.items():
                (staging / name).write_bytes(content)
            mode = (staging / "config.json").stat().st_mode
            for file in staging.glob("*.safetensors"):
                file.chmod(mode)  # safetensors makes files that only their owner can read
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise RunError(
            f"{folder}: could not be written ({why}), and no files were left there; choose a folder that can "
            f"be written and has {weights.nbytes / 1e9:.3g} GB of free space"
        ) from error
    return [f"{path} -> {folder}: {first}", *(f"note: {note}" for note in notes)]


def _write_weights(staging: Path, weights: ExportedWeights, shard: str | int) -> list[str]:
    """Write the files of weights and their index; return the names of weights that are not finite."""
    from safetensors.torch import save_file

    index: dict[str, str] = {}
    spoilt = []
    for file, names in weights.files(shard):
        tensors = weights.read(names)
        spoilt += [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
        save_file(tensors, staging / file, metadata={"format": "pt"})
        del tensors  # before those of the next file are read
        index |= dict.fromkeys(names, file)
    if len(set(index.values())) > 1:
        content = {"metadata": {"total_size": weights.nbytes}, "weight_map": index}
        (staging / INDEX).write_bytes(_json(content))
    return spoilt


def _decay(state: State) -> str:
    return f"optim.ema={state['config']['optim'].get('ema')}"


def _description(
    path: Path,
    state: State,
    model: ModelConfig,
    weights: ExportedWeights,
    dtype: str,
    its_tokenizer: ExportedTokenizer,
    spoilt: list[str],
) -> tuple[str, dict[str, bytes], list[str]]:
    """Return what the folder has in few words, its files besides the weights, and notes for its users."""
    imported = state.get("imported")
    average = weights.is_average
    notes = [*_warnings(state, spoilt), *its_tokenizer.notes]
    notes += [f"the weights are the moving average of those of training ({_decay(state)})"] if average else []
    config = config_json(model, dtype, its_tokenizer.eos, its_tokenizer.bos, longest(state), imported)
    length = config["max_position_embeddings"]
    of_generation = {key: config[key] for key in ("bos_token_id", "eos_token_id") if key in config}
    files = {"config.json": _json(config), "generation_config.json": _json(of_generation)}
    if its_tokenizer.content is not None:
        files["tokenizer.json"] = its_tokenizer.file().encode()
        files["tokenizer_config.json"] = _json(its_tokenizer.config(length))
    if imported:
        carried, more = carried_files(imported, path, its_tokenizer.source, length)
        files, notes = files | carried, notes + more
    notes += readers_that_differ(config)
    its_card = card(state, model, its_tokenizer, weights.n_parameters, dtype, notes, average)
    files["README.md"] = its_card.encode()
    return f"{config['architectures'][0]}, {weights.n_parameters:,} parameters, {dtype}", files, notes


def _check_place(source: Path, folder: Path) -> None:
    """Raise RunError if `folder` lies where training deletes or looks for checkpoints."""
    for place in (source / "checkpoints", source):
        if place.is_dir() and (checkpoint.complete(place) or place.name == "checkpoints"):
            break
    else:
        place = source.parent if source.parent.name == "checkpoints" else source
    if folder.resolve().is_relative_to(place.resolve()):
        raise RunError(
            f"{folder}: must not be in {place}, where training looks for checkpoints and deletes them; "
            "choose a folder outside of it"
        )


def _dtype(state: State) -> str:
    return str((state.get("imported") or {"dtype": "float32"})["dtype"])


def _checked(path: Path, state: State) -> ModelConfig:
    """Return the model's shape, after checking that the state has what an export reads. Raises RunError."""
    model = model_config(path, state)
    with checkpoint.as_written(path):
        stages(state), state["config"]["data"]["tokenizer"]
    return model


def _warnings(state: State, spoilt: list[str]) -> list[str]:
    lines, ran = [], stages(state)
    if ran and ran[-1].attention == "lighthouse":
        lines.append(
            f"the last stage, {ran[-1].name}, used Lighthouse Attention, and the exported model uses full "
            "attention; first train it for some steps with stage=recovery and init_from"
        )
    if spoilt:
        lines.append(
            f"{spoilt[0]} and {len(spoilt) - 1} more have weights that are not finite; do not use this model"
        )
    return lines


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
