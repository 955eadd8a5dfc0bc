"""The configuration's shape: every key, its type and its default. What fits together is `validate`'s part.

Values live in the YAML files beside this one; a key that is not named here does not exist.
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
Size = Annotated[int, at_least(1, most=2**24)]  # of a matrix
Positive = Annotated[float, positive()]
Fraction = Annotated[float, between(0, 1)]
Limit = Annotated[float | None, seconds_or_null()]
# A little above the least normal float32: GPUs take smaller numbers for 0.
Eps = Annotated[float, positive(1e-37, "float32 takes less for 0, and 0 / 0 is no number")]
MOST_TOKENS = 2**48


class LrSchedule(Enum):
    """The learning rate after the warm-up, from optim.lr to optim.lr * final_lr_ratio."""

    wsd = "wsd"  # constant, then linear over the last `decay_fraction` of the run
    linear = "linear"  # a line from the end of the warm-up to the end of the run
    cosine = "cosine"  # half a cosine, over the same steps


class Resume(Enum):
    """What to do where run.dir may hold a run."""

    never = "never"  # start a new run; one that is there is refused
    auto = "auto"  # continue from the newest sound checkpoint; start a new run where there is none yet
    force = "force"  # as auto, and accept settings that differ from the checkpoint's
    restart = "restart"  # move what run.dir holds into run.dir/earlier.NNNN and start a new run


class Device(Enum):
    auto = "auto"  # cuda where there is one
    cpu = "cpu"  # also where there is a GPU
    cuda = "cuda"  # NVIDIA GPUs, one for each rank


class Precision(Enum):
    """What the forward and backward compute in; weights and optimizer state are always float32."""

    auto = "auto"  # bfloat16 on a GPU, float32 on a CPU
    float32 = "float32"  # slower, and more memory
    bfloat16 = "bfloat16"  # matrix products and attention


class Compile(Enum):
    """Whether blocks go through torch.compile."""

    auto = "auto"  # on a GPU only
    on = "on"  # on a CPU too
    off = "off"  # never


class Recompute(Enum):
    """What the backward pass computes again instead of keeping it from the forward."""

    auto = "auto"  # the first of these that the GPU's memory allows, by the estimate
    none = "none"  # nothing: the most memory, the fastest
    selective = "selective"  # keeps matrix products and attention, recomputes what is cheap
    full = "full"  # keeps only the input of each block


class CpAttention(Enum):
    """How context-parallel ranks attend together."""

    auto = "auto"  # ulysses where cp divides the numbers of heads, else ring
    ring = "ring"  # keys and values are passed around
    ulysses = "ulysses"  # each rank has some heads of the whole sequence


class Selection(Enum):
    """What context-parallel Lighthouse layers select."""

    exact = "exact"  # what one rank would select
    local = "local"  # the published way: each chunk by itself, no output reaches into the next chunk


class Launch(Enum):
    """How a SLURM job starts its ranks."""

    torchrun = "torchrun"  # one task for each node; torchrun starts its ranks
    srun = "srun"  # one task for each rank


class LoggerMode(Enum):
    """How Weights & Biases is used."""

    offline = "offline"  # into run.dir/wandb, without an account; `wandb sync` uploads it later
    online = "online"  # uploaded as the run trains
    disabled = "disabled"  # written nowhere


@dataclass
class ModelConfig:
    """A Llama-style decoder."""

    name: str = MISSING  # part of run.name
    seq_len: Count = MISSING  # tokens of a training sequence; a stage may use another length
    # The tokenizer's, up to a multiple of 64
    vocab_size: Annotated[int, at_most(2**31 - 1)] = II("tokenizer_vocab:${data.tokenizer}")
    dim: Size = MISSING  # width of the residual stream; a multiple of n_heads unless head_dim is set
    n_layers: Annotated[int, at_least(1, most=2**16)] = MISSING  # blocks of attention and SwiGLU
    n_heads: Size = MISSING  # query heads; a multiple of n_kv_heads
    n_kv_heads: Size = II(".n_heads")  # key and value heads (grouped-query attention); as many as n_heads
    head_dim: Size = II("div:${.dim},${.n_heads}")  # width of a head, even; dim / n_heads
    ffn_dim: Size = MISSING  # hidden size of the SwiGLU
    rope_theta: Positive = 10_000.0  # base of the rotary embedding's wavelengths; more for longer contexts
    norm_eps: Eps = 1e-5  # added to the mean square in RMSNorm
    tie_embeddings: bool = False  # the output projection is the embedding matrix
    dense_layers: list[int] = field(default_factory=list)  # layers with full attention; -1 is the last
    init_std: Positive = 0.02  # of initial weights; of output projections divided by sqrt(2 n_layers)


@dataclass
class LighthouseConfig:
    """Settings of the Lighthouse layer (arXiv:2605.06554); each stage may override its own copy."""

    # L, levels of the pyramid; at least 2. pooling^(levels - 1) must divide seq_len
    levels: Annotated[int, at_most(64)] = 3
    # P, entries that one entry of the next level pools; a power of two, at least 2
    pooling: Annotated[int, at_most(2**20)] = 4
    # K, a multiple of 128; null: seq_len / 64, up to a multiple of 128
    budget: Annotated[int | None, at_most(2**31 - 1)] = None
    scorer: Annotated[str, one_of(SCORERS)] = "norm"  # ranks a pyramid's entries; norm: by their l2 norms
    cover_prefix: bool = True  # always expand each level's first entry: every position gets an output
    # Of pooling and selection: reference (PyTorch) or triton; auto: what works here
    backend: Annotated[str, one_of(*BACKENDS)] = "auto"
    selection: Selection = Selection.exact  # what is selected where parallel.cp > 1


@dataclass
class StageConfig:
    """One stage of the run; stages follow each other in the order in which they are written."""

    # Of all layers but model.dense_layers. dense: every position before; lighthouse: selected rows of a
    # pyramid, arXiv:2605.06554
    attention: Annotated[str, one_of(ATTENTIONS)] = MISSING
    # Optimizer steps; wins over fraction. With neither, the stage takes the rest
    steps: Annotated[int | None, at_least(1)] = None
    fraction: Annotated[float | None, above(0, at_most=1)] = None  # of run.steps, above 0
    seq_len: Count = II("model.seq_len")  # must divide the longest stage's; as model.seq_len
    batch_tokens: Any = II("run.batch_tokens")  # as run.batch_tokens
    grad_accum: Any = II("run.grad_accum")  # as run.grad_accum
    lr_scale: Positive = 1.0  # factor on the learning rate in this stage
    levels: int = II("lighthouse.levels")  # as lighthouse.levels
    pooling: int = II("lighthouse.pooling")  # as lighthouse.pooling
    budget: int = II("budget:${lighthouse.budget},${.seq_len}")  # as lighthouse.budget, of its own seq_len
    scorer: Annotated[str, one_of(SCORERS)] = II("lighthouse.scorer")  # as lighthouse.scorer
    cover_prefix: bool = II("lighthouse.cover_prefix")  # as lighthouse.cover_prefix
    options: dict[str, Any] = field(default_factory=dict)  # settings that a plugin's attention or scorer has


@dataclass
class DataConfig:
    """What is read. data/README.md has the details."""

    source: str = MISSING  # stdlib, text, code, files, hf, prepared or mix: conf/data has a file for each
    path: Any = None  # a file, a folder, a pattern such as dump/*.jsonl, or a list; prepared: the folder
    name: str | None = None  # hf: dataset on the hub
    subset: str | None = None  # hf: its configuration, such as sample-10BT
    split: str = "train"  # hf: its split
    revision: str | None = None  # hf: branch, tag or commit
    streaming: bool = True  # hf: read while it loads; false: download it first, into the hub's cache
    column: str = "text"  # files and hf: the column of the text; a.b: b within the objects of column a
    filters: list[str] = field(default_factory=list)  # files and hf: 'COLUMN >= VALUE'; chars: text length
    max_documents: Annotated[int | None, at_least(1, 2**62, ", or null")] = None  # null: all
    # Documents are taken whole until there are as many
    max_tokens: Annotated[int | None, at_least(1, 2**62, ", or null")] = None
    tokenizer: str = "bytes"  # or a tiktoken encoding, or the path of a tokenizer.json
    bos: bool = False  # begin every document with the beginning-of-text token
    eos: str | None = None  # a tokenizer.json's end-of-text token, by text or number; null: by a known name
    # Documents that validate, by the hash of their text
    val_fraction: Annotated[float, below(1, above=0)] = 0.05
    # Of the sequences, from long documents; null: as they come
    long_fraction: Annotated[float | None, between(0, 1, ", or null")] = None
    mix: Any = None  # the sources of data=mix: name -> {path: prepared folder, weight: number}
    out: str | None = None  # folder of the prepared shards; null: one in cache_dir
    # Processes of lhtrain data prepare; null: one for each core
    workers: Annotated[int | None, at_least(1, 2**12, ", or null")] = None
    cache_dir: str | None = None  # null: $LHTRAIN_CACHE, else the user's cache folder
    verify: bool = True  # compare each shard with its checksum before its first read on a machine


@dataclass
class OptimConfig:
    """The optimizer and its learning-rate schedule."""

    kind: Annotated[str, one_of(OPTIMIZERS)] = "adamw"  # the update rule
    lr: Positive = 1e-3  # the highest learning rate, after the warm-up
    # Decay of the first and second moments
    betas: Annotated[tuple[float, float], below(1, at_least=0)] = (0.9, 0.95)
    eps: Eps = 1e-8  # added to the root of the second moment
    weight_decay: Annotated[float, not_negative()] = 0.1  # of matrices only
    clip_norm: Positive = 1.0  # gradients of a larger global norm are scaled down to it
    # Weight of the mean square of the logits' logsumexp in the training loss
    z_loss: Annotated[float, not_negative()] = 0.0
    schedule: LrSchedule = LrSchedule.wsd  # shape of the learning rate after the warm-up
    warmup_fraction: Fraction = 0.05  # of run.steps: the learning rate rises from 0
    decay_fraction: Fraction = 0.2  # wsd: of run.steps, at the end of the run
    final_lr_ratio: Fraction = 0.0  # learning rate at the end of the run / lr
    options: dict[str, Any] = field(default_factory=dict)  # settings that a plugin's optimizer has


@dataclass
class RunConfig:
    """A run: where it writes, how long it trains, and on what."""

    name: str = MISSING  # shown in the terminal, the plot and the tracker
    dir: str = MISSING  # where everything goes; by default a new folder at every start
    steps: Count = 200  # optimizer steps of all stages
    # Tokens of a step, over all ranks; auto: a sequence for each data-parallel rank.
    batch_tokens: Annotated[Any, at_most(MOST_TOKENS)] = "auto"
    # Micro-batches of a step; auto: as few as the GPU's memory allows
    grad_accum: Annotated[Any, at_most(2**31 - 1)] = "auto"
    seed: Annotated[int, at_least(0, most=2**63 - 1)] = 0  # of initial weights and of the order of the data
    device: Device = Device.auto  # where it trains
    log_every: Count = 1  # steps between rows in metrics.jsonl and the terminal


@dataclass
class ComputeConfig:
    """How a step is computed; none of it changes what is computed, beyond rounding."""

    precision: Precision = Precision.auto  # of forward and backward
    float8: bool = False  # matrix products of the blocks in float8, through torchao; Hopper GPUs and later
    compile: Compile = Compile.auto  # torch.compile of the blocks
    recompute: Recompute = Recompute.auto  # in the backward pass, to save memory
    recompute_every: Count = 1  # recompute every n-th block only, from the first on
    offload: bool = False  # recompute=full: keep inputs of blocks in host memory; recompute=auto may set it
    deterministic: bool = False  # the same bits in every run on a GPU too; attention's backward is slower


@dataclass
class ParallelConfig:
    """How ranks share a run; dp_replicate * dp_shard * cp is their number."""

    dp_replicate: Count = 1  # copies of the model
    dp_shard: Annotated[
        int, at_most(2**31 - 1)
    ] = -1  # ranks over which a copy is sharded, besides cp; -1: all that are left
    cp: Count = 1  # ranks that share each sequence
    cp_attention: CpAttention = CpAttention.auto  # how they attend to each other's parts
    reduce_always: bool = False  # reduce gradients in every micro-batch: less memory, more communication
    # Seconds in which all ranks must meet; collectives wait longer than any watchdog.*
    timeout: Annotated[int, at_least(1, most=10**7)] = 600
    compare_every: Count = 100  # steps between comparisons of the ranks' speed; slow ones are named


@dataclass
class GuardConfig:
    """What happens when numbers go wrong. A step whose loss or gradient is not finite updates nothing."""

    max_skips: Count = 10  # such steps in a row, before the run returns to its newest checkpoint
    max_rewinds: Annotated[int, at_least(0)] = 3  # such returns, before the run ends with an error
    # Report a loss this many standard deviations above the last 50 logged; 0: never
    spike: Annotated[float, not_negative("must be finite; 0 reports no spikes")] = 6.0


@dataclass
class WatchdogConfig:
    """Seconds that a rank may spend in one phase; null: no limit.

    Then it writes its stacks to run.dir/stalls and ends with status 75, so that a scheduler starts it again.
    """

    start: Limit = 3600.0  # reading data, tokenizing them, loading a checkpoint
    compile: Limit = 3600.0  # of a stage's blocks
    step: Limit = 1800.0  # one optimizer step
    validation: Limit = 3600.0  # all of one validation
    rewind: Limit = 3600.0  # returning to a checkpoint after steps that updated nothing
    save: Limit = 1800.0  # until training continues; the last one, until it is written


@dataclass
class EvalConfig:
    """Validation."""

    every: Count = 50  # steps; the end of each stage is always validated
    # Of a validation, at most; all of a smaller validation split
    tokens: Annotated[int, at_least(1, most=MOST_TOKENS)] = 32_768


@dataclass
class CheckpointConfig:
    """Checkpoints, in run.dir/checkpoints."""

    every: Count = 100  # steps; the end of each stage is always saved
    keep: Count = 3  # the newest so many; older ones are deleted
    # Seconds to try the last one again on a full or failing disk; below watchdog.save
    retry: Annotated[float, not_negative()] = 600.0


@dataclass
class LoggerConfig:
    """A tracker that gets the rows of metrics.jsonl too."""

    # none: metrics stay in run.dir; wandb: Weights & Biases, pip install 'lhtrain[wandb]'
    kind: Annotated[str, one_of("none", TRACKERS)] = "none"
    project: str = "lhtrain"  # wandb: its project
    entity: str | None = None  # wandb: user or team; null: the account's default
    group: str | None = None  # wandb: runs of one group are shown together
    tags: list[str] = field(default_factory=list)  # wandb: each of 1 to 64 characters
    mode: LoggerMode = LoggerMode.offline  # wandb: offline needs no account
    options: dict[str, Any] = field(default_factory=dict)  # settings that a plugin's tracker has


@dataclass
class ClusterConfig:
    """The job that `lhtrain slurm submit` asks SLURM for; null: the partition's own default.

    No key here decides what is trained: a run may continue with others.
    """

    nodes: Annotated[int, at_least(1, most=2**20)] = 1  # machines
    # GPUs of each node, a rank for each; 0: one rank a node, on its CPUs
    gpus_per_node: Annotated[int, at_least(0, most=2**10)] = 0
    # CPU cores: launch=torchrun: of a node, launch=srun: of a rank
    cpus_per_task: Annotated[int, at_least(1, most=2**16)] = 1
    memory: str | None = None  # of a node, such as 200G; 0 is all of it
    time: str | None = None  # limit of one job: 90 (minutes), 24:00:00, 2-00:00:00; a run may take several
    partition: str | None = None  # sbatch --partition
    account: str | None = None  # sbatch --account
    qos: str | None = None  # sbatch --qos
    constraint: str | None = None  # sbatch --constraint: features of the nodes
    exclusive: bool = False  # no other jobs on the nodes
    launch: Launch = Launch.torchrun  # how the ranks are started
    # Before the time limit a job saves and requeues; more than a step and a save take.
    signal_seconds: Annotated[int, at_least(0)] = 300
    # Requeues after attempts that crashed or made no step; a new submit counts afresh
    max_restarts: Annotated[int, at_least(0, most=2**20)] = 3
    setup: list[str] = field(default_factory=list)  # lines of bash before the ranks start: modules, variables
    python: str | None = None  # interpreter on the nodes; null: the one that submits
    module: str = "lhtrain"  # what a rank runs: python -m MODULE KEY=VALUE ...
    srun_args: list[str] = field(default_factory=list)  # further options of srun
    extra_args: list[str] = field(default_factory=list)  # further options of sbatch, each a line of #SBATCH


@dataclass
class Config:
    """All settings of a run."""

    model: ModelConfig = field(default_factory=ModelConfig)  # the decoder's shape
    lighthouse: LighthouseConfig = field(default_factory=LighthouseConfig)  # the Lighthouse layer
    stages: dict[str, StageConfig] = field(default_factory=dict)  # in the order in which they are trained
    data: DataConfig = field(default_factory=DataConfig)  # what is read
    optim: OptimConfig = field(default_factory=OptimConfig)  # the optimizer and the learning rate
    run: RunConfig = field(default_factory=RunConfig)  # where, how long, on what
    compute: ComputeConfig = field(default_factory=ComputeConfig)  # precision, memory and speed of a step
    parallel: ParallelConfig = field(default_factory=ParallelConfig)  # the mesh of ranks
    guard: GuardConfig = field(default_factory=GuardConfig)  # numbers that go wrong
    watchdog: WatchdogConfig = field(default_factory=WatchdogConfig)  # ranks that hang
    eval: EvalConfig = field(default_factory=EvalConfig)  # validation
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)  # when to save
    logger: LoggerConfig = field(default_factory=LoggerConfig)  # a tracker
    cluster: ClusterConfig = field(default_factory=ClusterConfig)  # the job of `lhtrain slurm submit`
    # Python modules to import, from the current folder too; they add attention kinds, scorers, optimizers and
    # trackers by lhtrain.registry
    plugins: list[str] = field(default_factory=list)
    resume: Resume = Resume.never  # what to do where run.dir holds a run
    init_from: str | None = None  # a checkpoint folder: start with its weights, optimizer and data position
