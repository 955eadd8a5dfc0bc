"""Which source each block comes from: shares kept all along, not only on average."""

from collections.abc import Sequence

import numpy as np

CYCLE = 4096  # blocks after which the pattern repeats; shares are exact to 1 / CYCLE


class Mix:
    """Block b is number `nth` of source `source`: a pure function of b and the weights.

    The sources are spread evenly: of any first b blocks a source has its share to within a few.
    Raises ValueError: weights that are not positive and finite, or more than CYCLE of them.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        shares = np.asarray(weights, dtype=np.float64)
        if not 0 < len(shares) <= CYCLE or not (np.isfinite(shares) & (shares > 0)).all():
            raise ValueError(f"weights={list(weights)}: 1 to {CYCLE} numbers, each above 0 and finite")
        self.counts = _apportion(shares / shares.sum())
        source = np.repeat(np.arange(len(shares)), self.counts)
        turn = np.concatenate([(np.arange(count) + 0.5) / count for count in self.counts])
        order = np.lexsort((source, turn))
        self._source = source[order]
        self._nth = np.empty(CYCLE, np.int64)
        for number in range(len(shares)):
            at = self._source == number
            self._nth[at] = np.arange(self.counts[number])

    def lookup(self, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Source and nth of each block, int64 of the shape of `blocks`."""
        cycle, place = np.divmod(blocks, CYCLE)
        source = self._source[place]
        return source, cycle * self.counts[source] + self._nth[place]


def _apportion(shares: np.ndarray) -> np.ndarray:
    """Whole numbers, each at least 1, that sum to CYCLE and are nearest to the shares."""
    exact = shares * CYCLE
    counts = np.maximum(np.floor(exact).astype(np.int64), 1)
    while (missing := CYCLE - int(counts.sum())) != 0:
        at = (
            np.argmax(exact - counts)
            if missing > 0
            else np.argmax(np.where(counts > 1, counts - exact, -np.inf))
        )
        counts[at] += np.sign(missing)
    return counts
