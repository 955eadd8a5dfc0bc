"""What a run reports: metrics.jsonl, terminal, logger; summary.json and loss.png at every validation."""

from collections.abc import Callable
from signal import SIGINT, Signals
from typing import Any

from lhtrain import checkpoint
from lhtrain.command_line import resume_command
from lhtrain.conf.schema import Config
from lhtrain.distributed.world import lost_contact
from lhtrain.errors import LOST_CONTACT, reason
from lhtrain.health.nonfinite import Skip
from lhtrain.progress import Progress
from lhtrain.report import summary
from lhtrain.report.metrics import MetricsFile, Row
from lhtrain.report.plain_text import finite, number, one_line
from lhtrain.report.plot import Plot
from lhtrain.report.remaining import Remaining
from lhtrain.report.stage_switch import SwitchWatch
from lhtrain.report.terminal import Terminal
from lhtrain.report.trackers import open_logger
from lhtrain.runs.run_dir import RunDir, as_container

Ended = dict[str, Any]


class Reporter:
    """Use as a context manager around the loop. `about` goes into summary.json as it is.

    A summary, plot, table or logger that fails is reported once, and the run continues.

    summary.json says by `ended` how the run ended: null while it runs, or if it was killed;
    {"how": "finished"}, {"how": "signal", "reason": "SIGTERM"} or {"how": "error", "reason": message}.
    """

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
        self.terminal = Terminal(config.run.steps, progress.step, progress.seconds)
        self.metrics = MetricsFile(run_dir.metrics, self.say)
        self.plot = Plot(run_dir.plot, config.run.name)
        self.remaining = Remaining(config)
        self._failed: set[str] = set()
        self._has_ended = False

    def __enter__(self) -> "Reporter":
        settings = as_container(self.config)
        self.logger = open_logger(self.config.logger, self.config.run.name, self.dir.path, settings, self.say)
        self.metrics.open(keep_until=self.progress.step)
        self._watch()
        self.terminal.__enter__()
        self._attempt("loss.png cannot be drawn", self.plot.load)
        self._write_summary(None)  # from now on an earlier summary does not hold
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        self.terminal.__exit__()
        if error is not None and not self._has_ended:
            self._attempt("the end is not fully recorded", lambda: self._died(error))
        self.metrics.close()

    def say(self, what: str) -> None:
        """Print a line."""
        self.terminal.print(what)

    def train_step(self, lr: float, grad_norm: float, tokens: int, flops: int, seconds: float) -> None:
        """A logged step; its loss is the current stage's last."""
        measured = seconds > 0  # a clock may be too coarse for a tiny step
        row = self._row(
            "train",
            loss=self.progress.stages[-1].last_loss,
            lr=lr,
            grad_norm=grad_norm,
            tokens_per_second=tokens / seconds if measured else None,
            mfu=flops / seconds / self.peak_flops if self.peak_flops and measured else None,
            step_seconds=seconds,
        )
        self.watch.take(row)
        if measured:
            self.remaining.take(row["stage"], seconds)
        self.terminal.step(row, self.progress.seconds, self.remaining(self.progress))

    def validation(self) -> None:
        """The current stage's validation loss. Renews summary.json and loss.png."""
        stage = self.progress.stages[-1]
        step, before = self._last_validation()
        row = self._row("validation", val_loss=stage.val_loss)
        now, change = row["val_loss"], ""
        if now is not None and before is not None:
            change = f" ({now - before:+.4f} since step {step:,})"
        self.say(f"validated step {row['step']:,}: validation loss {number(now)}{change}")
        if back := self.watch.take(row):
            steps, above = back["steps_to_recover"], back["steps_still_above"]
            level = back["val_loss_before"]
            self._row("recovered", steps=steps, steps_still_above=above, val_loss_before=level)
            before_switch = f"its level before the switch ({number(level)})"
            self.say(f"recovered validation loss is back to {before_switch} {summary.steps_until(back)}")
        self._write_summary(None)
        self._attempt("loss.png was not drawn", lambda: self.plot.renew(self.metrics.rows))

    def switch(self, val_loss: float) -> None:
        """A new stage begins; `val_loss`: the old stage's weights under the new stage's attention."""
        before, after = self.progress.stages[-2:]
        # A plan that was changed on resume may leave a stage between two validations: of these weights
        # there is none then.
        validated_at, level = self._last_validation()
        level = level if validated_at == self.progress.step else None
        row: Row = {"from": before.name, "to": after.name}
        row |= {"loss_before": before.losses.mean, "loss_before_stderr": before.losses.stderr}
        row |= {"val_loss_before": level, "val_loss_after": val_loss}
        # Counted to the first step of the new stage: a resume from the old stage's end records it anew.
        self.watch.take(self._row("switch", step=self.progress.step + 1, **row))
        self.say(
            f"switch    {one_line(before.name)} -> {one_line(after.name)} after step {self.progress.step:,}; "
            f"validation loss of the same weights {number(level)} -> {number(finite(val_loss))}"
        )

    def changed(self, changes: list[str]) -> None:
        """The run continues with settings that differ from those of its checkpoint."""
        self._row("changed", changed=changes)

    def skipped(self, skip: Skip) -> None:
        """A step updated nothing: its loss or its gradient was not finite."""
        self._row("skipped", step=skip.step, position=skip.position, end=skip.end)
        self.say(
            f"skipped   step {skip.step}: loss or gradient not finite, nothing was updated; "
            f"its batch is the data's tokens {skip.position:,} to {skip.end:,}"
        )

    def spike(self, loss: float, deviations: float) -> None:
        self._row("spike", loss=loss, deviations=deviations)
        self.say(
            f"spike     step {self.progress.step}: loss {number(loss)}, "
            f"{number(deviations, '.1f')} standard deviations above the losses before it"
        )

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
        if self.progress.step == self.config.run.steps:
            ended: Ended = {"how": "finished"}
        else:
            ended = {"how": "signal", "reason": Signals(signal).name if signal else None}
        self._has_ended = True
        result = self._write_summary(ended, signal)
        self._show(result)
        self.logger.finish(result)
        if ended["how"] == "signal" and signal:
            stopped = f"{Signals(signal).name}: stopped after step {self.progress.step:,}"
            failure = f"{stopped}; how to continue is not known"
            self._attempt(failure, lambda: self._say_how_to_continue(stopped))
        return result

    def _died(self, error: BaseException) -> None:
        """An error ends the run: leave what a good end leaves, and why."""
        if isinstance(error, KeyboardInterrupt):  # of a second Ctrl-C, which leaves at once
            self._write_summary({"how": "signal", "reason": SIGINT.name}, SIGINT)
            return
        why = LOST_CONTACT if lost_contact(error) else reason(error)
        self._show(self._write_summary({"how": "error", "reason": why}))
        self.logger.finish(None)
        self._say_how_to_continue(f"stopped   by an error after step {self.progress.step:,}")

    def _show(self, result: summary.Summary) -> None:
        """Draw the plot and print the table."""
        self._attempt("loss.png was not drawn", lambda: self.plot.draw(self.metrics.rows))
        self.terminal.close()
        if result["stages"]:
            self._attempt("the table was not printed", lambda: self.terminal.print(summary.table(result)))
        for line in summary.switch_lines(result):
            self.say(line)

    def _say_how_to_continue(self, what: str) -> None:
        if checkpoint.complete(self.dir.checkpoints):
            what += f"; to continue: {resume_command(self.dir.path)}"
        self.say(what)

    def _write_summary(self, ended: Ended | None, signal: int = 0) -> summary.Summary:
        finished = ended is not None and ended["how"] == "finished"
        about = {"name": self.config.run.name, "ended": ended, "signal": int(signal), **self.about}
        left = self.remaining(self.progress)
        about["seconds_left"] = None if left is None else round(left, 1)
        result = summary.summarize(self.progress, self.watch.begun, finished, self.peak_flops, about)
        durable = ended is not None
        self._attempt(
            "summary.json was not written", lambda: summary.write(result, self.dir.summary, durable)
        )
        return result

    def _attempt(self, failure: str, call: Callable[[], object]) -> None:
        """Call what a run can do without; the first time that it fails, say so."""
        try:
            call()
        except Exception as error:
            if failure not in self._failed:
                self._failed.add(failure)
                self.say(f"warning   {failure}: {one_line(reason(error), 300)}; the run is not affected")

    def _last_validation(self) -> tuple[int, float | None]:
        """Step and loss of the last validation with the current stage's settings, or of its switch."""
        for row in reversed(self.metrics.rows):
            if row["kind"] == "validation":
                return row["step"], row["val_loss"]
            if row["kind"] == "switch":
                return row["step"] - 1, row["val_loss_after"]
        return 0, None

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
        row = finite(row)
        self.metrics.write(row)
        self.logger.log(row)
        return row


class Silent:
    """What ranks other than the first report with: every event of Reporter is accepted, nothing is done."""

    def __init__(self, config: Config, run_dir: RunDir, progress: Progress, *_: Any):
        self.config, self.progress = config, progress
        self.about: dict[str, Any] = {}

    def __enter__(self) -> "Silent":
        return self

    def __exit__(self, *exc: object) -> None: ...

    def __getattr__(self, event: str) -> Callable[..., None]:
        if event.startswith("_") or not callable(getattr(Reporter, event, None)):
            raise AttributeError(event)
        return lambda *_: None

    def rewound(self, progress: Progress, left: int, skipped_to: int) -> None:
        self.progress = progress

    def finish(self, signal: int) -> dict[str, Any]:
        return {"finished": self.progress.step == self.config.run.steps, "signal": signal}
