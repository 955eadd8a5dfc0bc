"""Estimates the GPU memory of a configuration; needs no GPU.

The estimate goes through the backward pass of a step, block by block, and returns the moment that needs the
most memory. Each moment counts the weights, the optimizer state, the gradients computed so far, the saved
activations that are still needed, and temporary tensors. Activations take 2 bytes per element, or 4 with
compute.precision=float32.

The tensors that a compiled block saves, and those that its backward pass needs, were derived from measured
peaks (scripts/bench/results, train.csv and multi_gpu.csv); a test compares the estimate with all of them.
They were measured in bfloat16. The numbers for float32 follow from the same tensors and were not measured.
Float8 may save less. A scorer is not counted: it needs less memory than the loss or the backward pass of a
block.
"""

from dataclasses import dataclass, fields

from lhtrain.compute.trained import Trained, state_bytes
from lhtrain.conf.rules.parallel import mesh_sizes
from lhtrain.conf.schema import (
    ComputeConfig,
    Config,
    ModelConfig,
    Precision,
    Recompute,
)
from lhtrain.conf.sliding import sliding_layers
from lhtrain.model.chunks import chunk_rows
from lhtrain.stage import Stage


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak of one stage."""

    weights: int  # float32
    gradients: int  # float32; only those that exist at the peak
    optimizer: int  # state of the optimizer
    casts: int  # copies of weights in the dtype of the activations
    activations: int  # saved by the forward pass
    block: int  # temporary tensors of a block's backward pass, if the peak is there
    loss: int  # a chunk of logits and the gradients computed by the loss, if the peak is there

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True)
class Layer:
    """Bytes of one block."""

    kept: int  # saved from its forward pass to its backward pass
    work: int  # temporary tensors of its backward pass


def estimate(config: Config, stage: Stage, n_ranks: int | None = None) -> Memory:
    """Return the estimated peak memory of `stage` on each GPU, for compiled blocks.

    Args:
        config: a filled configuration.
        stage: one of its stages.
        n_ranks: number of ranks; None: the number that `parallel` names, where dp_shard=-1 counts as 1.

    With sharding, a rank holds its share of the weights, gradients and optimizer state, and its sequences or
    slices of them. Only two blocks are whole at a time (one in use, one being gathered), and the gradients of
    one block.
    """
    model, parallel = config.model, config.parallel
    inner, embeddings = parameters(model)
    known = parallel.dp_replicate * parallel.cp
    replicate, shard, cp = mesh_sizes(parallel, n_ranks or known * max(parallel.dp_shard, 1))
    ranks, shards = replicate * shard * cp, shard * cp
    tokens = stage.batch_tokens // stage.grad_accum // ranks
    trained = Trained(model, stage.frozen)
    layers = [_layer(config, stage, tokens, number) for number in range(model.n_layers)]
    # Below what is trained there is no backward pass.
    layers = [Layer(0, 0) if number < trained.first_block else layer for number, layer in enumerate(layers)]
    state = 4 * (inner + embeddings) // shards
    table = 4 * model.vocab_size * model.dim // shards  # the gradient of the output head, or of the embedding

    kept = sum(layer.kept for layer in layers) + 8 * tokens * model.head_dim  # float32 cosines and sines
    # Each moment: bytes of gradients, activations, block, loss.
    moments = [(0, kept, 0, _loss(model, tokens, element(config.compute)))]
    gradients = table if trained.head else 0
    for number, layer in reversed(list(enumerate(layers))):
        moments.append((gradients, kept, layer.work, 0))
        kept -= layer.kept
        gradients += int(4 * inner // model.n_layers // shards * trained.share_of_block(number))
    if trained.embedding:  # its gradient, from a float32 gradient of its output; if tied, added to the head's
        moments.append((gradients, kept, 4 * tokens * model.dim + table, 0))

    before = 0  # gradients of earlier micro-batches; not sharded if only the last micro-batch reduces them
    if stage.grad_accum > 1:
        before = 4 * trained.weights // (shards if parallel.reduce_always else 1)
    casts = _casts(config, ranks)
    optimizer = state_bytes(config) // shards
    peaks = (Memory(state, max(own, before), optimizer, casts, *parts) for own, *parts in moments)
    return max(peaks, key=lambda memory: memory.total)


def element(compute: ComputeConfig) -> int:
    """Return the bytes per element of an activation on a GPU."""
    return 4 if compute.precision is Precision.float32 else 2


def _casts(config: Config, ranks: int) -> int:
    """Return the bytes of the weights that exist in the dtype of the activations.

    Sharded: the embeddings, which stay gathered, and two blocks, with the full gradients of one block. On one
    rank: the blocks that are not recomputed; nothing in float32.
    """
    inner, embeddings = parameters(config.model)
    n_layers, size = config.model.n_layers, element(config.compute)
    if ranks > 1:
        return size * embeddings + (2 * size + 4) * inner // n_layers
    kept = sum(not _recomputes(config.compute, number) for number in range(n_layers))
    return 2 * inner * kept // n_layers if size == 2 else 0


def _recomputes(compute: ComputeConfig, number: int) -> bool:
    """Return whether block `number` is fully recomputed in the backward pass."""
    return compute.recompute is Recompute.full and number % compute.recompute_every == 0


def _layer(config: Config, stage: Stage, n: int, number: int) -> Layer:
    """Return the bytes of block `number` for n tokens."""
    model, compute = config.model, config.compute
    whole = number in stage.dense_layers or number in sliding_layers(model)
    seen = n if whole else stage.n_attended * n // stage.seq_len
    size, heads = element(compute), model.n_heads * model.head_dim
    windowed = seen < n and (stage.window > 0 or stage.strictly_causal)
    scattered = size * n * heads if seen < n and not windowed else 0  # a Lighthouse layer's output
    block_input = size * n * model.dim
    kept = _kept_by_block(model, n, seen, size) + scattered
    kept += _kept_by_attention(model, n, size) if windowed else 0  # window, besides the selected rows
    # The gradient of the output; then one inside the SwiGLU, and the float32 gradient of the queries.
    swiglu, attention = size * n * model.ffn_dim, 4 * seen * heads
    if windowed:  # also the window's gradients of queries, keys and values, but nothing of the SwiGLU then
        attention = 4 * n * heads + size * n * (heads + 2 * model.n_kv_heads * model.head_dim)
        swiglu, attention = 0, max(swiglu, attention)
    work = size * n * model.dim + swiglu + attention
    if _recomputes(compute, number):
        if not compute.offload:
            return Layer(block_input, work + kept - block_input)
        return Layer(0, work + kept + (block_input if number > 0 else 0))  # the next input is prefetched
    if compute.recompute is Recompute.selective and number % compute.recompute_every == 0:
        # Recomputed: the outputs of both norms and of the gate, and the scattered output of the layer.
        normed = (model.n_heads + model.n_kv_heads) * model.head_dim if model.qk_norm else 0
        again = size * n * (2 * model.dim + model.ffn_dim + normed) + scattered
        return Layer(kept - again, work + again)
    if compute.recompute is Recompute.attention and number % compute.recompute_every == 0:
        results = size * n * heads + 4 * n * model.n_heads  # outputs and logsumexp
        held = block_input + (results if seen == n else _kept_by_attention(model, seen, size))
        held += results if windowed else 0
        return Layer(held, work + kept - held)
    return Layer(kept, work)


def parameters(model: ModelConfig) -> tuple[int, int]:
    """Return the number of weights of the blocks (with the last norm) and of the embeddings."""
    heads = 2 * model.n_heads + 2 * model.n_kv_heads
    block = model.dim * heads * model.head_dim + 3 * model.dim * model.ffn_dim + 2 * model.dim
    block += (model.n_heads + 2 * model.n_kv_heads) * model.head_dim if model.qkv_bias else 0
    block += 2 * model.head_dim if model.qk_norm else 0
    tables = 1 if model.tie_embeddings else 2
    return model.n_layers * block + model.dim, tables * model.vocab_size * model.dim


def _kept_by_block(model: ModelConfig, n: int, s: int, size: int) -> int:
    """Return the bytes that a compiled block saves for n tokens, of which attention sees s rows.

    Counts the block's input, the outputs of both norms, the second residual, the tensors of attention, and
    gate, up and product of the SwiGLU.
    """
    normed = (model.n_heads + model.n_kv_heads) * model.head_dim if model.qk_norm else 0
    return size * n * (4 * model.dim + 3 * model.ffn_dim + normed) + _kept_by_attention(model, s, size)


def _kept_by_attention(model: ModelConfig, n: int, size: int) -> int:
    """Return the bytes of queries, keys, values, outputs and float32 logsumexp of n rows."""
    return size * n * 2 * (model.n_heads + model.n_kv_heads) * model.head_dim + 4 * n * model.n_heads


def _loss(model: ModelConfig, n: int, size: int) -> int:
    """Return the bytes that the loss needs for n tokens: the highest of three moments.

    These are: a chunk's logits and their gradient, with the weight and its gradient; scaling the weight's
    gradient; the backward pass of the last norm. Each also counts hidden states or their gradients, and the
    input of the norm, some of them in float32.
    """
    chunk = size * min(n, chunk_rows(model.vocab_size)) * model.vocab_size
    table, hidden = model.vocab_size * model.dim, size * n * model.dim
    cast, norm = (2 * table, 7 * hidden) if size == 2 else (0, 4 * hidden)
    return max(2 * chunk + 4 * table + cast + 4 * hidden, 2 * 4 * table + 4 * hidden, 4 * table + norm)


def how(config: Config) -> str:
    """Return the settings of a filled configuration that decide its memory, as KEY=VALUE."""
    compute = config.compute
    settings = [f"compute.recompute={compute.recompute.value}"]
    settings += ["compute.offload=true"] if compute.offload else []
    counts = {name: stage.grad_accum for name, stage in config.stages.items()}
    if len(set(counts.values())) == 1:
        return " ".join([*settings, f"run.grad_accum={counts.popitem()[1]}"])
    return " ".join([*settings, *(f"stages.{name}.grad_accum={count}" for name, count in counts.items())])
