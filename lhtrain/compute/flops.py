"""Floating-point operations of a training step, for MFU and estimates of time.

Only necessary matrix products count. Every weight counts once per token. Attention counts the causal half of
its matrix, over the rows that it attends to: S instead of N in a Lighthouse stage. A sliding layer counts the
pairs within its window. A windowed Lighthouse layer adds the exact window of each token, and a strictly
causal layer adds the tokens of its tile too. With documents apart, attention counts only pairs of tokens of
one document, as a share of all pairs that is an average over the training data; an exact window counts at
most these. The backward pass counts twice the forward pass, without
the gradients that a stage with frozen parameters does not need. A scorer counts once, because it has no
backward pass. Recomputation counts nothing, and neither does anything that is not a matrix product.
"""

from dataclasses import dataclass

from lhtrain.compute.trained import Trained
from lhtrain.conf.schema import ModelConfig
from lhtrain.conf.sliding import sliding_layers
from lhtrain.kernels.pyramid import DILATION
from lhtrain.stage import Stage


def step_flops(model: ModelConfig, stage: Stage, share: float = 1.0) -> int:
    """Return the FLOPs of the forward and backward pass of one optimizer step of `stage`, of all ranks.

    share: the share of pairs of tokens that are of one document, if documents are kept apart.
    """
    weights = weights_of_products(model)
    back, entered = backward(model, stage)
    attention = 0
    for number in range(model.n_layers):
        layer = attention_flops(model, stage, number, share)
        passes = 3 if number in entered else 1
        attention += passes * (layer.rows + layer.window + layer.strict) + layer.scores
    return 2 * stage.batch_tokens * (weights + back) + stage.n_sequences * attention


def backward(model: ModelConfig, stage: Stage) -> tuple[int, set[int]]:
    """Return the weights that a backward pass multiplies every token with, and the layers that it enters."""
    if stage.frozen:
        return Trained(model, stage.frozen).products()
    return 2 * weights_of_products(model), set(range(model.n_layers))


@dataclass(frozen=True)
class AttentionFlops:
    """FLOPs of the forward pass of one layer's attention on one sequence, by kernel."""

    rows: int = 0  # causal attention over the sequence, or over the selected rows of a Lighthouse layer
    window: int = 0  # attention to the exact window
    strict: int = 0  # the attention of a strictly causal layer
    scores: int = 0  # the scorer, which has no backward pass


def attention_flops(model: ModelConfig, stage: Stage, number: int, share: float = 1.0) -> AttentionFlops:
    """Return the FLOPs of the attention of layer `number`. share: as in `step_flops`."""
    n, window = stage.seq_len, stage.window
    if model.sliding_window is not None and number in sliding_layers(model) and model.sliding_window < n:
        return AttentionFlops(window=_window(model, n, model.sliding_window, share))
    if number in stage.dense_layers or number in sliding_layers(model):
        return AttentionFlops(rows=int(share * _attention(model, n)))
    scores = _scores(model, stage)
    if stage.strictly_causal and window < n:  # else it is full attention
        pairs = 4 * model.n_heads * model.head_dim * _strict_pairs(stage)
        return AttentionFlops(strict=int(share * pairs), scores=scores)
    near = _window(model, n, window, share) if window < n else 0  # else n_attended is the whole sequence
    pairs = n * stage.n_attended if stage.own_queries else stage.n_attended**2
    return AttentionFlops(int(share * 2 * model.n_heads * model.head_dim * pairs), near, scores=scores)


def _window(model: ModelConfig, n: int, window: int, share: float) -> int:
    """Return the FLOPs of the forward pass of exact attention to the last `window` of n tokens."""
    pairs = window * (window + 1) // 2 + (n - window) * window  # position j has min(j + 1, window) keys
    return 4 * model.n_heads * model.head_dim * min(pairs, int(share * (n * (n + 1) // 2)))


def weights_of_products(model: ModelConfig) -> int:
    """Return the number of weights that multiply every token: all matrices except the embedding, a lookup."""
    return model.n_layers * sum(n_in * n_out for n_in, n_out in block_products(model)) + (
        model.dim * model.vocab_size
    )


def block_products(model: ModelConfig) -> list[tuple[int, int]]:
    """Return inputs and outputs of each linear layer of a block."""
    dim, heads, kv = model.dim, model.n_heads * model.head_dim, model.n_kv_heads * model.head_dim
    ffn = [(dim, model.ffn_dim), (dim, model.ffn_dim), (model.ffn_dim, dim)]
    return [(dim, heads), (dim, kv), (dim, kv), (heads, dim), *ffn]


def _scores(model: ModelConfig, stage: Stage) -> int:
    """Return the FLOPs of one layer's scorer on one sequence; 0 for scorers of plugins (unknown)."""
    n, dim = stage.seq_len, model.head_dim
    if stage.pyramid is None or stage.n_attended == n:
        return 0
    if stage.scorer == "dilated":  # two attentions over n / 4 rows of 4 times the heads
        return 2 * DILATION * _attention(model, n // DILATION)
    if stage.scorer == "gla":  # two states of dim^2, each written and read once per token, and the gates
        return n * (2 * 4 * model.n_heads * dim * dim + 2 * model.dim * model.n_kv_heads)
    return 0


def _strict_pairs(stage: Stage) -> int:
    """Return the number of query-key pairs of a strictly causal layer (attention/strict.py), one sequence."""
    pyramid = stage.pyramid
    assert pyramid is not None
    tokens, entries = pyramid.tile_tokens, pyramid.size(pyramid.levels - 1) // pyramid.n_tiles
    rows, hidden = pyramid.n_selected // pyramid.n_tiles, stage.window // pyramid.tile_tokens
    exact = sum(min(i * tokens, stage.window) for i in range(pyramid.n_tiles)) * tokens
    exact += pyramid.n_tiles * tokens * (tokens + 1) // 2
    return exact + sum(max(i - hidden, 0) for i in range(pyramid.n_tiles)) * rows * entries


def _attention(model: ModelConfig, n: int) -> int:
    """Return the FLOPs of the forward pass of causal attention over n rows: half of QK^T and half of PV."""
    return 2 * model.n_heads * model.head_dim * n * n
