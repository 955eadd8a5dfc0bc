"""The configuration's shape: every key, its type and its default. What fits together is `validate`'s part.

Values live in the YAML files beside this one; a key that is not named here does not exist.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import II, MISSING


class Attention(Enum):
    """What a stage's layers attend with."""

    dense = "dense"
    lighthouse = "lighthouse"


class Scorer(Enum):
    norm = "norm"


class LrSchedule(Enum):
    """Shape of the learning rate after the warm-up."""

    wsd = "wsd"  # constant, then linear over the last `decay_fraction` of the run
    linear = "linear"
    cosine = "cosine"


class Resume(Enum):
    """`auto`: continue from the newest sound checkpoint in run.dir, or start a new run without one."""

    never = "never"
    auto = "auto"
    force = "force"  # auto, also with other settings than the saved ones
    restart = "restart"  # keep what run.dir holds aside in run.dir/earlier.NNNN and start a new run there


class Device(Enum):
    auto = "auto"  # cuda where there is one
    cpu = "cpu"
    cuda = "cuda"


class Precision(Enum):
    """What the forward and backward compute in; weights and optimizer state are always float32."""

    auto = "auto"  # bfloat16 on a GPU, float32 on a CPU
    float32 = "float32"
    bfloat16 = "bfloat16"


class Compile(Enum):
    """Whether blocks go through torch.compile."""

    auto = "auto"  # on a GPU
    on = "on"
    off = "off"


class Recompute(Enum):
    """What the backward pass computes again instead of keeping it from the forward."""

    auto = "auto"  # the first of these that the GPU's memory allows, by the estimate
    none = "none"
    selective = "selective"  # keeps products and attention, recomputes what is cheap
    full = "full"  # keeps the input of a block alone


class CpAttention(Enum):
    """How context-parallel ranks attend together."""

    auto = "auto"  # ulysses where cp divides the numbers of heads, else ring
    ring = "ring"  # keys and values travel around
    ulysses = "ulysses"  # each rank has some heads of the whole sequence


class Selection(Enum):
    """What context-parallel Lighthouse layers select."""

    exact = "exact"  # what one rank would
    local = "local"  # the published way: each chunk by itself, none reaching into the next


class Launch(Enum):
    """How a SLURM job starts its ranks."""

    torchrun = "torchrun"  # one task a node; torchrun starts its ranks, which meet by its rendezvous
    srun = "srun"  # one task a rank


class LoggerKind(Enum):
    none = "none"
    wandb = "wandb"


class LoggerMode(Enum):
    offline = "offline"  # needs no account; `wandb sync` uploads it later
    online = "online"
    disabled = "disabled"


@dataclass
class ModelConfig:
    """A Llama-style decoder."""

    name: str = MISSING
    seq_len: int = MISSING  # tokens of context it is trained on; a stage may use another length
    vocab_size: int = II("tokenizer_vocab:${data.tokenizer}")  # rounded up to a multiple of 64
    dim: int = MISSING
    n_layers: int = MISSING
    n_heads: int = MISSING
    n_kv_heads: int = II(".n_heads")
    head_dim: int = II("div:${.dim},${.n_heads}")
    ffn_dim: int = MISSING  # hidden size of the SwiGLU
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    tie_embeddings: bool = False
    dense_layers: list[int] = field(default_factory=list)  # full attention in every stage; -1 is the last
    init_std: float = 0.02  # output projections: divided by sqrt(2 n_layers)


@dataclass
class LighthouseConfig:
    """Settings of the Lighthouse layer (arXiv:2605.06554); each stage may override its own copy."""

    levels: int = 3
    pooling: int = 4
    budget: int | None = None  # null: seq_len / 64, rounded up to a multiple of 128
    scorer: Scorer = Scorer.norm
    cover_prefix: bool = True
    backend: str = "auto"
    selection: Selection = Selection.exact  # under parallel.cp


@dataclass
class StageConfig:
    """One stage of the run; stages follow each other in the order in which they are written."""

    attention: Attention = MISSING
    steps: int | None = None  # wins over fraction; with neither, the stage takes the rest of the run
    fraction: float | None = None  # of run.steps
    seq_len: int = II("model.seq_len")
    batch_tokens: Any = II("run.batch_tokens")
    grad_accum: Any = II("run.grad_accum")
    lr_scale: float = 1.0
    levels: int = II("lighthouse.levels")
    pooling: int = II("lighthouse.pooling")
    budget: int = II("budget:${lighthouse.budget},${.seq_len}")
    scorer: Scorer = II("lighthouse.scorer")
    cover_prefix: bool = II("lighthouse.cover_prefix")


@dataclass
class DataConfig:
    source: str = MISSING  # stdlib, text, code, files, hf, prepared or mix: conf/data has a file for each
    path: Any = None  # a file, a folder, a pattern such as dump/*.jsonl, or a list; prepared: the folder
    name: str | None = None  # hf: dataset on the hub
    subset: str | None = None  # hf: its configuration, such as sample-10BT
    split: str = "train"  # hf: its split
    revision: str | None = None  # hf: branch, tag or commit
    streaming: bool = True  # hf: read while it loads; false: download it first, into the hub's cache
    column: str = "text"  # files and hf: where the text is; a.b: column b within the objects of column a
    filters: list[str] = field(default_factory=list)  # files and hf: 'COLUMN >= VALUE'; chars: text length
    max_documents: int | None = None  # null: all
    max_tokens: int | None = None  # documents are taken whole until there are as many
    tokenizer: str = "bytes"  # or a tiktoken encoding, or the path of a tokenizer.json
    bos: bool = False  # begin every document with the beginning-of-text token
    eos: str | None = None  # a tokenizer.json's end-of-text token, by text or number; null: by a known name
    val_fraction: float = 0.05  # of the documents
    long_fraction: float | None = None  # of the sequences, cut from long documents: data/README.md
    mix: Any = None  # mix: name -> {path: prepared folder, weight: number}
    out: str | None = None  # folder of the prepared shards; null: one in cache_dir
    workers: int | None = None  # of lhtrain data prepare; null: one a core
    cache_dir: str | None = None  # null: $LHTRAIN_CACHE, else the user's cache folder
    verify: bool = True  # compare each shard with its checksum before it is read, once a machine


@dataclass
class OptimConfig:
    """AdamW and its learning-rate schedule."""

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1  # matrices only
    clip_norm: float = 1.0
    z_loss: float = 0.0  # times the mean square of the logits' logsumexp; in the training loss that is logged
    schedule: LrSchedule = LrSchedule.wsd
    warmup_fraction: float = 0.05  # of the run's steps
    decay_fraction: float = 0.2  # wsd: of the run's steps, at its end
    final_lr_ratio: float = 0.0  # learning rate at the end of the run / lr


@dataclass
class RunConfig:
    name: str = MISSING
    dir: str = MISSING
    steps: int = 200
    batch_tokens: Any = (
        "auto"  # of a step, over all ranks and micro-batches; auto: a sequence a rank with data
    )
    grad_accum: Any = "auto"  # micro-batches of a step; auto: as few as the GPU's memory allows
    seed: int = 0
    device: Device = Device.auto
    log_every: int = 1  # steps


@dataclass
class ComputeConfig:
    """How a step is computed; none of it changes what is computed, beyond rounding."""

    precision: Precision = Precision.auto
    float8: bool = False  # the blocks' products, through torchao; Hopper and later
    compile: Compile = Compile.auto
    recompute: Recompute = Recompute.auto
    recompute_every: int = 1  # every n-th block, from the first on
    offload: bool = False  # recompute=full: the kept inputs wait in host memory; recompute=auto sets it
    deterministic: bool = False  # the same bits from run to run on a GPU too; attention's backward is slower


@dataclass
class ParallelConfig:
    """How ranks share a run; dp_replicate * dp_shard * cp is their number."""

    dp_replicate: int = 1  # copies of the model
    dp_shard: int = -1  # ranks over which a copy is sharded, besides cp; -1: all that are left
    cp: int = 1  # ranks that share each sequence
    cp_attention: CpAttention = CpAttention.auto
    reduce_always: bool = False  # reduce gradients in every micro-batch: less memory, more communication
    # Seconds that the ranks wait to meet. A collective may take as long, or longer than any watchdog.* limit,
    # so that the watchdog finds a hang first and writes where.
    timeout: int = 600
    compare_every: int = 100  # steps; ranks slower than the others are then named


@dataclass
class GuardConfig:
    """What is done when numbers go wrong. A step whose loss or gradient is not finite updates nothing."""

    max_skips: int = 10  # such steps in a row; then back to the newest checkpoint, and past their data
    max_rewinds: int = 3  # of a run; then it ends
    spike: float = 6.0  # a loss so many standard deviations above the last 50 logged ones is told; 0: none


@dataclass
class WatchdogConfig:
    """Seconds that a rank may spend in one phase; then it writes its stacks to run.dir/stalls and ends with
    status 75, on which `lhtrain slurm` and others start it again. null: for ever."""

    start: float | None = 3600.0  # reading data, tokenizing them, loading a checkpoint
    compile: float | None = 3600.0
    step: float | None = 1800.0
    validation: float | None = 3600.0
    rewind: float | None = 3600.0  # going back to a checkpoint after steps that updated nothing
    save: float | None = 1800.0  # until training goes on; and the last one, until it is written


@dataclass
class EvalConfig:
    every: int = 50  # steps; stage ends are always evaluated
    tokens: int = 32_768  # at most; all of a smaller validation split


@dataclass
class CheckpointConfig:
    every: int = 100  # steps; stage ends are always saved
    keep: int = 3
    retry: float = 600.0  # seconds for which the last one is tried again where the disk is full or fails


@dataclass
class LoggerConfig:
    kind: LoggerKind = LoggerKind.none
    project: str = "lhtrain"
    entity: str | None = None
    group: str | None = None
    tags: list[str] = field(default_factory=list)
    mode: LoggerMode = LoggerMode.offline


@dataclass
class ClusterConfig:
    """The job that `lhtrain slurm submit` asks SLURM for; null: the partition's own default.

    No key here decides what is trained: a run may go on with other ones.
    """

    nodes: int = 1
    gpus_per_node: int = 0  # and as many ranks; 0: one rank a node, on its CPUs
    cpus_per_task: int = 1  # of a node with launch=torchrun, of a rank with launch=srun
    memory: str | None = None  # of a node, such as 200G; "0" is all of it
    time: str | None = (
        None  # limit of a job, as SLURM writes it: 90, 24:00:00, 2-00:00:00; the run may take longer
    )
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclusive: bool = False
    launch: Launch = Launch.torchrun
    signal_seconds: int = 300  # before its limit a job saves and requeues: at least a step and a save
    max_restarts: int = 3  # after attempts that crashed or made no step; submitting again counts afresh
    setup: list[str] = field(default_factory=list)  # lines of bash before the ranks start: modules, variables
    python: str | None = None  # interpreter on the nodes; null: the one that submits
    module: str = "lhtrain"  # what a rank runs, as python -m MODULE OVERRIDES
    srun_args: list[str] = field(default_factory=list)  # further options of srun
    extra_args: list[str] = field(default_factory=list)  # further options of sbatch, a line of #SBATCH each


@dataclass
class Config:
    model: ModelConfig = field(default_factory=ModelConfig)
    lighthouse: LighthouseConfig = field(default_factory=LighthouseConfig)
    stages: dict[str, StageConfig] = field(default_factory=dict)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    watchdog: WatchdogConfig = field(default_factory=WatchdogConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    resume: Resume = Resume.never
    init_from: str | None = None  # a checkpoint folder: its weights, optimizer state and data position
