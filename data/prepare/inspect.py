"""`lhtrain data inspect`: numbers about a prepared folder, a histogram of lengths and a decoded document."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from lhtrain.data.errors import DataError
from lhtrain.data.order.pack import BEST_FIT, METHODS, pack
from lhtrain.data.prepare.duplicates import ALIKE, READ_BYTES, chosen, copies, near_copies
from lhtrain.data.prepare.split import split_documents
from lhtrain.data.store.descriptors import SHARED
from lhtrain.data.store.manifest import Manifest
from lhtrain.data.store.tokens import TokenStore, unescaped
from lhtrain.data.tokenizers.base import PREPARED
from lhtrain.data.tokenizers.named import open_tokenizer
from lhtrain.text import counted

BAR = 30  # length of the longest bar in characters
SAMPLE_TOKENS = 120
COMPARED = 10_000  # documents that are compared with each other, by default


def inspect(
    folder: Path,
    val_fraction: float = 0.05,
    document: int = 0,
    compared: int = COMPARED,
    seq_len: int | None = None,
) -> str:
    """Return a report of several lines.

    document: the index, over all shards, of the document whose first tokens are decoded.
    compared: at most this many documents are compared to find near copies; 0: none.
    seq_len: report how documents are packed into sequences of this length, too.
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
        _quantiles(lengths),
        *_copies(manifest, stores, lengths, compared),
        *([] if seq_len is None else _sequences(lengths, seq_len)),
        "",
        *histogram(lengths),
        "",
        f"document {document}, {lengths[document]:,} tokens, beginning with:",
        open_tokenizer(f"{PREPARED}{folder}").decode(_document(stores, counts, document)[:SAMPLE_TOKENS]),
    ]
    return _printable("\n".join(lines))


def _printable(text: str) -> str:
    """Escape control characters, which texts and names in meta.json may contain."""
    return "".join(char if char.isprintable() or char in "\n\t" else ascii(char)[1:-1] for char in text)


def histogram(lengths: np.ndarray) -> list[str]:
    """Return a table as lines: for each power of two of the length, documents and their share of tokens.

    The last column is the share of tokens in documents that are so long or longer.
    """
    power = np.floor(np.log2(lengths)).astype(np.int64)
    counts, tokens = np.bincount(power), np.bincount(power, lengths)
    low = int(np.flatnonzero(counts)[0])
    lines = [f"{'length from':>12} {'documents':>11} {'tokens':>9} {'or longer':>10}"]
    for exponent in range(low, len(counts)):
        bar = "█" * round(BAR * tokens[exponent] / tokens.max())
        share, longer = tokens[exponent] / lengths.sum(), tokens[exponent:].sum() / lengths.sum()
        lines.append(
            f"{2**exponent:>12,} {counts[exponent]:>11,} {share:>9.1%} {longer:>10.1%} {bar}".rstrip()
        )
    return lines


def _quantiles(lengths: np.ndarray) -> str:
    marks = np.percentile(lengths, [0, 10, 50, 90, 99, 100]).round().astype(np.int64)
    names = ("shortest", "p10", "median", "p90", "p99", "longest")
    spread = ", ".join(f"{name} {n:,}" for name, n in zip(names, marks, strict=True))
    return f"lengths     {spread}, mean {lengths.mean():,.0f}"


def _copies(
    manifest: Manifest, stores: Sequence[TokenStore], lengths: np.ndarray, compared: int
) -> Iterator[str]:
    """Yield lines with the shares of copies of an earlier document, exact and near."""
    counts = [shard.documents for shard in manifest.shards]
    hashes = [store.hashes[:count] for store, count in zip(stores, counts, strict=True)]
    exact = copies(np.concatenate(hashes))
    share_of_tokens = lengths[exact].sum() / lengths.sum()
    yield f"copies      exact: {exact.mean():.2%} of the documents, {share_of_tokens:.2%} of the tokens"
    if not compared:
        return
    sample = chosen(len(lengths), compared)
    documents = (_document(stores, counts, int(number)) for number in sample)
    near = near_copies(documents, manifest.tokenizer["name"] == "bytes")
    among = (
        "all documents" if len(sample) == len(lengths) else f"a sample of {counted(len(sample), 'document')}"
    )
    rule = f"the first {READ_BYTES // 1024} KiB of text are at least {ALIKE:.0%} alike"
    yield f"            near: {near.mean():.2%} of {among}; {rule}"


def _sequences(lengths: np.ndarray, seq_len: int) -> Iterator[str]:
    """Yield lines that say how the documents are packed into sequences of seq_len tokens."""
    longer = lengths > seq_len
    held = lengths[longer].sum() / lengths.sum()
    share = f"{longer.mean():.1%} of the documents are longer, with {held:.1%} of the tokens"
    yield f"sequences   of {seq_len:,}: {share}"
    for method in METHODS:
        packing = pack(np.cumsum(lengths) - lengths, lengths, [seq_len], 0, method=method)
        padding = 1 - lengths.sum() / (packing.n_blocks * seq_len)
        cut = f", {packing.cut / len(lengths):.1%} of the documents cut although they fit"
        yield f"            data.packing={method}: {padding:.1%} padding{cut if method == BEST_FIT else ''}"


def _source(manifest: Manifest) -> str:
    recipe = manifest.recipe
    return f"{recipe['source']} {recipe.get('name') or ', '.join(recipe.get('path') or [])}".strip()


def _document(stores: Sequence[TokenStore], counts: Sequence[int], number: int) -> np.ndarray:
    """Return the first tokens of a document, whose number counts over all shards."""
    for store, count in zip(stores, counts, strict=True):
        if number < count:
            begin, end = store.offsets[number : number + 2].tolist()
            stored = store.read(begin, min(end - begin, READ_BYTES), SHARED)
            return unescaped(stored, store.header.escaped)
        number -= count
    raise AssertionError("the caller checked the number")
