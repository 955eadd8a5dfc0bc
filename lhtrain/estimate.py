"""`lhtrain estimate …`: the GPU memory of a configuration, before any GPU is touched.

Counts what a step holds at its peak: the state (weights, gradients, optimizer), what the forward pass keeps
for the backward, and the largest piece of work in flight. Activations are 2 bytes an element. What a compiled
block keeps, and what offloading takes, was read off measured peaks (scripts/bench/results,
train.csv and multi_gpu.csv); a test holds the estimate to all of them.
N tokens of a micro-batch, C model dim, F SwiGLU dim, S rows that attention sees.
"""

from dataclasses import dataclass, fields

from rich.console import Console
from rich.table import Table

from lhtrain.conf.schema import Attention, Config, ModelConfig, Recompute, StageConfig
from lhtrain.flops import rows
from lhtrain.loss import chunk_rows

GPUS = {"a100": 80, "h100": 80, "h200": 141, "b200": 180}  # GB
# What offloading takes on the GPU besides the block at work, in inputs of a block: its own, the one fetched
# ahead, the gradient that came in, and one more inside the SwiGLU (4.5 in a memory snapshot).
OFFLOADING = 5
USE = "lhtrain estimate [gpu=h100|GB] [GROUP=NAME ...] [KEY=VALUE ...]: settings as for training"


@dataclass(frozen=True)
class Memory:
    """Bytes of one stage at its peak."""

    weights: int  # float32
    gradients: int  # float32
    optimizer: int  # AdamW's two moments, float32
    casts: int  # the weights of the blocks in bfloat16
    activations: int  # kept from the forward pass
    block: int  # work of the block whose backward is being computed, where that is the peak
    loss: int  # a chunk of logits, and the gradients that the loss has computed already

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))


def estimate(config: Config, stage: StageConfig) -> Memory:
    """Peak memory of `stage` on each GPU; `config` is filled. For bfloat16 compute and compiled blocks.

    Sharded, a rank has its share of weights, gradients and optimizer state, its sequences or slices of them,
    and whole only the blocks at work: one in use and one on its way, and the gradients of one.
    """
    model, compute, parallel = config.model, config.compute, config.parallel
    inner, embeddings = _parameters(model)
    shards = max(parallel.dp_shard, 1) * parallel.cp
    tokens = stage.batch_tokens // stage.grad_accum
    tokens //= max(parallel.dp_shard, 1) * parallel.dp_replicate * parallel.cp
    kept, work, recomputed_blocks = 0, 0, 0
    block_input = 2 * tokens * model.dim
    for layer in range(model.n_layers):
        dense = stage.attention is Attention.dense or layer in model.dense_layers
        seen = tokens if dense else rows(stage) * tokens // stage.seq_len
        whole = _kept_by_block(model, tokens, seen)
        recomputed = layer % compute.recompute_every == 0
        if compute.recompute is Recompute.full and recomputed:
            kept += 0 if compute.offload else block_input
            # What the block keeps, computed again, less its input, counted above; and attention's float32
            # sums of the queries' gradients.
            work = max(work, whole - block_input + 4 * seen * model.n_heads * model.head_dim)
            recomputed_blocks += 1
        elif compute.recompute is Recompute.selective and recomputed:
            kept += whole - 2 * tokens * (
                2 * model.dim + model.ffn_dim
            )  # norms' and the gated product's results
        else:
            kept += whole
    if compute.offload:
        kept += OFFLOADING * block_input
    loss = _loss(model, tokens)
    casts = 2 * inner * (model.n_layers - recomputed_blocks) // model.n_layers
    if shards > 1 or parallel.dp_replicate > 1:  # the root's, gathered all along, and two blocks'
        casts = 2 * embeddings + 2 * (2 * inner // model.n_layers) + 4 * inner // model.n_layers
    # Without whole blocks to recompute the peak is at the end of the forward pass, in the loss.
    block, loss = (work, 0) if work > loss else (0, loss)
    state = 4 * (inner + embeddings) // shards
    return Memory(state, state, 2 * state, casts, kept, block, loss)


def _parameters(model: ModelConfig) -> tuple[int, int]:
    """Weights of the blocks and of the embeddings."""
    heads = 2 * model.n_heads + 2 * model.n_kv_heads
    block = model.dim * heads * model.head_dim + 3 * model.dim * model.ffn_dim + 2 * model.dim
    tables = 1 if model.tie_embeddings else 2
    return model.n_layers * block + model.dim, tables * model.vocab_size * model.dim


def _kept_by_block(model: ModelConfig, n: int, s: int) -> int:
    """Bytes that a compiled block keeps of n tokens: its input, both norms' results and the second residual;
    queries, keys, values and outputs of the s rows that attention saw, and the layer's output where those are
    fewer; the SwiGLU's gate, up and product."""
    heads = 2 * (model.n_heads + model.n_kv_heads) * model.head_dim
    output = n * model.n_heads * model.head_dim if s < n else 0
    statistics = 4 * s * model.n_heads  # float32 logsumexp
    return 2 * (n * (4 * model.dim + 3 * model.ffn_dim) + s * heads + output) + statistics


def _loss(model: ModelConfig, n: int) -> int:
    """Bytes while the loss is computed: a chunk's logits and their gradient, those of hidden and weight."""
    chunk = min(n, chunk_rows(model.vocab_size)) * model.vocab_size
    return 2 * 2 * chunk + 2 * 2 * n * model.dim + (4 + 2) * model.vocab_size * model.dim


def main(arguments: list[str]) -> None:
    """The command. `gpu=` takes a name or a number of gigabytes."""
    from lhtrain.cli import fail
    from lhtrain.conf.compose import compose_config
    from lhtrain.conf.problems import ConfigError

    if {"--help", "-h"} & set(arguments):
        print(USE)
        return
    named = [argument.removeprefix("gpu=") for argument in arguments if argument.startswith("gpu=")]
    gpu = named[-1].lower() if named else "h100"
    if gpu not in GPUS and not gpu.replace(".", "", 1).isdigit():
        fail(f"gpu={gpu}: must be one of {', '.join(GPUS)}, or a number of gigabytes")
    try:
        config = compose_config([argument for argument in arguments if not argument.startswith("gpu=")])
    except ConfigError as error:
        fail(str(error))
    capacity = float(GPUS.get(gpu, 0) or gpu)
    console = Console()
    total = sum(_parameters(config.model))
    console.print(
        f"{config.model.name}: {total:,} parameters; peak memory of a GPU in GB, of {capacity:g}",
        highlight=False,
    )
    console.print(table(config, capacity), highlight=False)
    if any(estimate(config, stage).total >= capacity * 1e9 for stage in config.stages.values()):
        from lhtrain.advice import advice

        print(*advice(config, capacity), sep="\n")


def table(config: Config, capacity: float) -> Table:
    """A row a part, a column a stage, in GB (10^9 bytes)."""
    stages = {name: estimate(config, stage) for name, stage in config.stages.items()}
    out = Table("")
    for name, stage in config.stages.items():
        out.add_column(f"{name}\nN {stage.seq_len:,}", justify="right")
    for field in fields(Memory):
        parts = (getattr(memory, field.name) for memory in stages.values())
        out.add_row(field.name, *(f"{part / 1e9:.2f}" for part in parts))
    out.add_section()
    out.add_row("total", *(f"{memory.total / 1e9:.2f}" for memory in stages.values()))
    out.add_row("fits", *("yes" if memory.total < capacity * 1e9 else "NO" for memory in stages.values()))
    return out
