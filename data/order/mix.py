"""The source of each block in a mixture. Shares hold in every stretch of the run, not only on average."""

from collections.abc import Sequence

import numpy as np

CYCLE = 4096  # the pattern repeats after this many blocks; shares are exact to 1 / CYCLE
# For a share below 1 / CYCLE the cycle is doubled until the source has at least this many blocks in it.
FEWEST_TURNS = 16
LONGEST_CYCLE = 1 << 22
SMALLEST_SHARE = FEWEST_TURNS / LONGEST_CYCLE  # 1 / 262144


class Mix:
    """Assigns to block b of the run a source and the number of the block within that source.

    The result depends on b and the weights alone. Sources are spread evenly: among the first b blocks, for
    any b, each source has its share to within a few blocks.
    Raises ValueError: a weight that is not positive and finite, or a share below SMALLEST_SHARE.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        given = np.asarray(weights, dtype=np.float64)
        if not len(given) or not (np.isfinite(given) & (given > 0)).all():
            raise ValueError(f"weights={list(weights)}: must be at least one number, each above 0 and finite")
        with np.errstate(over="ignore"):
            total = given.sum()
        shares = given / total if np.isfinite(total) else (given / given.max()) / (given / given.max()).sum()
        smallest = int(np.argmin(shares))
        if shares[smallest] < SMALLEST_SHARE:
            rule = f"its share of all weights must be at least 1 / {int(1 / SMALLEST_SHARE):,}"
            raise ValueError(f"weights[{smallest}]={given[smallest]:g}: {rule}, is {shares[smallest]:.3g}")
        self.cycle = _cycle(float(shares[smallest]))
        self.counts = _apportion(shares, self.cycle)
        source = np.repeat(np.arange(len(shares)), self.counts)
        turn = np.concatenate([(np.arange(count) + 0.5) / count for count in self.counts])
        self._source = source[np.lexsort((source, turn))]
        # For each block of the cycle, how many earlier blocks of the cycle have the same source.
        by_source = np.argsort(self._source, kind="stable")
        self._nth = np.empty(self.cycle, np.int64)
        begins = np.repeat(np.cumsum(self.counts) - self.counts, self.counts)
        self._nth[by_source] = np.arange(self.cycle) - begins

    def lookup(self, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the source of each block and its number within that source, both int64 like `blocks`."""
        cycle, offset = np.divmod(blocks, self.cycle)
        source = self._source[offset]
        return source, cycle * self.counts[source] + self._nth[offset]

    def counts_before(self, block: int) -> np.ndarray:
        """Return how many of the blocks before `block` each source has, int64 (n_sources,)."""
        cycle, offset = divmod(block, self.cycle)
        return cycle * self.counts + np.bincount(self._source[:offset], minlength=len(self.counts))


def _cycle(smallest: float) -> int:
    """Return CYCLE if each source has a block in it, else a multiple. Existing runs must keep their order."""
    cycle = CYCLE
    if smallest < 1 / CYCLE:
        while smallest * cycle < FEWEST_TURNS:
            cycle *= 2
    return cycle


def _apportion(shares: np.ndarray, cycle: int) -> np.ndarray:
    """Round shares * cycle to whole numbers that sum to `cycle`. Every share must be at least 1 / cycle."""
    exact = shares * cycle
    counts = np.floor(exact).astype(np.int64)
    missing = cycle - int(counts.sum())
    counts[np.argsort(counts - exact, kind="stable")[:missing]] += 1
    return counts
