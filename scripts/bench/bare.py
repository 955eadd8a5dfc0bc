"""A bare PyTorch loop: the usual decoder, optimizer and step, without anything of lhtrain.

The decoder has the shape and the number of parameters of lhtrain's; its attention is SDPA, its loss is
cross_entropy on whole logits.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lhtrain.conf.schema import ModelConfig, OptimConfig


class BareBlock(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        dim, heads, kv = config.dim, config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
        self.head_dim = config.head_dim
        self.norm1, self.norm2 = nn.RMSNorm(dim, eps=config.norm_eps), nn.RMSNorm(dim, eps=config.norm_eps)
        self.wq, self.wo = nn.Linear(dim, heads, bias=False), nn.Linear(heads, dim, bias=False)
        self.wk, self.wv = nn.Linear(dim, kv, bias=False), nn.Linear(dim, kv, bias=False)
        self.gate, self.up = (nn.Linear(dim, config.ffn_dim, bias=False) for _ in range(2))
        self.down = nn.Linear(config.ffn_dim, dim, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        n = self.norm1(x)
        q, k, v = (
            w(n).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for w in (self.wq, self.wk, self.wv)
        )
        q, k = (self.rotated(a, cos, sin).to(v.dtype) for a in (q, k))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
        x = x + self.wo(y.transpose(1, 2).flatten(2))
        n = self.norm2(x)
        return x + self.down(F.silu(self.gate(n)) * self.up(n))

    @staticmethod
    def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


class Bare(nn.Module):
    """The decoder. dtype: of the residual stream; on a GPU, run it in an autocast context of this dtype."""

    def __init__(self, config: ModelConfig, seq_len: int, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.dtype = dtype
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        nn.init.normal_(self.embedding.weight, std=config.init_std)
        self.blocks = nn.ModuleList(BareBlock(config) for _ in range(config.n_layers))
        self.norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.head = nn.Linear(config.dim, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight
        rates = config.rope_theta ** (-torch.arange(0, config.head_dim, 2) / config.head_dim)
        angles = (torch.arange(seq_len)[:, None] * rates).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.embedding(tokens).to(self.dtype)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1), targets.flatten())


def bare_adamw(model: nn.Module, optim: OptimConfig) -> torch.optim.AdamW:
    """Return PyTorch's fused AdamW; vectors have no weight decay."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": optim.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=optim.lr, betas=tuple(optim.betas), eps=optim.eps, fused=True)
