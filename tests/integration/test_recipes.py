"""The recipes that lengthen a context, with the real command on one and on two ranks."""

import pytest
import torch

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("recipe", ["extend", "extend_long", "ladder", "windowed"])
def test_two_ranks_train_a_recipe_as_one_does(lhtrain, recipe):
    settings = (f"stage={recipe}", "run.grad_accum=1", "run.steps=10")
    alone = lhtrain(f"recipe_{recipe}", *settings)
    shared = lhtrain(f"recipe_{recipe}_ranks", *settings, ranks=2)
    stages = [row["stage"] for row in alone.rows if "loss" in row]
    assert (
        list(dict.fromkeys(stages))
        == {
            "extend": ["windowed", "recovery"],
            "extend_long": ["own_queries", "recovery"],
            "ladder": ["short", "middle", "long"],
            "windowed": ["short", "windowed", "recovery"],
        }[recipe]
    )
    found, wanted = (
        torch.tensor([row[key] for row in run.rows for key in ("loss", "val_loss") if key in row])
        for run in (shared, alone)
    )
    torch.testing.assert_close(found, wanted, rtol=5e-4, atol=0)
