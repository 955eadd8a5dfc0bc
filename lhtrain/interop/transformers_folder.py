"""A checkpoint as a folder of transformers: weights, config.json, the tokenizer, a model card."""

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
from lhtrain.interop.llama import llama_config, llama_name
from lhtrain.interop.tokenizer import NONE, exported_tokenizer
from lhtrain.interop.trained import longest, stages
from lhtrain.interop.whole_folder import check_empty, staged
from lhtrain.model.decoder import GPT, OWN_SCORER
from lhtrain.runs.run_dir import RunDir

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SHARD = "5GB"
ATTEMPTS = 8  # a run that saves deletes its oldest checkpoint: so often another one is tried

State = dict[str, Any]


def export(
    source: Path, folder: Path, dtype: str = "float32", tokenizer: str | None = None, shard: str | int = SHARD
) -> list[str]:
    """Write a checkpoint to `folder`, which is complete afterwards, or as it was where this fails.

    Args:
        source: a run directory or its folder of checkpoints, whose newest one is taken; or one checkpoint.
        dtype: of the weights, a key of `DTYPES`.
        tokenizer: a tokenizer.json instead of the one that the run kept; "none" exports without one.
        shard: weights beyond this size go into several files; bytes, or text such as "5GB".

    Returns:
        Notes: what was written, and what its user should know of it.

    Raises:
        RunError: no sound checkpoint; a folder that holds something or cannot be written; a tokenizer that is
            not the run's; a package that is missing.
    """
    if missing := [name for name in ("safetensors", "tokenizers") if find_spec(name) is None]:
        raise RunError(f"lhtrain export: needs {' and '.join(missing)}: pip install 'lhtrain[hf]'")
    source, folder = source.expanduser(), folder.expanduser()
    check_empty(folder)
    _check_place(source, folder)
    path, state, model, weights = _read(source)
    own_copy = RunDir(path.parent.parent).tokenizer if path.parent.name == "checkpoints" else path / "none"
    its_tokenizer = exported_tokenizer(state, own_copy, tokenizer)
    notes = [*_warnings(state, weights), *its_tokenizer.notes]
    if tokenizer == NONE:
        notes.append(f"no tokenizer is exported; the tokens are those of {its_tokenizer.name}")
    count = sum(tensor.numel() for tensor in weights.values())
    length = longest(state)
    config = llama_config(model, dtype, its_tokenizer.eos, its_tokenizer.bos, length)
    texts = {
        "config.json": _json(config),
        "generation_config.json": _json({key: config[key] for key in ("bos_token_id", "eos_token_id")}),
        "README.md": card(state, model, its_tokenizer, count, dtype, notes),
    }
    if its_tokenizer.content is not None:
        texts["tokenizer.json"] = its_tokenizer.file()
        texts["tokenizer_config.json"] = _json(its_tokenizer.config(length))
    _write(folder, weights, DTYPES[dtype], shard, texts)
    what = f"{config['architectures'][0]}, {count:,} parameters, {dtype}"
    return [f"{path} -> {folder}: {what}", *(f"note: {note}" for note in notes)]


def _check_place(source: Path, folder: Path) -> None:
    """Raises RunError where training would delete the exported folder, or stumble over it."""
    for place in (source / "checkpoints", source):
        if place.is_dir() and (checkpoint.complete(place) or place.name == "checkpoints"):
            break
    else:
        place = source.parent if source.parent.name == "checkpoints" else source
    if folder.resolve().is_relative_to(place.resolve()):
        raise RunError(
            f"{folder}: must not lie in {place}, whose content training deletes and resumes from; "
            "name a folder outside of it"
        )


def _read(source: Path) -> tuple[Path, State, ModelConfig, dict[str, Tensor]]:
    """The checkpoint that `source` names: its path, state, model and weights.

    Of a run that is training the newest may be deleted while it is read: then the next newest is taken.
    """
    for _ in range(ATTEMPTS):
        path = _newest(source)
        try:
            state = checkpoint.read_state(path)
            model = _model_of(path, state)
            return path, state, model, _weights(path, model)
        except Exception as error:
            if path != source and not (path / "manifest.json").exists():
                continue
            if isinstance(error, OSError):
                raise RunError(f"checkpoint {path}: cannot be read ({error})") from error
            raise
    raise RunError(
        f"{source}: its checkpoints were deleted while they were read, {ATTEMPTS} times in a row; "
        "export again when the run has ended, or train with a larger checkpoint.keep"
    )


def _newest(source: Path) -> Path:
    """The newest complete checkpoint of a run directory or of its folder of checkpoints; else `source`."""
    for place in (source / "checkpoints", source):
        if found := checkpoint.complete(place):
            return found[-1]
    if (source / "checkpoints").is_dir():
        raise RunError(f"{source}: has no finished checkpoint yet; checkpoint.every sets when one is written")
    return source


def _model_of(path: Path, state: State) -> ModelConfig:
    try:
        stages(state), state["config"]["data"]["tokenizer"]
        return ModelConfig(**state["config"]["model"])
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        rule = "must be as this version of lhtrain writes it"
        raise RunError(f"checkpoint {path}: its state.json {rule} ({error!r})") from error


def _weights(path: Path, config: ModelConfig) -> dict[str, Tensor]:
    """Parameters of the checked checkpoint `path`, float32, by their names in transformers; a tied head is
    none. Parameters of scorers, which full attention has no use for, are not among them."""
    with torch.device("meta"):
        shapes = {name: parameter.shape for name, parameter in GPT(config).named_parameters()}
    tensors = {f"model.{name}": torch.empty(shape) for name, shape in shapes.items()}
    checkpoint.load(path, tensors, optional=[OWN_SCORER])
    return {llama_name(name.removeprefix("model.")): tensor for name, tensor in tensors.items()}


def _warnings(state: State, weights: dict[str, Tensor]) -> list[str]:
    last = stages(state)[-1]
    lines = []
    if last.attention == "lighthouse":
        lines.append(
            f"its last stage, {last.name}, had Lighthouse Attention, and the exported model has full "
            "attention: train it for a while with stage=recovery and init_from first"
        )
    if spoilt := [name for name, tensor in weights.items() if not tensor.isfinite().all()]:
        lines.append(f"weights that are not finite, in {spoilt[0]} and {len(spoilt) - 1} more: do not use it")
    return lines


def _write(
    folder: Path, weights: dict[str, Tensor], dtype: torch.dtype, shard: str | int, texts: dict[str, str]
) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    size = sum(tensor.numel() for tensor in weights.values()) * dtype.itemsize
    try:
        with staged(folder) as staging:
            index: dict[str, str] = {}
            for file, names in _shards(weights, dtype, shard):
                tensors = {name: weights[name].to(dtype) for name in names}
                save_file(tensors, staging / file, metadata={"format": "pt"})
                index |= dict.fromkeys(names, file)
            if len(set(index.values())) > 1:
                content = {"metadata": {"total_size": size}, "weight_map": index}
                texts = texts | {"model.safetensors.index.json": _json(content)}
            for name, text in texts.items():
                (staging / name).write_text(text, encoding="utf-8")
            mode = (staging / "config.json").stat().st_mode
            for file in set(index.values()):
                (staging / file).chmod(mode)  # safetensors lets nobody else read it
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise RunError(
            f"{folder}: could not be written ({why}), and nothing of it is left there; it needs a folder "
            f"that can be written, with {size / 1e9:.3g} GB of room"
        ) from error


def _shards(
    weights: dict[str, Tensor], dtype: torch.dtype, size: str | int
) -> Iterator[tuple[str, list[str]]]:
    """Names of files, and of the weights in each."""
    from huggingface_hub import split_torch_state_dict_into_shards

    shapes = {name: torch.empty(tensor.shape, dtype=dtype, device="meta") for name, tensor in weights.items()}
    yield from split_torch_state_dict_into_shards(shapes, max_shard_size=size).filename_to_tensors.items()


def _json(content: Any) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
