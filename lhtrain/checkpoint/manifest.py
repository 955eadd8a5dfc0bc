"""manifest.json: the files of a checkpoint and the positions of tensors in them. Every rank checks it fully.

Format 3: the first line has the SHA-256 of everything after it, so that a damaged manifest is detected, and
named as the fault, before files are compared with it. In format 2 it has only sizes and hashes of files.
"""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from lhtrain.checkpoint import format2
from lhtrain.checkpoint.errors import Invalid, OtherFormat, as_invalid
from lhtrain.checkpoint.hashed import PIECE, FileEntry, HashedFile
from lhtrain.checkpoint.layout import DTYPES, MAX_DIMENSIONS, Chunk, SavedTensor, n_bytes, tiles
from lhtrain.files import read_regular

FORMAT = 3
NAME, STATE = "manifest.json", "state.json"
MOST = 2**29  # largest size of manifest.json and state.json in bytes: a forged file must not fill the memory

_FIRST = re.compile(rb'\{"sha256": "([0-9a-f]{64})",\n')
_FILES = {
    3: re.compile(r"rank_[0-9]{5,}\.bin|state\.json"),
    2: re.compile(r"__[0-9]+_[0-9]+\.distcp|\.metadata|state\.json"),
}
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json. step: None in format 2, where only state.json has it."""

    format: int
    step: int | None
    files: dict[str, FileEntry]
    tensors: dict[str, SavedTensor]

    def pieces(self) -> list[tuple[str, int]]:
        """Return (file name, piece number) of all pieces; an empty file counts as one piece."""
        return [(name, n) for name, entry in self.files.items() for n in range(max(entry.n_pieces, 1))]


def file_name(rank: int) -> str:
    return f"rank_{rank:05d}.bin"


def read(path: Path) -> Manifest:
    """Read the manifest of the checkpoint `path`. Raises Invalid, OSError."""
    content = _content(path)
    first = _FIRST.match(content)
    if first is None:
        return _of_format_2(path, _parsed(content))
    if hashlib.sha256(content[first.end() :]).hexdigest() != first[1].decode():
        _damaged("its content does not match the SHA-256 in its first line")
    return parse(_parsed(content))


def write(step: int, files: dict[str, FileEntry], tensors: dict[str, Any]) -> bytes:
    """Return the content of a manifest. tensors: as in the file. Raises Invalid: they break a rule."""
    described = {name: {"bytes": entry.bytes, "sha256": list(entry.sha256)} for name, entry in files.items()}
    rest = (
        f'"format": {FORMAT}, "step": {step}, "block": {PIECE},\n'
        f'"files": {_lines(described)},\n"tensors": {_lines(tensors)}}}\n'
    ).encode()
    content = b'{"sha256": "%s",\n' % hashlib.sha256(rest).hexdigest().encode() + rest
    parse(_parsed(content))  # raises if it cannot be read back: then the save fails
    return content


def parse(tree: dict[str, Any]) -> Manifest:
    """Return a manifest of format 3 from its JSON. Raises Invalid: a value breaks a rule."""
    version = tree.get("format")
    if version != FORMAT or type(version) is not int:
        raise OtherFormat(f"{NAME} has format {version!r:.40}; this version of lhtrain reads 2 and {FORMAT}")
    _expect(
        tree.keys() == {"sha256", "format", "step", "block", "files", "tensors"},
        "its keys are not those of format 3",
    )
    step, piece = _natural(tree["step"], "step"), _natural(tree["block"], "block")  # key in format 3
    _expect(0 < piece <= PIECE, f"block={piece}: must be from 1 to {PIECE}")
    files = {name: _entry(name, value, piece) for name, value in _table(tree["files"], "files").items()}
    _expect(STATE in files, f"it does not name {STATE}")
    tensors = {name: _saved(name, value, files) for name, value in _table(tree["tensors"], "tensors").items()}
    _expect(bool(tensors), "it has no tensors")
    _check_files(files, tensors)
    return Manifest(FORMAT, step, files, tensors)


def _check_files(files: dict[str, FileEntry], tensors: dict[str, SavedTensor]) -> None:
    """Check that each byte of each rank's file belongs to exactly one chunk."""
    ranges: dict[str, list[tuple[int, int]]] = {name: [] for name in files if name != STATE}
    for saved in tensors.values():
        for chunk in saved.chunks:
            ranges[chunk.file].append((chunk.begin, chunk.end))
    for name, parts in ranges.items():
        end = 0
        for begin, after in sorted(parts):
            _expect(begin == end, f"chunks overlap or leave a gap in {name} at byte {begin}")
            end = after
        _expect(end == files[name].bytes, f"the chunks in {name} end at byte {end} of {files[name].bytes}")


def _entry(name: str, value: Any, piece: int) -> FileEntry:
    _expect(bool(_FILES[3].fullmatch(name)), f"it names the file {name!r:.80}, which no checkpoint has")
    entry = _table(value, name)
    _expect(entry.keys() == {"bytes", "sha256"}, f"{name} must have bytes and sha256")
    size, digests = _natural(entry["bytes"], f"bytes of {name}"), entry["sha256"]
    _expect(isinstance(digests, list) and len(digests) == -(-size // piece), f"wrong hashes of {name}")
    _expect(
        all(isinstance(text, str) and _DIGEST.fullmatch(text) for text in digests), f"wrong hashes of {name}"
    )
    return FileEntry(size, tuple(digests), piece)


def _saved(name: str, value: Any, files: dict[str, FileEntry]) -> SavedTensor:
    tensor = _table(value, name)
    _expect(tensor.keys() == {"dtype", "shape", "chunks"}, f"{name} must have dtype, shape and chunks")
    _expect(isinstance(tensor["dtype"], str) and tensor["dtype"] in DTYPES, f"unknown dtype of {name}")
    dtype, shape = DTYPES[tensor["dtype"]], _numbers(tensor["shape"], f"shape of {name}")
    _expect(isinstance(tensor["chunks"], list), f"chunks of {name} must be a list")
    chunks = tuple(_chunk(name, chunk, dtype, len(shape), files) for chunk in tensor["chunks"])
    boxes = [(chunk.offsets, chunk.sizes) for chunk in chunks]
    _expect(tiles(shape, boxes), f"the chunks of {name} do not cover its shape {list(shape)} exactly once")
    return SavedTensor(dtype, shape, chunks)


def _chunk(name: str, value: Any, dtype: Any, dimensions: int, files: dict[str, FileEntry]) -> Chunk:
    chunk = _table(value, f"a chunk of {name}")
    _expect(
        chunk.keys() == {"offsets", "sizes", "file", "begin"},
        f"a chunk of {name} must have offsets, sizes, file and begin",
    )
    offsets, sizes = (_numbers(chunk[key], f"{key} of {name}") for key in ("offsets", "sizes"))
    _expect(len(offsets) == len(sizes) == dimensions, f"a chunk of {name} has the wrong number of dimensions")
    file, begin = chunk["file"], _natural(chunk["begin"], f"begin of {name}")
    _expect(isinstance(file, str) and file in files and file != STATE, f"wrong file of a chunk of {name}")
    end = begin + n_bytes(sizes, dtype)
    _expect(end <= files[file].bytes, f"a chunk of {name} ends after the end of {file}")
    return Chunk(offsets, sizes, file, begin, end)


def _of_format_2(path: Path, tree: dict[str, Any]) -> Manifest:
    if tree.keys() != {"files"}:
        _damaged("its first line must have its SHA-256")
    files = {}
    for name, value in _table(tree["files"], "files").items():
        _expect(bool(_FILES[2].fullmatch(name)), f"it names the file {name!r:.80}, which no checkpoint has")
        entry = _table(value, name)
        _expect(entry.keys() == {"bytes", "sha256"}, f"{name} must have bytes and sha256")
        size, digest = _natural(entry["bytes"], f"bytes of {name}"), entry["sha256"]
        _expect(isinstance(digest, str) and bool(_DIGEST.fullmatch(digest)), f"wrong sha256 of {name}")
        files[name] = FileEntry(size, (digest,), max(size, PIECE + 1))
    for name in (STATE, ".metadata"):
        _expect(name in files, f"it does not name {name}")
    _expect(files[".metadata"].bytes <= MOST, f".metadata must have at most {MOST} bytes")
    with HashedFile(path, ".metadata", files[".metadata"]) as file:
        description = bytes(file.read(0, files[".metadata"].bytes))
    return Manifest(2, None, files, format2.tensors(description, files))


def _content(path: Path) -> bytes:
    try:
        return read_regular(path / NAME, MOST)
    except OSError as error:
        raise as_invalid(error, NAME) or error from error


def _parsed(content: bytes) -> dict[str, Any]:
    try:
        tree = json.loads(content, object_pairs_hook=_no_key_twice)
    except (ValueError, RecursionError):
        _damaged("it is not JSON")
    if not isinstance(tree, dict):
        _damaged("it is not a JSON object")
    return tree


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("duplicate key")
    return out


def _damaged(what: str) -> NoReturn:
    raise Invalid(f"{NAME} is damaged: {what}")


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Invalid(f"{NAME} does not describe a checkpoint: {otherwise}")


def _table(value: Any, what: str) -> dict[str, Any]:
    _expect(isinstance(value, dict), f"{what} must be an object")
    return value


def _natural(value: Any, what: str) -> int:
    _expect(type(value) is int and 0 <= value < 2**63, f"{what} must be a whole number, not {value!r:.40}")
    return value


def _numbers(value: Any, what: str) -> tuple[int, ...]:
    _expect(isinstance(value, list) and len(value) <= MAX_DIMENSIONS, f"{what} must be a list of numbers")
    return tuple(_natural(number, what) for number in value)


def _lines(table: dict[str, Any]) -> str:
    dump: Callable[[Any], str] = json.dumps
    return "{\n" + ",\n".join(f" {dump(name)}: {dump(value)}" for name, value in table.items()) + "\n}"
