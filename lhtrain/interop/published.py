"""Opens a folder as Hugging Face transformers saves models, or as `lhtrain export` does."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lhtrain.conf.schema import ModelConfig
from lhtrain.errors import RunError
from lhtrain.interop.families import Family, published_name
from lhtrain.interop.published_config import family_in, model_of, read_json
from lhtrain.interop.stored import StoredTensor, stored_tensors
from lhtrain.model.decoder import GPT

CONFIG = "config.json"
# Buffers that old files have and that are computed instead.
IGNORED = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")
SHOWN = 3  # names in an error


@dataclass(frozen=True)
class Published:
    """A published model.

    Attributes:
        folder: where it is.
        family: its family.
        config: content of config.json.
        model: its shape.
        weights: where the weights are, by the names of the parameters of `GPT`, in their order.
    """

    folder: Path
    family: Family
    config: dict[str, Any]
    model: ModelConfig
    weights: dict[str, StoredTensor]

    @property
    def tokenizer(self) -> Path | None:
        """Its tokenizer.json, if it has one."""
        path = self.folder / "tokenizer.json"
        return path if path.is_file() else None

    @property
    def dtype(self) -> str:
        """The type of most of its weights, as torch names it."""
        sizes: dict[str, int] = {}
        for tensor in self.weights.values():
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.end - tensor.begin
        return max(sizes, key=sizes.__getitem__)

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Fill `tensors`, by the names of the parameters, one piece after the other. Raises RunError."""
        for name, tensor in tensors.items():
            stored, flat, at = self.weights[name], tensor.detach().view(-1), 0
            dtype = getattr(torch, stored.dtype)
            for piece in stored.pieces():
                values = torch.frombuffer(bytearray(piece), dtype=dtype)
                flat[at : at + len(values)].copy_(values)
                at += len(values)


def is_published(folder: Path) -> bool:
    """Return whether `folder` looks like a published model, and not like a checkpoint of lhtrain."""
    return (folder / CONFIG).is_file() and not (folder / "manifest.json").exists()


def open_published(folder: Path, name: str | None = None) -> Published:
    """Open the published model in `folder`; weights are not read yet.

    name: becomes model.name; None: the folder's name.

    Raises RunError: a package is missing; lhtrain does not have such a decoder; weights are missing, damaged,
        quantized, or of other shapes than config.json has.
    """
    if find_spec("safetensors") is None:
        raise RunError(f"{folder}: reading it needs the package safetensors; pip install 'lhtrain[hf]'")
    if not folder.is_dir():
        raise RunError(f"{folder}: must be a folder with {CONFIG} and *.safetensors")
    if not (folder / CONFIG).is_file():
        stored_tensors(folder)  # its error tells more of a folder with weights in another format
        raise RunError(f"{folder}: must contain {CONFIG}")
    config = read_json(folder / CONFIG)
    family = family_in(config, folder / CONFIG)
    model = model_of(config, family, folder / CONFIG, name or folder.resolve().name)
    found = stored_tensors(folder)
    return Published(folder, family, config, model, _weights(folder, model, found))


def _weights(folder: Path, model: ModelConfig, found: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Return the stored tensors by the names of parameters. Raises RunError: they do not match the model."""
    with torch.device("meta"):
        shapes = {name: tuple(parameter.shape) for name, parameter in GPT(model).named_parameters()}
    names = {name: published_name(name) for name in shapes}
    missing = [name for name in names.values() if name not in found]
    extra = found.keys() - names.values()
    extra = {name for name in extra if not name.endswith(IGNORED)}
    if model.tie_embeddings and "lm_head.weight" in extra:
        extra.remove("lm_head.weight")
        if not _same(found["lm_head.weight"], found.get(names["embedding.weight"])):
            raise RunError(
                f"{folder}: lm_head.weight differs from model.embed_tokens.weight, but config.json has "
                "tie_word_embeddings=true; set it to false if the head is a layer of its own"
            )
    wrong = [
        f"{names[name]} has the shape {list(found[names[name]].shape)}, and config.json gives {list(shape)}"
        for name, shape in shapes.items()
        if names[name] in found and found[names[name]].shape != shape
    ]
    problems = [
        *([f"missing: {_some(missing)}"] if missing else []),
        *([f"not in a model of this family: {_some(sorted(extra))}"] if extra else []),
        *([_some(wrong, "; ")] if wrong else []),
    ]
    if problems:
        raise RunError(f"{folder}: its weights do not match {CONFIG}: {'; '.join(problems)}")
    return {name: found[there] for name, there in names.items()}


def _same(one: StoredTensor, other: StoredTensor | None) -> bool:
    if other is None or (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    pairs: Iterator[tuple[bytes, bytes]] = zip(one.pieces(), other.pieces(), strict=True)
    return all(a == b for a, b in pairs)


def _some(names: list[str], between: str = ", ") -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return between.join(names[:SHOWN]) + more
