"""The events that the training loop reports."""

from typing import Any, Self

from lhtrain.health.nonfinite import Skip
from lhtrain.progress import Progress


class Events:
    """A context manager around the training loop, with a method for each event.

    The methods of this class do nothing. All ranks except the first use this class; the first rank uses
    `reporter.Reporter`.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None: ...

    def say(self, text: str) -> None:
        """Print a line."""

    def compiled(self, seconds: float) -> None:
        """All remaining stages are compiled; this took `seconds`, 0 if there was nothing to compile."""

    def changed(self, changes: list[str]) -> None:
        """The run continues with settings that differ from those of its checkpoint."""

    def train_step(self, lr: float, grad_norm: float, tokens: int, flops: int, seconds: float) -> None:
        """A step was logged; its loss is `last_loss` of the current stage. flops: FLOPs of one rank."""

    def validation(self) -> None:
        """The current stage has a new validation loss."""

    def evaluated(self, result: dict[str, Any]) -> None:
        """The tasks of eval.tasks were measured. result: the content of eval.json."""

    def sampled(self, samples: list[dict[str, Any]]) -> None:
        """The model has written texts. samples: their rows for samples.jsonl, without step and stage."""

    def switch(self, val_loss: float) -> None:
        """A new stage begins. val_loss: of the same weights with the new stage's attention."""

    def skipped(self, skip: Skip) -> None:
        """A step updated no weights, because its loss or its gradient was not finite."""

    def spike(self, loss: float, deviations: float) -> None:
        """The loss is `deviations` standard deviations above the previous losses."""

    def profiled(self, about: dict[str, Any], lines: list[str]) -> None:
        """Steps were profiled. about: their entry of summary.json; lines: to print."""

    def behind(self, text: str) -> None:
        """A rank is slower than the others; `text` names it."""

    def rewound(self, progress: Progress, left: int, skipped_to: int) -> None:
        """The run returned from step `left` to the older `progress`; data continue at token `skipped_to`."""

    def flush(self) -> None:
        """Sync all rows to disk, so that no checkpoint is there without the rows of its steps.

        May be called from any thread.
        """

    def saved(self, totals: dict[str, Any]) -> None:
        """No more checkpoints will be written. totals: result of `saver.Saved.as_summary`."""

    def finish(self, signal: int) -> dict[str, Any]:
        """The loop ended; signal: number of the signal that ended it, or 0.

        Returns the content of summary.json, or {} on a rank that writes none.
        """
        return {}
