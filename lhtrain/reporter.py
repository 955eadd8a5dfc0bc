"""Everything a run says: metrics.jsonl, terminal, logger; at its end summary.json, loss.png and a table."""

from typing import Any

from omegaconf import OmegaConf

from lhtrain import summary
from lhtrain.conf.schema import Config
from lhtrain.logger import open_logger
from lhtrain.metrics import MetricsFile, Row
from lhtrain.plot import plot_loss
from lhtrain.progress import Progress
from lhtrain.run_dir import RunDir, as_container
from lhtrain.switch import SwitchWatch
from lhtrain.terminal import Terminal


class Reporter:
    """Use as a context manager around the loop. `about` goes into summary.json as it is."""

    def __init__(
        self,
        config: Config,
        run_dir: RunDir,
        progress: Progress,
        peak_flops: float | None,
        about: dict[str, Any],
    ):
        self.config, self.dir, self.progress = config, run_dir, progress
        self.peak_flops, self.about = peak_flops, about
        self.terminal = Terminal(config.run.steps, progress.step)
        self.metrics = MetricsFile(run_dir.metrics)
        self.say = self.terminal.print

    def __enter__(self) -> "Reporter":
        settings = as_container(self.config)
        self.dir.path.mkdir(parents=True, exist_ok=True)
        self.dir.config.write_text(OmegaConf.to_yaml(OmegaConf.create(settings)))
        self.metrics.open(keep_until=self.progress.step)
        self.watch = SwitchWatch()
        for row in self.metrics.rows:
            self.watch.take(row)
        self.logger = open_logger(self.config.logger, self.config.run.name, self.dir.path, settings)
        self.terminal.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        self.terminal.__exit__()
        if kind is not None:
            self.logger.finish(None)
        self.metrics.close()

    def train_step(self, lr: float, grad_norm: float, tokens: int, flops: int, seconds: float) -> None:
        """A logged step; its loss is the current stage's last."""
        row = self._row(
            "train",
            loss=self.progress.stages[-1].last_loss,
            lr=lr,
            grad_norm=grad_norm,
            tokens_per_second=tokens / seconds,
            mfu=flops / seconds / self.peak_flops if self.peak_flops else None,
            step_seconds=seconds,
        )
        self.terminal.step(row)
        if back := self.watch.take(row):
            steps = back["steps_to_recover"]
            self._row("recovered", steps=steps, loss_before=back["loss_before"])
            self.say(
                f"recovered the training loss before the switch, {back['loss_before']:.4f}, in {steps} steps"
            )

    def validation(self) -> None:
        """The current stage's validation loss."""
        self._row("validation", val_loss=self.progress.stages[-1].val_loss)

    def switch(self, val_loss: float) -> None:
        """A new stage begins; `val_loss`: the old stage's weights under the new stage's attention."""
        before, after = self.progress.stages[-2:]
        row = {"from": before.name, "to": after.name, "loss_before": before.last_loss}
        row |= {"val_loss_before": before.val_loss, "val_loss_after": val_loss}
        # Counted to the first step of the new stage: a resume from the old stage's end records it anew.
        self.watch.take(self._row("switch", step=self.progress.step + 1, **row))
        self.say(
            f"switch    {before.name} -> {after.name} after step {self.progress.step}; "
            f"validation loss of the same weights {before.val_loss:.4f} -> {val_loss:.4f}"
        )

    def finish(self) -> dict[str, Any]:
        """Write summary.json and loss.png, print the table; returns the summary."""
        rows = self.metrics.rows
        finished = self.progress.step == self.config.run.steps
        about = {"name": self.config.run.name, **self.about}
        result = summary.summarize(self.progress, rows, finished, self.peak_flops, about)
        summary.write(result, self.dir.summary)
        plot_loss(rows, self.dir.plot, self.config.run.name)
        self.logger.finish(result)
        self.terminal.close()
        if result["stages"]:
            self.say(summary.table(result))
        for line in summary.switch_lines(result):
            self.say(line)
        return result

    def _row(self, kind: str, **values: Any) -> Row:
        progress = self.progress
        row = {
            "kind": kind,
            "step": progress.step,
            "stage": progress.stages[-1].name,
            "tokens": progress.tokens,
            "seconds": round(progress.seconds, 3),
            **values,
        }
        self.metrics.write(row)
        self.logger.log(row)
        return row
