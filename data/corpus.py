"""A corpus: tokens on disk, divided into a training and a validation split. Opens every kind of source."""

import hashlib
import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lhtrain.data.errors import DamagedStore, DataError
from lhtrain.data.order.sequences import Part
from lhtrain.data.prepare.encode import write_document
from lhtrain.data.prepare.plan import make_plan, plan_fingerprint
from lhtrain.data.prepare.recipe import AUTOMATIC, Recipe, differences
from lhtrain.data.prepare.split import SPLITS, Split, split_documents
from lhtrain.data.progress import on_terminal, progress_bar
from lhtrain.data.sources.local import find_files, is_prepared
from lhtrain.data.sources.paths import expanded
from lhtrain.data.sources.text import Document, read_chunks, read_documents
from lhtrain.data.store.cache import cache_root, load_or_build
from lhtrain.data.store.checks import Checks
from lhtrain.data.store.manifest import Manifest, Shard, save_tokenizer, shard_name
from lhtrain.data.store.tokens import FORMAT_VERSION, TokenStoreWriter
from lhtrain.data.stream.opened import DURING, open_stream
from lhtrain.data.stream.portions import Stream
from lhtrain.data.tokenizers.base import PREPARED, Tokenizer
from lhtrain.data.tokenizers.named import open_tokenizer
from lhtrain.quote import setting

SHARD_NAME = shard_name(0)


@dataclass(frozen=True)
class Corpus:
    """Two splits, their tokenizer, and a hash of everything that decides their tokens.

    parts: split name -> its weighted sources; more than one only in a mixture. `train` and `val` are the
    splits of the first source. copies: validation documents that are also trained on.
    """

    tokenizer: Tokenizer
    parts: Mapping[str, list[Part]]
    fingerprint: str
    folder: Path
    copies: int = 0

    @property
    def train(self) -> Split:
        return self.parts["train"][0].split

    @property
    def val(self) -> Split:
        return self.parts["val"][0].split

    def bytes_per_token(self, split: str = "val") -> float | None:
        """Return the mean bytes of UTF-8 text per token, without tokens that begin and end documents.

        It is that of all documents in the shards of a split; sources count by their weights. None: no tokens.
        """
        added = 1 if self.tokenizer.bos is None else 2  # tokens of a document that are not of its text
        means, weights = [], []
        for part in self.parts[split]:
            headers = [store.header for store in part.split.stores]
            n_tokens = sum(header.n_tokens - added * header.n_documents for header in headers)
            n_bytes = sum(header.text_bytes for header in headers)
            if n_tokens > 0 and n_bytes > 0:
                means.append(n_bytes / n_tokens)
                weights.append(part.weight)
        total = sum(weights)
        pairs = zip(means, weights, strict=True)
        return sum(mean * weight for mean, weight in pairs) / total if total else None

    @property
    def streams(self) -> list[Stream]:
        """The sources that are tokenized during training; their splits are those of the first portion."""
        return [part.stream for part in self.parts["train"] if part.stream is not None]

    def n_tokens(self, split: str) -> int:
        """Number of tokens in a split, summed over all sources; of streams those of the first portion."""
        return sum(part.split.n_tokens for part in self.parts[split])


def open_corpus(
    source: str = "stdlib",
    path: Any = None,
    tokenizer: str = "bytes",
    val_fraction: float = 0.05,
    cache_dir: str | os.PathLike | None = None,
    progress: bool = True,
    val_path: Any = None,
    mix: Mapping[str, Any] | None = None,
    out: str | os.PathLike | None = None,
    long_fraction: float | None = None,
    workers: int | None = None,
    verify: bool = True,
    documents: object = None,
    positions: object = None,
    packing: object = None,
    buckets: object = None,
    bucket_weights: object = None,
    prepare: object = "before",
    portion: int = 1 << 27,
    keep_gb: float = 50.0,
    **recipe: Any,
) -> Corpus:
    """Open a corpus.

    Local texts (`AUTOMATIC` sources) are tokenized now, unless the cache holds tokens of the same content.
    All other sources, and texts with a limit or with `out`, must have been prepared: `lhtrain data prepare`.

    Args:
        source: "stdlib", the standard library of the running Python; "text", local files and folders;
            "prepared", a folder that `prepare` wrote; "mix", several such folders; or any `Recipe.source`.
        path: for "text": a file, a folder, or a list of them; for "prepared": the folder.
        tokenizer: a name for `open_tokenizer`; ignored for "prepared" and "mix".
        val_fraction: fraction of the documents used for validation, above 0 and below 1; the rule is in
            `split_documents`.
        cache_dir: folder for token files; None: see `cache_root`.
        val_path: texts for validation, as `path` of "text", or a prepared folder with the same tokenizer.
            Then all documents of `path` are for training, and val_fraction is not used.
        progress: show a progress bar on a terminal, else print one line after tokenizing; both on stderr.
        mix: for "mix": name -> {"path": prepared folder, "weight": relative weight}.
        out: the folder that `prepare` wrote to, if it was not the default folder.
        long_fraction, documents, positions, packing, buckets, bucket_weights: not used here;
            accepted because all keys of the data group are passed.
        prepare: "during": tokenize the source while it is read; see `open_stream`, also for portion and
            keep_gb.
        workers: with prepare="during", the processes that tokenize.
        verify: compare each shard with its checksum, once per machine: up to `checks.AT_ONCE` bytes now, the
            other shards when they are first read. False: damage inside a shard is not noticed.
        recipe: other fields of `Recipe`.

    Raises:
        DataError: a wrong argument, or a problem with the files or the cache.
    """
    during = _During(portion, keep_gb, workers) if getattr(prepare, "value", prepare) == DURING else None
    opener = _Opener(None if val_path else val_fraction, verify, cache_dir, progress, during)
    corpus = _opened(Recipe(source, path, tokenizer=tokenizer, **recipe), mix, out, opener)
    return _validated_on(val_path, corpus, opener) if val_path else corpus


def _opened(
    wanted: Recipe, mix: Mapping[str, Any] | None, out: str | os.PathLike | None, opener: "_Opener"
) -> Corpus:
    if wanted.source == "mix":
        return _mixture(mix or {}, wanted, opener)
    if wanted.source == "prepared":
        return opener.prepared(expanded(str(wanted.path)))
    if opener.during is not None:
        return opener.streamed(wanted)
    limited = wanted.max_documents is not None or wanted.max_tokens is not None
    if out is None and not limited and wanted.source in AUTOMATIC:
        return _tokenized(wanted, opener)
    return _prepared_earlier(wanted, out, opener)


class _During(NamedTuple):
    """How sources are tokenized during training; see `open_stream`."""

    n_tokens: int
    keep_gb: float
    workers: int | None


@dataclass(frozen=True)
class _Opener:
    """Opens folders of shards. Its fields are the arguments of `open_corpus` with the same names."""

    val_fraction: float | None  # None: all documents are in both splits
    verify: bool
    cache_dir: str | os.PathLike | None
    progress: bool
    during: _During | None = None

    def streamed(self, wanted: Recipe) -> Corpus:
        """Return a corpus that is tokenized during training."""
        assert self.during is not None
        settings = *self.during, self.cache_dir, self.verify, self.progress
        stream, tokenizer, splits, identity = open_stream(wanted, self.val_fraction, *settings)
        fingerprint = hashlib.sha256(identity.encode()).hexdigest()[:32]
        parts = _alone(splits, fingerprint)
        parts["train"] = [parts["train"][0]._replace(stream=stream)]
        return Corpus(tokenizer, parts, fingerprint, stream.job.folder)

    def prepared(self, folder: Path, wanted: Recipe | None = None) -> Corpus:
        """Return the corpus in a folder that `prepare` completed.

        wanted: the recipe that the folder must have been prepared from; None accepts any.
        """
        manifest = Manifest.read(folder)
        if wanted is not None and manifest.recipe != wanted.as_dict():
            rule = f"was prepared with different settings: {differences(manifest.recipe, wanted.as_dict())}"
            raise DataError(f"data: {str(folder)!r} {rule}")
        if wanted is not None:
            _check_source(folder, manifest, wanted)
        tokenizer = open_tokenizer(f"{PREPARED}{folder}")
        checks = Checks.of_prepared(folder, self.cache_dir) if self.verify else None
        splits = self.splits(folder, manifest, checks)
        identity = f"{manifest.fingerprint} {self.share}"
        fingerprint = hashlib.sha256(identity.encode()).hexdigest()[:32]
        return Corpus(tokenizer, _alone(splits, fingerprint), fingerprint, folder)

    @property
    def share(self) -> str:
        """The share of validation as part of a fingerprint."""
        return "all" if self.val_fraction is None else repr(float(self.val_fraction))

    def splits(self, folder: Path, manifest: Manifest, checks: Checks | None) -> dict[str, Split]:
        """Return the train and val splits of a folder. Raises DamagedStore."""
        stores = manifest.open_stores(folder)
        if checks is not None:
            n_bytes = sum(store.identity.size for store in stores)
            with progress_bar("comparing checksums", n_bytes, self.progress) as advance:
                checks.compare(stores, advance)
        return split_documents(stores, self.val_fraction, [shard.documents for shard in manifest.shards])


def _validated_on(path: Any, corpus: Corpus, opener: _Opener) -> Corpus:
    """Return the corpus with the documents of `path` as its validation split, in its tokens."""
    key, tokenizer = f"data.val_path={path!r}", corpus.tokenizer
    try:
        if isinstance(path, str) and is_prepared(path):
            other = opener.prepared(expanded(path))
        else:
            other = _tokenized(Recipe("text", path, tokenizer=tokenizer.name), opener, tokenizer)
    except DataError as error:
        raise DataError(str(error).replace("data.path", "data.val_path")) from error
    if other.tokenizer.fingerprint != tokenizer.fingerprint:
        rule = f"must have the tokenizer of the training data, {tokenizer.described}"
        raise DataError(f"{key}: was prepared with {other.tokenizer.described}; {rule}")
    parts = {"train": corpus.parts["train"], "val": other.parts["val"]}
    identity = hashlib.sha256(f"{corpus.fingerprint} {other.fingerprint}".encode())
    copies = _copies([part.split for part in parts["train"]], other.val)
    return replace(corpus, parts=parts, fingerprint=identity.hexdigest()[:32], copies=copies)


def _copies(trained: list[Split], validated: Split) -> int:
    """Return how many documents of `validated` have the text of a document of `trained`, by their hashes."""
    hashes = np.concatenate([store.hashes for store in validated.stores])
    found = np.zeros(len(hashes), bool)
    for split in trained:
        for store in split.stores:
            found |= np.isin(hashes, store.hashes)
    return int(found.sum())


def _prepared_earlier(wanted: Recipe, out: str | os.PathLike | None, opener: _Opener) -> Corpus:
    """Return the corpus that `prepare` wrote for a recipe, or raise DataError with the command to run."""
    folder = wanted.folder(out, opener.cache_dir)
    if not (folder / "meta.json").is_file():
        rule = "is missing or incomplete; prepare the data before training:"
        command = wanted.command(out, opener.cache_dir)
        other = "or tokenize them while the run trains: data.prepare=during"
        raise DataError(f"data={wanted.source}: {str(folder)!r} {rule}\n  {command}\n{other}")
    return opener.prepared(folder, wanted)


def _check_source(folder: Path, manifest: Manifest, wanted: Recipe) -> None:
    """Raise DataError if the source files or the tokenizer's file changed after the folder was prepared.

    Datasets of the hub are not checked: that would need the network.
    """
    if wanted.source == "hf":
        return
    tokenizer = open_tokenizer(wanted.tokenizer, wanted.bos, wanted.eos)
    if plan_fingerprint(wanted, tokenizer.fingerprint, make_plan(wanted)) != manifest.fingerprint:
        rule = "was prepared from different files: the source or the tokenizer's file has changed since"
        remedy = "Remove the folder and prepare the data again, or train on the existing shards with"
        path = setting("data.path", folder)
        raise DataError(f"data={wanted.source}: {str(folder)!r} {rule}. {remedy} data=prepared {path}")


def _mixture(mix: Mapping[str, Any], wanted: Recipe, opener: _Opener) -> Corpus:
    """Return a corpus of several sources with weights. All must have the same tokenizer.

    wanted: has the tokenizer of sources that are tokenized during training.
    """
    if not mix:
        raise DataError("data.mix={}: must have at least one source, NAME: {path: FOLDER, weight: NUMBER}")
    corpora = {name: _source(name, part, wanted, opener) for name, part in mix.items()}
    (first, one), *others = corpora.items()
    for name, other in others:
        if other.tokenizer.fingerprint != one.tokenizer.fingerprint:
            rule = f"must have the same tokenizer as data.mix.{first}, {one.tokenizer.name}"
            raise DataError(f"data.mix.{name}: was prepared with {other.tokenizer.name}; {rule}")
    parts = {
        split: [
            corpora[name].parts[split][0]._replace(weight=float(part.get("weight", 1.0)), name=name)
            for name, part in mix.items()
        ]
        for split in SPLITS
    }
    identity = [[corpora[name].fingerprint, float(part.get("weight", 1.0))] for name, part in mix.items()]
    fingerprint = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]
    return Corpus(one.tokenizer, parts, fingerprint, one.folder)


def _source(name: str, part: Mapping[str, Any], wanted: Recipe, opener: _Opener) -> Corpus:
    """Return a source of a mixture."""
    if "source" not in part:
        return opener.prepared(expanded(str(part["path"]), f"data.mix.{name}.path"))
    own = {key: value for key, value in part.items() if key != "weight"}
    return opener.streamed(Recipe(**own, tokenizer=wanted.tokenizer, bos=wanted.bos, eos=wanted.eos))


def _tokenized(recipe: Recipe, opener: _Opener, tokenizer: Tokenizer | None = None) -> Corpus:
    """Return a corpus of local texts, tokenizing them into the cache if it does not hold this content.

    tokenizer: None: that of the recipe.
    """
    progress = opener.progress
    codec = tokenizer or open_tokenizer(recipe.tokenizer, recipe.bos, recipe.eos)
    files = find_files(recipe.source, recipe.path)
    with progress_bar("reading", sum(file.size for file in files), progress) as advance:
        documents = read_documents(files, advance)
    if not documents:
        rule = "must contain at least one text file that is not empty, hidden or binary"
        if any(is_prepared(path) for path in recipe.paths):
            rule += "; this is a folder of prepared shards: use data=prepared"
        raise DataError(f"data.path={str(recipe.path)!r}: {rule}")
    fingerprint = _fingerprint(documents, codec, opener.share)
    folder = cache_root(opener.cache_dir) / fingerprint

    def load(folder: Path) -> Corpus:
        return _load(folder, codec, opener, fingerprint)

    def build(folder: Path) -> None:
        _tokenize(folder, documents, codec, fingerprint, recipe, progress)

    return load_or_build(folder, load, build)


def _fingerprint(documents: list[Document], tokenizer: Tokenizer, share: str) -> str:
    """Return 32 hex digits that depend on everything that decides the tokens of both splits.

    The location of the files does not count.
    """
    digest = hashlib.sha256(f"{FORMAT_VERSION} {tokenizer.fingerprint} {share}".encode())
    for document in documents:
        digest.update(b"\0%s\0%d %s" % (os.fsencode(document.name), document.size, document.sha256.encode()))
    return digest.hexdigest()[:32]


def _tokenize(
    folder: Path,
    documents: list[Document],
    tokenizer: Tokenizer,
    fingerprint: str,
    recipe: Recipe,
    progress: bool,
) -> None:
    """Write the shard and meta.json into `folder`, with only a part of the text in memory at a time."""
    started, n_bytes = time.monotonic(), sum(document.size for document in documents)
    with (
        TokenStoreWriter(
            folder / SHARD_NAME, tokenizer.dtype, tokenizer.fingerprint, tokenizer.escaped
        ) as writer,
        progress_bar("tokenizing", n_bytes, progress) as advance,
    ):
        for document in documents:
            chunks = read_chunks(document, 0, document.size)
            if write_document(writer, tokenizer, chunks, str(document.path), advance) != document.sha256:
                rule = "changed while it was read; the file must not change until it is tokenized"
                raise DataError(f"data.path={str(document.path)!r}: {rule}")
    shard = Shard(SHARD_NAME, writer.n_documents, writer.n_tokens, writer.crc)
    save_tokenizer(folder, tokenizer)
    Manifest(fingerprint, recipe.as_dict(), tokenizer.as_meta(), [shard], {}).write(folder)
    if progress and not on_terminal():
        seconds = time.monotonic() - started
        line = f"tokenized {len(documents)} document(s), {n_bytes / 1e6:.1f} MB, in {seconds:.1f} s"
        print(line, file=sys.stderr, flush=True)


def _load(folder: Path, tokenizer: Tokenizer, opener: _Opener, fingerprint: str) -> Corpus:
    """Return the corpus in `folder`. Raises FileNotFoundError: no folder; DamagedStore: not complete."""
    if not folder.is_dir():
        raise FileNotFoundError(folder)
    manifest = Manifest.read(folder)
    if manifest.fingerprint != fingerprint:
        raise DamagedStore(f"{str(folder)!r}: the fingerprint in meta.json must be the folder's name")
    splits = opener.splits(folder, manifest, Checks.of_cached(folder) if opener.verify else None)
    return Corpus(tokenizer, _alone(splits, fingerprint), fingerprint, folder)


def _alone(splits: dict[str, Split], fingerprint: str) -> dict[str, list[Part]]:
    """Return the parts of a corpus with a single source."""
    return {name: [Part(splits[name], key=fingerprint)] for name in SPLITS}
