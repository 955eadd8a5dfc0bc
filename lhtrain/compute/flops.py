"""Floating-point operations of a training step, for MFU and estimates of time.

Only necessary matrix products count. Every weight counts once per token. Attention counts the causal half of
its matrix, over the rows that it attends to: S instead of N in a Lighthouse stage. A windowed layer adds the
exact window of each token, and a strictly causal layer adds the tokens of its tile too. With documents apart,
attention counts only pairs of tokens of one document, as a share of all pairs that is an average over the
training data; an exact window counts at most these. The backward pass
counts twice the forward pass. A scorer counts once, because it has no backward pass. Recomputation counts
nothing, and neither does anything that is not a matrix product.
"""

from lhtrain.conf.schema import ModelConfig
from lhtrain.kernels.pyramid import DILATION
from lhtrain.stage import Stage


def step_flops(model: ModelConfig, stage: Stage, share: float = 1.0) -> int:
    """Return the FLOPs of the forward and backward pass of one optimizer step of `stage`, of all ranks.

    share: the share of pairs of tokens that are of one document, if documents are kept apart.
    """
    weights = 2 * stage.batch_tokens * _weights(model)
    attention = 0
    for layer in range(model.n_layers):
        if layer in stage.dense_layers:
            attention += stage.n_sequences * int(share * _attention(model, stage.seq_len))
        else:
            attention += stage.n_sequences * _lighthouse(model, stage, share)
    layers = model.n_layers - len(set(stage.dense_layers))
    return 3 * (weights + attention) + stage.n_sequences * layers * _scores(model, stage)


def _weights(model: ModelConfig) -> int:
    """Return the number of weights that multiply every token: all matrices except the embedding, a lookup."""
    heads = 2 * model.n_heads + 2 * model.n_kv_heads  # queries and output, keys and values
    per_layer = model.dim * heads * model.head_dim + 3 * model.dim * model.ffn_dim
    return model.n_layers * per_layer + model.dim * model.vocab_size


def _lighthouse(model: ModelConfig, stage: Stage, share: float) -> int:
    """Return the FLOPs of the forward pass of one Lighthouse layer on one sequence."""
    n, window = stage.seq_len, stage.window
    if stage.strictly_causal:
        return int(share * 4 * model.n_heads * model.head_dim * _strict_pairs(stage))
    near = 0
    if window < n:  # otherwise n_attended is the whole sequence
        # Position j has min(j + 1, window) keys.
        pairs = window * (window + 1) // 2 + (n - window) * window
        near = 4 * model.n_heads * model.head_dim * min(pairs, int(share * (n * (n + 1) // 2)))
    return near + int(share * _attention(model, stage.n_attended))


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
