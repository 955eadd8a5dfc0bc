"""Recall: pairs of a key and a value are hidden in real text, and the value of one key is asked for."""

from functools import partial
from typing import Any

import numpy as np

from lhtrain.evaluation.hidden import Hidden, question_and_answer, values_of
from lhtrain.evaluation.plan import PAIRS
from lhtrain.evaluation.trial import Trial, grouped, mean, mean_of

KEYS = """
apple bridge candle desert engine feather garden hammer island jacket kettle ladder
mirror needle orange pencil rabbit saddle tunnel window anchor basket carpet dragon
forest guitar harbor insect jungle lantern marble napkin oyster parrot quarry ribbon
"""
VALUE_DIGITS = 5
PURPOSE = 1  # of the random numbers


def run(trial: Trial) -> dict[str, Any]:
    """Return loss and exact match of the values, by number of pairs, length and depth.

    The model reads the right value (teacher forcing). The control is the same text without the pair that is
    asked for: no model can know the value there.
    """
    plan = trial.plan
    cells: list[dict[str, Any]] = []
    for length in plan.lengths:
        fillers = [trial.texts.filler(length + 1, sample) for sample in range(plan.samples)]
        for pairs in PAIRS:
            # The last group is the control, which has no depth.
            hidden = [
                _hidden(trial, pairs, sample, depth)
                for depth in (*plan.depths, None)
                for sample in range(plan.samples)
            ]
            if max(one.n_tokens for one in hidden) > length + 1:
                continue  # the sentences do not fit into so short a text
            scored = trial.score(
                partial(_build, hidden, fillers),
                len(hidden),
                length,
                max(len(one.answer) for one in hidden),
            )
            answers = [one.answer for one in hidden]
            values = zip(*(grouped(x, plan.samples) for x in values_of(scored, answers)), strict=True)
            for depth, (losses, exact) in zip((*plan.depths, None), values, strict=True):
                row = {"pairs": pairs, "length": length, "depth": depth}
                row |= {"loss": mean(losses), "exact": mean(exact), "n": plan.samples}
                cells.append(row)
    control = [_without_depth(row) for row in cells if row["depth"] is None]
    cells = [row for row in cells if row["depth"] is not None]
    return {
        "loss": mean_of(cells, "loss"),
        "exact": mean_of(cells, "exact"),
        "control_loss": mean_of(control, "loss"),
        "lengths": list(plan.lengths),
        "depths": list(plan.depths),
        "pairs": list(PAIRS),
        "cells": cells,
        "control": control,
    }


def _build(hidden: list[Hidden], fillers: list[np.ndarray], number: int) -> np.ndarray:
    """Return a sequence. Samples have different fillers, the same ones at every depth."""
    return hidden[number].in_text(fillers[number % len(fillers)])


def _hidden(trial: Trial, pairs: int, sample: int, depth: float | None) -> Hidden:
    """Return the sentences of a sample; depth: of the pair that is asked for, None leaves it out.

    The keys, the values and the places of the other pairs depend on the sample only.
    """
    draw = trial.texts.generator(PURPOSE, pairs, sample)
    keys = draw.choice(KEYS.split(), pairs, replace=False)
    values = [
        str(n) for n in draw.choice(np.arange(10 ** (VALUE_DIGITS - 1), 10**VALUE_DIGITS), pairs, False)
    ]
    places = draw.random(pairs)
    sentences = [
        (float(place), trial.texts.encode(f" The number of the {key} is {value}. "))
        for key, value, place in zip(keys, values, places, strict=True)
    ]
    asked = [] if depth is None else [(depth, sentences[0][1])]
    question, answer = question_and_answer(trial.texts, f" The number of the {keys[0]} is", values[0])
    return Hidden([*asked, *sentences[1:]], question, answer)


def _without_depth(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "depth"}
