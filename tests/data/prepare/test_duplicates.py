"""Copies of documents: exact ones by their hash, near ones as the shares of common shingles say."""

import numpy as np
import pytest

from lhtrain.data.prepare.duplicates import chosen, copies, near_copies


def changed(tokens: np.ndarray, share: float, seed: int, highest: int) -> np.ndarray:
    """Return a copy of which a share of the tokens is replaced, one in each stretch of equal length."""
    random = np.random.default_rng(seed)
    out = tokens.copy()
    at = np.arange(0, len(out), round(1 / share))
    out[at] = random.integers(0, highest, len(at))
    return out


def alike(one: np.ndarray, two: np.ndarray, size: int) -> float:
    """Return the Jaccard index of the shingles of `size` tokens."""
    sets = [{tuple(x[i : i + size]) for i in range(len(x) - size + 1)} for x in (one.tolist(), two.tolist())]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def test_copies_are_those_of_an_earlier_text() -> None:
    hashes = np.array([7, 3, 7, 2**64 - 1, 3, 7], dtype=np.uint64)
    assert copies(hashes).tolist() == [False, False, True, False, True, True]
    assert copies(np.zeros(0, np.uint64)).tolist() == []


@pytest.mark.parametrize("is_bytes, size, highest", [(False, 6, 50_000), (True, 24, 256)])
def test_near_copies(is_bytes: bool, size: int, highest: int) -> None:
    random = np.random.default_rng(0)
    texts = [random.integers(0, highest, 2000) for _ in range(60)]
    few, many = (1 / 500, 1 / 25) if is_bytes else (1 / 100, 1 / 12)
    near = [changed(text, few, number, highest) for number, text in enumerate(texts)]
    far = [changed(text, many, number, highest) for number, text in enumerate(texts)]
    assert min(alike(*pair, size) for pair in zip(texts, near, strict=True)) > 0.85
    assert max(alike(*pair, size) for pair in zip(texts, far, strict=True)) < 0.6
    found = near_copies([*texts, *far, *near], is_bytes)
    assert not found[:120].any() and found[120:].mean() > 0.9


def test_order_and_short_documents() -> None:
    """The earlier of two stays; documents without a shingle are like no other; long ones by their begin."""
    short, text = np.arange(5), np.arange(5000) * 7919 % 4999
    longer = np.concatenate([text, np.arange(9000)])
    assert (
        near_copies([text, short, short, text, longer], is_bytes=False).tolist() == [False] * 3 + [True] * 2
    )


def test_the_sample_is_the_same_and_has_no_number_twice() -> None:
    one = chosen(1000, 100)
    assert one.tolist() == chosen(1000, 100).tolist() == sorted(set(one.tolist())) and len(one) == 100
    assert one.min() < 100 and one.max() > 900
    assert chosen(5, 100).tolist() == [0, 1, 2, 3, 4]
