"""The training data of each stage: what they are, their order, and where they continue at a switch."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import count
from typing import Any

from lhtrain.conf.schema import Config, DataConfig
from lhtrain.conf.stage_data import RUN, data_of, owners
from lhtrain.data import Corpus, DataError, SequenceOrder, open_corpus
from lhtrain.data.order.pool import StreamPool
from lhtrain.data.order.sequences import Packed, source_of
from lhtrain.progress import DataPart, Progress
from lhtrain.stage import Stage


@dataclass
class StageData:
    """The corpora and orders of a run by their owner: RUN, or the first stage that has these data.

    owners: stage -> owner of its data.
    orders: those in which a part of the run reads the data, from its beginning. A source that occurs in
        several of them is shuffled in the same way in all.
    names: key of a source -> its name for users: that in its mixture, the name of its folder, or its kind.
    """

    owners: Mapping[str, str] = field(default_factory=dict)
    corpora: Mapping[str, Corpus] = field(default_factory=dict)
    orders: Mapping[str, SequenceOrder] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def _sizes(self) -> dict[str, tuple[int, int]]:
        """For each pool of all orders the blocks and the tokens of an epoch."""
        return {key: size for order in self.orders.values() for key, size in order.sizes().items()}

    @cached_property
    def _streamed(self) -> dict[str, StreamPool]:
        """The pools of sources that are tokenized during training."""
        return {pool.key: pool for order in self.orders.values() for pool in order.streamed}

    def marks(self, part: DataPart, position: int) -> dict[str, dict[str, Any]]:
        """Return where the sources are that are tokenized during training, for `continue_streams`."""
        read = self.blocks_read(part, position) if self._streamed else {}
        return {key: pool.mark(read.get(key, 0)) for key, pool in self._streamed.items()}

    def continue_streams(self, progress: Progress) -> None:
        """Let these sources continue where they were when the progress was saved."""
        read = self.blocks_read(progress.data, progress.position) if self._streamed else {}
        for key, pool in self._streamed.items():
            if key in progress.streams:
                pool.resume(progress.streams[key], read.get(key, 0))

    def sources(self, part: DataPart, position: int) -> dict[str, dict[str, float]]:
        """Return for each source the tokens that are read before `position`, and in how many epochs.

        Blocks count as whole ones with the mean number of tokens. A source that no stage has read yet is left
        out.
        """
        read = self.blocks_read(part, position)
        seen: dict[str, float] = {}
        of_streams: dict[str, dict[str, float]] = {}
        for pool, (n_blocks, n_tokens) in self._sizes.items():
            if stream := self._streamed.get(pool):
                tokens, epochs = stream.seen(read.get(pool, 0))
                found = {"tokens": tokens, "epochs": round(epochs, 4)}
                of_streams |= {self.names[source_of(pool)]: found} if tokens else {}
                continue
            name = self.names[source_of(pool)]
            seen[name] = seen.get(name, 0) + n_tokens * read.get(pool, 0) / n_blocks
        return of_streams | {
            name: {"tokens": round(tokens), "epochs": round(tokens / self.tokens_of[name], 4)}
            for name, tokens in seen.items()
            if tokens
        }

    @cached_property
    def tokens_of(self) -> dict[str, int]:
        """The tokens of an epoch of each source."""
        whole: dict[str, int] = {}
        for pool, (_, n_tokens) in self._sizes.items():
            name = self.names[source_of(pool)]
            whole[name] = whole.get(name, 0) + n_tokens
        return whole

    def planned(self, stages: Iterable[Stage]) -> dict[str, dict[str, float]]:
        """Return `sources` at the end of a run that trains these stages from the beginning of the data.

        Sources that are tokenized during training are left out: nobody knows how many tokens they have.
        """
        part, position = DataPart(), 0
        for stage in stages:
            order, part = self.enter(stage.name, part, position)
            position = order.align(position, stage.seq_len) + stage.steps * stage.batch_tokens
        streams = {self.names[source_of(key)] for key in self._streamed}
        found = self.sources(part, position)
        return {name: read for name, read in found.items() if name not in streams}

    @property
    def fingerprints(self) -> dict[str, str]:
        """As `stage_fingerprints`."""
        return stage_fingerprints(self.corpora)

    def order_of(self, stage: str) -> SequenceOrder:
        return self.orders[self.owners.get(stage, RUN)]

    def enter(self, stage: str, part: DataPart, position: int) -> tuple[SequenceOrder, DataPart]:
        """Return the order in which a stage reads from `position` on, and the part of the run that it is in.

        part: that of the steps before. It continues if the stage has the same data. Otherwise a new one
        begins, in which each source continues with the block after those that were read.
        """
        owner = self.owners.get(stage, RUN)
        if part.owner != owner:
            part = DataPart(owner, position, self.blocks_read(part, position))
        return self.orders[owner].starting(part.begin, part.read), part

    def blocks_read(self, part: DataPart, position: int) -> dict[str, int]:
        """Return how many blocks of each source are read before `position`, which is in `part`."""
        order = self.orders.get(part.owner)  # None: a stage that the run had before its settings were changed
        here = {} if order is None else order.starting(part.begin, part.read).blocks_read(position)
        return {**part.read, **here}


def open_data(config: Config) -> dict[str, Corpus]:
    """Open the data of the run and of the stages that have their own; returns owner -> corpus.

    Raises DataError: the data cannot be read, or data of a stage have another tokenizer than the run.
    """
    run, opened = open_corpus(**asdict(config.data)), {}
    corpora = {RUN: run}
    opened[_text_of(config.data)] = run
    for name, owner in owners(config).items():
        if owner != name:
            continue
        key, settings = f"stages.{name}.data", data_of(config.data, config.stages[name].data)
        try:
            corpus = opened.get(_text_of(settings)) or open_corpus(**asdict(settings))
        except DataError as error:
            raise DataError(f"{key}: {error}") from error
        if corpus.tokenizer.fingerprint != run.tokenizer.fingerprint:
            rule = (
                f"must have the tokenizer of the run, {run.tokenizer.described}; prepare them with that one"
            )
            raise DataError(f"{key}: the data were prepared with {corpus.tokenizer.described}; they {rule}")
        opened[_text_of(settings)] = corpora[name] = corpus
    return corpora


def stage_fingerprints(corpora: Mapping[str, Corpus]) -> dict[str, str]:
    """Return the fingerprints of the data that stages have of their own, by their keys, stages.NAME.data."""
    return {f"stages.{owner}.data": one.fingerprint for owner, one in corpora.items() if owner != RUN}


def _text_of(data: Any) -> str:
    """Return the settings that decide the tokens of the data; the order is no part of them."""
    order = ("long_fraction", "bucket_weights")
    return repr({key: value for key, value in asdict(data).items() if key not in order})


def orders_of(config: Config, corpora: Mapping[str, Corpus], alignment: int | None) -> StageData:
    """Return the data of all stages, in orders with the lengths of all stages. Raises as SequenceOrder.

    alignment: see SequenceOrder.
    """
    lengths = {stage.seq_len for stage in config.stages.values()}
    settings = {
        owner: config.data if owner == RUN else data_of(config.data, config.stages[owner].data)
        for owner in corpora
    }
    # If one stage counts long and short blocks separately, all stages must, to know what it has read.
    by_kind = any(data.long_fraction is not None for data in settings.values())
    packed: Packed = {}
    orders = {
        owner: SequenceOrder(
            corpus.parts["train"],
            lengths,
            config.run.seed,
            settings[owner].long_fraction,
            alignment,
            by_kind=by_kind,
            packed=packed,
            key="data" if owner == RUN else f"stages.{owner}.data",
            packing=config.data.packing.value,
            buckets=config.data.buckets,
            bucket_weights=settings[owner].bucket_weights,
        )
        for owner, corpus in corpora.items()
    }
    return StageData(owners(config), corpora, orders, names_of(settings, corpora))


def names_of(settings: Mapping[str, DataConfig], corpora: Mapping[str, Corpus]) -> dict[str, str]:
    """Return the names of all sources by their keys. Sources with the same name get a number."""
    names: dict[str, str] = {}
    for owner, corpus in corpora.items():
        data = settings[owner]
        folder = os.path.basename(os.path.normpath(data.path)) if isinstance(data.path, str) else ""
        for part in corpus.parts["train"]:
            name = part.name or folder or data.name or data.source
            others = [other for key, other in names.items() if key != part.key]
            unique = (name if number == 1 else f"{name} ({number})" for number in count(1))
            names.setdefault(part.key, next(one for one in unique if one not in others))
    return names
