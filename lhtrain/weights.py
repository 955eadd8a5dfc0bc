"""Which weights of a checkpoint a command takes: the last ones, or their moving average (optim.ema)."""

from collections.abc import Container

from lhtrain.errors import RunError, UsageError

MODEL, AVERAGE = "model.", "average."  # how names of tensors in a checkpoint begin
KINDS = {"last": MODEL, "average": AVERAGE}


def prefix_of(weights: str) -> str:
    """Return how the names of these weights begin in a checkpoint. Raises UsageError."""
    if weights not in KINDS:
        raise UsageError(f"weights={weights}: must be one of {', '.join(KINDS)}")
    return KINDS[weights]


def check_average(path: object, names: Container[str], setting: str) -> None:
    """Raise RunError if the checkpoint `path`, whose tensors have these names, has no average."""
    if f"{AVERAGE}updates" not in names:
        raise RunError(
            f"{setting}: checkpoint {path} has no average of the weights; a run keeps one with optim.ema"
        )
