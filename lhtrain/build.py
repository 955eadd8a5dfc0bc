"""Builds the parts of a run, in a fixed order. The trainer and the benchmarks use the same functions."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from lhtrain import checkpoint
from lhtrain.attention.dense import FULL_ATTENTION, DenseAttention, pick_dense
from lhtrain.attention.flash4 import FA4_FROM
from lhtrain.attention.where import Attend
from lhtrain.compute.apply import apply
from lhtrain.compute.captured import is_captured, obstacle
from lhtrain.compute.cost import repeats
from lhtrain.compute.device import compute_dtype, describe, peak_flops
from lhtrain.compute.float8 import use_float8
from lhtrain.compute.graphs import GraphedPasses, Passes, graphs_for, plain_passes
from lhtrain.conf.schema import ComputeConfig, Config, CudaGraph, DocumentMode, PositionMode
from lhtrain.conf.stage_data import RUN
from lhtrain.data import Corpus, SequenceOrder
from lhtrain.data.order.pack import SPREAD
from lhtrain.distributed.mesh import Mesh
from lhtrain.distributed.world import World
from lhtrain.errors import RunError
from lhtrain.loader import Apart, Loader
from lhtrain.model.decoder import GPT, Block
from lhtrain.model.mup import width_ratio
from lhtrain.model.optimizer import Optimizer, build_optimizer
from lhtrain.model.rope import Rope
from lhtrain.progress import Progress
from lhtrain.registry import ATTENTIONS, SCORERS
from lhtrain.report.events import Events
from lhtrain.report.reporter import Reporter
from lhtrain.runs.changes import as_container
from lhtrain.runs.run_dir import RunDir
from lhtrain.stage import Stage, always_frozen, coarsest_window, stages_of
from lhtrain.stage_data import StageData, open_data, orders_of, stage_fingerprints
from lhtrain.text import counted

# Shares of the positions that are padding, from which a run warns.
MUCH_BY_ALIGNMENT, MUCH_BY_PACKING = 0.05, 0.02
FEW_PAIRS = 0.1  # of the pairs of tokens of a sequence; ten documents of equal length leave this share
FEW_BLOCKS = 100  # so few sequences may have much padding with any packing


@dataclass
class Engine:
    """The model of a run, sharded and initialized, its optimizer, and the attention of each stage.

    attention: stage name -> the attention of its layers. dense: the attention of dense_layers. sliding: that
    of sliding layers, if there are any. Each is one object for the whole run, because the compiler compiles
    again for another object. graphs: runs the passes of a micro-batch as CUDA graphs; None: they run plainly.
    """

    stages: dict[str, Stage]
    dtype: torch.dtype
    mesh: Mesh
    model: GPT
    optimizer: Optimizer
    attention: dict[str, Attend]
    dense: Attend
    sliding: Attend | None
    graphs: GraphedPasses | None = None

    def enter(self, stage: Stage) -> None:
        """Set the attention of the model's layers, the rotary embedding and what is trained as in `stage`."""
        self.mesh.freeze(self.model, stage.frozen)
        self.model.attend_with(self.attention[stage.name], self.dense, stage.dense_layers, self.sliding)
        self.model.rope = Rope(stage.rope_theta, stage.rope_scaling, stage.seq_len)
        if self.graphs is not None:
            self.graphs.enter(stage.name)

    @property
    def passes(self) -> Passes:
        """The forward and backward pass of a micro-batch, for `step.update`."""
        return plain_passes if self.graphs is None else self.graphs


@dataclass
class Data:
    """The data of a run. notes: warnings about them."""

    corpus: Corpus
    loader: Loader
    validation: SequenceOrder
    notes: list[str]
    stages: StageData = field(default_factory=StageData)

    @property
    def fingerprints(self) -> dict[str, str]:
        """The fingerprints of the data of the run and of stages with their own, by the settings."""
        return {"data": self.corpus.fingerprint} | self.stages.fingerprints

    def enter(self, stage: Stage, progress: Progress) -> None:
        """Let the loader read the data of `stage` from now on, and note in `progress` where they begin."""
        self.stages.continue_streams(progress)
        order, progress.data = self.stages.enter(stage.name, progress.data, progress.position)
        self.loader.use(order)

    def progress_to_save(self, progress: Progress) -> dict[str, Any]:
        """Return the progress for a checkpoint, with the places of data tokenized during training."""
        return progress.as_dict() | {"streams": self.stages.marks(progress.data, progress.position)}

    def as_state(self, progress: Progress) -> dict[str, Any]:
        """Return what a checkpoint keeps of the data, besides the progress."""
        return {
            "data": self.corpus.fingerprint,
            "stage_data": self.stages.fingerprints,
            "blocks_read": self.stages.blocks_read(progress.data, progress.position),
            "tokenizer": self.corpus.tokenizer.as_meta(),
        }

    def attended(self, stage: Stage) -> float:
        """Return the share of pairs of tokens of a sequence that full attention computes."""
        if self.loader.apart is None:
            return 1.0
        return self.stages.order_of(stage.name).share_of_pairs(stage.seq_len)


def build(config: Config, world: World) -> tuple[Data, Engine]:
    """Build all parts of a run of a filled configuration, on this rank. Raises as the functions below."""
    mesh = Mesh(config.parallel, config.model, config.lighthouse.selection, world)
    data = build_data(config, mesh)  # first, so that errors in the data show before the slow model build
    engine = build_engine(config, mesh)
    data.notes.extend(_graph_notes(config.compute, world.size, world.device.type == "cuda"))
    return data, engine


def _graph_notes(compute: ComputeConfig, n_ranks: int, on_gpu: bool) -> list[str]:
    """Return a warning if the user wants CUDA graphs in a run that cannot have them."""
    why = obstacle(compute, n_ranks, on_gpu)
    if why is None or compute.cuda_graph is not CudaGraph.on:
        return []
    return [f"compute.cuda_graph=on: {why}, so no CUDA graphs are used"]


def build_engine(config: Config, mesh: Mesh) -> Engine:
    """Build the model of a filled configuration with its initial weights, ready to train.

    Raises RunError if the device does not support the configuration.
    """
    compute, device, stages = config.compute, mesh.world.device, stages_of(config)
    dtype = compute_dtype(compute.precision, device)

    # The model without memory, then changed step by step; the order matters.
    with torch.device("meta"):
        model = GPT(config.model, dtype)
        add_scorers(model, stages)  # only scorers that have parameters
    if compute.float8:
        use_float8(model, device)  # replaces linear layers
    apply(model, compute, device)  # recomputes, offloads and compiles blocks
    mesh.shard(model)  # wraps each block in FSDP; a rank keeps its part of the weights
    # Allocates memory on the device and draws the initial weights.
    mesh.initialize(model, config.run.seed, width_ratio(config.optim, config.model))

    mesh.freeze(model, always_frozen(config))  # no stage trains them: they need no state
    optimizer = build_optimizer(model, config.optim)
    backend = config.lighthouse.backend
    kinds = {name: ATTENTIONS[stage.attention].of(stage, backend) for name, stage in stages.items()}
    if config.data.documents is DocumentMode.apart:
        _check_apart(kinds, stages)
    full = full_attention(config, stages, dtype, mesh.world)
    kinds = {name: full if attend is FULL_ATTENTION else attend for name, attend in kinds.items()}
    attention = {name: mesh.attention(attend) for name, attend in kinds.items()}
    dense = mesh.attention(full)
    sliding = None if model.sliding is None else mesh.attention(model.sliding)
    graphs = graphs_for(model, compute, mesh.world.size, device)
    return Engine(stages, dtype, mesh, model, optimizer, attention, dense, sliding, graphs)


def full_attention(
    config: Config, stages: Mapping[str, Stage], dtype: torch.dtype, world: World
) -> DenseAttention:
    """Return the full attention of all stages.

    FlashAttention-4 has the fastest kernels for short sequences too, but needs the host for so long that only
    a CUDA graph gains by them.
    """
    compute, on_gpu = config.compute, world.device.type == "cuda"
    short = [stage for stage in stages.values() if stage.seq_len < FA4_FROM]
    # The kernel for sequences that are long enough to hide the time of the host.
    picked, _ = pick_dense(FA4_FROM, config.model.head_dim, dtype, world.device)
    if picked == "fa4" and short and all(is_captured(stage, compute, world.size, on_gpu) for stage in short):
        return DenseAttention("fa4")
    return FULL_ATTENTION


def add_scorers(model: GPT, stages: Mapping[str, Stage]) -> None:
    """Add a scorer to every Lighthouse layer, if a stage names a scorer that has parameters.

    Such a scorer is a module, built from the model's configuration. The layer keeps it in stages with full
    attention too; `lhtrain export` drops it.
    """
    for stage in stages.values():
        scorer = SCORERS[stage.scorer] if stage.pyramid is not None else None
        if isinstance(scorer, type) and issubclass(scorer, nn.Module):
            for block in model.blocks:
                assert isinstance(block, Block)
                others = model.sliding_layers.union(stage.dense_layers)
                if block.number not in others and block.attention.scorer is None:
                    block.attention.scorer = scorer(model.config)


def _check_apart(kinds: Mapping[str, Attend], stages: Mapping[str, Stage]) -> None:
    """Raise RunError if the attention of a stage does not keep documents apart."""
    for name, attend in kinds.items():
        if not getattr(attend, "keeps_documents", False):
            rule = f"attention={stages[name].attention} of stages.{name} does not keep documents apart"
            raise RunError(f"data.documents=apart: {rule}; set data.documents=together")


def build_data(config: Config, mesh: Mesh) -> Data:
    """Open the corpus, and build the order in which this rank reads it.

    Raises:
        DataError: the data cannot be read.
        Disagreement: ranks have different data.
    """
    world = mesh.world
    with world.first_of_each_machine():  # one rank tokenizes or verifies, and the others wait for it
        corpora = open_data(config)
    corpus = corpora[RUN]
    mine = {"data": corpus.fingerprint, "tokenizer": corpus.tokenizer.fingerprint}
    world.agree(mine | stage_fingerprints(corpora))
    lengths, alignment, apart = {stage.seq_len for stage in config.stages.values()}, None, None
    if config.data.documents is DocumentMode.apart:
        alignment = coarsest_window(stages_of(config).values())
    stages = orders_of(config, corpora, alignment)
    orders = list(stages.orders.values())
    # Always spread, so that validation losses of runs with either packing are of the same sequences.
    key = "data" if config.data.val_path is None else "data.val_path"
    validation = SequenceOrder(corpus.parts["val"], lengths, seed=0, alignment=alignment, key=key)
    if alignment is not None:
        restarted = config.data.positions is PositionMode.restarted
        apart = Apart.of([*orders, validation], lengths, restarted)
    loader = Loader(orders[0], corpus.tokenizer.eos, world.device, mesh.slice, apart)
    planned = stages.planned(stages_of(config).values())
    many = repeats({name: read["epochs"] for name, read in planned.items()}, stages.tokens_of)
    notes = ({many: None} if many else {}) | _copies_notes(config, corpora)
    notes |= dict.fromkeys(note for order in orders for note in [*order.notes, *_padding_notes(order)])
    if alignment is not None:
        notes |= dict.fromkeys(_short_documents(config, stages))
    return Data(corpus, loader, validation, list(notes), stages)


def _copies_notes(config: Config, corpora: Mapping[str, Corpus]) -> dict[str, None]:
    """Return a warning if documents of data.val_path are also trained on."""
    copies = max(one.copies for one in corpora.values())
    if not copies:
        return {}
    of = f"{copies:,} of {corpora[RUN].val.n_documents:,} validation documents"
    why = "so the validation loss is lower than for new texts; remove them from one of the two"
    return {f"data.val_path={config.data.val_path}: {of} are also trained on, {why}": None}


def _short_documents(config: Config, data: StageData) -> list[str]:
    """Return a warning for each order whose documents, kept apart, use little of its longest sequences."""
    notes = []
    for owner, order in data.orders.items():
        mine = [stage for name, stage in config.stages.items() if data.owners.get(name, RUN) == owner]
        lengths = [stage.seq_len for stage in mine]
        if not lengths or (share := order.share_of_pairs(max(lengths))) >= FEW_PAIRS:
            continue
        reach = f"a token attends to {share * max(lengths) / 2:,.0f} earlier tokens on average"
        remedy = "train on longer documents, with a shorter seq_len, or with data.documents=together"
        notes.append(
            f"{order.key}: the documents are short for seq_len={max(lengths)}: the longest has "
            f"{counted(order.longest_document, 'token')}, and with data.documents=apart {reach}; {remedy}"
        )
    return notes


def _padding_notes(order: SequenceOrder) -> list[str]:
    """Return warnings if much of the sequences is padding, each with its cause."""
    notes, aligned = [], order.padding_by_alignment
    if aligned >= MUCH_BY_ALIGNMENT:
        why = f"each document begins at a multiple of {order.alignment}, the coarsest Lighthouse window"
        remedy = "a smaller lighthouse.pooling or lighthouse.levels needs less"
        notes.append(
            f"data.documents=apart: {aligned:.0%} of the positions are padding, because {why}; {remedy}"
        )
    left = order.padding - aligned
    if order.packing == SPREAD and left >= MUCH_BY_PACKING and order.n_blocks >= FEW_BLOCKS:
        remedy = "data.packing=best_fit leaves less, and may cut a few documents"
        notes.append(f"data.packing=spread: {left:.1%} of the positions are padding; {remedy}")
    return notes


def build_events(config: Config, run_dir: RunDir, progress: Progress, data: Data, engine: Engine) -> Events:
    """Build the receiver of events: terminal, files and trackers on the first rank, nothing on others."""
    world = engine.mesh.world
    if not world.is_main:
        return Events()
    per_token = data.corpus.bytes_per_token()
    about = {
        "data": data.corpus.fingerprint,
        "bytes_per_token": per_token,
        **engine.model.parameters_by_kind(),
        "ranks": world.size,
    }
    reporter = Reporter(
        config,
        run_dir,
        progress,
        peak_flops(world.device),
        describe(world.device) | about,
        settings=as_container(config),
        has_checkpoint=lambda: checkpoint.complete(run_dir.checkpoints),
        bytes_per_token=per_token,
        sources=lambda progress: data.stages.sources(progress.data, progress.position),
    )
    if engine.graphs is not None:
        engine.graphs.say = reporter.say
    return reporter
