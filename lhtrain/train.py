"""The trainer: one loop for every stage.

A step is data -> forward and backward -> clip -> update (step.py). The schedule sets the attention, sequence
length and learning rate of each stage. Weights, optimizer state and data position continue through switches.
"""

from bisect import bisect_right
from functools import partial
from pathlib import Path
from typing import Any

from lhtrain import checkpoint
from lhtrain.build import build, build_events
from lhtrain.checkpoint.saver import Saver
from lhtrain.compute.apply import compiles
from lhtrain.compute.device import peak_memory, reset_peak_memory
from lhtrain.compute.flops import step_flops
from lhtrain.conf.schema import Config
from lhtrain.distributed.average import WeightAverage
from lhtrain.distributed.world import World
from lhtrain.errors import RunError
from lhtrain.evaluation import LoopTasks, validation_loss, warm_up
from lhtrain.health.hang import Watchdog
from lhtrain.health.launcher import LauncherCheck
from lhtrain.health.nonfinite import NonFiniteGuard
from lhtrain.health.signals import StopSignal
from lhtrain.health.straggler import StragglerCheck
from lhtrain.profiler import StepProfiler
from lhtrain.progress import StageClock, StageRecord
from lhtrain.report.greeting import about_end, begin_line, greeting
from lhtrain.runs.changes import as_container
from lhtrain.runs.first_checkpoint import FirstCheckpoint
from lhtrain.runs.record import record_start
from lhtrain.runs.resume import begin, find_start, progress_of
from lhtrain.runs.run_dir import RunDir, keep_files
from lhtrain.samples import LoopSamples
from lhtrain.schedule import Schedule, StepPlan
from lhtrain.stage import Stage
from lhtrain.step import Measured, update
from lhtrain.weights import AVERAGE

ADVICE = "a lower optim.lr or a longer warm-up (optim.warmup_fraction) may help"


class Trainer:
    """One rank of a run of a filled configuration. All files of the run are in `run_dir`.

    Raises:
        RunError, DataError: at construction or in `run`, with a remedy in the message.
    """

    def __init__(self, config: Config, run_dir: Path, world: World, watchdog: Watchdog):
        self.config, self.dir, self.world, self.watchdog = config, RunDir(run_dir), world, watchdog
        self.start = find_start(self.dir, config.resume, world)
        self.schedule = Schedule.of(config)
        self.data, self.engine = build(config, world)
        self.tasks = LoopTasks(config, self.data, self.engine)
        self.samples = LoopSamples(config, self.data.corpus.tokenizer, self.engine)
        self.average = WeightAverage(self.engine.model, config.optim.ema)
        self.tensors = checkpoint.tensors_of(self.engine.model, self.engine.optimizer, self.average)
        self.guard, self.stragglers = NonFiniteGuard(config.guard), StragglerCheck(world)
        self.progress, self.start_note = begin(
            self.start, self.dir, self.tensors, config, self.data.corpus, world, self.data.stages.fingerprints
        )
        self.average.begin()
        if self.start.path is not None and self.start.guard is not None:
            with checkpoint.as_written(self.start.path):
                self.guard.restore(self.start.guard)
        self.report = build_events(config, self.dir, self.progress, self.data, self.engine)
        self.profiler = StepProfiler(
            config.profile, self.dir.profile, world, self.progress.step, tell=self.report.profiled
        )
        self.saver = Saver(
            self.dir.checkpoints,
            config.checkpoint.keep,
            world,
            config.checkpoint.retry,
            say=self.report.say,
            before_publish=self.report.flush,  # rows reach the disk before their checkpoint
        )
        self.first_checkpoint = FirstCheckpoint(self.dir.history, self.start, world, self.report.say)
        self.launcher = LauncherCheck(self.report.say)
        self.entered: int | None = None  # index of the stage for which the model is set up

    def run(self) -> dict[str, Any]:
        """Train to the end of the run or until a signal; return the content of summary.json."""
        about = {"ranks": self.world.size} | self.data.fingerprints
        recorded = self.world.on_main(
            lambda: record_start(self.start, self.dir, self.config, self.progress.step, about)
        )
        stopping = StopSignal(self.saver.saved_in_words)
        with self.report, stopping as stop, self.data.loader, self.saver, self.profiler:
            self.world.on_main(lambda: keep_files(self.dir, self.data.corpus.tokenizer, self.start.source))
            for line in self._greeting(recorded):
                self.report.say(line)
            if self.start.new:
                self.report.changed([str(change) for change in self.start.new])
            self._warm_up()
            signal = self.world.largest(stop.requested or 0)
            while self.progress.step < self.schedule.steps and not signal:
                with self.watchdog.phase("step"):
                    plan = self.schedule.lookup(self.progress.step)
                    stage = self._enter(plan)
                    with self.profiler.step(self.progress.step + 1):
                        self._step(plan, stage)
                    if self.guard.must_rewind:
                        with self.watchdog.phase("rewind"):
                            self._rewind()
                        continue
                    signal = self.world.largest(stop.requested or 0)
                    self._after_step(stage, signal)
            self._finish_saving(stop)
            self.profiler.close()
            finished = self.progress.step == self.schedule.steps
            result = {"finished": finished, "signal": signal} | self.report.finish(signal)
        return result

    def _step(self, plan: StepPlan, stage: Stage) -> None:
        """Do one optimizer step: read data, update, log."""
        before = self.progress.position
        with self.clock.measure("data"), self.profiler.span("data"):
            batches, self.progress.position = self.data.loader.micro_batches(before, stage)
        with self.clock.measure("compute"):
            engine, optim, span = self.engine, self.config.optim, self.profiler.span
            parts = engine.model, engine.optimizer, batches, plan.lr, optim, engine.mesh, span, engine.passes
            measured = update(*parts)
            with span("average"):
                self.average.update()
            self.progress.step += 1
            self.watchdog.step = self.progress.step
            self.guard.remember(self.progress.step, before, self.progress.position, measured.skipped)
            first_or_last = self.record.steps == 0 or self.progress.step in self.schedule.ends
            logged = first_or_last or self.progress.step % self.config.run.log_every == 0
            if logged:
                measured.skipped.item()  # the only place where a step waits for the device
        self.record.count_step(stage.batch_tokens, self.flops, peak_memory(self.world.device))
        self.clock.lap()
        if logged:
            self._look_for_skips()
            if self.guard.in_a_row == 0:
                self._log(measured, plan, stage)

    def _log(self, measured: Measured, plan: StepPlan, stage: Stage) -> None:
        loss = measured.loss.item()
        self.record.take_loss(loss)
        seconds = self.clock.step_seconds()
        self.report.train_step(plan.lr, measured.grad_norm.item(), stage.batch_tokens, self.flops, seconds)
        if spike := self.guard.spike(loss):
            self.report.spike(loss, spike)

    def _after_step(self, stage: Stage, signal: int) -> None:
        """Validate, compare the ranks and save a checkpoint, each if it is due."""
        self.saver.poll()
        step, ends = self.progress.step, self.progress.step in self.schedule.ends
        if ends or step % self.config.eval.every == 0:
            self._look_for_skips()  # waits for pending steps, so that they do not count as validation time
            self.record.val_loss = self._validation_loss(stage)
            if self.average.is_kept:
                with self.average.in_place():
                    self.record.average_val_loss = self._validation_loss(stage)
            self.report.validation()
        if plan := self.tasks.plan(step, stage):
            with self.clock.measure("evaluation"), self.watchdog.phase("validation"):
                self.report.evaluated(self.tasks.measure(stage, plan, step))
        if self.samples.due(step, ends):
            with self.clock.measure("evaluation"), self.watchdog.phase("validation"):
                self.report.sampled(self.samples.write(stage))
        if step % self.config.parallel.compare_every == 0:
            waited = self.clock.data_seconds() / self.config.parallel.compare_every
            for line in self.stragglers.compare(waited):
                self.report.behind(line)
        due = ends or step % self.config.checkpoint.every == 0
        if signal or step == self.schedule.steps or (due and self._is_sound()):
            self._save()

    def _look_for_skips(self) -> None:
        """Report skipped steps. Flags stay on the device and are read only here: no sync in every step."""
        with self.clock.measure("compute"):  # waits for the steps that are pending on the device
            skips = self.guard.newly_skipped()
        for skip in skips:
            self.report.skipped(skip)

    def _is_sound(self) -> bool:
        """Return whether the last step was not skipped: checkpoints to rewind to must hold good weights."""
        self._look_for_skips()
        return self.guard.in_a_row == 0

    def _enter(self, plan: StepPlan) -> Stage:
        """Make the stage of `plan` the current one; at a switch, report the validation loss after it."""
        name = self.schedule.names[plan.stage]
        stage = self.schedule.stages[name]
        if self.entered == plan.stage:
            return stage
        self.entered = plan.stage
        self.engine.enter(stage)
        self.data.enter(stage, self.progress)
        self.flops = step_flops(self.config.model, stage, self.data.attended(stage)) // self.world.size
        reset_peak_memory(self.world.device)
        # If the plan was changed on resume, any stage may follow; so compare with the last record.
        records, settings = self.progress.stages, stage.attention_settings()
        begins = not records or (records[-1].name, records[-1].settings) != (name, settings)
        if begins:
            records.append(StageRecord(name, settings=settings))
        self.record = records[-1]
        self.clock = StageClock(self.record)
        if begins and len(records) > 1:
            self.guard.new_stage()
            self.report.switch(self._validation_loss(stage))
        if begins:
            self.report.say(begin_line(self.schedule, plan.stage, self.progress.step))
        return stage

    def _warm_up(self) -> None:
        """Compile the stages that are not finished, before their clocks start."""
        seconds = 0.0
        if compiles(self.config.compute, self.world.device) or self.world.device.type == "cuda":
            first = bisect_right(self.schedule.ends, self.progress.step)
            with self.watchdog.phase("compile"):
                left = list(self.schedule.stages.values())[first:]
                seconds = warm_up(self.engine, left, self.config.optim.z_loss, self.data.loader.apart)
        self.report.compiled(seconds)

    def _validation_loss(self, stage: Stage) -> float:
        """Return the validation loss with the attention of `stage`; counts in the current stage's clock."""
        data, tokens, span = self.data, self.config.eval.tokens, self.profiler.span
        with self.clock.measure("validation"), self.watchdog.phase("validation"), span("validation"):
            eos, apart = data.corpus.tokenizer.eos, data.loader.apart
            loss = validation_loss(self.engine, data.validation, tokens, stage, eos, apart)
        self.clock.lap()
        return loss

    def _rewind(self) -> None:
        """After too many skipped steps in a row: load the newest checkpoint, and skip the data since then."""
        most, skipped = self.config.guard.max_rewinds, self.guard.skipped()
        self.guard.rewound()
        failed = f"{skipped}, up to step {self.progress.step}, had a loss or gradient that was not finite"
        if self.guard.rewinds > most:
            raise RunError(f"{failed}, after guard.max_rewinds={most} rewinds; {ADVICE}")
        self.saver.wait()
        self.average.forget()
        load = partial(checkpoint.load, tensors=self.tensors, optional=[AVERAGE])
        path, notes = checkpoint.newest_sound(self.dir.checkpoints, self.world, load)
        self.average.begin()
        for note in notes:
            self.report.say(f"warning   {note}")
        if path is None:
            raise RunError(f"{failed}, and there is no checkpoint to return to; {ADVICE}")
        left, position, part = self.progress.step, self.progress.position, self.progress.data
        self.progress = progress_of(checkpoint.state_of(path))
        self.report.rewound(self.progress, left, skipped_to=position)
        self.progress.position, self.progress.data = position, part
        self.entered = None

    def _save(self) -> None:
        self._look_for_skips()  # the guard's state is saved
        state = {
            "progress": self.data.progress_to_save(self.progress),
            "config": as_container(self.config),
            **self.data.as_state(self.progress),
            "guard": self.guard.as_dict(),
            "imported": self.start.imported,
        }
        with self.clock.measure("checkpoint"), self.watchdog.phase("save"), self.profiler.span("checkpoint"):
            self.saver.save(self.progress.step, self.tensors, state)
        self.clock.lap()
        self.launcher.look(self.record, self.saver.saved)
        self.first_checkpoint.note(self.saver.saved.count)

    def _finish_saving(self, stop: StopSignal) -> None:
        """Wait until the last checkpoint is written."""
        try:
            with self.watchdog.phase("save"):
                self.saver.finish(stop=lambda: stop.requested)
        finally:
            self.report.saved(self.saver.saved.as_summary())
        self.first_checkpoint.note(self.saver.saved.count)

    def _greeting(self, recorded: list[str]) -> list[str]:
        """Return the lines to print before the first step. recorded: the lines of `record_start`."""
        done = self.progress.step
        return [
            f"run       {self.dir.path}: {self.start_note}",
            *greeting(self.config, self.world, self.data.corpus, self.engine.model, done),
            *(f"warning   {note}" for note in [*self.start.notes, *self.data.notes, *self.tasks.warnings()]),
            *(f"start     {line}" for line in recorded),
            *(f"profile   {line}" for line in self.profiler.notes(self.schedule.steps)),
            *(f"plan      {line}" for line in (self.schedule.plan(done) if self.start.new else [])),
            *about_end(self.dir.path, self.schedule.steps, done),
        ]
