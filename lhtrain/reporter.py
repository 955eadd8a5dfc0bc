"""Everything a run says: metrics.jsonl, terminal, logger; at its end summary.json, loss.png and a table."""

from signal import Signals
from typing import Any

from omegaconf import OmegaConf

from lhtrain import summary
from lhtrain.conf.schema import Config
from lhtrain.guard import Skip
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
        self.metrics = MetricsFile(run_dir.metrics, self.terminal.print)
        self.say = self.terminal.print

    def __enter__(self) -> "Reporter":
        settings = as_container(self.config)
        self.dir.path.mkdir(parents=True, exist_ok=True)
        self.dir.config.write_text(OmegaConf.to_yaml(OmegaConf.create(settings)))
        self.logger = open_logger(self.config.logger, self.config.run.name, self.dir.path, settings)
        self.metrics.open(keep_until=self.progress.step)
        self._watch()
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
            level = f"the training loss before the switch, {back['loss_before']:.4f}"
            self.say(f"recovered {level}, in {summary.counted(steps, 'step')}")

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
            f"validation loss of the same weights {summary.number(before.val_loss, '.4f')} -> {val_loss:.4f}"
        )

    def skipped(self, skip: Skip) -> None:
        """A step updated nothing: its loss or its gradient was not finite."""
        self._row("skipped", step=skip.step, position=skip.position, end=skip.end)
        self.say(
            f"skipped   step {skip.step}: loss or gradient not finite, nothing was updated; "
            f"its batch is the data's tokens {skip.position:,} to {skip.end:,}"
        )

    def spike(self, loss: float, deviations: float) -> None:
        self._row("spike", loss=loss, deviations=deviations)
        self.say(f"spike     step {self.progress.step}: loss {loss:.4f}, {deviations:.1f} deviations above")

    def behind(self, line: str) -> None:
        """A rank is slower than the others."""
        self.say(f"slow      step {self.progress.step}: {line}")

    def rewound(self, progress: Progress, left: int, skipped_to: int) -> None:
        """The run went back from step `left` to an older `progress`, and reads on from `skipped_to`."""
        self.progress, read_to = progress, progress.position
        self.metrics.open(keep_until=progress.step)
        self._watch()
        self._row("rewound", left=left, position=read_to, end=skipped_to)
        self.say(
            f"rewound   from step {left} to {progress.step}; "
            f"the data's tokens {read_to:,} to {skipped_to:,} are left out"
        )

    def finish(self, signal: int) -> dict[str, Any]:
        """Write summary.json and loss.png, print the table; returns the summary.

        signal: what ended the run, 0 if nothing did.
        """
        rows = self.metrics.rows
        finished = self.progress.step == self.config.run.steps
        about = {"name": self.config.run.name, "signal": signal, **self.about}
        about["ended"] = {"how": "finished"} if finished else {"how": "signal", "reason": signal}
        result = summary.summarize(self.progress, rows, finished, self.peak_flops, about)
        summary.write(result, self.dir.summary)
        plot_loss(rows, self.dir.plot, self.config.run.name)
        self.logger.finish(result)
        self.terminal.close()
        if result["stages"]:
            self.say(summary.table(result))
        for line in summary.switch_lines(result):
            self.say(line)
        if signal and not finished:
            self.say(
                f"{Signals(signal).name}: stopped after step {self.progress.step}; "
                f"the same command with run.dir={self.dir.path} resume=auto goes on"
            )
        return result

    def _watch(self) -> None:
        self.watch = SwitchWatch()
        for row in self.metrics.rows:
            self.watch.take(row)

    def _row(self, kind: str, **values: Any) -> Row:
        progress = self.progress
        row = {
            "kind": kind,
            "step": progress.step,
            "stage": progress.stages[-1].name if progress.stages else None,
            "tokens": progress.tokens,
            "seconds": round(progress.seconds, 3),
            **values,
        }
        self.metrics.write(row)
        self.logger.log(row)
        return row


class Silent:
    """What ranks other than the first report with: nothing. The interface is Reporter's."""

    def __init__(self, config: Config, run_dir: RunDir, progress: Progress, *_: Any):
        self.config, self.progress = config, progress
        self.about: dict[str, Any] = {}

    def __enter__(self) -> "Silent":
        return self

    def __exit__(self, *exc: object) -> None: ...

    def say(self, what: object) -> None: ...

    def train_step(self, *_: float) -> None: ...

    def validation(self) -> None: ...

    def switch(self, val_loss: float) -> None: ...

    def skipped(self, skip: Skip) -> None: ...

    def spike(self, loss: float, deviations: float) -> None: ...

    def behind(self, line: str) -> None: ...

    def rewound(self, progress: Progress, left: int, skipped_to: int) -> None:
        self.progress = progress

    def finish(self, signal: int) -> dict[str, Any]:
        return {"finished": self.progress.step == self.config.run.steps, "signal": signal}
