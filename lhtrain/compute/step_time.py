"""Predicts the time of a training step on one GPU from measured rates (`rates.py`).

A step is the sum of what its kernels take, because they run one after the other: matrix products and
attention at their FLOP/s, everything else at the speed of memory. The bytes of the latter are counted in
tensors of a token's width, as the kernels read and write them. Nothing here is a table of measured steps; a
test compares the prediction with all of them (scripts/bench/results/train.csv).
"""

from dataclasses import dataclass
from math import prod

from lhtrain.compute.captured import is_captured
from lhtrain.compute.flops import attention_flops, backward, block_products, weights_of_products
from lhtrain.compute.memory import element
from lhtrain.compute.rates import (
    CONVERSION,
    CUDNN,
    DETERMINISTIC,
    FLOAT8,
    FLOAT8_PASSES,
    FLOAT32,
    GRAPH_PASS,
    GRAPH_STEP,
    HALF_RATE,
    HEAD_64,
    LAUNCHES,
    LIGHTHOUSE_LAUNCHES,
    MUON,
    STRICT,
    WINDOW_KEYS,
    Rates,
)
from lhtrain.compute.trained import Trained, state_bytes
from lhtrain.conf.schema import Config, ModelConfig, Precision, Recompute
from lhtrain.conf.sliding import sliding_layers
from lhtrain.distributed.muon import takes
from lhtrain.model.moments import form_of
from lhtrain.stage import Stage

# A layer with own queries copies queries, outputs and gradients between two layouts, forward and backward: as
# so many tensors of queries at memory speed.
OWN_QUERIES = (25.0, 45.0)

# Tensors that the elementwise kernels of a block read or write, by their width: the model's, that of queries
# and keys, the SwiGLU's. In `lighthouse_530m` 52 of the model's width, as counted in scripts/bench/NOTES.md.
FORWARD = (10.5, 2.5, 4.0)
BACKWARD = (14.5, 2.5, 7.0)
SELECTIVE = (4.0, 0.0, 3.0)  # of these again with compute.recompute=selective: both norms and the SwiGLU
NEWTON_SCHULZ = 5  # iterations of Muon (lhtrain/model/orthogonal.py)
LOGITS = 4  # times that the loss reads or writes a chunk's logits (34 ms of a step in NOTES.md)


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step on one GPU, without what other GPUs add."""

    attention: float
    products: float
    memory: float  # elementwise kernels, pooling and selection, the loss, the optimizer
    host: float  # starting the kernels; counts only if it takes longer than the kernels
    graph: float = 0.0  # what the kernels of a CUDA graph take besides, because they are short

    @property
    def total(self) -> float:
        return max(self.attention + self.products + self.memory + self.graph, self.host)


def step_time(
    config: Config, stage: Stage, rates: Rates, n_ranks: int = 1, kernel: str = "", share: float = 1.0
) -> StepTime:
    """Return the predicted time of a step of a filled configuration.

    Args:
        config: a filled configuration.
        stage: one of its stages.
        rates: those of the GPU.
        n_ranks: number of GPUs that share the step.
        kernel: the attention kernel, fa4 or cudnn; by default the one that `rates` has.
        share: the share of pairs of tokens that are of one document, if documents are kept apart.
    """
    model, compute = config.model, config.compute
    tokens, block = stage.batch_tokens / n_ranks, sum(n_in * n_out for n_in, n_out in block_products(model))
    back, entered = backward(model, stage)
    attention = passes = launches = 0.0
    again = 0
    for number in range(model.n_layers):
        forwards, backwards = 1, int(number in entered)
        whole = compute.recompute in (Recompute.full, Recompute.attention)
        if backwards and whole and number % compute.recompute_every == 0:
            forwards = 2
        again += forwards - 1
        launch = LAUNCHES if _is_exact(model, stage, number) else LIGHTHOUSE_LAUNCHES
        launches += (forwards + 2 * backwards) * launch
        attends = 1 if compute.recompute is Recompute.attention else forwards
        attention += _attention(config, stage, number, rates, (attends, backwards), kernel, share) / n_ranks
        passes += _block(config, stage, number, forwards, backwards)
    passes += LOGITS * model.vocab_size
    casts = FLOAT8_PASSES * model.n_layers * sum(map(sum, block_products(model))) if compute.float8 else 0
    head = 3 * model.dim * model.vocab_size
    products = (weights_of_products(model) + back + again * block - head) / (FLOAT8 if compute.float8 else 1)
    rate = rates.products * (FLOAT32[0] if compute.precision is Precision.float32 else 1)
    shards = n_ranks // config.parallel.dp_replicate
    block_passes = stage.grad_accum * (model.n_layers + 2 * len(entered) + again)
    captured = is_captured(stage, compute, n_ranks)
    return StepTime(
        attention,
        2 * tokens * (products + head) / rate + _orthogonalization(config, stage) / shards / rates.products,
        (tokens * element(compute) * (passes + casts) + _optimizer(config, stage) / shards) / rates.memory,
        0.0 if captured else launches * stage.grad_accum,
        GRAPH_PASS * block_passes + GRAPH_STEP * stage.grad_accum if captured else 0.0,
    )


def _is_exact(model: ModelConfig, stage: Stage, number: int) -> bool:
    """Return whether layer `number` attends to tokens, and not to the rows of a pyramid."""
    exact = number in stage.dense_layers or number in sliding_layers(model)
    return exact or stage.n_attended == stage.seq_len


def _attention(
    config: Config,
    stage: Stage,
    number: int,
    rates: Rates,
    passes: tuple[int, int],
    kernel: str,
    share: float,
) -> float:
    """Return the seconds of the attention of layer `number` on one GPU. passes: forward and backward."""
    model, compute = config.model, config.compute
    forward, backward = rates.forward, rates.backward
    if kernel == "cudnn" and rates.kernel != "cudnn":
        forward, backward = forward / CUDNN[0], backward / CUDNN[1]
    forward, backward = (HEAD_64 * x if model.head_dim <= 64 else x for x in (forward, backward))
    if compute.precision is Precision.float32:
        forward, backward = FLOAT32[1] * rates.products, FLOAT32[1] * rates.products
    backward *= DETERMINISTIC if compute.deterministic else 1
    flops = attention_flops(model, stage, number, share)
    exact = number in stage.dense_layers or number in sliding_layers(model)
    rows = stage.seq_len if exact else stage.n_attended
    work = flops.rows * (1 + HALF_RATE * config.parallel.cp / (rows * model.n_heads)) + flops.strict / STRICT
    if flops.window:  # without rows: of a sliding layer
        window = stage.window if flops.rows else model.sliding_window
        work += flops.window * (1 + WINDOW_KEYS / (window or 1))
    seconds = passes[0] * (work + flops.scores) / forward + passes[1] * 2 * work / backward
    return stage.n_sequences * seconds


def _block(config: Config, stage: Stage, number: int, forwards: int, backwards: int) -> float:
    """Return how many elements of each token the kernels of block `number` read or write at memory speed."""
    model, compute = config.model, config.compute
    layer = _lighthouse(model, stage, number)
    total = forwards * (_elements(model, FORWARD) + layer[0])
    total += backwards * (_elements(model, BACKWARD) + layer[1])
    if backwards and compute.recompute is Recompute.selective and number % compute.recompute_every == 0:
        total += _elements(model, SELECTIVE)
    return total


def _elements(model: ModelConfig, times: tuple[float, float, float]) -> float:
    widths = (model.dim, (model.n_heads + model.n_kv_heads) * model.head_dim, model.ffn_dim)
    return sum(count * width for count, width in zip(times, widths, strict=True))


def _lighthouse(model: ModelConfig, stage: Stage, number: int) -> tuple[float, float]:
    """Return the elements per token that pooling, selection, gathering, scattering and merging move.

    Forward: scores read q and k; the gather reads q, k and v and writes their rows; the scatter reads rows
    and writes the output. Backward: the reverse of gather and scatter. With a window, the results of the
    rows and of the window are merged, and the gradients of the window are read again.
    """
    if _is_exact(model, stage, number):
        return 0.0, 0.0
    q, kv = model.n_heads * model.head_dim, model.n_kv_heads * model.head_dim
    kept = stage.n_attended / stage.seq_len
    forward, backward = (q + kv) + (1 + kept) * (q + 2 * kv), (1 + kept) * (q + 2 * kv)
    if stage.own_queries:  # copies of queries, outputs and gradients into another layout and back
        forward, backward = forward + OWN_QUERIES[0] * q, backward + OWN_QUERIES[1] * q
    if stage.window or stage.strictly_causal:
        return forward + (2 + kept) * q, backward + (q + 2 * kv) + (4 + kept) * q
    return forward + (1 + kept) * q, backward + (1 + kept) * q


def _orthogonalization(config: Config, stage: Stage) -> int:
    """Return the FLOPs of Muon's Newton-Schulz iterations in a step, which the ranks of a shard group share.

    An iteration multiplies a matrix of m x n, m <= n, with its transpose (m^2 n), the result with itself
    (m^3), and that with the matrix (m^2 n).
    """
    if config.optim.kind != "muon":
        return 0
    trained = Trained(config.model, stage.frozen)
    sides = (sorted(trained.shapes[name]) for name in trained.names if name.startswith("blocks."))
    return sum(NEWTON_SCHULZ * 2 * (2 * x[0] ** 2 * x[1] + x[0] ** 3) for x in sides if len(x) == 2)


def _optimizer(config: Config, stage: Stage) -> float:
    """Return the bytes that clipping and the optimizer read and write: weights, gradients and state.

    Clipping reads each gradient, and reads and writes it again; the optimizer reads weight and gradient,
    writes the weight, and reads and writes its state. Muon, and moments that are not float32, pass over the
    weights more often.
    """
    trained, optim = Trained(config.model, stage.frozen), config.optim
    total = 6.0 * 4 * trained.weights + 2 * state_bytes(config)
    if optim.kind in ("adamw", "muon"):  # not of a plugin
        for name in trained.names:
            shape = trained.shapes[name]
            by_muon = optim.kind == "muon" and takes(name, shape)
            conversion = CONVERSION[form_of(shape, optim.state)]
            total += prod(shape) * (MUON + conversion if by_muon else 2 * conversion)
    return total
