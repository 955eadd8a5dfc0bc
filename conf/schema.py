"""Every key of the configuration, with its type, bounds, default and meaning. Rules between keys: rules/.

Each group of keys is a class, with the choices of its keys before it; `Config` at the end has all groups.

The comment above or behind a key is its meaning. `lhtrain help KEY` prints it; scripts/settings_reference.py
writes it to docs/settings.md. Presets, the YAML files in the folders beside this file, set other values.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import Annotated, Any

from omegaconf import II, MISSING

from lhtrain.conf.bounds import (
    above,
    at_least,
    at_most,
    below,
    between,
    not_negative,
    one_of,
    positive,
    seconds_or_null,
)
from lhtrain.registry import ATTENTIONS, BACKENDS, OPTIMIZERS, SCORERS, TRACKERS

Count = Annotated[int, at_least(1)]
Size = Annotated[int, at_least(1, most=2**24)]  # rows or columns of a matrix
Positive = Annotated[float, positive()]
Fraction = Annotated[float, between(0, 1)]
Limit = Annotated[float | None, seconds_or_null()]
# A little above the smallest normal float32. GPUs round smaller numbers to 0.
Eps = Annotated[float, positive(1e-37, "GPUs round smaller numbers to 0, and 0 / 0 is not a number")]
MOST_TOKENS = 2**48


@dataclass
class ModelConfig:
    """The shape of the model, a Llama-style decoder."""

    name: str = MISSING  # name of this shape; the default run.name contains it
    seq_len: Count = MISSING  # tokens in a training sequence; a stage may have its own length
    # rows of the embedding; by default the tokenizer's vocabulary size, rounded up to a multiple of 64
    vocab_size: Annotated[int, at_most(2**31 - 1)] = II("tokenizer_vocab:${data.tokenizer}")
    dim: Size = MISSING  # width of the residual stream
    # number of blocks; each has attention and a SwiGLU
    n_layers: Annotated[int, at_least(1, most=2**16)] = MISSING
    n_heads: Size = MISSING  # number of query heads
    # number of key and value heads; fewer than n_heads: grouped-query attention
    n_kv_heads: Size = II(".n_heads")
    # width of a head, an even number; by default dim / n_heads. Ring attention on GPUs needs a multiple of 8
    head_dim: Size = II("div:${.dim},${.n_heads}")
    ffn_dim: Size = MISSING  # hidden size of the SwiGLU
    # base of the rotary position embedding; longer contexts need a larger one, see docs/stages.md. Presets
    # write ${fit_rope:BASE,SEQ_LEN}: the base BASE, or a larger one that fits SEQ_LEN tokens, with
    # rope_scaling if that is set
    rope_theta: Positive = 10_000.0
    # how the rotary embedding of a model for shorter sequences is stretched: a mapping as in config.json of
    # Hugging Face models, such as {rope_type: yarn, factor: 4, original_max_position_embeddings: 32768};
    # rope_type is linear, dynamic, llama3 or yarn; null: not at all
    rope_scaling: Any = None
    qkv_bias: bool = False  # add biases to queries, keys and values, as Qwen2 does
    # normalize each head of queries and keys before the rotary embedding, as Qwen3 does
    qk_norm: bool = False
    norm_eps: Eps = 1e-5  # added to the mean square in RMSNorm
    tie_embeddings: bool = False  # use the embedding matrix as the output projection too
    # layers with full attention in all stages, counted from 0; -1 is the last
    dense_layers: list[int] = field(default_factory=list)
    # number of tokens up to each position, itself included, to which some layers attend in all stages, also
    # in Lighthouse stages; the other layers are global. null: all layers are global
    sliding_window: Annotated[int | None, at_least(1, MOST_TOKENS, ", or null")] = None
    # every n-th layer is global and the others attend to the sliding window: 6 as in Gemma 3, 4 as in OLMo 3,
    # 2 as in gpt-oss; null: sliding_layers names them
    sliding_window_pattern: Annotated[int | None, at_least(2, 2**16, ", or null")] = None
    # layers that attend to the sliding window, counted from 0, -1 is the last; []: sliding_window_pattern
    # tells
    sliding_layers: list[int] = field(default_factory=list)
    # standard deviation of the initial weights; for output projections divided by sqrt(2 * n_layers)
    init_std: Positive = 0.02


class Queries(Enum):
    """What attends to the rows that a Lighthouse layer selects."""

    pooled = "pooled"  # queries that are pooled as keys are, as published
    own = "own"  # the query of each position


class Selection(Enum):
    """How Lighthouse layers select entries if several ranks share a sequence."""

    exact = "exact"  # the same entries as on a single rank
    # as published: each chunk of the sequence is selected from on its own, and no output crosses a chunk
    # border
    local = "local"


@dataclass
class LighthouseConfig:
    """The Lighthouse layer (arXiv:2605.06554). A stage can override most of these keys for itself."""

    # number of levels of the pyramid (L), at least 2
    levels: Annotated[int, at_most(64)] = 3
    # number of entries that are pooled into one entry of the next level (p); a power of two, at least 2
    pooling: Annotated[int, at_most(2**20)] = 4
    # number of entries per level that are expanded (k), a multiple of lighthouse.tile; null: seq_len / 64,
    # rounded up to a multiple of 128
    budget: Annotated[int | None, at_most(2**31 - 1)] = None
    # how entries are ranked for selection; norm: by their l2 norm; dilated: by the norm of attention to every
    # fourth token; gla: by the norm of gated linear attention; position: by a fixed pseudo-random number for
    # each position and head; recent: the last entries of a tile first
    scorer: Annotated[str, one_of(SCORERS)] = "norm"
    # number of tokens up to each position, itself included, that it attends to exactly, besides the selected
    # rows; 0: selected rows only, as published
    window: Annotated[int, at_least(0)] = 0
    # what attends to the selected rows; pooled: queries that are pooled as keys are, as published; own: the
    # query of each position, which costs more and learns more; needs a window of at least two tiles
    queries: Queries = Queries.pooled
    # make no output depend on later tokens, not even through the choice of rows, so that the model can
    # generate text without a recovery stage; window then counts the tokens before the tile of each position
    strictly_causal: bool = False
    # number of entries that are expanded in each tile, half chosen by the scores of queries and half by those
    # of keys; an even number; null: 128, or 16 if strictly_causal is true or queries is own
    tile: Annotated[int | None, at_least(2)] = None
    # always expand the first entry of each level, so that every position gets an output
    cover_prefix: bool = True
    # implementation of pooling and selection: reference is plain PyTorch, triton needs an NVIDIA GPU, auto is
    # triton where it works, otherwise reference
    backend: Annotated[str, one_of(*BACKENDS)] = "auto"
    selection: Selection = Selection.exact  # how entries are selected if parallel.cp > 1


@dataclass
class StageDataConfig:
    """The training data of one stage, if they are not those of the run. Keys that are null are as in data.

    Each source continues behind what earlier stages have read of it. Validation always uses the data of the
    run.
    """

    # stdlib, text, prepared or mix; null: that of the run, or mix if mix is set. If it is set, path and mix
    # of the run do not count
    source: str | None = None
    path: Any = None  # like data.path
    mix: Any = None  # like data.mix
    long_fraction: Annotated[float | None, between(0, 1, ", or null")] = None  # like data.long_fraction
    # like data.bucket_weights; the buckets are those of the run, data.buckets
    bucket_weights: Annotated[list[float] | None, between(0, 1e30)] = None


class LrSchedule(Enum):
    """How the learning rate falls after the warm-up, from optim.lr to optim.lr * optim.final_lr_ratio."""

    wsd = "wsd"  # constant, then linear over the last optim.decay_fraction of the run
    linear = "linear"  # linear from the end of the warm-up to the end of the run
    cosine = "cosine"  # half a cosine wave, from the end of the warm-up to the end of the run


@dataclass
class StageConfig:
    """One stage of the run."""

    # attention of all layers except dense_layers and model.sliding_layers; dense: full causal attention;
    # lighthouse: attention over rows selected from a pyramid (arXiv:2605.06554)
    attention: Annotated[str, one_of(ATTENTIONS)] = MISSING
    # number of optimizer steps; if it or tokens is set, fraction is ignored
    steps: Annotated[int | None, at_least(1)] = None
    # length of the stage in tokens, instead of steps; rounded up to whole steps of batch_tokens
    tokens: Annotated[int | None, at_least(1, MOST_TOKENS)] = None
    # share of run.steps, if steps and tokens are null
    fraction: Annotated[float | None, above(0, at_most=1)] = None
    seq_len: Count = II("model.seq_len")  # like model.seq_len
    rope_theta: Positive = II("model.rope_theta")  # like model.rope_theta
    rope_scaling: Any = II("model.rope_scaling")  # like model.rope_scaling
    dense_layers: list[int] = II("model.dense_layers")  # like model.dense_layers
    # parameters that this stage does not train: patterns of dotted names, with ranges and wildcards, such as
    # embedding, blocks.0-11, blocks.*.ffn or norm
    frozen: list[str] = field(default_factory=list)
    batch_tokens: Any = II("run.batch_tokens")  # like run.batch_tokens
    grad_accum: Any = II("run.grad_accum")  # like run.grad_accum
    # peak learning rate in this stage; null: optim.lr times lr_scale
    lr: Annotated[float | None, positive(remedy=", or null")] = None
    lr_scale: Positive = 1.0  # factor by which the learning rate is multiplied in this stage
    # number of steps at the beginning of the stage in which the learning rate goes linearly from its last
    # value, or from 0 in the first stage, to that of the stage; null: no warm-up except the run's own,
    # optim.warmup_fraction
    warmup_steps: Annotated[int | None, at_least(0)] = None
    # shape of the learning rate in this stage. If schedule, decay_fraction or final_lr_ratio is set, the rate
    # falls within the stage, and those of the three that are null are as in optim; if all are null, the stage
    # takes part in the decay of the whole run
    schedule: LrSchedule | None = None
    # share of this stage, at its end, in which the learning rate falls; for schedule=wsd
    decay_fraction: Annotated[float | None, between(0, 1, ", or null")] = None
    # learning rate at the end of this stage, divided by that of the stage
    final_lr_ratio: Annotated[float | None, between(0, 1, ", or null")] = None
    levels: int = II("lighthouse.levels")  # like lighthouse.levels
    pooling: int = II("lighthouse.pooling")  # like lighthouse.pooling
    # like lighthouse.budget; if that is null, computed from seq_len of this stage
    budget: int = II("budget:${lighthouse.budget},${.seq_len}")
    scorer: Annotated[str, one_of(SCORERS)] = II("lighthouse.scorer")  # like lighthouse.scorer
    window: Annotated[int, at_least(0)] = II("lighthouse.window")  # like lighthouse.window
    queries: Queries = II("lighthouse.queries")  # like lighthouse.queries
    strictly_causal: bool = II("lighthouse.strictly_causal")  # like lighthouse.strictly_causal
    tile: Annotated[int | None, at_least(2)] = II("lighthouse.tile")  # like lighthouse.tile
    cover_prefix: bool = II("lighthouse.cover_prefix")  # like lighthouse.cover_prefix
    # training data of this stage, if they are not those of the run: source, path, mix, long_fraction
    # and bucket_weights
    data: StageDataConfig = field(default_factory=StageDataConfig)
    # settings of an attention or scorer that a plugin added
    options: dict[str, Any] = field(default_factory=dict)


class DocumentMode(Enum):
    """Whether tokens attend to other documents in their sequence."""

    together = "together"  # a token attends to all tokens before it, also of other documents
    apart = "apart"  # a token attends only to its own document


class PositionMode(Enum):
    """From where the positions of the rotary embedding count."""

    continued = "continued"  # from the beginning of the sequence
    restarted = "restarted"  # from the beginning of each document; needs data.documents=apart


class Packing(Enum):
    """How documents are packed into sequences."""

    spread = "spread"  # the longest first, each into the emptiest sequence; none that fits is cut
    # less padding: shorter documents go where they fit best; a few are cut to fill what stays free
    best_fit = "best_fit"


class Prepare(Enum):
    """When the texts of a source are tokenized."""

    before = "before"  # by `lhtrain data prepare`; data=stdlib and data=text at the start of a run
    during = "during"  # while the run trains on them, a portion at a time


@dataclass
class DataConfig:
    """The training data."""

    source: str = MISSING  # stdlib, text, code, files, hf, prepared or mix; data=NAME sets it
    # a file, a folder, a pattern such as dump/*.jsonl, or a list of these; data=prepared: the prepared folder
    path: Any = None
    name: str | None = None  # name of the dataset on the Hugging Face hub
    subset: str | None = None  # configuration of the dataset, such as sample-10BT
    split: str = "train"  # split of the dataset
    revision: str | None = None  # branch, tag or commit of the dataset; null: the default branch
    streaming: bool = True  # read while downloading; false: download to the hub's cache first
    column: str = "text"  # column that contains the text; a.b: field b of the objects in column a
    # conditions that a row must meet, such as 'score >= 3'; chars is the length of the text
    filters: list[str] = field(default_factory=list)
    # read at most this many documents; null: all
    max_documents: Annotated[int | None, at_least(1, 2**62, ", or null")] = None
    # stop after the document in which this number of tokens is reached; null: read all
    max_tokens: Annotated[int | None, at_least(1, 2**62, ", or null")] = None
    # bytes, the name of a tiktoken encoding such as gpt2, or the path of a tokenizer.json; prepared folders
    # (data=prepared, data=mix) have their own
    tokenizer: str = "bytes"
    bos: bool = False  # begin each document with the beginning-of-text token
    # end-of-text token of a tokenizer.json, its text or its number; null: found by its usual names
    eos: str | None = None
    # share of documents that are used for validation only, chosen by the hash of their text; not used with
    # val_path
    val_fraction: Annotated[float, below(1, above=0)] = 0.05
    # texts to validate on, in place of this share: a file, a folder, a pattern, a list of these, or a
    # prepared folder; then all documents of the data are trained on. null: none
    val_path: Any = None
    # share of sequences that are taken from long documents; null: as they occur
    long_fraction: Annotated[float | None, between(0, 1, ", or null")] = None
    # lengths in tokens, rising, that divide the documents into buckets; each sequence has documents of one
    # bucket, so of similar lengths; empty: no buckets
    buckets: Annotated[list[int], at_least(1, most=2**62)] = field(default_factory=list)
    # shares of the sequences of each bucket, relative to each other, first that of the shortest documents;
    # empty: as they occur
    bucket_weights: Annotated[list[float], between(0, 1e30)] = field(default_factory=list)
    packing: Packing = Packing.spread  # how documents are packed into sequences of the training data
    # whether tokens attend to the other documents that are packed into their sequence
    documents: DocumentMode = DocumentMode.together
    # whether the positions of the rotary embedding restart at each document
    positions: PositionMode = PositionMode.continued
    # sources of a mixture, {NAME: {path: FOLDER, weight: NUMBER}, ...}; each folder is a prepared one. With
    # data.prepare=during, {source: hf, name: OWNER/NAME, weight: NUMBER} is tokenized while the run trains;
    # it may have the keys source, path, name, subset, split, revision, streaming, column and filters of data
    mix: Any = None
    out: str | None = None  # folder that `lhtrain data prepare` writes; null: a folder in data.cache_dir
    # processes of `lhtrain data prepare`; null: one per core. With data.prepare=during those of each rank;
    # null: a share of the cores, at most 8
    workers: Annotated[int | None, at_least(1, 2**12, ", or null")] = None
    # when the texts of the source are tokenized
    prepare: Prepare = Prepare.before
    # with data.prepare=during: tokens, or a few more, that are packed and shuffled together; a run starts
    # when the first portion is tokenized
    portion: Annotated[int, at_least(1, most=2**40)] = 134_217_728
    # with data.prepare=during: gigabytes of data.cache_dir for the tokens of the source; the oldest are
    # removed, and tokenized again if they are needed
    keep_gb: Annotated[float, above(0, at_most=1e9)] = 50.0
    # folder for caches; null: $LHTRAIN_CACHE if that is set, otherwise the user's cache folder
    cache_dir: str | None = None
    # compare each shard with its checksum before it is read for the first time on a machine
    verify: bool = True


class MomentDtype(Enum):
    """How the moments of matrices are kept; those of vectors are float32."""

    float32 = "float32"  # 4 bytes for each number
    bfloat16 = "bfloat16"  # 2 bytes for each number
    int8 = "int8"  # 1 byte for each number, and a scale for each block of at most 256


@dataclass
class OptimConfig:
    """The optimizer and its learning-rate schedule."""

    # name of the optimizer; muon: Muon for the matrices of the blocks, AdamW for embeddings, head and vectors
    kind: Annotated[str, one_of(OPTIMIZERS)] = "adamw"
    lr: Positive = 1e-3  # peak learning rate, after the warm-up
    # decay rates of the first and the second moment
    betas: Annotated[tuple[float, float], below(1, at_least=0)] = (0.9, 0.95)
    eps: Eps = 1e-8  # added to the square root of the second moment
    momentum: Annotated[float, below(1, at_least=0)] = 0.95  # decay rate of the momentum of kind=muon
    # how the moments of matrices are kept, which need most of the memory of the optimizer
    state: MomentDtype = MomentDtype.float32
    weight_decay: Annotated[float, not_negative()] = 0.1  # applied to matrices only
    # other settings for some parameters, {PATTERN: {lr_scale: FACTOR, weight_decay: NUMBER}, ...} with
    # patterns as in stages.NAME.frozen; FACTOR multiplies the learning rate, and NUMBER replaces
    # optim.weight_decay. {PATTERN: FACTOR} sets the factor alone. Of several patterns that match, the last
    # decides
    groups: dict[str, Any] = field(default_factory=dict)
    # scale initial weights, learning rates and weight decay with the width of the model (muP,
    # arXiv:2203.03466), so that the best optim.lr of a narrow model is also that of a wide one
    mup: bool = False
    # model.dim at which optim.mup changes nothing; runs that share a learning rate need the same value
    mup_base_width: Size = 256
    # keep an exponential moving average of the weights, which decays by this factor per step, such as 0.999;
    # validations measure it too, and export, eval and generate take it with weights=average; null: none
    ema: Annotated[float | None, below(1, above=0)] = None
    clip_norm: Positive = 1.0  # gradients whose global norm is larger are scaled down to this norm
    # weight of the z-loss, the mean of the squared logsumexp of the logits, in the training loss
    z_loss: Annotated[float, not_negative()] = 0.0
    schedule: LrSchedule = LrSchedule.wsd  # shape of the learning rate after the warm-up
    # share of run.steps for the warm-up, in which the learning rate rises linearly from 0
    warmup_fraction: Fraction = 0.05
    # share of run.steps, at the end of the run, in which the learning rate falls; for schedule=wsd
    decay_fraction: Fraction = 0.2
    final_lr_ratio: Fraction = 0.0  # learning rate at the end of the run, divided by lr
    options: dict[str, Any] = field(default_factory=dict)  # settings of an optimizer that a plugin added


class Device(Enum):
    """Device that the run trains on."""

    auto = "auto"  # cuda if there is a GPU, otherwise cpu
    cpu = "cpu"  # the CPU, even if there is a GPU
    cuda = "cuda"  # NVIDIA GPUs, one per rank


@dataclass
class RunConfig:
    """Where the run writes, how long it trains, and on which device."""

    name: str = MISSING  # name of the run in the terminal, the plot and the tracker
    dir: str = MISSING  # folder for everything that the run writes; by default a new one for each run
    steps: Count = 200  # number of optimizer steps, over all stages
    # tokens per optimizer step, over all ranks; auto: one sequence for each data-parallel rank
    batch_tokens: Annotated[Any, at_most(MOST_TOKENS)] = "auto"
    # micro-batches per optimizer step; auto: as few as the GPU's memory allows
    grad_accum: Annotated[Any, at_most(2**31 - 1)] = "auto"
    # seed of the initial weights and of the order of the data
    seed: Annotated[int, at_least(0, most=2**63 - 1)] = 0
    device: Device = Device.auto  # device that the run trains on
    log_every: Count = 1  # number of steps between rows in metrics.jsonl and in the terminal


class Precision(Enum):
    """Precision of the forward and backward pass; weights and optimizer state are always float32."""

    auto = "auto"  # bfloat16 on a GPU, float32 on a CPU
    float32 = "float32"  # all computation in float32: slower, and needs more memory
    bfloat16 = "bfloat16"  # matrix products and attention in bfloat16


class Compile(Enum):
    """Whether to compile the Transformer blocks with torch.compile."""

    auto = "auto"  # compile on a GPU, not on a CPU
    on = "on"  # compile on a CPU too
    off = "off"  # never compile


class CudaGraph(Enum):
    """Whether the forward and backward pass of a micro-batch run as one CUDA graph."""

    auto = "auto"  # for micro-batches of at most 32,768 tokens, where a GPU would wait for the host
    on = "on"  # for micro-batches of any size
    off = "off"  # never


class Recompute(Enum):
    """Which activations the backward pass recomputes instead of keeping them."""

    # the first choice below whose estimated memory fits on the GPU; attention only if it needs no more
    # micro-batches than full, and not with parallel.cp
    auto = "auto"
    none = "none"  # recompute nothing: fastest, most memory
    selective = "selective"  # keep matrix products and attention, recompute the cheap operations
    # keep the results of attention, recompute everything else; for long sequences, where attention takes most
    # of the time
    attention = "attention"
    full = "full"  # keep only the input of each block: slowest, least memory


@dataclass
class ComputeConfig:
    """Precision, memory and speed of a step. Apart from float8 they change results only by rounding."""

    precision: Precision = Precision.auto  # precision of the forward and backward pass
    # multiply matrices of the blocks in float8, with the package torchao; needs a Hopper or newer GPU
    float8: bool = False
    compile: Compile = Compile.auto  # whether to compile the blocks with torch.compile
    # start the kernels of a micro-batch with one call, which is faster for small ones; on one GPU, without
    # offload and float8. Where it is not possible, the run prints the reason and continues without
    cuda_graph: CudaGraph = CudaGraph.auto
    recompute: Recompute = Recompute.auto  # activations to recompute in the backward pass, which saves memory
    recompute_every: Count = 1  # recompute only every n-th block, beginning with the first
    # keep the inputs of blocks in the memory of the host; compute.recompute=auto may turn it on
    offload: bool = False
    # give bit-identical results in each run on a GPU too; the backward pass of attention is slower
    deterministic: bool = False


class CpAttention(Enum):
    """How the ranks that share a sequence compute attention."""

    auto = "auto"  # ulysses if parallel.cp divides model.n_heads and model.n_kv_heads, otherwise ring
    ring = "ring"  # ranks pass keys and values around in a ring
    ulysses = "ulysses"  # ranks exchange heads; each computes some heads over the whole sequence


@dataclass
class ParallelConfig:
    """How several ranks share the run. A rank is one process, with one GPU or on the CPU."""

    dp_replicate: Count = 1  # number of replicas of the model, each with all weights
    # each replica is sharded over dp_shard * cp ranks; -1: all remaining ranks
    dp_shard: Annotated[int, at_most(2**31 - 1)] = -1
    cp: Count = 1  # number of ranks that share each sequence (context parallelism)
    cp_attention: CpAttention = CpAttention.auto  # how the ranks that share a sequence compute full attention
    reduce_always: bool = False  # reduce gradients after each micro-batch: less memory, more communication
    # seconds within which all ranks must have connected; later the limits of watchdog.* apply
    timeout: Annotated[int, at_least(1, most=10**7)] = 600
    # number of steps between comparisons of the speed of the ranks; slow ranks are reported
    compare_every: Count = 100


@dataclass
class GuardConfig:
    """Steps whose loss or gradient is not finite. Such a step is skipped: it changes no weights."""

    # number of steps skipped in a row after which the run returns to its newest checkpoint
    max_skips: Count = 10
    # number of returns to a checkpoint after which the run ends with an error
    max_rewinds: Annotated[int, at_least(0)] = 3
    # report a loss that is this many standard deviations above the last 50 logged losses; 0: never
    spike: Annotated[float, not_negative("must be finite; 0 reports no spikes")] = 6.0


@dataclass
class WatchdogConfig:
    """Seconds that a rank may spend in each phase before it counts as hanging; null: no limit.

    A rank that hangs writes its stack traces to run.dir/stalls and exits with status 75, so that a scheduler
    can restart it.
    """

    start: Limit = 3600.0  # the start: reading and tokenizing data, loading a checkpoint
    compile: Limit = 3600.0  # compiling the blocks of a stage
    step: Limit = 1800.0  # one optimizer step
    validation: Limit = 3600.0  # one validation
    rewind: Limit = 3600.0  # returning to a checkpoint after skipped steps
    save: Limit = 1800.0  # a save, until training continues; the last save of the run, until it is written


@dataclass
class EvalConfig:
    """Validation, and the tasks that measure how a model uses a long context (docs/judging.md)."""

    every: Count = 50  # number of steps between validations; each stage also ends with one
    # tokens per validation, at most: if there are fewer, all are used
    tokens: Annotated[int, at_least(1, most=MOST_TOKENS)] = 32_768
    # what is measured, the most important first: loss_by_position, gain_of_context, recall, passkey, copy or
    # long_ppl; []: nothing
    tasks: list[str] = field(default_factory=lambda: ["loss_by_position", "recall", "passkey"])
    # number of steps between these measurements; null: one at the end of each stage
    tasks_every: Annotated[int | None, at_least(1)] = None
    # largest share of the run's computation that the tasks may take: there are fewer samples and tasks if
    # they need more, and nothing is measured in a very short run
    share: Annotated[float, above(0, at_most=1)] = 0.03
    # sequence lengths of recall, passkey and copy, up to eval.beyond times the context; []: 1,024, its
    # doubles below the context, and the context. The other tasks measure at the context, and at the longest
    # of these if it is above the context
    lengths: Annotated[list[int], at_least(64, most=2**31 - 1)] = field(default_factory=list)
    # how many times as long as the context these sequences may be; more than 2 measures how the model
    # extrapolates
    beyond: Annotated[float, at_least(1, most=1_000_000)] = 2.0
    # where sentences are hidden in a text, from 0, its beginning, to 1
    depths: Annotated[list[float], between(0, 1)] = field(default_factory=lambda: [0.1, 0.3, 0.5, 0.7, 0.9])
    samples: Count = 4  # sequences for each length, depth and number of pairs; four times as many documents
    # texts for the tasks: a file, a folder, a pattern, or a prepared folder; null: the validation documents
    data: Any = None
    # seed of the choice of texts and of hidden values
    seed: Annotated[int, at_least(0, most=2**63 - 1)] = 0


@dataclass
class SamplesConfig:
    """Texts that the model writes during the run, into run.dir/samples.jsonl."""

    prompts: list[str] = field(default_factory=list)  # texts to continue; none: no samples
    every: Count = 500  # number of steps between samples; each stage also ends with them
    tokens: Count = 64  # most tokens of a sample
    # below 1: likelier tokens; 0: always the likeliest token
    temperature: Annotated[float, not_negative()] = 0.8
    # draw from the likeliest tokens whose probabilities together reach this
    top_p: Annotated[float, above(0, at_most=1)] = 0.95


@dataclass
class ProfileConfig:
    """Traces of some steps, to see where the time goes (docs/memory_and_gpus.md)."""

    # first and last step to profile, both included, such as [10,12], counted as in metrics.jsonl; []: none.
    # Each rank writes a trace for Perfetto and TensorBoard into run.dir/profile
    steps: list[int] = field(default_factory=list)
    # on GPUs, also write a snapshot of the allocated memory, for pytorch.org/memory_viz
    memory: bool = True
    # record the lines of Python that called each operator: a larger trace, and slower steps while profiling
    stacks: bool = False


@dataclass
class CheckpointConfig:
    """When checkpoints are saved, and how many are kept."""

    every: Count = 100  # number of steps between checkpoints; each stage also ends with one
    keep: Count = 3  # number of checkpoints to keep; older ones are deleted
    # seconds for which the last save of the run is retried if the disk is full or fails
    retry: Annotated[float, not_negative()] = 600.0


class LoggerMode(Enum):
    """How Weights & Biases is used."""

    offline = "offline"  # write to run.dir/wandb, without an account; `wandb sync` uploads it later
    online = "online"  # upload during the run
    disabled = "disabled"  # write nothing


@dataclass
class LoggerConfig:
    """The experiment trackers that get the rows of metrics.jsonl, besides run.dir."""

    # none: metrics are only written to run.dir; wandb: Weights & Biases, pip install 'lhtrain[wandb]';
    # tensorboard: event files in run.dir/tensorboard, pip install 'lhtrain[tensorboard]'; jsonl: run.dir/
    # scalars.jsonl, whose names are those of the other trackers
    kind: Annotated[str, one_of("none", TRACKERS)] = "none"
    # several trackers, {NAME: true, ...}, besides kind; logger=[wandb,tensorboard] sets it
    kinds: dict[str, bool] = field(default_factory=dict)
    project: str = "lhtrain"  # project of the run in Weights & Biases
    entity: str | None = None  # user or team in Weights & Biases; null: the account's default
    group: str | None = None  # group under which Weights & Biases shows runs together
    tags: list[str] = field(default_factory=list)  # tags for Weights & Biases, of 1 to 64 characters each
    mode: LoggerMode = LoggerMode.offline  # when to upload to Weights & Biases
    options: dict[str, Any] = field(default_factory=dict)  # settings of a tracker that a plugin added


class Launch(Enum):
    """How a SLURM job starts its ranks."""

    torchrun = "torchrun"  # one SLURM task per node, in which torchrun starts the ranks
    srun = "srun"  # one SLURM task per rank


@dataclass
class ClusterConfig:
    """The job that `lhtrain slurm submit` asks SLURM for. null: the default of the partition.

    No key here changes what is trained, so a run can continue with other values.
    """

    nodes: Annotated[int, at_least(1, most=2**20)] = 1  # number of nodes
    # GPUs per node, with one rank each; 0: one rank per node, on the CPU
    gpus_per_node: Annotated[int, at_least(0, most=2**10)] = 0
    # CPU cores per node (launch=torchrun) or per rank (launch=srun)
    cpus_per_task: Annotated[int, at_least(1, most=2**16)] = 1
    memory: str | None = None  # memory per node, such as 200G; 0: all memory of the node
    # time limit of a job: 90 (minutes), 24:00:00 or 2-00:00:00; a longer run is requeued and continues
    time: str | None = None
    partition: str | None = None  # option --partition of sbatch
    account: str | None = None  # option --account of sbatch
    qos: str | None = None  # option --qos of sbatch
    constraint: str | None = None  # option --constraint of sbatch: features that the nodes must have
    exclusive: bool = False  # allow no other jobs on the nodes
    launch: Launch = Launch.torchrun  # how the job starts its ranks
    # how many seconds before its time limit a job saves and requeues; must be enough for a step and a save
    signal_seconds: Annotated[int, at_least(0)] = 300
    # how often a job is requeued after attempts that crashed or made no step; each submit counts anew
    max_restarts: Annotated[int, at_least(0, most=2**20)] = 3
    # lines of bash that the job runs before it starts the ranks, such as module load cuda
    setup: list[str] = field(default_factory=list)
    # Python interpreter on the nodes; null: the one with which lhtrain was called
    python: str | None = None
    module: str = "lhtrain"  # Python module that each rank runs, as python -m MODULE KEY=VALUE ...
    srun_args: list[str] = field(default_factory=list)  # further options for srun
    # further options for sbatch, one for each #SBATCH line
    extra_args: list[str] = field(default_factory=list)


class Resume(Enum):
    """Whether to continue the run in run.dir."""

    never = "never"  # start a new run; it is an error if run.dir contains a run
    auto = "auto"  # continue from the newest undamaged checkpoint; start a new run if there is none
    force = "force"  # like auto, but accept settings that differ from those of the checkpoint
    restart = "restart"  # move the contents of run.dir to run.dir/earlier.NNNN and start a new run


class Init(Enum):
    """What a run takes from the checkpoint init_from."""

    auto = "auto"  # all if the checkpoint has an optimizer state, otherwise weights
    weights = "weights"  # only the weights: new optimizer state, data from their start
    average = "average"  # like weights, but the moving average of the weights that optim.ema kept
    all = "all"  # optimizer state too, and the position in the data if they are the same


@dataclass
class Config:
    """All settings of a run."""

    model: ModelConfig = field(default_factory=ModelConfig)  # the shape of the model
    lighthouse: LighthouseConfig = field(default_factory=LighthouseConfig)  # the Lighthouse layer
    # the stages of the run, in the order in which they are trained
    stages: dict[str, StageConfig] = field(default_factory=dict)
    data: DataConfig = field(default_factory=DataConfig)  # the training data
    optim: OptimConfig = field(default_factory=OptimConfig)  # the optimizer and the learning rate
    run: RunConfig = field(default_factory=RunConfig)  # where the run writes and how long it trains
    compute: ComputeConfig = field(default_factory=ComputeConfig)  # precision, memory and speed of a step
    parallel: ParallelConfig = field(default_factory=ParallelConfig)  # how ranks share the run
    guard: GuardConfig = field(default_factory=GuardConfig)  # steps whose loss or gradient is not finite
    # time limits after which a rank counts as hanging
    watchdog: WatchdogConfig = field(default_factory=WatchdogConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)  # validation
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)  # when checkpoints are saved
    profile: ProfileConfig = field(default_factory=ProfileConfig)  # traces of some steps
    logger: LoggerConfig = field(default_factory=LoggerConfig)  # the experiment trackers
    samples: SamplesConfig = field(default_factory=SamplesConfig)  # texts that the model writes
    # the job that `lhtrain slurm submit` asks for
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    # Python modules to import, also from the current folder; they can add attention kinds, scorers,
    # optimizers and trackers (lhtrain.registry)
    plugins: list[str] = field(default_factory=list)
    resume: Resume = Resume.never  # whether to continue the run in run.dir, which then must be given
    # folder of a checkpoint of another run, or of imported weights, from which to start. The keys of the
    # model are taken from it, and the tokenizer of imported weights; what you set counts before them, also
    # all keys of model=NAME
    init_from: str | None = None
    # what is taken from init_from, which must be set: only the weights, or all: the optimizer state too, and
    # the position if the data are the same; auto: all if the checkpoint has an optimizer state
    init: Init = Init.auto
