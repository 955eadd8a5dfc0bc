"""Which source each block comes from: shares kept all along, not only on average."""

from collections.abc import Sequence

import numpy as np

CYCLE = 4096  # blocks after which the pattern repeats; shares are exact to 1 / CYCLE
# With a share below 1 / CYCLE the cycle is longer, until such a source has this many turns or more in it.
FEWEST_TURNS = 16
LONGEST_CYCLE = 1 << 22
SMALLEST_SHARE = FEWEST_TURNS / LONGEST_CYCLE  # 1 / 262144


class Mix:
    """Block b is number `nth` of source `source`: a pure function of b and the weights.

    The sources are spread evenly: of any first b blocks a source has its share to within a few.
    Raises ValueError: weights that are not positive and finite, or a share below SMALLEST_SHARE.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        given = np.asarray(weights, dtype=np.float64)
        if not len(given) or not (np.isfinite(given) & (given > 0)).all():
            raise ValueError(f"weights={list(weights)}: at least one number, each above 0 and finite")
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
        # The nth turn of each source: its turns in order of block, then counted from its first.
        by_source = np.argsort(self._source, kind="stable")
        self._nth = np.empty(self.cycle, np.int64)
        begins = np.repeat(np.cumsum(self.counts) - self.counts, self.counts)
        self._nth[by_source] = np.arange(self.cycle) - begins

    def lookup(self, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Source and nth of each block, int64 of the shape of `blocks`."""
        cycle, place = np.divmod(blocks, self.cycle)
        source = self._source[place]
        return source, cycle * self.counts[source] + self._nth[place]


def _cycle(smallest: float) -> int:
    """CYCLE where each source has its turn in it anyway: the order of a run must not change."""
    cycle = CYCLE
    if smallest < 1 / CYCLE:
        while smallest * cycle < FEWEST_TURNS:
            cycle *= 2
    return cycle


def _apportion(shares: np.ndarray, cycle: int) -> np.ndarray:
    """Whole numbers that sum to `cycle`, nearest to the shares, each of which is at least 1 / cycle."""
    exact = shares * cycle
    counts = np.floor(exact).astype(np.int64)
    missing = cycle - int(counts.sum())
    counts[np.argsort(counts - exact, kind="stable")[:missing]] += 1
    return counts
