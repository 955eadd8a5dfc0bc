"""Seeded shuffles that are the same on every machine and with every NumPy.

A run may be resumed with another NumPy. NumPy's compatibility policy (NEP 19) keeps the raw numbers of a bit
generator, such as Philox, but lets `Generator.permutation` and the other methods change between versions.
Sorting raw numbers of our own depends on neither.
"""

import numpy as np


def permutation(n: int, seed: int, epoch: int, stream: int) -> np.ndarray:
    """A permutation of range(n), int64 (n,)."""
    return np.argsort(_draw(n, seed, epoch, stream), kind="stable")


def uniform(n: int, seed: int, stream: int) -> np.ndarray:
    """float64 (n,) in [0, 1)."""
    return (_draw(n, seed, 0, stream) >> np.uint64(11)) / 2.0**53


def _draw(n: int, seed: int, epoch: int, stream: int) -> np.ndarray:
    """uint64 (n,), scrambled from the arguments and 0 … n - 1."""
    key = np.zeros(1, dtype=np.uint64)
    for part in (seed, epoch, stream):
        key = _mix(key ^ np.uint64(part % 2**64))
    return _mix(key + np.arange(n, dtype=np.uint64))


def _mix(x: np.ndarray) -> np.ndarray:
    """splitmix64 of each uint64: an additive step, then a bijective scramble; arrays wrap around silently."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
