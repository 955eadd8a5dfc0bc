"""Floating-point operations of a training step, and what a device could do in that time.

Counted are the products a step cannot do without: every weight once a token, and the causal half of the
attention matrix over the rows attention really sees, in a Lighthouse stage S and not N. The backward pass
counts twice the forward. Recomputation and anything that is not a matrix product count nothing.
"""

import torch

from lhtrain.conf.schema import Attention, ModelConfig, StageConfig
from lhtrain.kernels.pyramid import Pyramid

# Dense bfloat16 TFLOP/s of the data sheets.
# By the first key that the GPU's name contains: boards of less power come before their family.
PEAK_TFLOPS = {
    "GB200": 2500.0,
    "B200": 2250.0,
    "H200 NVL": 835.5,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.5,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "A6000": 155.0,
}


def step_flops(model: ModelConfig, stage: StageConfig) -> int:
    """Forward and backward of one optimizer step of `stage`."""
    sequences = stage.batch_tokens // stage.seq_len
    weights = 2 * stage.batch_tokens * _weights(model)
    attention = 0
    for layer in range(model.n_layers):
        dense = stage.attention is Attention.dense or layer in model.dense_layers
        attention += sequences * _attention(model, stage.seq_len if dense else rows(stage))
    return 3 * (weights + attention)


def rows(stage: StageConfig) -> int:
    """Rows that a layer of `stage` attends over."""
    if stage.attention is Attention.dense:
        return stage.seq_len
    return Pyramid(stage.seq_len, stage.levels, stage.pooling, stage.budget).n_selected


def peak_flops(device: torch.device) -> float | None:
    """bfloat16 FLOP/s of the device by its data sheet; None for a CPU or an unknown GPU."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    if " MIG " in name:  # a part of a card, which the data sheet does not describe
        return None
    return next((1e12 * peak for key, peak in PEAK_TFLOPS.items() if key in name), None)


def _weights(model: ModelConfig) -> int:
    """Weights that multiply every token: all matrices but the embedding, which is looked up."""
    heads = 2 * model.n_heads + 2 * model.n_kv_heads  # queries and output, keys and values
    per_layer = model.dim * heads * model.head_dim + 3 * model.dim * model.ffn_dim
    return model.n_layers * per_layer + model.dim * model.vocab_size


def _attention(model: ModelConfig, n: int) -> int:
    """Forward of causal attention over n rows: QK^T and PV, half of each n by n matrix."""
    return 2 * model.n_heads * model.head_dim * n * n
