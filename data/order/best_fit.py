"""Best fit: each document goes into the smallest gap that holds it, the longest document first."""

from bisect import bisect_left, insort

import numpy as np


def best_fit(
    todo: np.ndarray, sizes: np.ndarray, free: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Assign the documents `todo` to gaps with the free lengths `free`; sizes: of all documents.

    This is best fit decreasing, which Ding et al. (2024, arXiv 2404.10830) use for packing. Documents of
    equal size and gaps of equal length are handled together, so that the time depends on the number of
    different sizes rather than on the number of documents. Of equal documents, the first in `todo` is first.

    Returns the gap of each placed document, the documents that fit into no gap, and the placed documents.
    """
    gaps, placed, left = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    open_ = _Open(free)
    todo = todo[np.argsort(-sizes[todo], kind="stable")]
    heads = np.flatnonzero(np.diff(sizes[todo]))
    for equal in np.split(todo, heads + 1) if len(todo) else []:
        size = int(sizes[equal[0]])
        while len(equal):
            length, chosen = open_.take(size, len(equal))
            if not length:
                left.append(equal)
                break
            each = length // size  # documents that one gap holds
            now, equal = equal[: each * len(chosen)], equal[each * len(chosen) :]
            gaps.append(np.repeat(chosen, each)[: len(now)])
            placed.append(now)
            open_.put(length - each * size, chosen[:-1])
            open_.put(length - (len(now) - each * (len(chosen) - 1)) * size, chosen[-1:])
    return np.concatenate(gaps), np.concatenate(left), np.concatenate(placed)


class _Open:
    """Gaps by their free length."""

    def __init__(self, free: np.ndarray) -> None:
        order = np.argsort(free, kind="stable")
        heads = np.flatnonzero(np.diff(free[order])) + 1
        self._of_length: dict[int, list[np.ndarray]] = {}
        self._lengths: list[int] = []  # rising
        for equal in np.split(order, heads) if len(order) else []:
            self.put(int(free[equal[0]]), equal)

    def put(self, length: int, gaps: np.ndarray) -> None:
        """Add gaps of one free length."""
        if not length or not len(gaps):
            return
        if length not in self._of_length:
            insort(self._lengths, length)
        self._of_length.setdefault(length, []).append(gaps)

    def take(self, size: int, count: int) -> tuple[int, np.ndarray]:
        """Remove and return some of the shortest gaps that hold a document of `size`, and their length.

        They are as many as `count` such documents need, or fewer. The length is 0 if there is none.
        """
        index = bisect_left(self._lengths, size)
        if index == len(self._lengths):
            return 0, np.empty(0, np.int64)
        length = self._lengths[index]
        gaps = self._of_length[length].pop()
        needed = -(-count // (length // size))
        if not self._of_length[length]:
            del self._of_length[length], self._lengths[index]
        self.put(length, gaps[needed:])
        return length, gaps[:needed]
