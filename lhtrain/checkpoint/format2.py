""".metadata of format 2, a pickle by PyTorch Distributed Checkpoint that describes the tensors.

It is never unpickled. `tree` walks the operations of the pickle and builds passive nodes for the few classes
that .metadata contains; `tensors` reads the values from these nodes and checks them.
"""

import io
import pickletools
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

from lhtrain.checkpoint.errors import Invalid
from lhtrain.checkpoint.hashed import FileEntry
from lhtrain.checkpoint.layout import DTYPES, MAX_DIMENSIONS, Chunk, SavedTensor, n_bytes, tiles

_METADATA = "torch.distributed.checkpoint.metadata"
CLASSES = {
    *(f"{_METADATA}.{name}" for name in ("BytesStorageMetadata", "ChunkStorageMetadata", "Metadata")),
    *(f"{_METADATA}.{name}" for name in ("MetadataIndex", "StorageMeta", "TensorProperties")),
    *(f"{_METADATA}.{name}" for name in ("TensorStorageMetadata", "_MEM_FORMAT_ENCODING")),
    "torch.distributed.checkpoint.filesystem._StorageInfo",
    *("torch.Size", "torch.device", "torch.strided", "torch.serialization._get_layout"),
    *("pathlib.Path", "pathlib.PosixPath", "pathlib.PurePosixPath", "pathlib._local.PosixPath"),
    *(f"torch.{name}" for name in DTYPES),
}


@dataclass(eq=False)
class Node:
    """An object in .metadata: the name of its class and the values to build it from."""

    name: str
    arguments: Any = None
    state: Any = None


_MARK = object()
_SAME = ("BININT", "BININT1", "BININT2", "LONG1", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8")
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


def tree(description: bytes) -> Any:
    """Return the content of .metadata as nodes, dicts, lists, tuples, strings and integers.

    Raises Invalid: it names a class that no checkpoint needs, or is not a valid pickle.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    try:
        for operation, argument, _ in pickletools.genops(io.BytesIO(description)):
            if operation.name == "STOP":
                return stack.pop()
            _apply(operation.name, argument, stack, memo)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise Invalid(f".metadata was not written by lhtrain: {error}"[:300]) from error
    _strange("it has no end")


def _apply(name: str, argument: Any, stack: list[Any], memo: dict[int, Any]) -> None:
    if name in ("PROTO", "FRAME"):
        return
    if name in _SAME:
        stack.append(argument)
    elif name in _CONSTANTS:
        stack.append(_CONSTANTS[name])
    elif name in ("EMPTY_DICT", "EMPTY_LIST", "MARK"):
        stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list}.get(name, lambda: _MARK)())
    elif name == "MEMOIZE":
        memo[len(memo)] = stack[-1]
    elif name in ("BINPUT", "LONG_BINPUT"):
        memo[argument] = stack[-1]
    elif name in ("BINGET", "LONG_BINGET"):
        stack.append(memo[argument])
    elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
        count = int(name[-1])
        stack[-count:] = [tuple(stack[-count:])]
    elif name == "TUPLE":
        stack.append(tuple(_to_mark(stack)))
    else:
        _make(name, argument, stack)


def _make(name: str, argument: Any, stack: list[Any]) -> None:
    if name in ("STACK_GLOBAL", "GLOBAL"):
        module, of_module = argument.split(" ") if name == "GLOBAL" else (stack.pop(-2), stack.pop())
        if f"{module}.{of_module}" not in CLASSES:
            raise Invalid(f".metadata names the class {module}.{of_module}, which no checkpoint needs"[:200])
        stack.append(Node(f"{module}.{of_module}"))
    elif name in ("NEWOBJ", "REDUCE"):
        arguments, of_class = stack.pop(), _node(stack.pop())
        stack.append(Node(of_class.name, arguments))
    elif name == "BUILD":
        state, node = stack.pop(), _node(stack[-1])
        if node.state is not None or node.arguments is None:
            _strange("it sets the state of an object twice, or of a class")
        node.state = state
    elif name in ("SETITEM", "SETITEMS"):
        items = _to_mark(stack) if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
        for key, value in zip(items[::2], items[1::2], strict=True):
            _plain(stack[-1], dict)[key] = value
    elif name in ("APPEND", "APPENDS"):
        items = _to_mark(stack) if name == "APPENDS" else [stack.pop()]
        _plain(stack[-1], list).extend(items)
    else:
        _strange(f"it has the operation {name}, which no checkpoint needs")


def _to_mark(stack: list[Any]) -> list[Any]:
    items: list[Any] = []
    while (item := stack.pop()) is not _MARK:
        items.append(item)
    return items[::-1]


def tensors(description: bytes, files: dict[str, FileEntry]) -> dict[str, SavedTensor]:
    """Return the tensors that .metadata describes. files: those in manifest.json. Raises Invalid."""
    top = _fields(tree(description), f"{_METADATA}.Metadata")
    places: dict[tuple[str, tuple[int, ...]], tuple[str, int, int]] = {}
    for key, value in _plain(top.get("storage_data"), dict).items():
        index = _fields(key, f"{_METADATA}.MetadataIndex")
        name, offset = _plain(index.get("fqn"), str), index.get("offset")
        places[name, () if offset is None else _size(offset)] = _place(name, value, files)
    out = {}
    for name, value in _plain(top.get("state_dict_metadata"), dict).items():
        out[_plain(name, str)] = _saved(name, value, places)
    if not out:
        _strange("it describes no tensors")
    return out


def _place(name: str, value: Any, files: dict[str, FileEntry]) -> tuple[str, int, int]:
    """Return file, begin and end of a part of the tensor `name`."""
    info = _fields(value, "torch.distributed.checkpoint.filesystem._StorageInfo")
    if info.get("transform_descriptors"):
        _strange(f"{name} is compressed")
    file, begin, length = (
        info.get("relative_path"),
        _natural(info.get("offset")),
        _natural(info.get("length")),
    )
    if not (isinstance(file, str) and file in files and file.endswith(".distcp")):
        raise Invalid(f".metadata places {name} in {file!r:.80}, which is not in manifest.json")
    if begin + length > files[file].bytes:
        _strange(f"{name} ends after the end of {file}")
    return file, begin, begin + length


def _saved(name: str, value: Any, places: dict) -> SavedTensor:
    if isinstance(value, Node) and value.name == f"{_METADATA}.BytesStorageMetadata":
        raise Invalid(f".metadata describes {name} as bytes; a checkpoint has only tensors")
    fields = _fields(value, f"{_METADATA}.TensorStorageMetadata")
    properties = _node(fields.get("properties"), f"{_METADATA}.TensorProperties").state
    kind = _node(_plain(properties, tuple)[0]).name.removeprefix("torch.")
    if kind not in DTYPES:
        _strange(f"{name} has the dtype {kind}")
    shape, chunks = _size(fields.get("size")), []
    for item in _plain(fields.get("chunks"), list):
        box = _fields(item, f"{_METADATA}.ChunkStorageMetadata")
        offsets, sizes = _size(box.get("offsets")), _size(box.get("sizes"))
        if len(offsets) != len(shape) or len(sizes) != len(shape):
            _strange(f"a part of {name} has the wrong number of dimensions")
        if 0 in sizes:
            continue  # the empty shard of a rank
        place = places.get((name, offsets))
        if place is None:
            _strange(f"a part of {name} is in no file")
        chunks.append(Chunk(offsets, sizes, *place))
    if not tiles(shape, [(chunk.offsets, chunk.sizes) for chunk in chunks]):
        _strange(f"the parts of {name} do not cover its shape {list(shape)} exactly once")
    return SavedTensor(DTYPES[kind], shape, tuple(chunks))


def part(content: memoryview, chunk: Chunk, saved: SavedTensor, name: str) -> Tensor:
    """Return the part of a tensor in `content`, the bytes of one entry of a .distcp file. Raises Invalid."""
    where = f"the part of {name} at byte {chunk.begin} of {chunk.file}"
    if len(content) < n_bytes(chunk.sizes, saved.dtype):
        raise Invalid(f"{where} is shorter than its values")  # a compressed archive could fill the memory
    if content[:4] != b"PK\x03\x04":
        raise Invalid(f"{where} is not a tensor: it is not an archive by PyTorch")
    try:
        found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # a crafted file can raise any error
        raise Invalid(f"{where} is not a tensor: {str(error).splitlines()[0]:.100}") from error
    if type(found) is not Tensor or found.layout is not torch.strided:
        raise Invalid(f"{where} is not a plain tensor")
    if (found.dtype, tuple(found.shape)) != (saved.dtype, chunk.sizes):
        raise Invalid(f"{where} is {found.dtype} {tuple(found.shape)}, not {saved.dtype} {chunk.sizes}")
    return found


def _strange(what: str) -> NoReturn:
    raise Invalid(f".metadata was not written by lhtrain: {what}"[:300])


def _node(value: Any, name: str | None = None) -> Node:
    if not isinstance(value, Node) or name not in (None, value.name):
        _strange(f"a value is not {name or 'an object'}")
    return value


def _fields(value: Any, name: str) -> dict[str, Any]:
    return _plain(_node(value, name).state, dict)


def _plain(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        _strange(f"a value is not a {kind.__name__}")
    return value


def _natural(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        _strange("a value is not a whole number")
    return value


def _size(value: Any) -> tuple[int, ...]:
    arguments = _plain(_node(value, "torch.Size").arguments, tuple)
    numbers = _plain(arguments[0], tuple) if arguments else ()
    if len(numbers) > MAX_DIMENSIONS:
        _strange("a tensor has too many dimensions")
    return tuple(_natural(number) for number in numbers)
