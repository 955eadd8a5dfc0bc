"""Opens the texts of an evaluation."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from lhtrain.conf.schema import DataConfig
from lhtrain.data import Corpus, DataError, Tokenizer, open_corpus
from lhtrain.data.sources.local import is_prepared
from lhtrain.evaluation.texts import Texts

VALIDATION = "validation documents"


def validation_texts(corpus: Corpus, seed: int) -> Texts:
    """Return the documents of a corpus that are not trained on."""
    return Texts(corpus.tokenizer, [part.split for part in corpus.parts["val"]], seed, VALIDATION)


def own_texts(path: Any, tokenizer: Tokenizer, data: Mapping[str, Any], seed: int) -> Texts:
    """Return all documents of `path`, in tokens of `tokenizer`.

    Args:
        path: files as data.path of data=text, or a prepared folder; None: the standard library of Python.
        tokenizer: of the model.
        data: the keys of `data` with which the model was trained; only cache_dir and verify are used.

    Raises:
        DataError: the files cannot be read, or a prepared folder has another tokenizer.
    """
    kept = {key: data[key] for key in ("cache_dir", "verify") if key in data}
    if isinstance(path, str) and is_prepared(path):
        corpus = open_corpus("prepared", path, **kept)
    else:
        name, of_file = tokenizer.name, tokenizer.name.lower().endswith(".json")
        eos = str(tokenizer.eos) if of_file else None
        source = "stdlib" if path is None else "text"
        bos = tokenizer.bos is not None
        corpus = open_corpus(source, path, name, bos=bos, eos=eos, column="text", **kept)
    if corpus.tokenizer.fingerprint != tokenizer.fingerprint:
        rule = f"was prepared with {corpus.tokenizer.name}; the model needs tokens of {tokenizer.name}"
        raise DataError(f"eval.data={path!r}: {rule}")
    splits = [part.split for name in ("train", "val") for part in corpus.parts[name]]
    name = "the standard library of Python" if path is None else str(path)
    return Texts(tokenizer, splits, seed, name)


def trained_texts(data: Mapping[str, Any], seed: int) -> tuple[Texts, str]:
    """Return the validation documents of the data that a run has trained on, and the data's fingerprint.

    data: the keys of `data`; those of other versions are ignored. Raises DataError.
    """
    known = {field.name for field in fields(DataConfig)}
    corpus = open_corpus(**{key: value for key, value in data.items() if key in known})
    return validation_texts(corpus, seed), corpus.fingerprint
