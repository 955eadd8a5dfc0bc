"""The GPU memory of a configuration, before any GPU is touched.

Goes through a step from the end of its forward pass to the end of its backward pass and takes the moment
that needs most: the state (weights, gradients that are there by then, optimizer), what the forward pass kept
and the backward pass has not used yet, and the work in flight. Activations are 2 bytes an element, 4 with
compute.precision=float32. What a compiled block keeps, and what its backward takes, was read off measured
peaks (scripts/bench/results, train.csv and multi_gpu.csv); a test holds the estimate to all of them. They are
of bfloat16: the figures for float32 follow from the same tensors and were not measured. Float8 products may
keep less. A scorer's work is not counted: it is less than that of the loss or of a block's backward pass.
N tokens of a micro-batch, C model dim, F SwiGLU dim, V vocabulary, S rows that attention sees.
"""

from dataclasses import dataclass, fields

from lhtrain.conf.rules.parallel import mesh_sizes
from lhtrain.conf.schema import (
    ComputeConfig,
    Config,
    ModelConfig,
    Precision,
    Recompute,
)
from lhtrain.model.chunks import chunk_rows
from lhtrain.registry import OPTIMIZERS
from lhtrain.stage import Stage


@dataclass(frozen=True)
class Memory:
    """Bytes of one stage at its peak."""

    weights: int  # float32
    gradients: int  # float32, those that are there at the peak
    optimizer: int  # its state
    casts: int  # copies of weights in the dtype that is computed in
    activations: int  # kept from the forward pass
    block: int  # work of the block whose backward is being computed, where that is the peak
    loss: int  # a chunk of logits, and the gradients that the loss has computed already, where that is

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True)
class Layer:
    """Bytes of one block."""

    kept: int  # from its forward pass to its backward
    work: int  # what its backward takes besides


def estimate(config: Config, stage: Stage, n_ranks: int | None = None) -> Memory:
    """Peak memory of `stage`, one of the filled `config`, on each GPU. For compiled blocks.

    n_ranks: of the run; None: as many as `parallel` names, dp_shard=-1 counting as one.

    Sharded, a rank has its share of weights, gradients and optimizer state, its sequences or slices of them,
    and whole only the blocks at work: one in use and one on its way, and the gradients of one.
    """
    model, parallel = config.model, config.parallel
    inner, embeddings = parameters(model)
    known = parallel.dp_replicate * parallel.cp
    replicate, shard, cp = mesh_sizes(parallel, n_ranks or known * max(parallel.dp_shard, 1))
    ranks, shards = replicate * shard * cp, shard * cp
    tokens = stage.batch_tokens // stage.grad_accum // ranks
    layers = [_layer(config, stage, tokens, number) for number in range(model.n_layers)]
    state = 4 * (inner + embeddings) // shards
    table = 4 * model.vocab_size * model.dim // shards  # the gradient of the output head, or of the embedding

    kept = sum(layer.kept for layer in layers) + 8 * tokens * model.head_dim  # float32 cosines and sines
    moments = [
        (0, kept, 0, _loss(model, tokens, element(config.compute)))
    ]  # gradients, activations, block, loss
    gradients = table
    for layer in reversed(layers):
        moments.append((gradients, kept, layer.work, 0))
        kept -= layer.kept
        gradients += 4 * inner // model.n_layers // shards
    # The embedding's, from a float32 gradient of its output; where it is tied, added to the head's.
    moments.append((gradients, kept, 4 * tokens * model.dim + table, 0))

    before = 0  # gradients of the micro-batches before, whole where only the last one reduces them
    if stage.grad_accum > 1:
        before = state if parallel.reduce_always else state * shards
    casts = _casts(config, ranks)
    optimizer = state * OPTIMIZERS[config.optim.kind].state_bytes // 4
    peaks = (Memory(state, max(own, before), optimizer, casts, *parts) for own, *parts in moments)
    return max(peaks, key=lambda memory: memory.total)


def element(compute: ComputeConfig) -> int:
    """Bytes of an activation on a GPU."""
    return 4 if compute.precision is Precision.float32 else 2


def _casts(config: Config, ranks: int) -> int:
    """Bytes of weights in the dtype of the activations. Sharded: the root's, gathered all along, and two
    blocks', with the whole gradients of one. On one rank: those of blocks that are not recomputed, none in
    float32."""
    inner, embeddings = parameters(config.model)
    n_layers, size = config.model.n_layers, element(config.compute)
    if ranks > 1:
        return size * embeddings + (2 * size + 4) * inner // n_layers
    kept = sum(not _recomputes(config.compute, number) for number in range(n_layers))
    return 2 * inner * kept // n_layers if size == 2 else 0


def _recomputes(compute: ComputeConfig, number: int) -> bool:
    """Whether block `number` is computed again as a whole."""
    return compute.recompute is Recompute.full and number % compute.recompute_every == 0


def _layer(config: Config, stage: Stage, n: int, number: int) -> Layer:
    """Block `number` with n tokens."""
    model, compute = config.model, config.compute
    seen = n if number in model.dense_layers else stage.n_attended * n // stage.seq_len
    size, heads = element(compute), model.n_heads * model.head_dim
    windowed = seen < n and stage.window > 0
    scattered = size * n * heads if seen < n and not windowed else 0  # a Lighthouse layer's output
    block_input = size * n * model.dim
    kept = _kept_by_block(model, n, seen, size) + scattered
    kept += _kept_by_attention(model, n, size) if windowed else 0  # of the window, beside the selected rows
    # The gradient that comes in, one inside the SwiGLU, attention's float32 sums of the queries' gradients.
    work = size * n * (model.dim + model.ffn_dim) + 4 * (n if windowed else seen) * heads
    # A window's gradients of queries, keys and values wait for those of the selected rows.
    work += size * n * (heads + 2 * model.n_kv_heads * model.head_dim) if windowed else 0
    if _recomputes(compute, number):
        if not compute.offload:
            return Layer(block_input, work + kept - block_input)
        return Layer(0, work + kept + (block_input if number > 0 else 0))  # the input fetched ahead
    if compute.recompute is Recompute.selective and number % compute.recompute_every == 0:
        # Norms' and the gated product's results, and what is scattered from the rows.
        again = size * n * (2 * model.dim + model.ffn_dim) + scattered
        return Layer(kept - again, work + again)
    return Layer(kept, work)


def parameters(model: ModelConfig) -> tuple[int, int]:
    """Weights of the blocks and of the embeddings."""
    heads = 2 * model.n_heads + 2 * model.n_kv_heads
    block = model.dim * heads * model.head_dim + 3 * model.dim * model.ffn_dim + 2 * model.dim
    tables = 1 if model.tie_embeddings else 2
    return model.n_layers * block + model.dim, tables * model.vocab_size * model.dim


def _kept_by_block(model: ModelConfig, n: int, s: int, size: int) -> int:
    """Bytes that a compiled block keeps of n tokens: its input, both norms' results and the second residual;
    what attention keeps of the s rows that it saw; the SwiGLU's gate, up and product."""
    return size * n * (4 * model.dim + 3 * model.ffn_dim) + _kept_by_attention(model, s, size)


def _kept_by_attention(model: ModelConfig, n: int, size: int) -> int:
    """Bytes of queries, keys, values, outputs and float32 logsumexp of n rows."""
    return size * n * 2 * (model.n_heads + model.n_kv_heads) * model.head_dim + 4 * n * model.n_heads


def _loss(model: ModelConfig, n: int, size: int) -> int:
    """Bytes where forward and backward pass meet, the most of: a chunk's logits and their gradient, with the
    weight and its gradient; the weight's gradient scaled; the last norm's backward. Beside each are hidden
    states or their gradients, and the norm's input, some in float32."""
    chunk = size * min(n, chunk_rows(model.vocab_size)) * model.vocab_size
    table, hidden = model.vocab_size * model.dim, size * n * model.dim
    cast, norm = (2 * table, 7 * hidden) if size == 2 else (0, 4 * hidden)
    return max(2 * chunk + 4 * table + cast + 4 * hidden, 2 * 4 * table + 4 * hidden, 4 * table + norm)


def how(config: Config) -> str:
    """The settings of a filled configuration that decide its memory, as they are typed."""
    compute = config.compute
    settings = [f"compute.recompute={compute.recompute.value}"]
    settings += ["compute.offload=true"] if compute.offload else []
    counts = {name: stage.grad_accum for name, stage in config.stages.items()}
    if len(set(counts.values())) == 1:
        return " ".join([*settings, f"run.grad_accum={counts.popitem()[1]}"])
    return " ".join([*settings, *(f"stages.{name}.grad_accum={count}" for name, count in counts.items())])
