"""A Llama-style decoder: RMSNorm, rotary embedding, grouped-query attention, SwiGLU.

B batch, T tokens, C model dim, H query heads, Hkv key/value heads, D head dim, F SwiGLU dim, V vocabulary.
The model does not depend on devices or parallelism; `attend_with` sets the attention of its layers.
"""

import math
from collections.abc import Callable, Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lhtrain.attention.dense import FULL_ATTENTION
from lhtrain.attention.documents import Documents
from lhtrain.attention.sliding import SlidingAttention
from lhtrain.attention.where import Attend, Where
from lhtrain.conf.parameters import chosen
from lhtrain.conf.schema import ModelConfig
from lhtrain.conf.sliding import sliding_layers
from lhtrain.model.loss import (
    IGNORE,
    ChunkGrad,
    ChunkLoss,
    TokenLosses,
    chunk_grad,
    chunk_loss,
    linear_cross_entropy,
    per_token_losses,
)
from lhtrain.model.mup import init_scale
from lhtrain.model.rope import Rope, rotate

OWN_SCORER = ".attention.scorer."  # in the names of parameters that only Lighthouse layers use


class Linear(nn.Linear):
    """A linear layer in the dtype of its input: weight and bias stay float32 and are cast at use."""

    def __init__(self, n_in: int, n_out: int, bias: bool = False):
        super().__init__(n_in, n_out, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


class RMSNorm(nn.RMSNorm):
    """Normalizes in float32, and returns the dtype of its input.

    The gain is first rounded to that dtype, as every weight is: sharded weights are gathered in it, and one
    rank must compute the same as several.
    """

    def forward(self, x: Tensor) -> Tensor:
        gain = self.weight.to(x.dtype).float()
        return F.rms_norm(x.float(), self.normalized_shape, gain, self.eps).to(x.dtype)


class SelfAttention(nn.Module):
    """Projections, rotary embedding, and `attend`: x (B, T, C) -> (B, T, C)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.head_dim = config.head_dim
        self.wq = Linear(config.dim, config.n_heads * self.head_dim, config.qkv_bias)
        self.wk = Linear(config.dim, config.n_kv_heads * self.head_dim, config.qkv_bias)
        self.wv = Linear(config.dim, config.n_kv_heads * self.head_dim, config.qkv_bias)
        self.wo = Linear(config.n_heads * self.head_dim, config.dim)
        self.q_norm = RMSNorm(self.head_dim, eps=config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(self.head_dim, eps=config.norm_eps) if config.qk_norm else None
        self.attend: Attend = FULL_ATTENTION
        self.scorer: Any = None  # a module of a Lighthouse layer, where the scorer has parameters

    def forward(self, x: Tensor, where: Where) -> Tensor:
        q, k, v = (proj(x).unflatten(-1, (-1, self.head_dim)) for proj in (self.wq, self.wk, self.wv))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = (norm_heads(x, norm) for x, norm in ((q, self.q_norm), (k, self.k_norm)))
        q, k = rotate(q, where.rotation), rotate(k, where.rotation)
        where = where._replace(scorer=self.scorer, x=x)  # for scorers of Lighthouse layers
        return self.wo(self.attend(q, k, v, where).flatten(2))


def norm_heads(x: Tensor, norm: RMSNorm) -> Tensor:
    """Normalize each head of x (B, T, H, D).

    As three dimensions, because selective recomputation keeps results with four: rotated queries and keys.
    """
    return norm(x.flatten(1, 2)).view_as(x)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)): x (B, T, C) -> (B, T, C), with F hidden values."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.gate = Linear(config.dim, config.ffn_dim)
        self.up = Linear(config.dim, config.ffn_dim)
        self.down = Linear(config.ffn_dim, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """Attention and SwiGLU, each on a normalized input and added to it: x (B, T, C) -> (B, T, C).

    `run` calls `compute`, perhaps compiled or with recomputation.
    """

    def __init__(self, config: ModelConfig, number: int = 0):
        super().__init__()
        self.number = number  # from 0, first to last
        self.attention_norm = RMSNorm(config.dim, eps=config.norm_eps)
        self.attention = SelfAttention(config)
        self.ffn_norm = RMSNorm(config.dim, eps=config.norm_eps)
        self.ffn = SwiGLU(config)

        self.run: RunBlock = run_plainly

    def forward(self, x: Tensor, where: Where) -> Tensor:
        return self.run(self, x, where)

    def compute(self, x: Tensor, where: Where) -> Tensor:
        x = x + self.attention(self.attention_norm(x), where)
        return x + self.ffn(self.ffn_norm(x))


def run_plainly(block: Block, x: Tensor, where: Where) -> Tensor:
    return block.compute(x, where)


RunBlock = Callable[[Block, Tensor, Where], Tensor]


class GPT(nn.Module):
    """The decoder. Parameters are float32; activations have `dtype`.

    Each block's `run` computes it; `chunk_grad` and `chunk_loss` compute the loss of a chunk of logits with
    and without its gradient. `lhtrain.compute.apply.apply` replaces them to recompute or to compile.
    """

    def __init__(self, config: ModelConfig, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.config, self.dtype = config, dtype
        self.rope = Rope.of(config)  # a stage may have another one
        self.sliding_layers = frozenset(sliding_layers(config))
        self.sliding: Attend | None = None  # the attention of these layers
        if config.sliding_window is not None:
            self.sliding = SlidingAttention(config.sliding_window)
        # Empty until init_weights: nn.Embedding would draw weights, which on a meta device imports dynamo.
        self.embedding = nn.Embedding.from_pretrained(
            torch.empty(config.vocab_size, config.dim), freeze=False
        )
        self.blocks = nn.ModuleList(Block(config, number) for number in range(config.n_layers))
        self.norm = RMSNorm(config.dim, eps=config.norm_eps)
        self.head = Linear(config.dim, config.vocab_size)
        self.tie()
        self.attend_with(FULL_ATTENTION)
        self.chunk_grad: ChunkGrad = chunk_grad
        self.chunk_loss: ChunkLoss = chunk_loss

    def tie(self) -> None:
        """Use the embedding as the weight of the output head if model.tie_embeddings is set."""
        if self.config.tie_embeddings:
            self.head.weight = self.embedding.weight

    def hidden(
        self, tokens: Tensor, positions: Tensor | None = None, documents: Documents | None = None
    ) -> Tensor:
        """Hidden states before the output head, (B, T, C) in `dtype`, of tokens (B, T) int64.

        positions: (T,) or (B, T), for the rotary embedding; None: 0 … T - 1. documents: a token attends
        only to its own document; None: to its whole sequence.
        """
        x = self.embedding(tokens).to(self.dtype)
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device)
        by = self.rope.rotation(positions, self.config.head_dim)
        where = Where(by, positions=positions, documents=documents)
        for block in self.blocks:
            x = block(x, where)
        return self.norm(x)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (B, T, V) in `dtype`."""
        return self.head(self.hidden(tokens))

    def next_logits(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Logits (B, V) of the token that follows `tokens` (B, T); the arguments are those of `hidden`."""
        return self.head(self.hidden(tokens, positions)[:, -1])

    def loss(
        self,
        tokens: Tensor,
        targets: Tensor,
        positions: Tensor | None = None,
        z_loss: float = 0.0,
        documents: Documents | None = None,
    ) -> Tensor:
        """Mean cross-entropy of targets (B, T), in nats, float32; full logits are never allocated."""
        return linear_cross_entropy(
            self.hidden(tokens, positions, documents).flatten(0, 1),
            self.head.weight,
            targets.flatten(),
            z_loss,
            of_logits=self.chunk_grad,
            value_of_logits=self.chunk_loss,
        )

    def token_losses(
        self, tokens: Tensor, targets: Tensor, positions: Tensor | None = None, among: Tensor | None = None
    ) -> TokenLosses:
        """Cross-entropy of each target (B, T), without gradients; 0 and False at positions without a target.

        among: the tokens of which the most likely one is compared with the target; None: all.
        """
        counted = targets != IGNORE
        hidden = self.hidden(tokens, positions)[counted]
        found = per_token_losses(hidden, self.head.weight, targets[counted], among)
        losses = torch.zeros(targets.shape, dtype=torch.float32, device=targets.device)
        right = torch.zeros_like(targets, dtype=torch.bool)
        losses[counted], right[counted] = found
        return TokenLosses(losses, right)

    def attend_with(
        self,
        attend: Attend,
        dense: Attend = FULL_ATTENTION,
        dense_layers: Collection[int] | None = None,
        sliding: Attend | None = None,
    ) -> None:
        """Let the layers attend with `attend`, except `dense_layers`, which have `dense`, and sliding layers.

        dense_layers: None means those of the configuration. sliding: the attention of the sliding layers;
        None means that of one rank. One object of each for all layers and stages: a compiler takes several
        for different code.
        """
        sliding = sliding or self.sliding
        dense_layers = self.config.dense_layers if dense_layers is None else dense_layers
        for number, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            if number in self.sliding_layers and sliding is not None:
                block.attention.attend = sliding
            else:
                block.attention.attend = dense if number in dense_layers else attend

    def freeze(self, patterns: Collection[str]) -> bool:
        """Train all parameters except those that the patterns match (conf/parameters.py).

        Returns whether anything changed.
        """
        changed, frozen = False, chosen(patterns, (name for name, _ in self.named_parameters()))
        for name, parameter in self.named_parameters():
            changed |= parameter.requires_grad == (name in frozen)
            parameter.requires_grad_(name not in frozen)
        return changed

    @torch.no_grad()
    def init_weights(
        self, seed: int, put: Callable[[Tensor, Tensor], object] = Tensor.copy_, width_ratio: float = 1.0
    ) -> None:
        """Normal weights of `init_std`, output projections over sqrt(2 n_layers) (GPT-2); norms 1, biases 0.

        Drawn whole on the CPU in the order of the modules, one at a time, so that a seed gives the same
        weights on every device and however they are sharded: put(parameter, drawn) stores each.
        width_ratio: the ratio m of `mup.py`, which changes the scale of the weights.
        """
        draw = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            scale = init_scale(name, parameter.shape, width_ratio, self.config.tie_embeddings)
            if parameter.ndim < 2:
                value = 0.0 if name.endswith(".bias") else scale
                put(parameter, torch.full(parameter.shape, value))
                continue
            output = name.endswith(("attention.wo.weight", "ffn.down.weight"))
            std = self.config.init_std / (math.sqrt(2 * self.config.n_layers) if output else 1.0)
            put(parameter, torch.empty(parameter.shape).normal_(0.0, std * scale, generator=draw))

    def parameters_by_kind(self) -> dict[str, int]:
        """The numbers of parameters, as summary.json names them."""
        total, inner = self.n_parameters()
        return {"parameters": total, "parameters_without_embeddings": inner}

    def n_parameters(self) -> tuple[int, int]:
        """Number of parameters: all, and without the embedding and the output head."""
        total = sum(parameter.numel() for parameter in self.parameters())
        embeddings = self.embedding.weight.numel() * (1 if self.config.tie_embeddings else 2)
        return total, total - embeddings
