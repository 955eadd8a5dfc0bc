"""The content of eval.json."""

from typing import Any

from lhtrain.evaluation.plan import PAIRS, Plan
from lhtrain.evaluation.texts import Texts
from lhtrain.stage import Stage


def described(
    results: dict[str, Any], plan: Plan, stage: Stage | None, texts: Texts, step: int
) -> dict[str, Any]:
    """Return results with what they were measured on. stage: whose attention was measured, if any."""
    return {
        "step": step,
        "stage": None if stage is None else stage.name,
        "context": plan.context,
        "tokenizer": texts.tokenizer.as_meta(),
        "texts": texts.name,
        **results,
        "settings": {
            "tasks": list(plan.tasks),
            "lengths": list(plan.lengths),
            "depths": list(plan.depths),
            "samples": plan.samples,
            "pairs": list(PAIRS),
            "seed": plan.seed,
            "attention": None if stage is None else stage.attention_settings(),
        },
    }
