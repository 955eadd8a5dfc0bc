"""The shape of a Lighthouse pyramid: how many levels, how large, and what fits together.

Level 0 is the sequence itself, N entries; level l has N / p^l, entry i of it summarising the window
[i p^l, (i+1) p^l - 1]. Entries are numbered level by level, level 0 first.
Source: Long Context Pre-Training with Lighthouse Attention, arXiv:2605.06554.
"""

from dataclasses import dataclass

TILE = 128  # entries that the published layer expands in a tile, 64 by qk, then 64 by kq
DILATION = 4  # the scorer dilated attends among every fourth token
STRICT_TILE = 16  # of strictly causal layers, whose exact part is as long as a tile


@dataclass(frozen=True)
class Pyramid:
    """Pyramid of a sequence of `seq_len` tokens. `problems()` must be empty before anything else is used."""

    seq_len: int  # N
    levels: int  # L
    pooling: int  # p
    budget: int  # k
    tile: int = TILE  # entries expanded in each tile of a level, half by qk, then half by kq; k / tile tiles

    @classmethod
    def of(
        cls, seq_len: int, levels: int, pooling: int, budget: int, tile: int | None, strictly_causal: bool
    ) -> "Pyramid":
        """Return the pyramid of a layer. tile: None: 128, or 16 if the layer is strictly causal."""
        own = STRICT_TILE if strictly_causal else TILE
        return cls(seq_len, levels, pooling, budget, own if tile is None else tile)

    def problems(self) -> list[tuple[str, object, str]]:
        """Return every rule that is broken, as (key, value, rule)."""
        found: list[tuple[str, object, str]] = []
        if self.levels < 2:
            found.append(("levels", self.levels, "must be at least 2"))
        if self.pooling < 2 or self.pooling & (self.pooling - 1):
            found.append(("pooling", self.pooling, "must be a power of two, at least 2"))
        if self.tile < 2 or self.tile % 2:
            found.append(("tile", self.tile, "must be a positive even number"))
        elif self.budget < self.tile or self.budget % self.tile:
            found.append(("budget", self.budget, f"must be a positive multiple of {self.tile}"))
        if found:
            return found
        window = self.coarsest_window
        if self.seq_len < window or self.seq_len % window:
            rule = f"must be a multiple of pooling^(levels-1) = {self.pooling}^{self.levels - 1} = {window}"
            found.append(("seq_len", self.seq_len, rule))
        elif self.budget > self.seq_len // window:
            coarsest = self.seq_len // window
            rule = f"must be at most the coarsest level's seq_len / pooling^(levels-1) = {coarsest}; "
            rule += f"use a seq_len of at least {self.budget * window}, or fewer levels, or a smaller pooling"
            least = coarsest // self.tile * self.tile
            rule += (
                f", or budget={least}"
                if least
                else ", or a smaller tile, and a budget that is a multiple of it"
            )
            found.append(("budget", self.budget, rule))
        elif (self.seq_len // window) % (self.budget // self.tile):
            rule = (
                f"the coarsest level's {self.seq_len // window} entries must divide into "
                f"budget / {self.tile} = {self.budget // self.tile} equal tiles"
            )
            found.append(("budget", self.budget, rule))
        return found

    def check(self) -> "Pyramid":
        """Return self; raise ValueError naming each key, its value and the rule it breaks."""
        if problems := self.problems():
            raise ValueError("; ".join(f"{key}={value}: {rule}" for key, value, rule in problems))
        return self

    def size(self, level: int) -> int:
        """Entries of `level`."""
        return self.seq_len // self.pooling**level

    def offset(self, level: int) -> int:
        """Number of the first entry of `level`."""
        return sum(self.size(finer) for finer in range(level))

    @property
    def n_entries(self) -> int:
        return self.offset(self.levels)

    @property
    def coarsest_window(self) -> int:
        """Tokens of a coarsest entry. Documents kept apart begin at multiples of it."""
        return self.pooling ** (self.levels - 1)

    @property
    def n_tiles(self) -> int:
        return self.budget // self.tile

    @property
    def tile_tokens(self) -> int:
        """Tokens of the sequence that a tile covers."""
        return self.seq_len // self.n_tiles

    @property
    def n_selected(self) -> int:
        """S, the rows the dense attention sees: N / p^(L-1) + (L-1) p k."""
        return self.size(self.levels - 1) + (self.levels - 1) * self.pooling * self.budget
