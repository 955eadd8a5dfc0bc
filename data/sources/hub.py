"""Datasets of the Hugging Face hub, through the `datasets` library: streamed, or downloaded first."""

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

ROWS = 1 << 16  # of a downloaded dataset, in a unit


def hub_units(recipe: Recipe) -> list[Unit]:
    """Streamed: a unit for each of the dataset's files. Downloaded: one for every ROWS rows.

    data.name may be a folder, such as a copy of a dataset's repository: its items have the stamp of all of
    its files. Raises DataError as `load` does.
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
    """The documents of a unit; `advance` is called with the length of their texts.

    Raises DataError as `load` does, where the network fails half-way, and where a folder's files changed.
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
    except Exception as error:  # fsspec, httpx, huggingface_hub and pyarrow each have their own
        _check_folder(unit)
        raise _explained(str(unit.options["name"]), error) from error
    _check_folder(unit)


def _check_folder(unit: Unit) -> None:
    name = str(unit.options["name"])
    if _folder_stamp(name) != unit.items[0].stamp:
        rule = "changed while it was prepared; it must stay as it is, until the end. Prepare it again"
        raise DataError(f"data.name={name!r}: {rule} into a new folder")


def _folder_stamp(name: str) -> str:
    """Of the names, sizes and times of change of a folder's files; "" for a dataset of the hub."""
    if not os.path.isdir(name):
        return ""
    files = [f"{file.name} {stamp(file.path)}" for file in find_files("text", name)]
    return hashlib.sha256("\n".join(files).encode("utf-8", "surrogateescape")).hexdigest()


@lru_cache(maxsize=1)
def load(name: str, subset: str | None, split: str, revision: str | None, streaming: bool) -> Any:
    """The dataset. Raises DataError: the package missing, no network, a gated or unknown dataset, a subset or
    split that it does not have; each with what to do."""
    try:
        import datasets
    except ImportError as error:
        rule = "needs the package: pip install 'lhtrain[hf]'"
        raise DataError(f"data.source='hf': {rule}") from error
    try:
        return datasets.load_dataset(name, subset, split=split, revision=revision, streaming=streaming)
    except Exception as error:  # see read_hub
        raise _explained(name, error) from error


def _options(recipe: Recipe) -> dict[str, object]:
    keys = ("name", "subset", "split", "revision", "streaming")
    return {key: getattr(recipe, key) for key in keys}


def _explained(name: str, error: Exception) -> DataError:
    """The remedy, by what the libraries' errors are called and say."""
    kinds = {kind.__name__ for kind in _causes(error)}
    said = " ".join(str(error).split())[:300]
    if "GatedRepoError" in kinds or "gated" in said.lower():
        rule = "is gated: accept its terms on its page on the hub, then `hf auth login` or set HF_TOKEN"
    elif kinds & _OFFLINE or "Couldn't reach" in said or "offline" in said.lower():
        rule = (
            "the hub cannot be reached: check the network (and that HF_HUB_OFFLINE is not set), or"
            " prepare the data on a machine that reaches it, or download the files and use data=files"
        )
    elif kinds & _MISSING:
        rule = "is no dataset of the hub, or a private one: check data.name=OWNER/NAME, or set HF_TOKEN"
    elif "BuilderConfig" in said or "Config name is missing" in said:
        rule = "needs one of its configurations: data.subset=NAME"
    elif "split" in said.lower():
        rule = "has no such split: data.split=NAME"
    else:
        rule = "could not be read; finished shards stay, the same command goes on"
    return DataError(f"data.name={name!r}: {rule} ({type(error).__name__}: {said})")


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
    """The classes of an error and of what caused it, with their bases."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield from type(error).__mro__
        error = error.__cause__ or error.__context__
