"""Sentences hidden in a text, and a question at its end whose answer is in one of them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lhtrain.data.errors import DataError
from lhtrain.evaluation.judge import Scored
from lhtrain.evaluation.texts import Texts

DIGITS = [str(digit) for digit in range(10)]


class Hidden(NamedTuple):
    """Sentences to hide. Tokens are int64 arrays.

    sentences: (depth from 0 to 1, tokens). question: the tokens before the answer, at the end of the text.
    """

    sentences: list[tuple[float, np.ndarray]]
    question: np.ndarray
    answer: np.ndarray

    def in_text(self, filler: np.ndarray) -> np.ndarray:
        """Return as many tokens as `filler` has: its beginning, with the sentences, question and answer.

        Raises ValueError: they are longer than `filler`.
        """
        room = len(filler) - self.n_tokens
        if room < 0:
            raise ValueError(f"{self.n_tokens} tokens must fit into {len(filler)}")
        parts, done = [], 0
        for depth, sentence in sorted(self.sentences, key=lambda one: one[0]):
            at = round(depth * room)
            parts += [filler[done:at], sentence]
            done = at
        return np.concatenate([*parts, filler[done:room], self.question, self.answer])

    @property
    def n_tokens(self) -> int:
        return sum(len(tokens) for _, tokens in self.sentences) + len(self.question) + len(self.answer)


def question_and_answer(texts: Texts, question: str, number: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens of `question` and those of ` number` that depend on the number.

    Many tokenizers have a token for a space and a digit, others one for the space and one for the digit.
    A space that is the same for every number belongs to the question.
    """
    tokens = texts.encode(f"{question} {number}")
    others = (texts.encode(f"{question} {digit * len(number)}") for digit in DIGITS)
    cut = min(_common(tokens, other) for other in others if not np.array_equal(tokens, other))
    return tokens[:cut], tokens[cut:]


def digit_tokens(texts: Texts, question: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens of `question`, and the ten tokens that each stand for a digit after it, (10,).

    Raises DataError: a digit is not a single token.
    """
    spelt = [question_and_answer(texts, question, digit) for digit in DIGITS]
    if any(len(answer) != 1 for _, answer in spelt) or len({len(before) for before, _ in spelt}) > 1:
        raise DataError(f"{texts.tokenizer.name}: has no single token for each digit")
    return spelt[0][0], np.concatenate([answer for _, answer in spelt])


def values_of(scored: Scored, answers: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Return the mean loss of each answer, and whether all its tokens are right: (n,) float each.

    scored: of at least as many last tokens as the longest answer has.
    """
    losses = [scored.losses[i, -len(answer) :].mean() for i, answer in enumerate(answers)]
    exact = [scored.right[i, -len(answer) :].all().float() for i, answer in enumerate(answers)]
    return torch.stack(losses), torch.stack(exact)


def _common(a: np.ndarray, b: np.ndarray) -> int:
    """Return the length of the longest common beginning."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n
