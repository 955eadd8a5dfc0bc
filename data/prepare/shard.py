"""Writing the shard of one unit: the work of a `prepare` process."""

import json
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from lhtrain.data.errors import DataError
from lhtrain.data.prepare.encode import write_document
from lhtrain.data.prepare.recipe import Recipe
from lhtrain.data.sources.documents import Skip
from lhtrain.data.sources.paths import stamp
from lhtrain.data.sources.table import READERS
from lhtrain.data.sources.text import NotText
from lhtrain.data.sources.units import Unit
from lhtrain.data.store.manifest import SKIPPED
from lhtrain.data.store.tokens import TokenStoreWriter
from lhtrain.data.tokenizers.base import Tokenizer
from lhtrain.files import SUFFIX, sync_folder, write_atomic


def write_shard(
    path: Path,
    unit: Unit,
    recipe: Recipe,
    tokenizer: Tokenizer,
    advance: Callable[[int, int], object] = lambda n_bytes, n_tokens: None,
) -> None:
    """Write the shard of `unit` to a temporary file, flush it to disk and rename it to `path`.

    The number of skipped documents, by reason, is written to a file beside the shard. `advance` is called
    with the bytes of source read and the tokens written.
    Raises DataError: a problem with the source, or it changed after the plan was made; OSError: the disk.
    """
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}{SUFFIX}")
    skipped: Counter[str] = Counter()
    reported = 0  # tokens

    def progressed(n_bytes: int) -> None:
        nonlocal reported
        advance(n_bytes, writer.n_tokens - reported)
        reported = writer.n_tokens

    try:
        with TokenStoreWriter(aside, tokenizer.dtype, tokenizer.fingerprint, tokenizer.escaped) as writer:
            for document in READERS[unit.reader].read(unit, recipe, progressed):
                if isinstance(document, Skip):
                    skipped[document.reason] += 1
                    continue
                try:
                    write_document(writer, tokenizer, document.chunks, document.name)
                except NotText as error:
                    writer.discard_document()
                    skipped[str(error)] += 1
                if _reached(writer, recipe):
                    break
            progressed(0)
        _check_unchanged(unit)
        write_atomic(path.with_suffix(SKIPPED), json.dumps(skipped))  # before the shard, which marks the end
        aside.replace(path)
        sync_folder(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def _check_unchanged(unit: Unit) -> None:
    """Raise DataError if a file has changed since the plan was made: the fingerprint would be wrong."""
    for item in unit.items if unit.reader != "hub" else ():
        if stamp(item.path) != item.stamp:
            rule = "changed while it was prepared; it must not change until the end. Prepare it again"
            raise DataError(f"data.path: {item.path!r} {rule} into a new folder")


def _reached(writer: TokenStoreWriter, recipe: Recipe) -> bool:
    most_documents, most_tokens = recipe.max_documents, recipe.max_tokens
    enough = most_documents is not None and writer.n_documents >= most_documents
    return enough or (most_tokens is not None and writer.n_tokens >= most_tokens)
