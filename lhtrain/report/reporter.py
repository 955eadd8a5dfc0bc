"""The first rank's record of a run: rows for metrics.jsonl, a tracker and the terminal, and a summary."""

import math
from collections.abc import Callable
from pathlib import Path
from signal import SIGINT, Signals
from typing import Any, Protocol, Self

from lhtrain.conf.rules.evaluation import ATTENTIONS
from lhtrain.conf.schema import Config
from lhtrain.distributed.failure import lost_contact
from lhtrain.errors import LOST_CONTACT, reason
from lhtrain.files import write_atomic
from lhtrain.health.nonfinite import Skip
from lhtrain.progress import Progress
from lhtrain.provenance import resume_command
from lhtrain.report import evaluation, lines, summary
from lhtrain.report.events import Events
from lhtrain.report.json_lines import JsonLines
from lhtrain.report.metrics import MetricsFile, Row
from lhtrain.report.plot import Plot
from lhtrain.report.remaining import Remaining
from lhtrain.report.stage_switch import SwitchWatch, last_validation
from lhtrain.report.summary import End, Summary, SummaryFile
from lhtrain.report.terminal import Terminal
from lhtrain.report.trackers import Trackers
from lhtrain.text import finite, one_line, to_json


class Listener(Protocol):
    """An object that receives all rows of a run, in order."""

    def take(self, row: Row) -> None: ...


class RunFiles(Protocol):
    """The paths of the files that `Reporter` writes; `RunDir` has them."""

    @property
    def path(self) -> Path: ...
    @property
    def metrics(self) -> Path: ...
    @property
    def summary(self) -> Path: ...
    @property
    def evaluation(self) -> Path: ...
    @property
    def plot(self) -> Path: ...
    @property
    def samples(self) -> Path: ...


class Reporter(Events):
    """Sends events to metrics.jsonl, the terminal and the tracker, and writes summary.json and loss.png.

    The summary and the plot are written at every validation and at the end. If the summary, plot, table or
    tracker fails, this is reported once and the run continues.

    Args:
        config: the filled configuration.
        run_dir: paths of the files to write.
        progress: the run's progress; the trainer updates it.
        peak_flops: peak FLOP/s of one rank's device, or None if not known.
        about: values that are added to summary.json unchanged.
        settings: the configuration as plain values, for the tracker.
        has_checkpoint: returns a true value if the run can be resumed.
        bytes_per_token: of the validation split, for the loss in bits per byte; None if not known.
        sources: returns the tokens and epochs that are read of each source of the data: name -> values.
    """

    def __init__(
        self,
        config: Config,
        run_dir: RunFiles,
        progress: Progress,
        peak_flops: float | None,
        about: dict[str, Any],
        settings: dict[str, Any],
        has_checkpoint: Callable[[], object],
        bytes_per_token: float | None = None,
        sources: Callable[[Progress], dict[str, dict[str, float]]] | None = None,
    ):
        self.config, self.dir, self.progress = config, run_dir, progress
        self.peak_flops, self.has_checkpoint = peak_flops, has_checkpoint
        self.bytes_per_token, self.sources = bytes_per_token, sources
        self.remaining = Remaining(config)
        self.terminal = Terminal(config.run.steps, progress.step, progress.seconds, self._seconds_left)
        self.metrics = MetricsFile(run_dir.metrics, self.say)
        self.tracker = Trackers(config.logger, config.run.name, run_dir.path, settings, self.say)
        self.plot = Plot(run_dir.plot, config.run.name)
        self.samples = JsonLines(run_dir.samples)
        self.summary = SummaryFile(run_dir.summary, config.run.name, peak_flops, about)
        self._failed: set[str] = set()
        self._has_ended = False

    def __enter__(self) -> Self:
        self.tracker.start()
        self._open()
        self.terminal.__enter__()
        self._write_summary()  # replaces the summary of an earlier process
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        self.terminal.__exit__()
        if error is not None and not self._has_ended:
            self._attempt("the end of the run was not fully recorded", lambda: self._end_by_error(error))
        self.metrics.close()

    def say(self, text: str) -> None:
        self.terminal.print(text)

    def compiled(self, seconds: float) -> None:
        self.summary.about["compile_seconds"] = seconds
        if seconds:
            self.say(f"compile   {seconds:.1f} s, not counted in the times of the stages")

    def changed(self, changes: list[str]) -> None:
        self._row("changed", changed=changes)

    def train_step(self, lr: float, grad_norm: float, tokens: int, flops: int, seconds: float) -> None:
        measured = seconds > 0  # 0 if the clock is too coarse for a very short step
        self._row(
            "train",
            loss=self.progress.stages[-1].last_loss,
            lr=lr,
            grad_norm=grad_norm,
            tokens_per_second=tokens / seconds if measured else None,
            mfu=flops / seconds / self.peak_flops if self.peak_flops and measured else None,
            step_seconds=seconds,
            peak_memory_gb=round(self.progress.stages[-1].peak_memory_bytes / 1e9, 2) or None,
        )

    def validation(self) -> None:
        before = last_validation(self.metrics.rows)
        record = self.progress.stages[-1]
        values = {"val_loss": record.val_loss, "val_bits_per_byte": self._bits_per_byte(record.val_loss)}
        if record.average_val_loss is not None:
            values["average_val_loss"] = record.average_val_loss
        values |= {"loss_mean": record.losses.mean, "loss_stderr": record.losses.stderr}
        sources = {} if self.sources is None else {"sources": self.sources(self.progress)}
        row = self._row("validation", **values, **sources)
        self.say(lines.validated(row, before))
        if entry := self.watch.recovered:
            steps, above = entry["steps_to_recover"], entry["steps_still_above"]
            level = entry["val_loss_before"]
            self._row("recovered", steps=steps, steps_still_above=above, val_loss_before=level)
            self.say(lines.recovered(entry))
        self._write_summary()
        self._attempt("loss.png was not drawn", lambda: self.plot.renew(self.metrics.rows))

    def evaluated(self, result: dict[str, Any]) -> None:
        for attention in ATTENTIONS:
            if result[attention] is not None:
                values = evaluation.numbers(result[attention])
                self._row("evaluation", attention=attention, **values)
                self.summary.about.setdefault("evaluation", {})[attention] = finite(values)
                self.say(lines.evaluated(self.progress.step, attention, values))
        self.tracker.evaluated(self.progress.step, result)
        unwritten = "eval.json was not written"
        self._attempt(unwritten, lambda: write_atomic(self.dir.evaluation, to_json(result, indent=2) + "\n"))
        self._write_summary()

    def sampled(self, samples: list[dict[str, Any]]) -> None:
        step = self.progress.step
        samples = [{"step": step, "stage": self.progress.stages[-1].name, **sample} for sample in samples]
        self._attempt("samples.jsonl was not written", lambda: self.samples.add(samples))
        self.tracker.sampled(step, samples)
        for sample in samples:
            self.say(lines.sampled(sample))

    def switch(self, val_loss: float) -> None:
        before, after = self.progress.stages[-2:]
        # If the plan was changed on resume, a stage may end between two validations. Then the last validation
        # is one of older weights and does not count.
        last = last_validation(self.metrics.rows)
        row: Row = {"from": before.name, "to": after.name}
        row |= {"loss_before": before.losses.mean, "loss_before_stderr": before.losses.stderr}
        row["val_loss_before"] = last.loss if last.step == self.progress.step else None
        row["val_loss_after"] = val_loss
        # The row belongs to the first step of the new stage, so that a resume from the old stage's last
        # checkpoint drops this row and writes it again.
        self.say(lines.switched(self._row("switch", step=self.progress.step + 1, **row)))

    def skipped(self, skip: Skip) -> None:
        self.say(lines.skipped(self._row("skipped", step=skip.step, position=skip.position, end=skip.end)))

    def spike(self, loss: float, deviations: float) -> None:
        self._row("spike", loss=loss, deviations=deviations)
        self.say(lines.spike(self.progress.step, loss, deviations))

    def profiled(self, about: dict[str, Any], lines: list[str]) -> None:
        self.summary.about["profile"] = about
        for line in lines:
            self.say(f"profile   {line}")
        self._write_summary()

    def behind(self, text: str) -> None:
        self.say(f"slow      step {self.progress.step}: {text}")

    def rewound(self, progress: Progress, left: int, skipped_to: int) -> None:
        self.progress = progress
        self._open()
        self.say(lines.rewound(self._row("rewound", left=left, position=progress.position, end=skipped_to)))

    def flush(self) -> None:
        self.metrics.sync()

    def saved(self, totals: dict[str, Any]) -> None:
        self.summary.about["checkpoints"] = totals

    def finish(self, signal: int) -> Summary:
        finished = self.progress.step == self.config.run.steps
        name = Signals(signal).name if signal else None
        self._has_ended = True
        result = self._write_summary(End("finished" if finished else "signal", name, signal))
        self._show(result)
        self.tracker.finish(result)
        if signal and not finished:
            stopped = f"{name}: stopped after step {self.progress.step:,}"
            unknown = f"{stopped}; cannot tell whether there is a checkpoint to continue from"
            self._attempt(unknown, lambda: self._say_how_to_continue(stopped))
        return result

    def _end_by_error(self, error: BaseException) -> None:
        """Write the same files as at a normal end, and the reason, when an error ends the run."""
        if isinstance(error, KeyboardInterrupt):  # the second Ctrl-C, which must end the run at once
            self._write_summary(End("signal", SIGINT.name, SIGINT))
            return
        why = LOST_CONTACT if lost_contact(error) else reason(error)
        self._show(self._write_summary(End("error", why)))
        self.tracker.finish(None)
        self._say_how_to_continue(f"stopped   by an error after step {self.progress.step:,}")

    def _show(self, result: Summary) -> None:
        """Draw the plot and print the table."""
        self._attempt("loss.png was not drawn", lambda: self.plot.draw(self.metrics.rows))
        self.terminal.close()
        if result["stages"]:
            self._attempt("the table was not printed", lambda: self.terminal.print(summary.table(result)))
        for line in [*summary.source_lines(result), *summary.switch_lines(result)]:
            self.say(line)

    def _say_how_to_continue(self, text: str) -> None:
        if self.has_checkpoint():
            text += f"; to continue: {resume_command(self.dir.path)}"
        self.say(text)

    def _write_summary(self, end: End | None = None) -> Summary:
        left = self._seconds_left()
        if self.sources is not None:
            self.summary.about["sources"] = self.sources(self.progress)
        result = self.summary.content(self.progress, self.watch.begun, left, end)
        self._attempt(
            "summary.json was not written", lambda: self.summary.write(result, durable=end is not None)
        )
        return result

    def _attempt(self, failure: str, call: Callable[[], object]) -> None:
        """Call a function whose failure must not end the run; report its first failure."""
        try:
            call()
        except Exception as error:
            if failure not in self._failed:
                self._failed.add(failure)
                self.say(f"warning   {failure}: {one_line(reason(error), 300)}; the run is not affected")

    def _bits_per_byte(self, loss: float | None) -> float | None:
        if loss is None or not self.bytes_per_token:
            return None
        return loss / math.log(2) / self.bytes_per_token

    def _seconds_left(self) -> float | None:
        return self.remaining(self.progress)

    def _open(self) -> None:
        """Open the files of rows to continue after the current step."""
        step = self.progress.step
        self.metrics.open(keep_until=step)
        self._attempt("samples.jsonl was not read", lambda: self.samples.keep_until(step))
        self._watch()

    def _watch(self) -> None:
        """Rebuild the record of stage switches from the rows that were kept."""
        self.watch = SwitchWatch()
        for row in self.metrics.rows:
            self.watch.take(row)

    def _row(self, kind: str, **values: Any) -> Row:
        """Build a row with the run's current progress, and pass it to all listeners."""
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
        # The file comes first, so that its rows survive a failure of the others. The terminal comes after
        # `remaining`, whose estimate it prints.
        listeners: list[Listener] = [self.metrics, self.tracker, self.watch, self.remaining, self.terminal]
        for listener in listeners:
            listener.take(row)
        return row
