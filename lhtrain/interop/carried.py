"""The files of a published model that an export writes again: of its tokenizer, for generation, its license.

An import keeps them in its folder, and a run that starts from it copies them into its directory.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from lhtrain.files import read_regular
from lhtrain.runs.run_dir import imported_files

OF_TOKENIZER = (
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *("chat_template.json", "vocab.json", "merges.txt", "tokenizer.model"),
)
OTHERS = (
    *("generation_config.json", "LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "NOTICE.txt"),
    "USE_POLICY.md",
)
MOST = 2**28  # bytes of one of these files


def keep(place: Path, folder: Path) -> None:
    """Copy these files of the published model in `place` into the new folder `folder`. Raises OSError."""
    folder.mkdir()
    for name in (*OF_TOKENIZER, *OTHERS):
        if (place / name).is_file():
            (folder / name).write_bytes(read_regular((place / name).resolve(), MOST))


def carried_files(
    imported: dict[str, Any], checkpoint: Path, tokenizer: Path | None, longest: int
) -> tuple[dict[str, bytes], list[str]]:
    """Return the files to write, by name, and notes.

    Args:
        imported: the "imported" of state.json.
        checkpoint: the checkpoint that is exported.
        tokenizer: the tokenizer.json of training; None: no tokenizer is to be written.
        longest: max_position_embeddings of the exported model.
    """
    place, notes = imported_files(checkpoint), []
    same = tokenizer is not None and is_imported(tokenizer, imported)
    if not place.is_dir():
        return {}, [f"{place} is missing: its files (chat template, generation_config.json) are not exported"]
    names = OTHERS + (OF_TOKENIZER if same else ())
    files = {name: read_regular(place / name, MOST) for name in names if (place / name).is_file()}
    if same:
        assert tokenizer is not None
        files["tokenizer.json"] = tokenizer.read_bytes()
        if "tokenizer_config.json" in files:
            files["tokenizer_config.json"] = _longer(files["tokenizer_config.json"], longest)
    elif tokenizer is not None:
        notes.append(f"the model was trained with another tokenizer than that of {imported['name']}")
    return files, notes


def is_imported(tokenizer: Path, imported: dict[str, Any]) -> bool:
    """Return whether this tokenizer.json is the one that the published model had."""
    return hashlib.sha256(tokenizer.read_bytes()).hexdigest() == imported["tokenizer"]


def _longer(content: bytes, longest: int) -> bytes:
    """Return tokenizer_config.json with a model_max_length of at least `longest`."""
    config = json.loads(content)
    if not isinstance(config.get("model_max_length"), int) or config["model_max_length"] >= longest:
        return content
    config["model_max_length"] = longest
    return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()
