"""Export a checkpoint as a folder of Hugging Face transformers: weights, config, tokenizer, model card."""

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lhtrain import checkpoint
from lhtrain.conf.schema import ModelConfig
from lhtrain.errors import RunError
from lhtrain.interop.card import card
from lhtrain.interop.carried import carried_files
from lhtrain.interop.config_json import config_json
from lhtrain.interop.families import published_name
from lhtrain.interop.readers import readers_that_differ
from lhtrain.interop.source import State, model_config, own_tokenizer, read_newest
from lhtrain.interop.stored import INDEX
from lhtrain.interop.tokenizer import NONE, exported_tokenizer
from lhtrain.interop.trained import longest, stages
from lhtrain.interop.whole_folder import check_empty, staged
from lhtrain.model.decoder import GPT, OWN_SCORER

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SHARD = "5GB"


def export(
    source: Path,
    folder: Path,
    dtype: str | None = None,
    tokenizer: str | None = None,
    shard: str | int = SHARD,
) -> list[str]:
    """Write a checkpoint to `folder`. If this fails, `folder` is unchanged.

    Args:
        source: one checkpoint; or a run directory or its folder of checkpoints, for the newest one.
        dtype: of the weights, a key of `DTYPES`; None: that of the imported weights, else float32.
        tokenizer: a tokenizer.json in place of the run's own; "none": export without a tokenizer.
        shard: the largest size of a file of weights; bytes, or text such as "5GB".

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
    path, state, (model, weights) = read_newest(source, lambda path, state: _read(path, state, dtype))
    dtype = dtype or _dtype(state)
    imported = state.get("imported")
    its_tokenizer = exported_tokenizer(state, own_tokenizer(path), tokenizer)
    notes = [*_warnings(state, weights), *its_tokenizer.notes]
    if tokenizer == NONE:
        notes.append(
            f"no tokenizer was exported; the model was trained with the tokens of {its_tokenizer.name}"
        )
    count = sum(tensor.numel() for tensor in weights.values())
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
    files["README.md"] = card(state, model, its_tokenizer, count, dtype, notes).encode()
    _write(folder, weights, shard, files)
    what = f"{config['architectures'][0]}, {count:,} parameters, {dtype}"
    return [f"{path} -> {folder}: {what}", *(f"note: {note}" for note in notes)]


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


def _read(path: Path, state: State, dtype: str | None) -> tuple[ModelConfig, dict[str, Tensor]]:
    model = _checked(path, state)
    return model, _weights(path, model, DTYPES[dtype or _dtype(state)])


def _checked(path: Path, state: State) -> ModelConfig:
    """Return the model's shape, after checking that the state has what an export reads. Raises RunError."""
    model = model_config(path, state)
    with checkpoint.as_written(path):
        stages(state), state["config"]["data"]["tokenizer"]
    return model


def _weights(path: Path, config: ModelConfig, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the parameters of the checkpoint `path`, rounded to `dtype`, by their names in transformers.

    A tied head and the parameters of scorers, which full attention does not use, are left out.
    """
    with torch.device("meta"):
        shapes = {name: parameter.shape for name, parameter in GPT(config).named_parameters()}
    tensors = {f"model.{name}": torch.empty(shape, dtype=dtype) for name, shape in shapes.items()}
    checkpoint.load(path, tensors, optional=[OWN_SCORER])
    return {published_name(name.removeprefix("model.")): tensor for name, tensor in tensors.items()}


def _warnings(state: State, weights: dict[str, Tensor]) -> list[str]:
    lines, ran = [], stages(state)
    if ran and ran[-1].attention == "lighthouse":
        lines.append(
            f"the last stage, {ran[-1].name}, used Lighthouse Attention, and the exported model uses full "
            "attention; first train it for some steps with stage=recovery and init_from"
        )
    if spoilt := [name for name, tensor in weights.items() if not tensor.isfinite().all()]:
        lines.append(
            f"{spoilt[0]} and {len(spoilt) - 1} more have weights that are not finite; do not use this model"
        )
    return lines


def _write(folder: Path, weights: dict[str, Tensor], shard: str | int, files: dict[str, bytes]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    size = sum(tensor.nbytes for tensor in weights.values())
    try:
        with staged(folder) as staging:
            index: dict[str, str] = {}
            for file, names in _shards(weights, shard):
                save_file({name: weights[name] for name in names}, staging / file, metadata={"format": "pt"})
                index |= dict.fromkeys(names, file)
            if len(set(index.values())) > 1:
                files = files | {INDEX: _json({"metadata": {"total_size": size}, "weight_map": index})}
            for name, content in files.items():
                (staging / name).write_bytes(content)
            mode = (staging / "config.json").stat().st_mode
            for file in set(index.values()):
                (staging / file).chmod(mode)  # safetensors makes files that only their owner can read
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise RunError(
            f"{folder}: could not be written ({why}), and no files were left there; choose a folder that can "
            f"be written and has {size / 1e9:.3g} GB of free space"
        ) from error


def _shards(weights: dict[str, Tensor], size: str | int) -> Iterator[tuple[str, list[str]]]:
    """Yield the name of each file and the names of its weights."""
    from huggingface_hub import split_torch_state_dict_into_shards

    shapes = {name: tensor.to("meta") for name, tensor in weights.items()}
    yield from split_torch_state_dict_into_shards(shapes, max_shard_size=size).filename_to_tensors.items()


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
