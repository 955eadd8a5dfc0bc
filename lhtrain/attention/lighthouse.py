"""Lighthouse Attention: pool, score, select, attend, scatter back.

B batch, N sequence length, H query heads, G key/value heads, R = H / G query heads a group, D head dim,
E pyramid entries, S selected rows.
Source: arXiv:2605.06554. Norm scores have no parameters, so the same weights serve full attention as well.
"""

import os
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from lhtrain.attention.dense import attention_in_segments, check_dense_backend, dense_attention
from lhtrain.attention.documents import Documents
from lhtrain.attention.own_queries import own_query_attention
from lhtrain.attention.row_documents import aligned_starts, by_group, coarsest_rows, of_groups, row_bounds
from lhtrain.attention.strict import Rows
from lhtrain.attention.strict import strictly_causal as strict_attention
from lhtrain.attention.where import Where
from lhtrain.attention.windowed import windowed_attention
from lhtrain.kernels.pyramid import TILE, Pyramid
from lhtrain.kernels.scores import Scorer, Tokens
from lhtrain.kernels.scores.naive import max_pooled
from lhtrain.kernels.scores.norm import Norm
from lhtrain.kernels.selection import Selection
from lhtrain.kernels.selection.naive import inverse
from lhtrain.kernels.selection.precedence import documents_first, last_document_only, with_precedence
from lhtrain.kernels.selection.topk import TopK
from lhtrain.kernels.windows.naive import gather_pooled, scatter_back
from lhtrain.registry import BACKENDS, SCORERS

if TYPE_CHECKING:
    from lhtrain.stage import Stage

HAS_TRITON = find_spec("triton") is not None
TOP_K = TopK()


def lighthouse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    levels: int,
    pooling: int,
    budget: int,
    scorer: str | Scorer = "norm",
    selection: Selection = TOP_K,
    cover_prefix: bool = True,
    strictly_causal: bool = False,
    window: int = 0,
    own_queries: bool = False,
    tile: int | None = None,
    backend: str = "auto",
    dense: str = "auto",
    positions: Tensor | None = None,
    x: Tensor | None = None,
    documents: Documents | None = None,
) -> Tensor:
    """Causal attention to the S pyramid entries that the layer selects: (B, N, H, D) in q's dtype.

    Args:
        q: (B, N, H, D), after RoPE; k, v: (B, N, Hkv, D), Hkv dividing H. Any float dtype. Each K/V head has
            a selection of its own; a group's `qk` score is the maximum over its query heads.
        levels, pooling, budget: L, p and k; `Pyramid.problems` has the rules.
        scorer: a scorer, or a name in `registry.SCORERS` of one without parameters.
        selection: the rule by which scores pick pyramid entries.
        cover_prefix: give the first p^(L-1) - 1 positions an output; see `select`.
        window: W, the last tokens that each position attends to exactly. 0: none. N or more: full attention.
        own_queries: each position attends to the rows with its own query (`own_queries.py`). Needs a window.
        strictly_causal: no choice depends on later tokens (`strict.py`). W are then tokens before the tile.
        tile: entries expanded in a tile, half by each score. None: 128; 16 if strictly causal or own_queries.
        backend: "reference" (plain PyTorch), "triton" (`lhtrain.kernels`: a CUDA device; bf16, fp16 or fp32;
            head dims up to 256; p up to 64), or "auto", the kernels where they run.
        dense: the kernel of attention over the S rows without a window; see `dense_attention`.
        positions, x: for scorers, (N,) int64 (None: 0 ... N - 1), and the layer's input (B, N, C).
        documents: those that are kept apart, each with a covered prefix. They begin at multiples of p^(L-1).

    Raises:
        ValueError: sizes that do not fit together, an unknown scorer or backend, or one that cannot run here.
    """
    pyramid = Pyramid.of(q.shape[1], levels, pooling, budget, tile, strictly_causal or own_queries).check()
    _check(backend, window)
    if window >= q.shape[1]:
        return dense_attention(q, k, v, dense, documents)
    starts = None if documents is None else aligned_starts(documents, pyramid)
    tokens = _tokens(q, k, v, positions, x, dense, documents, pyramid.coarsest_window)
    precedence = precedence_of(starts, pyramid, cover_prefix, strictly_causal or own_queries)
    how = backend, scorer_of(scorer), selection, precedence
    n_covered = len(q) if cover_prefix else 0
    if strictly_causal:
        rows = gather_keys(q, k, v, tokens, pyramid, *how, n_covered)
        return strict_attention(q, k, v, rows, pyramid, window, starts=starts)
    options = tokens, pyramid, n_covered, *how
    if window or own_queries:
        attend = own_query_attention if own_queries else windowed_attention
        return attend(q, k, v, *choose(q, k, *options), pyramid, window, documents)
    return _attend_rows(gather(q, k, v, *options), pyramid, dense, documents)


def _attend_rows(selected: "Selected", pyramid: Pyramid, dense: str, documents: Documents | None) -> Tensor:
    """Attend to the selected rows, each to those of its own document if documents are given, and scatter."""
    if documents is None:
        return scatter(dense_attention(selected.q, selected.k, selected.v, dense), selected, pyramid)
    n_groups, n_rows = selected.indices.shape[1:]
    bounds = row_bounds(documents.bounds, selected.coarsest_rows(pyramid), pyramid.seq_len, n_rows)
    q, k, v = (by_group(x, n_groups) for x in (selected.q, selected.k, selected.v))
    rows = of_groups(attention_in_segments(q, k, v, bounds, dense), n_groups)
    return scatter(rows, selected, pyramid, documents.starts)


def precedence_of(
    starts: Tensor | None, pyramid: Pyramid, cover_prefix: bool, strictly_causal: bool
) -> Tensor | None:
    """Return the precedence of entries if documents are kept apart (`selection/precedence.py`), else None.

    starts: (B, N), where the document of each of the pyramid's tokens begins, counted from the first of them.
    """
    if starts is None:
        return None
    if strictly_causal:
        return last_document_only(starts, pyramid, cover_prefix)
    return documents_first(starts, pyramid) if cover_prefix else None


def _tokens(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Tensor | None,
    x: Tensor | None,
    dense: str,
    documents: Documents | None,
    align: int,
) -> Tokens:
    """Return whole sequences as the input of a scorer."""
    if positions is None:
        positions = torch.arange(q.shape[1], device=q.device)
    attend = partial(dense_attention, backend=dense)
    return Tokens(q, k, v, positions, x, attend, documents=documents, align=align)


class Selected(NamedTuple):
    """The rows that the layer attends to. q (B, S, H, D), k, v (B, S, G, D); indices (B, G, S) are entry
    numbers in attention order; row_of_entry (B, G, E) is their inverse, None where the reference ran."""

    q: Tensor
    k: Tensor
    v: Tensor
    indices: Tensor
    row_of_entry: Tensor | None

    def coarsest_rows(self, pyramid: Pyramid) -> Tensor:
        """Return the rows of the coarsest entries, (B, G, M)."""
        own = self.row_of_entry
        return coarsest_rows(inverse(self.indices, pyramid) if own is None else own, pyramid)


def gather(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tokens: Tokens,
    pyramid: Pyramid,
    n_covered: int,
    backend: str,
    scorer: Scorer,
    selection: Selection = TOP_K,
    precedence: Tensor | None = None,
) -> Selected:
    """Score, select, and gather with pooling.

    tokens: what is scored. q, k, v may be P chunks of its sequences, (P B, N, H, D), all batch elements of
    the first chunk first; tokens.q is (B, P N, H, D). n_covered: batch elements, from the first on, whose
    prefix gets an output whatever its scores. precedence: (P B, E - N) int8, see `precedence_of`. The other
    arguments are those of `lighthouse_attention`.
    """
    sizes = pyramid.levels, pyramid.pooling, pyramid.budget
    published = type(scorer) is Norm and type(selection) is TopK and pyramid.tile == TILE
    if published and precedence is None and _runs_kernels(q, pyramid.pooling, backend):
        # All three steps are one operator.
        _check_heads(q, k)
        from lhtrain.kernels import ops

        return Selected(*ops.gather_rows(q, k, v, *sizes, n_covered))
    indices, row_of_entry = choose(q, k, tokens, pyramid, n_covered, backend, scorer, selection, precedence)
    if row_of_entry is None:
        rows_q, rows_k, rows_v = (gather_pooled(x, indices, pyramid) for x in (q, k, v))
        return Selected(rows_q, rows_k, rows_v, indices, None)
    from lhtrain.kernels import ops

    n_rows = selection.n_rows(pyramid)
    rows_q, rows_k, rows_v = ops.gather_selected(q, k, v, row_of_entry, n_rows, *sizes, pyramid.tile)
    return Selected(rows_q, rows_k, rows_v, indices, row_of_entry)


def choose(
    q: Tensor,
    k: Tensor,
    tokens: Tokens,
    pyramid: Pyramid,
    n_covered: int,
    backend: str,
    scorer: Scorer,
    selection: Selection,
    precedence: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Score and select: indices (B, G, S) in attention order, and row_of_entry (B, G, E) where kernels run.

    The arguments are those of `gather`.
    """
    _check_heads(q, k)
    if not _runs_kernels(q, pyramid.pooling, backend):
        scores = with_precedence(*level_scores(scorer, tokens, pyramid), precedence)
        return selection.reference(*scores, pyramid, n_covered), None
    if type(scorer) is Norm and type(selection) is TopK:  # one pass over q and k, in a kernel
        from lhtrain.kernels import ops

        sizes = pyramid.levels, pyramid.pooling, pyramid.budget
        indices, row_of_entry = ops.select_by_norm(q, k, *sizes, n_covered, pyramid.tile, precedence)
        return indices, row_of_entry
    scores = with_precedence(*level_scores(scorer, tokens, pyramid), precedence)
    return selection.kernel(*scores, pyramid, n_covered)


def gather_keys(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tokens: Tokens,
    pyramid: Pyramid,
    backend: str,
    scorer: Scorer,
    selection: Selection,
    precedence: Tensor | None = None,
    n_covered: int = 0,
) -> Rows:
    """Score, select, and gather only keys and values. The arguments are those of `gather`."""
    indices, row_of_entry = choose(q, k, tokens, pyramid, n_covered, backend, scorer, selection, precedence)
    if row_of_entry is None:
        places = coarsest_rows(inverse(indices, pyramid), pyramid)
        return Rows(gather_pooled(k, indices, pyramid), gather_pooled(v, indices, pyramid), places, False)
    from lhtrain.kernels import ops

    sizes = selection.n_rows(pyramid), pyramid.levels, pyramid.pooling, pyramid.budget, pyramid.tile
    _, rows_k, rows_v = ops.gather_selected(k, k, v, row_of_entry, *sizes)
    return Rows(rows_k, rows_v, coarsest_rows(row_of_entry, pyramid), True)


def _check_heads(q: Tensor, k: Tensor) -> None:
    if q.shape[2] % k.shape[2]:
        raise ValueError(f"n_heads={q.shape[2]}: must be a multiple of n_kv_heads={k.shape[2]}")


def level_scores(scorer: Scorer, tokens: Tokens, pyramid: Pyramid) -> tuple[Tensor, Tensor]:
    """qk, kq (P B, G, E - N) float32 of levels 1 and up, without a gradient; pyramid: of one of P chunks."""
    with torch.no_grad():
        of_chunks = (
            scores.float().unflatten(-1, (len(tokens.chunks), -1)).movedim(2, 0).flatten(0, 1)
            for scores in scorer.scores(tokens)
        )
        qk, kq = (max_pooled(scores, pyramid) for scores in of_chunks)
    return qk, kq


def scatter(rows: Tensor, selected: Selected, pyramid: Pyramid, starts: Tensor | None = None) -> Tensor:
    """Return the sums of the outputs of rows (B, S, H, D) at all positions, (B, N, H, D).

    starts: (B, N), where the document of each position begins, counted from the first; None: no documents.
    """
    if selected.row_of_entry is None:
        return scatter_back(rows, selected.indices, pyramid, starts)
    from lhtrain.kernels import ops

    sizes = pyramid.levels, pyramid.pooling, pyramid.budget
    return ops.scatter_rows(rows, selected.row_of_entry, pyramid.seq_len, *sizes, starts)


def _runs_kernels(q: Tensor, pooling: int, backend: str) -> bool:
    """Return whether the Triton kernels run. Raises ValueError: backend=triton, and they cannot run."""
    if backend == "triton":
        if not HAS_TRITON:
            raise ValueError("backend=triton: needs the package triton, which is not installed")
        if not q.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
            raise ValueError(f"backend=triton: needs a CUDA device, and the tensors are on {q.device.type}")
        return True
    fits = q.shape[-1] <= 256 and pooling <= 64 and q.dtype in (torch.bfloat16, torch.float16, torch.float32)
    return backend == "auto" and HAS_TRITON and q.is_cuda and fits


def scorer_of(scorer: str | Scorer) -> Scorer:
    """Return `scorer`, or a new one if it is a name in `registry.SCORERS`. Raises ValueError."""
    if not isinstance(scorer, str):
        return scorer
    if scorer not in SCORERS:
        raise ValueError(f"scorer={scorer}: must be one of {', '.join(SCORERS.names())}")
    return SCORERS[scorer]()


def _check(backend: str, window: int = 0) -> None:
    """Raise ValueError for an unknown backend or a negative window."""
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend}: must be one of {', '.join(BACKENDS)}")
    if window < 0:
        raise ValueError(f"window={window}: must be at least 0")


@dataclass(frozen=True)
class LighthouseAttention:
    """Lighthouse Attention as an `Attend`; its fields are the options of `lighthouse_attention`."""

    keeps_documents: ClassVar[bool] = True  # uses `Where.documents`

    levels: int
    pooling: int
    budget: int
    scorer: str | Scorer | None = "norm"  # None: each layer has its own, with parameters, in `where`
    selection: Selection = TOP_K
    cover_prefix: bool = True
    strictly_causal: bool = False
    window: int = 0
    own_queries: bool = False
    tile: int | None = None
    backend: str = "auto"
    dense: str = "auto"

    def __post_init__(self) -> None:
        if self.scorer is not None:
            object.__setattr__(self, "scorer", scorer_of(self.scorer))
        _check(self.backend, self.window)
        check_dense_backend(self.dense)

    @classmethod
    def of(cls, stage: "Stage", backend: str) -> "LighthouseAttention":
        """Return the attention of the layers of a Lighthouse stage. backend: `lighthouse.backend`."""
        pyramid, scorer = stage.pyramid, SCORERS[stage.scorer]
        assert pyramid is not None
        return cls(
            pyramid.levels,
            pyramid.pooling,
            pyramid.budget,
            scorer=None if isinstance(scorer, type) and issubclass(scorer, nn.Module) else scorer(),
            cover_prefix=stage.cover_prefix,
            strictly_causal=stage.strictly_causal,
            window=stage.window,
            own_queries=stage.own_queries,
            tile=pyramid.tile,
            backend=backend,
        )

    def pyramid(self, seq_len: int) -> Pyramid:
        """Return the pyramid of seq_len tokens. Raises ValueError: sizes that do not fit together."""
        sizes = self.levels, self.pooling, self.budget, self.tile
        return Pyramid.of(seq_len, *sizes, self.strictly_causal or self.own_queries).check()

    def scorer_in(self, where: Where | None) -> Scorer:
        """Return the scorer of the layer that is called with `where`. Raises ValueError: it has none."""
        own = self.scorer if where is None or where.scorer is None else where.scorer
        if own is None:
            raise ValueError("scorer=None: needs a layer that has a scorer of its own")
        assert not isinstance(own, str)
        return own

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, where: Where | None = None) -> Tensor:
        return lighthouse_attention(
            q,
            k,
            v,
            levels=self.levels,
            pooling=self.pooling,
            budget=self.budget,
            scorer=self.scorer_in(where),
            selection=self.selection,
            cover_prefix=self.cover_prefix,
            strictly_causal=self.strictly_causal,
            window=self.window,
            own_queries=self.own_queries,
            tile=self.tile,
            backend=self.backend,
            dense=self.dense,
            positions=None if where is None else where.positions_in_sequence,
            x=None if where is None else where.x,
            documents=None if where is None else where.documents,
        )
