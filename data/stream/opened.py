"""Opening a source for data.prepare=during: its first portion, and the documents for validation."""

import os
import re

import numpy as np

from lhtrain.data.errors import DataError
from lhtrain.data.prepare.plan import make_plan, plan_fingerprint
from lhtrain.data.prepare.recipe import Recipe
from lhtrain.data.prepare.split import Split, split_documents
from lhtrain.data.progress import Meter
from lhtrain.data.sources.hub import commit_of
from lhtrain.data.store.cache import cache_root
from lhtrain.data.store.checks import Checks
from lhtrain.data.stream.job import Job
from lhtrain.data.stream.portions import Stream
from lhtrain.data.tokenizers.base import Tokenizer
from lhtrain.data.tokenizers.named import open_tokenizer

DURING = "during"  # a value of data.prepare
AHEAD = 2  # portions that are tokenized before they are needed


def open_stream(
    recipe: Recipe,
    val_fraction: float | None,
    n_tokens: int,
    keep_gb: float,
    workers: int | None,
    cache_dir: str | os.PathLike | None,
    verify: bool,
    progress: bool,
) -> tuple[Stream, Tokenizer, dict[str, Split], str]:
    """Tokenize the first portion of a source; return the stream, the tokenizer, the splits and a fingerprint.

    The validation documents are chosen from the first portion, by `split_documents`. All other documents
    are trained on, apart from copies of the validation documents.

    Args:
        val_fraction: share of the first portion for validation; None: both splits have all of it.
        n_tokens: least number of tokens of a portion.
        keep_gb: gigabytes of the cache for the shards of this source.

    Raises DataError: as `make_plan`, or the first portion has too few documents for two splits.
    """
    _check_fixed(recipe)
    tokenizer = open_tokenizer(recipe.tokenizer, recipe.bos, recipe.eos)
    units = tuple(make_plan(recipe))
    plan = plan_fingerprint(recipe, tokenizer.fingerprint, units)
    folder = cache_root(cache_dir) / f"during_{plan}"
    ahead = AHEAD * n_tokens * tokenizer.dtype.itemsize
    try:
        job = Job(folder, recipe, units, int(keep_gb * 1e9), ahead)
        stream = Stream(job, tokenizer, n_tokens, workers, Checks.of_cached(folder) if verify else None)
    except OSError as error:
        rule = f"must be a folder that can be written ({error.strerror or error})"
        raise DataError(f"data.cache_dir={str(folder.parent)!r}: {rule}") from error
    with Meter(0, n_tokens, progress) as meter:
        _, first = stream.portion(0, lambda count: meter.advance(0, count))
    splits = _splits(first, val_fraction, recipe)
    if val_fraction is not None:
        stream.excluded = _hashes(splits["val"])
    identity = f"{plan} during {n_tokens} {val_fraction}"
    return stream, tokenizer, splits, identity


def _splits(first: Split, val_fraction: float | None, recipe: Recipe) -> dict[str, Split]:
    hashes = np.concatenate([store.hashes for store in first.stores])
    if val_fraction is not None and len(hashes) and (hashes == hashes[0]).all():
        rule = "the first portion has a single document, and data.prepare=during validates on whole ones"
        source = f"data.name={recipe.name!r}" if recipe.source == "hf" else f"data.path={recipe.path!r}"
        raise DataError(f"{source}: {rule}; set data.val_path, or a larger data.portion")
    return split_documents(first.stores, val_fraction)


def _hashes(documents: Split) -> np.ndarray:
    """Return the hashes of the texts of documents, uint64, each once."""
    found = [np.empty(0, np.uint64)]
    for store, base in zip(documents.stores, documents.bases[:-1].tolist(), strict=True):
        found.append(store.hashes[np.isin(store.offsets[:-1] + base, documents.starts)])
    return np.unique(np.concatenate(found))


def _check_fixed(recipe: Recipe) -> None:
    """Raise DataError if a later start of the run could find another version of a dataset of the hub."""
    name, revision = str(recipe.name), recipe.revision
    if recipe.source != "hf" or os.path.isdir(name) or re.fullmatch("[0-9a-f]{40}", revision or ""):
        return
    rule = "data.prepare=during needs a commit, so that a resumed run reads the same files"
    now = commit_of(name, revision)
    raise DataError(f"data.revision={revision or 'null'}: {rule}; that of now is data.revision={now}")
