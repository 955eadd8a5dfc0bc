"""Seeded shuffles that are the same on every machine and with every version of NumPy.

A run may be resumed with another NumPy. NumPy's compatibility policy (NEP 19) fixes the raw output of a bit
generator such as Philox, but `Generator.permutation` and the other methods may change between versions.
Sorting numbers from our own generator depends on neither.
"""

import numpy as np


def permutation(n: int, seed: int, epoch: int, stream: int) -> np.ndarray:
    """Return a permutation of range(n), int64 (n,). stream: separates permutations of the same seed."""
    return np.argsort(_draw(n, seed, epoch, stream), kind="stable")


def uniform(n: int, seed: int, stream: int) -> np.ndarray:
    """Return n numbers in [0, 1), float64 (n,)."""
    return (_draw(n, seed, 0, stream) >> np.uint64(11)) / 2.0**53


def _draw(n: int, seed: int, epoch: int, stream: int) -> np.ndarray:
    """Return uint64 (n,): a hash of the arguments and each of 0 … n - 1."""
    key = np.zeros(1, dtype=np.uint64)
    for part in (seed, epoch, stream):
        key = hashed(key ^ np.uint64(part % 2**64))
    return hashed(key + np.arange(n, dtype=np.uint64))


def hashed(x: np.ndarray) -> np.ndarray:
    """Return a hash of each number, uint64: splitmix64, an addition, then a bijective scramble.

    Overflow wraps around.
    """
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
