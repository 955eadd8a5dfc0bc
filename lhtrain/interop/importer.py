"""Imports a published model as a checkpoint that `init_from` starts from.

The folder has the files of a checkpoint, tokenizer.json beside them, and the folder `imported` with the other
files that an export writes again. Weights keep their type; they are copied in pieces, never held whole.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from lhtrain.checkpoint import manifest, writer
from lhtrain.checkpoint.names import step_of
from lhtrain.data import DataError
from lhtrain.data.tokenizers.bpe import HuggingFaceTokenizer
from lhtrain.errors import RunError
from lhtrain.files import read_regular
from lhtrain.interop import carried
from lhtrain.interop.hub import HUB, snapshot
from lhtrain.interop.published import Published, open_published
from lhtrain.interop.published_config import read_json
from lhtrain.interop.stored import StoredTensor
from lhtrain.interop.whole_folder import check_empty, staged
from lhtrain.progress import Progress
from lhtrain.runs.run_dir import imported_files

OF_CARD = ("license", "license_name", "license_link", "language")  # keys of the model card that are kept
MOST = 2**28  # bytes of tokenizer.json or a model card


def import_model(source: str, folder: Path, revision: str | None = None) -> list[str]:
    """Write the published model `source` to `folder` as a checkpoint. If this fails, `folder` is unchanged.

    Args:
        source: a folder; or "hub:NAME", a repository of the Hugging Face hub.
        folder: new or empty.
        revision: branch, tag or commit of the repository.

    Returns:
        Notes: what was written, and what users should know.

    Raises:
        RunError: lhtrain does not have such a decoder, its files are not complete, or the folder is not empty
            or cannot be written.
    """
    check_empty(folder)
    if step_of(folder.name) not in (None, 0):
        raise RunError(f"{folder}: this is the name of a checkpoint of that step; choose another name")
    if source.startswith(HUB):
        name = source.removeprefix(HUB)
        place, commit = snapshot(name, revision)
    elif revision is not None:
        raise RunError(f"revision={revision}: applies only to {HUB}NAME")
    else:
        place, commit = Path(source).expanduser(), None
        name = place.resolve().name
    published = open_published(place, name)
    file, tokenizer, notes = _tokenizer(published, folder.resolve())
    state = _state(published, name, source, commit, file, tokenizer)
    try:
        with staged(folder, last=manifest.NAME) as staging:
            part = _write_weights(staging, published.weights)
            carried.keep(published.folder, imported_files(staging))
            if published.tokenizer is not None:
                (staging / "tokenizer.json").write_bytes(read_regular(published.tokenizer.resolve(), MOST))
            writer.describe(staging, 0, json.dumps(state, indent=1), [part])
    except OSError as error:
        size = sum(tensor.end - tensor.begin for tensor in published.weights.values())
        raise RunError(
            f"{folder}: could not be written ({error.strerror or error}), and no files were left there; "
            f"choose a folder that can be written and has {size / 1e9:.3g} GB of free space"
        ) from error
    count = sum(math.prod(tensor.shape) for tensor in published.weights.values())
    model = published.model
    what = f"{published.family.architecture}, {count:,} parameters, {published.dtype}"
    start = f"lhtrain init_from={folder} starts from it"
    context = f"context {model.seq_len:,} tokens, {start}"
    return [f"{name} -> {folder}: {what}", context, *(f"note: {note}" for note in notes)]


def _write_weights(staging: Path, weights: dict[str, StoredTensor]) -> writer.RankPart:
    """Copy the weights into the file of rank 0, the largest element size first."""
    order = sorted(weights.items(), key=lambda item: item[1].dtype != "float32")
    file, described, begin = manifest.file_name(0), {}, 0
    for name, tensor in order:
        chunk = {"offsets": [0] * len(tensor.shape), "sizes": tensor.shape, "file": file, "begin": begin}
        described[f"model.{name}"] = {"dtype": tensor.dtype, "shape": tensor.shape, "chunks": [chunk]}
        begin += tensor.end - tensor.begin

    def content() -> Iterator[bytes]:
        for _, tensor in order:
            yield from tensor.pieces()

    return writer.RankPart({file: writer.write_stream(staging / file, content())}, described)


def _state(
    published: Published,
    name: str,
    source: str,
    commit: str | None,
    file: Path | None,
    tokenizer: HuggingFaceTokenizer | None,
) -> dict[str, Any]:
    data: dict[str, Any] = {"tokenizer": None if file is None else str(file)}
    if tokenizer is not None:
        data |= {"bos": tokenizer.bos is not None, "eos": _named_eos(tokenizer)}
    described = None if tokenizer is None else tokenizer.as_meta()
    if described is not None:
        described["name"] = str(file)
    original = published.tokenizer
    return {
        "format": manifest.FORMAT,
        "progress": Progress().as_dict(),
        "config": {"model": asdict(published.model), "data": data, "stages": {}, "init_from": None},
        "data": None,
        "tokenizer": described,
        "imported": {
            "family": published.family.model_type,
            "name": name,
            "source": source,
            "commit": commit,
            "dtype": published.dtype,
            "context": published.model.seq_len,
            "tokenizer": None if original is None else hashlib.sha256(original.read_bytes()).hexdigest(),
            "card": _card(published.folder / "README.md"),
            "config": published.config,
        },
    }


def _named_eos(tokenizer: HuggingFaceTokenizer) -> str | None:
    """Return data.eos for this tokenizer: None if training would choose the same token without it."""
    try:
        return None if HuggingFaceTokenizer(str(tokenizer.path)).eos == tokenizer.eos else str(tokenizer.eos)
    except DataError:
        return str(tokenizer.eos)


def _tokenizer(
    published: Published, folder: Path
) -> tuple[Path | None, HuggingFaceTokenizer | None, list[str]]:
    """Return where its tokenizer.json will be, the tokenizer with which to prepare data, and notes."""
    file, config = published.tokenizer, published.config
    notes: list[str] = []
    if file is None:
        note = (
            "it has no tokenizer.json, with which data must be prepared; AutoTokenizer of transformers may "
            "make one: from_pretrained, then save_pretrained"
        )
        return None, None, [note]
    try:
        tokenizer = published_tokenizer(file, config.get("eos_token_id"))
    except DataError as error:
        return None, None, [f"its tokenizer cannot be used: {error}"]
    if tokenizer.bos is not None:
        notes.append(
            f"its tokenizer puts {tokenizer.decode([tokenizer.bos])} (token {tokenizer.bos}) before each "
            "text; data.bos=true, the default with this checkpoint, does the same for each document"
        )
    ends = config.get("eos_token_id")
    ends = ends if isinstance(ends, list) else [ends]
    if ends != [None] and tokenizer.eos not in ends:
        notes.append(
            f"documents end with {tokenizer.decode([tokenizer.eos])} (token {tokenizer.eos}) in training, "
            f"and config.json has eos_token_id={ends[0]}; set data.eos={ends[0]} if the documents of its "
            "pre-training ended with that one"
        )
    if tokenizer.vocab_size > published.model.vocab_size:
        notes.append(
            f"its tokenizer has {tokenizer.vocab_size:,} tokens, the model {published.model.vocab_size:,}; "
            "texts with the others cannot be used"
        )
    return folder / "tokenizer.json", tokenizer, notes


def published_tokenizer(file: Path, end: Any) -> HuggingFaceTokenizer:
    """Open a published tokenizer as training will use it: with its bos only if it begins texts with it.

    end: eos_token_id of config.json, for a tokenizer whose end-of-text token has no known name.

    Raises DataError.
    """
    try:
        tokenizer = HuggingFaceTokenizer(str(file))
    except DataError:
        if type(end) is not int:
            raise
        tokenizer = HuggingFaceTokenizer(str(file), eos=str(end))
    with_bos = HuggingFaceTokenizer(str(file), True, str(tokenizer.eos))
    return with_bos if _begins_texts(file, with_bos) else tokenizer


def _begins_texts(file: Path, tokenizer: HuggingFaceTokenizer) -> bool:
    """Return whether the published tokenizer puts `tokenizer.bos` before each text."""
    from tokenizers import Tokenizer as Fast

    beside = file.with_name("tokenizer_config.json")
    given = read_json(beside).get("add_bos_token") if beside.is_file() else None
    if given is False:
        return False
    return Fast.from_file(str(file)).encode("a").ids[:1] == [tokenizer.bos]


def _card(path: Path) -> dict[str, Any]:
    """Return the license and language in the header of a model card; {} without a readable header."""
    try:
        text = read_regular(path.resolve(), MOST).decode()
        found = yaml.safe_load(text.split("---\n")[1]) if text.startswith("---\n") else None
    except (OSError, ValueError, IndexError, yaml.YAMLError):
        return {}
    return {key: found[key] for key in OF_CARD if key in found} if isinstance(found, dict) else {}
