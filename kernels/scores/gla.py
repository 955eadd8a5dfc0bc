"""The paper's scorer with parameters: norms of the output of gated linear attention.

Each head has a state S (D, D). It decays by the token's gate, and adds the token's key and value:

    S_t = exp(g_t) S_{t-1} + k_t v_t^T,   o_t = q_t S_t / sqrt(D),   g_t = log(sigmoid(w x_t)) / 16

Where documents are kept apart, the state is zero at the first token of each.

It is computed in chunks of tokens: matrix products inside a chunk, and a scan over the states of the chunks.
Source: arXiv:2605.06554 (the scorer); Mamba-2, arXiv:2405.21060, section 6 (the chunks).
B batch, T tokens, H query heads, G key/value heads, D head dim, C model dim.
"""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lhtrain.kernels.scores import Tokens, norms_of

CHUNK = 256  # tokens per chunk
SEGMENT = 2**17  # most tokens at once, which limits the memory for long sequences
TEMPERATURE = 16.0


class Gla(nn.Module):
    """qk = ‖linear attention of (q, k, v)‖, kq = ‖linear attention of (k, q, v)‖.

    Scores have no gradient, so the gates keep their initial values. Checkpoints hold them, also in stages
    with full attention; an exported model does not.
    """

    token_local: ClassVar[bool] = False

    def __init__(self, model: Any) -> None:
        """model: a configuration with `dim` and `n_kv_heads`."""
        super().__init__()
        self.weight = nn.Parameter(torch.empty(model.n_kv_heads, model.dim), requires_grad=False)

    def scores(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Return qk, kq (B, G, T) float32. Raises ValueError if tokens.x is None."""
        q, k, v = tokens.q, tokens.k, tokens.v
        if tokens.x is None:
            raise ValueError("scorer=gla: its gates need the layer's input x")
        n_heads, n_groups = q.shape[2], k.shape[2]
        weight = self.weight.to(tokens.x.dtype).float()  # round as sharded weights, gathered in x's dtype
        gates = F.logsigmoid(F.linear(tokens.x.float(), weight)) / TEMPERATURE  # (B, T, G)
        k, v, gates = (x.repeat_interleave(n_heads // n_groups, 2) for x in (k, v, gates))
        # Separate the chunks of the sequence: (B, T, H, ...) -> (P, B, H, T / P, ...).
        parts = [x.unflatten(1, (len(tokens.chunks), -1)).movedim(1, 0).movedim(3, 2) for x in (q, k, v)]
        log_gates = gates.unflatten(1, (len(tokens.chunks), -1)).movedim(1, 0).movedim(3, 2)
        q, k, v = parts
        ages = None if tokens.documents is None else _ages(tokens)
        found = (_attend(*role, log_gates, ages, tokens) for role in ((q, k, v), (k, q, v)))
        qk, kq = (norms_of(out.movedim(2, 3).movedim(0, 1).flatten(1, 2), n_groups) for out in found)
        return qk, kq


def _ages(tokens: Tokens) -> Tensor:
    """Return the number of tokens of its document before each token, of the chunks apart: (P, B, 1, T / P).

    They come from the layout: `tokens.positions` may be those of a user.
    """
    starts = tokens.documents.starts.unflatten(1, (len(tokens.chunks), -1))
    size = starts.shape[-1]
    # Not torch.tensor(chunks): the host would wait for the GPU.
    here = torch.stack([torch.arange(c * size, (c + 1) * size, device=starts.device) for c in tokens.chunks])
    return (here - starts).movedim(1, 0).unsqueeze(2)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, log_gates: Tensor, ages: Tensor | None, tokens: Tokens
) -> Tensor:
    """Return gated linear attention of these tokens to the whole sequence: (P, B, H, T / P, D)."""
    state = None
    if len(tokens.chunks) > 1:
        finals = tokens.all_chunks(final_state(k, v, log_gates, ages))
        decays = log_gates.sum(-1)
        if ages is not None:
            decays = decays.masked_fill(ages[..., -1] < ages.shape[-1], -torch.inf)
        decays = tokens.all_chunks(decays)
        state = states_before(finals, decays, torch.zeros_like(finals[0]))
        state = torch.stack([state[chunk] for chunk in tokens.chunks])
    outs = []
    segments = [x.split(SEGMENT, 3) for x in (q, k, v, log_gates)]
    of_ages = [None] * len(segments[0]) if ages is None else ages.split(SEGMENT, 3)
    for (q_part, k_part, v_part, gates), part in zip(zip(*segments, strict=True), of_ages, strict=True):
        out, state = linear_attention(q_part, k_part, v_part, gates, state, part)
        outs.append(out)
    return torch.cat(outs, 3)


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_gates: Tensor,
    state: Tensor | None = None,
    ages: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Causal gated linear attention.

    Args:
        q, k, v: (..., T, D), all of one float dtype, which the products use.
        log_gates: (..., T) float32, at most 0.
        state: (..., D, D) float32, the state before the first token; None: zero.
        ages: (..., T), the number of tokens of its document before each token; None: no documents.

    Returns:
        (..., T, D) in q's dtype, and the state (..., D, D) float32 after the last token.
    """
    n, chunk = q.shape[-2], min(CHUNK, q.shape[-2])
    missing = -n % chunk  # pad with zeros at the end; this changes neither the outputs nor the state
    q, k, v = (F.pad(x, (0, 0, 0, missing)).unflatten(-2, (-1, chunk)) for x in (q, k, v))
    decay = F.pad(log_gates, (0, missing)).unflatten(-1, (-1, chunk)).cumsum(-1)  # from the chunk's start
    whole = decay[..., -1]
    hidden = torch.ones(chunk, chunk, dtype=torch.bool, device=q.device).triu(1)
    if ages is not None:  # also what is farther back than the document's first token
        more = torch.arange(1, missing + 1, device=q.device)  # the last document continues
        ages = torch.cat([ages, ages[..., -1:] + more], -1).unflatten(-1, (-1, chunk))
        here = torch.arange(chunk, device=q.device)
        hidden = hidden | (here[:, None] - here > ages.unsqueeze(-1))
    between = (decay.unsqueeze(-1) - decay.unsqueeze(-2)).masked_fill(hidden, -torch.inf).exp()
    inside = ((q @ k.transpose(-1, -2)) * between.to(q.dtype)) @ v
    to_last = (whole.unsqueeze(-1) - decay).exp()
    from_first = decay.exp()
    if ages is not None:
        to_last = to_last.masked_fill(_other_document_than_last(ages), 0)
        from_first = from_first.masked_fill(ages <= here, 0)  # of a document that begins in the chunk
        whole = whole.masked_fill(ages[..., -1] < chunk, -torch.inf)
    taken = (k * to_last.unsqueeze(-1).to(k.dtype)).transpose(-1, -2) @ v
    taken, whole = taken.float().movedim(-3, 0), whole.movedim(-1, 0)
    before = states_before(taken, whole, torch.zeros_like(taken[0]) if state is None else state)
    last = before[-1] * whole[-1].exp()[..., None, None] + taken[-1]
    from_before = (q * from_first.unsqueeze(-1).to(q.dtype)) @ before.movedim(0, -3).to(q.dtype)
    out = (inside + from_before) * q.shape[-1] ** -0.5
    return out.flatten(-3, -2)[..., :n, :], last


def _other_document_than_last(ages: Tensor) -> Tensor:
    """ages (..., T) of consecutive tokens -> whether each is of another document than the last, (..., T)."""
    here = torch.arange(ages.shape[-1], device=ages.device)
    return here < (here[-1] - ages[..., -1:])


def final_state(k: Tensor, v: Tensor, log_gates: Tensor, ages: Tensor | None = None) -> Tensor:
    """Return the state after the last token, starting from zero: k, v (..., T, D) -> (..., D, D) float32.

    ages: as in `linear_attention`.
    """
    after = log_gates.flip(-1).cumsum(-1).flip(-1) - log_gates  # the decay from each token to the last
    share = after.exp()
    if ages is not None:
        share = share.masked_fill(_other_document_than_last(ages), 0)
    return (k.float() * share.unsqueeze(-1)).transpose(-1, -2) @ v.float()


def states_before(taken: Tensor, log_decays: Tensor, first: Tensor) -> Tensor:
    """Return the state before each of n chunks: S_0 = first, S_{c+1} = exp(decay_c) S_c + taken_c.

    taken: (n, ..., D, D) float32, log_decays (n, ...), first (..., D, D) -> (n, ..., D, D). A parallel scan:
    each of the log2(n) rounds doubles the number of chunks that a state sums up.
    """
    states = torch.cat([first.unsqueeze(0), taken[:-1]])
    decays = torch.cat([torch.zeros_like(log_decays[:1]), log_decays[:-1]])
    reach = 1
    while reach < len(states):
        further = states[:-reach] * decays[reach:].exp()[..., None, None]
        states = torch.cat([states[:reach], states[reach:] + further])
        decays = torch.cat([decays[:reach], decays[reach:] + decays[:-reach]])
        reach *= 2
    return states
