"""`lhtrain data inspect`: numbers about a prepared folder, a histogram of lengths and a decoded sample."""

from pathlib import Path

import numpy as np

from lhtrain.data.errors import DataError
from lhtrain.data.prepare.split import split_documents
from lhtrain.data.store.manifest import Manifest
from lhtrain.data.tokenizers.base import PREPARED
from lhtrain.data.tokenizers.named import open_tokenizer

BAR = 40  # length of the longest bar in characters
SAMPLE_TOKENS = 120


def inspect(folder: Path, val_fraction: float = 0.05, document: int = 0) -> str:
    """Return a report of several lines.

    document: the index, over all shards, of the document whose first tokens are decoded.
    Raises DataError: the folder is incomplete or damaged; no such document; the tokenizer is not available.
    """
    manifest = Manifest.read(folder)
    stores = manifest.open_stores(folder)
    lengths = np.concatenate(
        [
            np.diff(store.offsets[: shard.documents + 1])
            for store, shard in zip(stores, manifest.shards, strict=True)
        ]
    )
    if not 0 <= document < len(lengths):
        raise DataError(f"--document={document}: must be one of 0..{len(lengths) - 1}")
    tokenizer = manifest.tokenizer
    counts = [shard.documents for shard in manifest.shards]
    try:
        splits = split_documents(stores, val_fraction, counts)
        shares = ", ".join(f"{split.n_tokens:,} {name}" for name, split in splits.items())
    except DataError as error:  # too little text for two splits
        shares = str(error)
    n_bytes = sum(store.path.stat().st_size for store in stores)
    lines = [
        f"folder      {folder}",
        f"source      {_source(manifest)}",
        f"tokenizer   {tokenizer['name']}, vocabulary {tokenizer['vocab_size']:,}, eos {tokenizer['eos']}, "
        f"bos {'none' if tokenizer['bos'] is None else tokenizer['bos']}",
        f"shards      {len(stores)}, {n_bytes / 1e6:,.1f} MB, {stores[0].dtype}",
        f"documents   {len(lengths):,}"
        + "".join(f"; {n:,} skipped ({reason})" for reason, n in manifest.skipped.items()),
        f"tokens      {int(lengths.sum()):,}, {shares}",
        _spread(lengths),
        "",
        *histogram(lengths),
        "",
        f"document {document}, {lengths[document]:,} tokens, beginning with:",
        _sample(folder, manifest, stores, document),
    ]
    return _printable("\n".join(lines))


def _printable(text: str) -> str:
    """Escape control characters, which texts and names in meta.json may contain."""
    return "".join(char if char.isprintable() or char in "\n\t" else ascii(char)[1:-1] for char in text)


def histogram(lengths: np.ndarray) -> list[str]:
    """Return a table as lines: for each power of two of the length, documents and their share of tokens."""
    power = np.floor(np.log2(lengths)).astype(np.int64)
    counts, tokens = np.bincount(power), np.bincount(power, lengths)
    low = int(np.flatnonzero(counts)[0])
    lines = [f"{'length from':>12} {'documents':>11} {'tokens':>9}"]
    for exponent in range(low, len(counts)):
        bar = "█" * round(BAR * tokens[exponent] / tokens.max())
        share = tokens[exponent] / lengths.sum()
        lines.append(f"{2**exponent:>12,} {counts[exponent]:>11,} {share:>9.1%} {bar}".rstrip())
    return lines


def _spread(lengths: np.ndarray) -> str:
    marks = np.percentile(lengths, [0, 50, 90, 99, 100]).round().astype(np.int64)
    names = ("shortest", "median", "p90", "p99", "longest")
    return "lengths     " + ", ".join(f"{name} {n:,}" for name, n in zip(names, marks, strict=True))


def _source(manifest: Manifest) -> str:
    recipe = manifest.recipe
    return f"{recipe['source']} {recipe.get('name') or ', '.join(recipe.get('path') or [])}".strip()


def _sample(folder: Path, manifest: Manifest, stores: list, document: int) -> str:
    for store, shard in zip(stores, manifest.shards, strict=True):
        if document < shard.documents:
            tokens = store.document(document)[:SAMPLE_TOKENS]
            return open_tokenizer(f"{PREPARED}{folder}").decode(np.asarray(tokens))
        document -= shard.documents
    raise AssertionError("the caller checked the number")
