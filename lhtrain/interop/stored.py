"""The weights of a folder in safetensors files: their names, types and shapes, and their bytes in pieces.

The library checks each file; the bytes are then read from it directly, 16 MiB at a time, and not through a
map of the whole file.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lhtrain.errors import RunError
from lhtrain.interop.published_config import read_json

PIECE = 16 * 2**20  # bytes
INDEX = "model.safetensors.index.json"
ONE = "model.safetensors"
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}

# Ends of names of tensors that only quantized models have: GPTQ and AWQ, bitsandbytes, fp8.
QUANTIZED = (
    *(".qweight", ".qzeros", ".g_idx", ".scales", ".absmax", ".quant_map", ".nested_absmax", ".SCB"),
    *(
        ".quant_state.bitsandbytes__nf4",
        ".quant_state.bitsandbytes__fp4",
        ".weight_scale",
        ".weight_scale_inv",
    ),
    *(".weight_packed", ".input_scale"),
)


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file. dtype: its name in torch. begin, end: its bytes in the file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    def pieces(self) -> Iterator[bytes]:
        """Yield the little-endian bytes, at most `PIECE` at once. Raises RunError, OSError."""
        with self.file.open("rb", buffering=0) as file:
            file.seek(self.begin)
            left = self.end - self.begin
            while left:
                piece = file.read(min(PIECE, left))
                if not piece:
                    raise RunError(f"{self.file}: became shorter while it was read")
                left -= len(piece)
                yield piece


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Return all tensors of the weights in `folder` by name.

    Raises RunError: there are no weights in safetensors files, a file is missing or damaged, or the weights
        are quantized.
    """
    out: dict[str, StoredTensor] = {}
    for file in _files(folder):
        for name, tensor in _tensors_in(file):
            if name in out:
                raise RunError(f"{file}: {name} is also in {out[name].file.name}")
            out[name] = tensor
    if quantized := [name for name in out if name.endswith(QUANTIZED)]:
        raise RunError(
            f"{out[quantized[0]].file}: {quantized[0]} belongs to quantized weights, which cannot be "
            "trained; use the original weights"
        )
    if others := [name for name, tensor in out.items() if tensor.dtype not in DTYPES.values()]:
        raise RunError(
            f"{out[others[0]].file}: {others[0]} has the type {out[others[0]].dtype}; it must be one of "
            f"{', '.join(DTYPES.values())}"
        )
    return out


def _files(folder: Path) -> list[Path]:
    if (folder / ONE).is_file():
        return [folder / ONE]
    if not (folder / INDEX).is_file():
        raise RunError(_no_weights(folder))
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise RunError(f"{folder / INDEX}: must have a weight_map that names the file of each tensor")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise RunError(
                f"{folder / INDEX}: names the file {name!r:.80}; it must be a .safetensors file beside it"
            )
        if not (folder / name).is_file():
            raise RunError(f"{folder / name}: is missing; {INDEX} names it. Download the model again")
    return [folder / name for name in names]


def _no_weights(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    rule = f"{folder}: must contain {ONE} or {INDEX}"
    if any(name.startswith("consolidated") and name.endswith(".safetensors") for name in names):
        return f"{rule}; consolidated.safetensors has other names of weights"
    if any(name.endswith(".safetensors") and not name.startswith("adapter") for name in names):
        return f"{rule}; it has {next(name for name in names if name.endswith('.safetensors'))}"
    if "adapter_config.json" in names:
        return f"{rule}; it has an adapter (LoRA) alone: merge it into its base model first"
    if any(name.endswith(".gguf") for name in names):
        return f"{rule}; it has GGUF files, which are usually quantized: use the original weights"
    if any(name.endswith((".bin", ".pt", ".pth")) for name in names):
        return (
            f"{rule}; it has weights as pickled files alone, which may run any code when they are read. Load "
            "the model with transformers where you trust it, and save it again with save_pretrained"
        )
    return rule


def _tensors_in(file: Path) -> list[tuple[str, StoredTensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "np"):  # checks the header: names, shapes, and that the bytes are all there
            pass
        header, begin = _header(file)
    except (SafetensorError, ValueError) as error:
        with file.open("rb") as opened:
            pointer = opened.read(20).startswith(b"version https://git-")
        why = (
            "is a pointer of Git LFS, not the weights; run `git lfs pull`"
            if pointer
            else f"is damaged ({error})"
        )
        raise RunError(f"{file}: {why}") from error
    except OSError as error:
        raise RunError(f"{file}: cannot be read ({error.strerror or error})") from error
    out = []
    for name, entry in header.items():
        if name != "__metadata__":
            first, last = entry["data_offsets"]
            dtype = DTYPES.get(entry["dtype"], entry["dtype"])
            tensor = StoredTensor(file, dtype, tuple(entry["shape"]), begin + first, begin + last)
            out.append((name, tensor))
    return out


def _header(file: Path) -> tuple[dict[str, Any], int]:
    """Return the header of a checked file, and where the bytes of the tensors begin."""
    with file.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        return json.loads(opened.read(size)), 8 + size
