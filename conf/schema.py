"""The configuration's shape: every key, its type, bounds and default. Rules between keys are in rules/.

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
    """Whether to continue a run that run.dir holds."""

    never = "never"  # start a new run; refuse a run.dir that holds one
    auto = "auto"  # continue from the newest sound checkpoint; start a new run if there is none yet
    force = "force"  # like auto, but accept settings that differ from the checkpoint's
    restart = "restart"  # move what run.dir holds into run.dir/earlier.NNNN and start a new run


class Device(Enum):
    auto = "auto"  # cuda if there is a GPU, else cpu
    cpu = "cpu"  # the CPU, even if there is a GPU
    cuda = "cuda"  # NVIDIA GPUs, one per rank


class Precision(Enum):
    """Precision of the forward and backward pass; weights and optimizer state are always float32."""

    auto = "auto"  # bfloat16 on a GPU, float32 on a CPU
    float32 = "float32"  # slower, and needs more memory
    bfloat16 = "bfloat16"  # matrix products and attention in bfloat16


class Compile(Enum):
    """Whether torch.compile is used on the blocks."""

    auto = "auto"  # compile on a GPU only
    on = "on"  # compile on a CPU too
    off = "off"  # never compile


class Recompute(Enum):
    """Which activations the backward pass recomputes instead of keeping them."""

    auto = "auto"  # the first of the choices below that fits the GPU's memory by the estimate
    none = "none"  # recompute nothing: fastest, most memory
    selective = "selective"  # keep matrix products and attention, recompute the cheap operations
    full = "full"  # keep only the input of each block


class CpAttention(Enum):
    """How context-parallel ranks attend together."""

    auto = "auto"  # ulysses if cp divides the numbers of heads, else ring
    ring = "ring"  # keys and values are passed from rank to rank
    ulysses = "ulysses"  # each rank computes some heads over the whole sequence


class Selection(Enum):
    """How Lighthouse layers select with context parallelism."""

    exact = "exact"  # the entries that a single rank would select
    local = "local"  # as published: each chunk selects by itself, and no output reaches into the next chunk


class Launch(Enum):
    """How a SLURM job starts its ranks."""

    torchrun = "torchrun"  # one task per node; torchrun starts its ranks
    srun = "srun"  # one task per rank


class LoggerMode(Enum):
    """How Weights & Biases is used."""

    offline = "offline"  # written to run.dir/wandb, without an account; `wandb sync` uploads it later
    online = "online"  # uploaded as the run trains
    disabled = "disabled"  # written nowhere


@dataclass
class ModelConfig:
    """A Llama-style decoder."""

    name: str = MISSING  # name of the model's shape, part of run.name
    seq_len: Count = MISSING  # tokens of a training sequence; a stage may use another length
    # rows of the embedding; by default the tokenizer's vocabulary, rounded up to a multiple of 64
    vocab_size: Annotated[int, at_most(2**31 - 1)] = II("tokenizer_vocab:${data.tokenizer}")
    dim: Size = MISSING  # width of the residual stream; a multiple of n_heads unless head_dim is set
    n_layers: Annotated[int, at_least(1, most=2**16)] = MISSING  # number of blocks, each attention and SwiGLU
    n_heads: Size = MISSING  # query heads; a multiple of n_kv_heads
    n_kv_heads: Size = II(".n_heads")  # key and value heads (grouped-query attention); by default n_heads
    # width of a head, an even number; by default dim / n_heads
    head_dim: Size = II("div:${.dim},${.n_heads}")
    ffn_dim: Size = MISSING  # hidden size of the SwiGLU
    # base of the rotary embedding's wavelengths; longer contexts need a larger one
    rope_theta: Positive = 10_000.0
    norm_eps: Eps = 1e-5  # added to the mean square in RMSNorm
    tie_embeddings: bool = False  # use the embedding matrix as output projection too
    # layers that always have full attention; -1 is the last
    dense_layers: list[int] = field(default_factory=list)
    # standard deviation of initial weights; for output projections divided by sqrt(2 n_layers)
    init_std: Positive = 0.02


@dataclass
class LighthouseConfig:
    """Settings of the Lighthouse layer (arXiv:2605.06554); each stage may override its own copy."""

    # number of levels of the pyramid (L), at least 2; pooling^(levels - 1) must divide seq_len
    levels: Annotated[int, at_most(64)] = 3
    # entries that one entry of the next level pools (p); a power of two, at least 2
    pooling: Annotated[int, at_most(2**20)] = 4
    # entries per level that are expanded (k), a multiple of 128; null: seq_len / 64, rounded up
    budget: Annotated[int | None, at_most(2**31 - 1)] = None
    # how entries are ranked for selection; norm: by l2 norms
    scorer: Annotated[str, one_of(SCORERS)] = "norm"
    # tokens that each position attends to exactly, itself included; their result is merged with the selected
    # rows'. 0: the published layer, selected rows alone
    window: Annotated[int, at_least(0)] = 0
    # always expand the first entry of each level, so that every position gets an output
    cover_prefix: bool = True
    # how pooling and selection are computed: reference (PyTorch) or triton; auto: triton where it works
    backend: Annotated[str, one_of(*BACKENDS)] = "auto"
    selection: Selection = Selection.exact  # which entries are selected if parallel.cp > 1


@dataclass
class StageConfig:
    """One stage of the run; stages follow each other in the order in which they are written."""

    # attention of all layers except model.dense_layers; dense: over all earlier positions; lighthouse: over
    # selected rows of a pyramid, arXiv:2605.06554
    attention: Annotated[str, one_of(ATTENTIONS)] = MISSING
    # optimizer steps; overrides fraction. Without both, the stage gets the remaining steps
    steps: Annotated[int | None, at_least(1)] = None
    fraction: Annotated[float | None, above(0, at_most=1)] = None  # share of run.steps
    seq_len: Count = II("model.seq_len")  # like model.seq_len; must divide the seq_len of the longest stage
    batch_tokens: Any = II("run.batch_tokens")  # like run.batch_tokens
    grad_accum: Any = II("run.grad_accum")  # like run.grad_accum
    lr_scale: Positive = 1.0  # factor on the learning rate in this stage
    levels: int = II("lighthouse.levels")  # like lighthouse.levels
    pooling: int = II("lighthouse.pooling")  # like lighthouse.pooling
    # like lighthouse.budget; null: by the seq_len of this stage
    budget: int = II("budget:${lighthouse.budget},${.seq_len}")
    scorer: Annotated[str, one_of(SCORERS)] = II("lighthouse.scorer")  # like lighthouse.scorer
    window: Annotated[int, at_least(0)] = II("lighthouse.window")  # like lighthouse.window
    cover_prefix: bool = II("lighthouse.cover_prefix")  # like lighthouse.cover_prefix
    options: dict[str, Any] = field(default_factory=dict)  # settings for an attention or scorer of a plugin


@dataclass
class DataConfig:
    """The training data; see data/README.md."""

    source: str = MISSING  # stdlib, text, code, files, hf, prepared or mix; conf/data has a file for each
    # a file, a folder, a pattern such as dump/*.jsonl, or a list of them; prepared: the folder
    path: Any = None
    name: str | None = None  # hf: name of the dataset on the hub
    subset: str | None = None  # hf: configuration of the dataset, such as sample-10BT
    split: str = "train"  # hf: split of the dataset
    revision: str | None = None  # hf: branch, tag or commit of the dataset
    streaming: bool = True  # hf: read while downloading; false: download to the hub's cache first
    column: str = "text"  # files and hf: column of the text; a.b: field b of the objects in column a
    # files and hf: conditions 'COLUMN >= VALUE'; chars is the length of the text
    filters: list[str] = field(default_factory=list)
    # stop after so many documents; null: read all
    max_documents: Annotated[int | None, at_least(1, 2**62, ", or null")] = None
    # stop after the document that reaches so many tokens; null: read all
    max_tokens: Annotated[int | None, at_least(1, 2**62, ", or null")] = None
    tokenizer: str = "bytes"  # bytes, a tiktoken encoding, or the path of a tokenizer.json
    bos: bool = False  # begin every document with the beginning-of-text token
    # end-of-text token of a tokenizer.json, as text or number; null: the first known name that it has
    eos: str | None = None
    # share of documents used for validation, chosen by the hash of their text
    val_fraction: Annotated[float, below(1, above=0)] = 0.05
    # share of sequences taken from long documents; null: as they occur
    long_fraction: Annotated[float | None, between(0, 1, ", or null")] = None
    mix: Any = None  # sources of data=mix: NAME -> {path: prepared folder, weight: number}
    out: str | None = None  # folder for the prepared shards; null: a folder in cache_dir
    # processes of lhtrain data prepare; null: one per core
    workers: Annotated[int | None, at_least(1, 2**12, ", or null")] = None
    cache_dir: str | None = None  # folder for caches; null: $LHTRAIN_CACHE, or else the user's cache folder
    verify: bool = True  # compare each shard with its checksum before its first read on a machine


@dataclass
class OptimConfig:
    """The optimizer and its learning-rate schedule."""

    kind: Annotated[str, one_of(OPTIMIZERS)] = "adamw"  # the optimizer
    lr: Positive = 1e-3  # peak learning rate, after the warm-up
    # decay rates of the first and second moment
    betas: Annotated[tuple[float, float], below(1, at_least=0)] = (0.9, 0.95)
    eps: Eps = 1e-8  # added to the square root of the second moment
    weight_decay: Annotated[float, not_negative()] = 0.1  # applied to matrices only
    clip_norm: Positive = 1.0  # gradients with a larger global norm are scaled down to this norm
    # weight of the mean squared logsumexp of the logits in the training loss
    z_loss: Annotated[float, not_negative()] = 0.0
    schedule: LrSchedule = LrSchedule.wsd  # shape of the learning rate after the warm-up
    warmup_fraction: Fraction = 0.05  # share of run.steps in which the learning rate rises linearly from 0
    # wsd: share of run.steps, at the end of the run, in which the learning rate falls
    decay_fraction: Fraction = 0.2
    final_lr_ratio: Fraction = 0.0  # learning rate at the end of the run, divided by lr
    options: dict[str, Any] = field(default_factory=dict)  # settings for an optimizer of a plugin


@dataclass
class RunConfig:
    """A run: where it writes, how long it trains, and on what."""

    name: str = MISSING  # shown in the terminal, the plot and the tracker
    dir: str = MISSING  # folder for everything that the run writes; by default a new one at every start
    steps: Count = 200  # optimizer steps, over all stages
    # tokens per optimizer step, over all ranks; auto: one sequence per data-parallel rank
    batch_tokens: Annotated[Any, at_most(MOST_TOKENS)] = "auto"
    # micro-batches per optimizer step; auto: as few as fit the GPU's memory
    grad_accum: Annotated[Any, at_most(2**31 - 1)] = "auto"
    # seed of the initial weights and of the order of the data
    seed: Annotated[int, at_least(0, most=2**63 - 1)] = 0
    device: Device = Device.auto  # device that the run trains on
    log_every: Count = 1  # steps between rows in metrics.jsonl and in the terminal


@dataclass
class ComputeConfig:
    """How a step is computed; these keys change results only by rounding."""

    precision: Precision = Precision.auto  # precision of the forward and backward pass
    # compute the blocks' matrix products in float8, with torchao; needs a Hopper GPU or later
    float8: bool = False
    compile: Compile = Compile.auto  # use torch.compile on the blocks
    recompute: Recompute = Recompute.auto  # recompute activations in the backward pass, to save memory
    recompute_every: Count = 1  # recompute only every n-th block, starting with the first
    # with recompute=full: keep the inputs of blocks in host memory; recompute=auto may turn it on
    offload: bool = False
    # give the same bits in every run on a GPU too; the backward pass of attention is slower
    deterministic: bool = False


@dataclass
class ParallelConfig:
    """How ranks share a run; dp_replicate * dp_shard * cp is their number."""

    dp_replicate: Count = 1  # number of replicas of the model
    # ranks that shard one replica, besides cp; -1: all remaining ranks
    dp_shard: Annotated[int, at_most(2**31 - 1)] = -1
    cp: Count = 1  # ranks that share each sequence (context parallelism)
    cp_attention: CpAttention = CpAttention.auto  # how these ranks attend to each other's parts
    reduce_always: bool = False  # reduce gradients after every micro-batch: less memory, more communication
    # seconds within which all ranks must connect; collectives wait longer than any watchdog.*
    timeout: Annotated[int, at_least(1, most=10**7)] = 600
    compare_every: Count = 100  # steps between comparisons of the ranks' speed; slow ranks are reported


@dataclass
class GuardConfig:
    """Steps whose loss or gradient is not finite: they are skipped and update nothing."""

    max_skips: Count = 10  # skipped steps in a row after which the run returns to its newest checkpoint
    # returns to a checkpoint after which the run ends with an error
    max_rewinds: Annotated[int, at_least(0)] = 3
    # report a loss that is this many standard deviations above the last 50 logged; 0: never
    spike: Annotated[float, not_negative("must be finite; 0 reports no spikes")] = 6.0


@dataclass
class WatchdogConfig:
    """Seconds that a rank may spend in each phase; null: no limit.

    After that the rank writes its stacks to run.dir/stalls and exits with status 75, so that a scheduler can
    restart it.
    """

    start: Limit = 3600.0  # reading and tokenizing data, loading a checkpoint
    compile: Limit = 3600.0  # compiling the blocks of a stage
    step: Limit = 1800.0  # one optimizer step
    validation: Limit = 3600.0  # one validation
    rewind: Limit = 3600.0  # returning to a checkpoint after skipped steps
    save: Limit = 1800.0  # a save, until training continues; the last save, until it is written


@dataclass
class EvalConfig:
    """Validation."""

    every: Count = 50  # steps between validations; the end of each stage is always validated
    # tokens per validation, at most; a smaller validation split is used whole
    tokens: Annotated[int, at_least(1, most=MOST_TOKENS)] = 32_768


@dataclass
class CheckpointConfig:
    """Checkpoints, in run.dir/checkpoints."""

    every: Count = 100  # steps between checkpoints; the end of each stage is always saved
    keep: Count = 3  # number of checkpoints to keep; older ones are deleted
    # seconds to retry the last save on a full or failing disk; must be below watchdog.save
    retry: Annotated[float, not_negative()] = 600.0


@dataclass
class LoggerConfig:
    """The tracker to which the rows of metrics.jsonl are sent."""

    # none: metrics stay in run.dir; wandb: Weights & Biases, pip install 'lhtrain[wandb]'
    kind: Annotated[str, one_of("none", TRACKERS)] = "none"
    project: str = "lhtrain"  # wandb: project of the run
    entity: str | None = None  # wandb: user or team; null: the account's default
    group: str | None = None  # wandb: group under which runs are shown together
    tags: list[str] = field(default_factory=list)  # wandb: tags of 1 to 64 characters
    mode: LoggerMode = LoggerMode.offline  # wandb: offline needs no account
    options: dict[str, Any] = field(default_factory=dict)  # settings for a tracker of a plugin


@dataclass
class ClusterConfig:
    """The job that `lhtrain slurm submit` requests from SLURM; null: the partition's default.

    No key here changes what is trained: a run may continue with other values.
    """

    nodes: Annotated[int, at_least(1, most=2**20)] = 1  # number of nodes
    # GPUs per node, with one rank each; 0: one rank per node, on its CPUs
    gpus_per_node: Annotated[int, at_least(0, most=2**10)] = 0
    # CPU cores per node (launch=torchrun) or per rank (launch=srun)
    cpus_per_task: Annotated[int, at_least(1, most=2**16)] = 1
    memory: str | None = None  # memory per node, such as 200G; 0: all of it
    # time limit of one job: 90 (minutes), 24:00:00, 2-00:00:00; a run may take several jobs
    time: str | None = None
    partition: str | None = None  # sbatch --partition
    account: str | None = None  # sbatch --account
    qos: str | None = None  # sbatch --qos
    constraint: str | None = None  # sbatch --constraint: features of the nodes
    exclusive: bool = False  # allow no other jobs on the nodes
    launch: Launch = Launch.torchrun  # how the ranks are started
    # seconds before the time limit at which a job saves and requeues; must cover a step and a save
    signal_seconds: Annotated[int, at_least(0)] = 300
    # requeues after attempts that crashed or made no step; a new submit starts the count again
    max_restarts: Annotated[int, at_least(0, most=2**20)] = 3
    # lines of bash to run before the ranks start, such as module load
    setup: list[str] = field(default_factory=list)
    # Python interpreter on the nodes; null: the one that runs `lhtrain slurm submit`
    python: str | None = None
    module: str = "lhtrain"  # module that each rank runs: python -m MODULE KEY=VALUE ...
    srun_args: list[str] = field(default_factory=list)  # more options for srun
    extra_args: list[str] = field(default_factory=list)  # more options for sbatch, one per line of #SBATCH


@dataclass
class Config:
    """All settings of a run."""

    model: ModelConfig = field(default_factory=ModelConfig)  # the decoder's shape
    lighthouse: LighthouseConfig = field(default_factory=LighthouseConfig)  # the Lighthouse layer
    # the stages, in the order in which they are trained
    stages: dict[str, StageConfig] = field(default_factory=dict)
    data: DataConfig = field(default_factory=DataConfig)  # the training data
    optim: OptimConfig = field(default_factory=OptimConfig)  # the optimizer and the learning rate
    run: RunConfig = field(default_factory=RunConfig)  # where the run writes, how long it trains, and on what
    compute: ComputeConfig = field(default_factory=ComputeConfig)  # precision, memory and speed of a step
    parallel: ParallelConfig = field(default_factory=ParallelConfig)  # how ranks share the run
    guard: GuardConfig = field(default_factory=GuardConfig)  # losses and gradients that are not finite
    watchdog: WatchdogConfig = field(default_factory=WatchdogConfig)  # time limits for ranks that hang
    eval: EvalConfig = field(default_factory=EvalConfig)  # validation
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)  # when checkpoints are saved
    logger: LoggerConfig = field(default_factory=LoggerConfig)  # a tracker
    cluster: ClusterConfig = field(default_factory=ClusterConfig)  # the job of `lhtrain slurm submit`
    # Python modules to import, from the current folder too; they add attention kinds, scorers, optimizers and
    # trackers through lhtrain.registry
    plugins: list[str] = field(default_factory=list)
    resume: Resume = Resume.never  # whether to continue a run that run.dir holds
    # checkpoint folder to start from: its weights, optimizer state and data position
    init_from: str | None = None
