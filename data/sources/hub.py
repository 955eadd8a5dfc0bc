"""Datasets of the Hugging Face hub, read with the `datasets` library: streamed, or downloaded first."""

import hashlib
import os
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

from lhtrain.data.errors import DataError
from lhtrain.data.prepare.recipe import Recipe
from lhtrain.data.sources.documents import Skip, Text
from lhtrain.data.sources.filters import Filters
from lhtrain.data.sources.local import find_files
from lhtrain.data.sources.paths import stamp
from lhtrain.data.sources.rows import document_of
from lhtrain.data.sources.units import Item, Unit

ROWS = 1 << 16  # rows per unit in a downloaded dataset


def hub_units(recipe: Recipe) -> list[Unit]:
    """Return the units of a dataset: one per file if it is streamed, one per ROWS rows if it is downloaded.

    data.name may be a folder, such as a copy of a dataset's repository; then each item's stamp covers all
    files of the folder. Raises DataError as `load` does.
    """
    options = _options(recipe)
    mark = _folder_stamp(str(recipe.name))
    dataset = load(**options)
    name = f"{recipe.name}/{recipe.subset or 'default'}/{recipe.split}"
    if recipe.streaming:
        count = dataset.num_shards
        return [Unit("hub", (Item("", name, i, count, mark),), 0, options) for i in range(count)]
    total = dataset.num_rows
    return [
        Unit("hub", (Item("", name, i, min(i + ROWS, total), mark),), 0, options)
        for i in range(0, total, ROWS)
    ]


def read_hub(
    unit: Unit, column: str, filters: Filters, advance: Callable[[int], object]
) -> Iterator[Text | Skip]:
    """Yield the documents of a unit. `advance` is called with the length of each text in characters.

    Raises DataError: as `load` does; the network fails; a file of the folder changed.
    """
    dataset, [item] = load(**unit.options), unit.items  # type: ignore[arg-type]
    rows: Any
    if unit.options["streaming"]:
        rows = dataset.shard(num_shards=item.stop, index=item.start)
    else:
        rows = (dataset[i] for i in range(item.start, item.stop))
    try:
        for number, row in enumerate(rows):
            document = document_of(f"{item.name} file {item.start} row {number}", row, column, filters)
            yield document
            advance(document.size)
    except DataError:
        raise
    except Exception as error:  # fsspec, httpx, huggingface_hub and pyarrow each have their own classes
        _check_folder(unit)
        raise _explained(str(unit.options["name"]), error) from error
    _check_folder(unit)


def _check_folder(unit: Unit) -> None:
    name = str(unit.options["name"])
    if _folder_stamp(name) != unit.items[0].stamp:
        rule = "changed while it was prepared; it must not change until the end. Prepare it again"
        raise DataError(f"data.name={name!r}: {rule} into a new folder")


def _folder_stamp(name: str) -> str:
    """Return a hash of the names, sizes and modification times of a folder's files; "" for a hub dataset."""
    if not os.path.isdir(name):
        return ""
    files = [f"{file.name} {stamp(file.path)}" for file in find_files("text", name)]
    return hashlib.sha256("\n".join(files).encode("utf-8", "surrogateescape")).hexdigest()


@lru_cache(maxsize=1)
def load(name: str, subset: str | None, split: str, revision: str | None, streaming: bool) -> Any:
    """Open a dataset.

    Raises DataError, with the remedy: the package is missing, the hub cannot be reached, the dataset is gated
    or unknown, or it has no such subset or split.
    """
    try:
        import datasets
    except ImportError as error:
        rule = "needs the package `datasets`: pip install 'lhtrain[hf]'"
        raise DataError(f"data.source='hf': {rule}") from error
    try:
        return datasets.load_dataset(name, subset, split=split, revision=revision, streaming=streaming)
    except Exception as error:  # see read_hub
        raise _explained(name, error) from error


def commit_of(name: str, revision: str | None) -> str:
    """Return the commit of a dataset of the hub that a branch, a tag or None, the default branch, is now.

    Raises DataError as `load`.
    """
    import huggingface_hub

    try:
        return str(huggingface_hub.HfApi().dataset_info(name, revision=revision).sha)
    except Exception as error:  # see read_hub
        raise _explained(name, error) from error


def _options(recipe: Recipe) -> dict[str, object]:
    keys = ("name", "subset", "split", "revision", "streaming")
    return {key: getattr(recipe, key) for key in keys}


def _explained(name: str, error: Exception) -> DataError:
    """Return a DataError with a remedy, chosen by the class and the message of a library's error."""
    kinds = {kind.__name__ for kind in _causes(error)}
    text = " ".join(str(error).split())[:300]
    if "GatedRepoError" in kinds or "gated" in text.lower():
        rule = "is gated: accept its terms on its hub page, then run `hf auth login` or set HF_TOKEN"
    elif kinds & _OFFLINE or "Couldn't reach" in text or "offline" in text.lower():
        rule = (
            "the hub cannot be reached: check the network (and that HF_HUB_OFFLINE is not set), or prepare"
            " the data on a machine with network access, or download the files and use data=files"
        )
    elif kinds & _MISSING:
        rule = "is not a dataset of the hub, or is private: check data.name=OWNER/NAME, or set HF_TOKEN"
    elif "BuilderConfig" in text or "Config name is missing" in text:
        rule = "has several configurations: choose one with data.subset=NAME"
    elif "split" in text.lower():
        rule = "has no such split: set data.split=NAME"
    else:
        rule = "could not be read; finished shards are kept, the same command continues after them"
    return DataError(f"data.name={name!r}: {rule} ({type(error).__name__}: {text})")


_OFFLINE = {
    "OfflineModeIsEnabled",
    "ConnectionError",
    "ConnectError",
    "ConnectTimeout",
    "ReadTimeout",
    "LocalEntryNotFoundError",
    "ProxyError",
    "TimeoutError",
    "gaierror",
}
_MISSING = {"DatasetNotFoundError", "RepositoryNotFoundError", "HFValidationError", "RevisionNotFoundError"}


def _causes(error: BaseException | None) -> Iterator[type]:
    """Yield the classes of an error and of its causes, including their base classes."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield from type(error).__mro__
        error = error.__cause__ or error.__context__
