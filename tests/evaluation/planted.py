"""Models whose right measurements are known, and texts to measure them on."""

import math

import numpy as np
import torch

from lhtrain.data import ByteTokenizer
from lhtrain.evaluation.judge import Scored
from lhtrain.evaluation.plan import Plan
from lhtrain.evaluation.sources import own_texts
from lhtrain.evaluation.trial import Trial

VOCAB = 257
LOG_V = math.log(VOCAB)
DEPTHS = (0.0, 0.5, 1.0)


class Planted:
    """A `Score`. predict(tokens, t) -> the predicted token t + 1, and the loss if it is right or wrong.

    seen: the sequences that were scored.
    """

    def __init__(self, predict):
        self.predict, self.seen = predict, []

    def __call__(self, build, count, length, last=None, among=None):
        last = last or length
        losses, right = torch.empty(count, last), torch.empty(count, last, dtype=torch.bool)
        for number in range(count):
            tokens = build(number)
            assert tokens.shape == (length + 1,) and tokens.dtype == np.int64
            self.seen.append(tokens)
            for column, t in enumerate(range(length - last, length)):
                best, if_right, if_wrong = self.predict(tokens, t)
                right[number, column] = bool(best == tokens[t + 1])
                losses[number, column] = if_right if best == tokens[t + 1] else if_wrong
        return Scored(losses, right)


def copier(tokens, t):
    """Predict what followed the last earlier occurrence of the longest possible end of tokens[: t + 1]."""
    text = tokens.astype(np.uint16).tobytes()
    for n in (64, 32, 16, 8, 4, 2, 1):
        end = text[2 * max(t + 1 - n, 0) : 2 * (t + 1)]
        at = text.rfind(end, 0, 2 * t)
        while at % 2 and at > 0:
            at = text.rfind(end, 0, at + len(end) - 1)
        if at >= 0 and len(end) == 2 * n:
            return int(tokens[at // 2 + n]), 0.0, LOG_V
    return -1, 0.0, LOG_V


def uniform(tokens, t):
    return ord("0"), LOG_V, LOG_V


def by_position(loss):
    """A model whose loss depends on the position alone."""
    return lambda tokens, t: (-1, 0.0, loss(t))


def texts_of(folder, lengths=(3000, 3000, 5000), seed=0):
    """Texts of random words: documents of these lengths in bytes, without the token that ends each."""
    folder.mkdir(exist_ok=True)
    draw = np.random.default_rng(5)
    for number, length in enumerate(lengths):
        words = " ".join("".join(draw.choice(list("abcdefghij"), 6)) for _ in range(length // 7 + 1))
        (folder / f"{number}.txt").write_text(words[:length])
    return own_texts(str(folder), ByteTokenizer(), {"cache_dir": folder.parent / "cache"}, seed)


def trial_of(
    texts, predict=copier, context=1024, lengths=(1024,), samples=2, seed=0, depths=DEPTHS, tasks=()
):
    return Trial(Planted(predict), texts, Plan(tasks, context, lengths, depths, samples, seed))
