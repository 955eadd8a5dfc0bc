"""The trainer: one loop for every stage.

A step is data -> forward and backward -> clip -> AdamW. What differs between stages (attention, sequence
length, learning rate) is looked up in the schedule; weights, optimizer state and data position go on.
"""

import shutil
import sys
import time
from bisect import bisect_right
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from lhtrain import checkpoint
from lhtrain.attention import DenseAttention, LighthouseAttention
from lhtrain.checkpoint.saver import Saver
from lhtrain.compute.apply import compiles, prepare
from lhtrain.compute.device import (
    compute_dtype,
    describe,
    gpu_memory,
    peak_flops,
    peak_memory,
    reset_peak_memory,
)
from lhtrain.compute.flops import step_flops
from lhtrain.conf.compose import build
from lhtrain.conf.fill import filled
from lhtrain.conf.paths import with_absolute_paths
from lhtrain.conf.schema import Config, LighthouseConfig, Resume
from lhtrain.data import SequenceOrder, open_corpus
from lhtrain.distributed.mesh import Parallel
from lhtrain.distributed.ranks import find_ranks
from lhtrain.distributed.torchrun import too_short
from lhtrain.distributed.world import World, close
from lhtrain.errors import RunError
from lhtrain.health.hang import Watchdog
from lhtrain.health.nonfinite import NonFiniteGuard
from lhtrain.health.signals import StopSignal
from lhtrain.health.straggler import StragglerCheck
from lhtrain.loader import Feed, validation_batches
from lhtrain.model.decoder import FULL_ATTENTION, GPT
from lhtrain.model.optimizer import build_optimizer
from lhtrain.progress import Progress, StageClock, StageRecord
from lhtrain.report import greeting
from lhtrain.report.reporter import Reporter, Silent
from lhtrain.runs import resume as start
from lhtrain.runs.history import History
from lhtrain.runs.launch import launch, same_folder
from lhtrain.runs.lock import PATIENCE, RunLock
from lhtrain.runs.run_dir import RunDir, as_container, keep_tokenizer
from lhtrain.schedule import Place, Schedule
from lhtrain.stage import Stage
from lhtrain.step import Measured, update


def attention_of(stage: Stage, lighthouse: LighthouseConfig) -> DenseAttention | LighthouseAttention:
    """What the layers of a stage attend with."""
    if stage.pyramid is None:
        return FULL_ATTENTION
    pyramid = stage.pyramid
    return LighthouseAttention(
        levels=pyramid.levels,
        pooling=pyramid.pooling,
        budget=pyramid.budget,
        scorer=stage.scorer,
        cover_prefix=stage.cover_prefix,
        backend=lighthouse.backend,
    )


class Trainer:
    """One rank of a run of a filled, valid configuration; everything the run leaves is in `run_dir`.

    Raises:
        RunError, DataError: at construction or in `run`, with what to do about it.
    """

    def __init__(self, config: Config, run_dir: Path, world: World, watchdog: Watchdog):
        self.config, self.dir, self.world, self.device = config, RunDir(run_dir), world, world.device
        self.watchdog = watchdog
        self.start = start.find_start(self.dir, config.resume, world)
        self.dtype = compute_dtype(config.compute.precision, self.device)
        self.schedule = Schedule.of(config)
        self.parallel = Parallel(config.parallel, config.model, config.lighthouse.selection, world)
        self._open_data()
        self._build_model()
        self.saver = Saver(self.dir.checkpoints, config.checkpoint.keep, world, config.checkpoint.retry)
        self.guard = NonFiniteGuard(config.guard)
        # Of the stage: seconds for data at the last comparison; steps and their seconds when one was logged.
        self.stragglers, self.waited, self.logged = StragglerCheck(world), 0.0, (0, 0.0)
        self.progress = self._start()
        # One object a stage: a compiler takes another object for other code.
        self.attention = {
            name: self.parallel.attention(attention_of(stage, config.lighthouse))
            for name, stage in self.schedule.stages.items()
        }
        self.full_attention = self.parallel.attention(FULL_ATTENTION)
        self.noted = self.start.path is not None  # whether the history says that there is a checkpoint
        self.launcher_checked = False
        self.entered: int | None = None  # index of the stage that the model is set up for

    def _open_data(self) -> None:
        config = self.config
        with self.world.first_of_each_machine():
            self.corpus = open_corpus(**asdict(config.data))
        self.world.agree({"data": self.corpus.fingerprint, "tokenizer": self.corpus.tokenizer.fingerprint})
        lengths = {stage.seq_len for stage in self.schedule.stages.values()}
        parts = self.corpus.parts
        order = SequenceOrder(parts["train"], lengths, config.run.seed, config.data.long_fraction)
        self.start.notes += order.notes
        self.feed = Feed(order, self.corpus.tokenizer.eos, self.device, self.parallel.share)
        self.val_order = SequenceOrder(parts["val"], lengths, seed=0)

    def _build_model(self) -> None:
        with torch.device("meta"):
            self.model = GPT(self.config.model, self.dtype)
        prepare(self.model, self.config.compute, self.device)
        self.parallel.build(self.model, self.config.run.seed)
        self.optimizer = build_optimizer(self.model, self.config.optim)
        self.tensors = checkpoint.tensors_of(self.model, self.optimizer)

    def _start(self) -> Progress:
        config, self.start_note = self.config, self.start.how
        if self.start.path is not None:
            progress = start.resume_run(self.start, self.dir, self.tensors, config, self.corpus)
            self.start_note = f"continues from {self.start.path.name}"
            if self.start.guard is not None:
                self.guard.restore(self.start.guard)
            return progress
        if config.init_from is None:
            return Progress()
        source = Path(config.init_from)
        if self.start.how == "new run":  # where it starts over, what was there is still to be kept aside
            self.start.how = "init_from"
        progress, self.start_note = start.start_from(source, self.tensors, config, self.corpus, self.world)
        return progress

    def run(self) -> dict[str, Any]:
        """Train to the end of the run, or to a signal; returns the content of summary.json."""
        about = describe(self.device) | {"data": self.corpus.fingerprint, **self._parameters()}
        about |= {"ranks": self.world.size}
        peak = peak_flops(self.device)
        told = self.world.on_main(self._record_start)
        reporter = Reporter if self.world.is_main else Silent
        with (
            reporter(self.config, self.dir, self.progress, peak, about) as self.report,
            StopSignal(self._saved) as stop,
            self.saver,
        ):
            self.world.on_main(lambda: keep_tokenizer(self.dir, self.corpus.tokenizer))
            self.saver.say = self.report.say
            if isinstance(self.report, Reporter):  # rows reach the disk before their checkpoint
                self.saver.before_publish = self.report.metrics.sync
            for line in self._greeting(told):
                self.report.say(line)
            if self.start.new:
                self.report.changed([str(change) for change in self.start.new])
            with self.watchdog.phase("compile"):
                self.report.about["compile_seconds"] = self._warm_up()
            signal = self.world.largest(stop.requested or 0)
            while self.progress.step < self.schedule.steps and not signal:
                with self.watchdog.phase("step"):
                    place = self.schedule.lookup(self.progress.step)
                    stage = self._enter(place)
                    self._step(place, stage)
                    if self.guard.must_rewind:
                        with self.watchdog.phase("rewind"):
                            self._rewind()
                        continue
                    signal = self.world.largest(stop.requested or 0)
                    self._after_step(stage, signal)
            try:
                with self.watchdog.phase("save"):
                    self.saver.finish(stop=lambda: stop.requested)
            finally:
                self.report.about["checkpoints"] = self.saver.saved.as_summary()
            self._note_first_checkpoint()
            result = self.report.finish(signal)
        self.feed.close()
        return result

    def _record_start(self) -> list[str]:
        about = {"ranks": self.world.size, "data": self.corpus.fingerprint}
        return start.record_start(self.start, self.dir, self.config, self.progress.step, about)

    def _greeting(self, told: list[str]) -> list[str]:
        """What the run prints before its first step; told: what recording the start says."""
        config, done, parameters = self.config, self.progress.step, self._parameters()
        plan = self.schedule.plan(done) if self.start.new else []
        return [
            f"run       {self.dir.path}: {self.start_note}",
            *greeting.about_model(config, parameters, self.dtype, self.world),
            *greeting.about_memory(config, self.world, gpu_memory(self.device)),
            *greeting.about_data(config, self.corpus),
            *greeting.about_cost(config, self.corpus, parameters["parameters"], self.world, done),
            *(f"warning   {note}" for note in self.start.notes),
            *(f"start     {line}" for line in told),
            *greeting.about_stages(config),
            *(f"plan      {line}" for line in plan),
            *greeting.about_end(self.dir.path, self.schedule.steps, done),
        ]

    def _after_step(self, stage: Stage, signal: int) -> None:
        """Validate and save where it is time to."""
        self.saver.poll()
        step, ends = self.progress.step, self.progress.step in self.schedule.ends
        if ends or step % self.config.eval.every == 0:
            self._validate(stage)
        due = ends or step % self.config.checkpoint.every == 0
        if step % self.config.parallel.compare_every == 0:
            waited, self.waited = self.record.seconds["data"] - self.waited, self.record.seconds["data"]
            for line in self.stragglers.compare(waited / self.config.parallel.compare_every):
                self.report.behind(line)
        if signal or step == self.schedule.steps or (due and self._is_sound()):
            self._save()
            self._note_first_checkpoint()

    def _note_first_checkpoint(self) -> None:
        """Record that there is one: when all are gone, a start does not take it for a new run."""
        if self.world.is_main and not self.noted and self.saver.saved.count:
            try:
                History(self.dir.history).add("checkpoint")
            except OSError as error:
                self.report.say(f"warning   {error}")
            self.noted = True

    def _is_sound(self) -> bool:
        """Did the last step update something? A checkpoint to go back to must not hold spoilt weights."""
        self._look()
        return self.guard.in_a_row == 0

    def _look(self) -> None:
        with self.clock.measure("compute"):  # waits for the steps that the device has still to do
            skips = self.guard.newly_skipped()
        for skip in skips:
            self.report.skipped(skip)

    def _step(self, place: Place, stage: Stage) -> None:
        """One optimizer step: data, update, log."""
        before = self.progress.position
        with self.clock.measure("data"):
            batches, self.progress.position = self.feed.micro_batches(before, stage)
        with self.clock.measure("compute"):
            optim = self.config.optim
            measured = update(self.model, self.optimizer, batches, place.lr, optim, self.parallel)
            self.progress.step += 1
            self.watchdog.step = self.progress.step
            self.guard.remember(self.progress.step, before, self.progress.position, measured.skipped)
            first_or_last = self.record.steps == 0 or self.progress.step in self.schedule.ends
            logged = first_or_last or self.progress.step % self.config.run.log_every == 0
            if logged:
                measured.skipped.item()  # the one place where a step waits for the device
        self.record.steps += 1
        self.record.tokens += stage.batch_tokens
        self.record.flops += self.flops
        self.record.peak_memory_bytes = max(self.record.peak_memory_bytes, peak_memory(self.device))
        self.clock.lap()
        if logged:
            self._look()
            if self.guard.in_a_row == 0:
                self._log(measured, place, stage)

    def _log(self, measured: Measured, place: Place, stage: Stage) -> None:
        loss = measured.loss.item()
        self.record.take_loss(loss)
        # Steps that were not logged may have been waited for in this one: they share their time.
        steps, busy = self.logged
        self.logged = self.record.steps, self.record.busy
        seconds = (self.record.busy - busy) / (self.record.steps - steps)
        self.report.train_step(place.lr, measured.grad_norm.item(), stage.batch_tokens, self.flops, seconds)
        if spike := self.guard.spike(loss):
            self.report.spike(loss, spike)

    def _rewind(self) -> None:
        """Too many steps in a row updated nothing: back to the newest checkpoint, past the data they read."""
        n_skips = self.guard.in_a_row
        self.guard.rewound()
        steps = f"{n_skips} steps in a row, up to step {self.progress.step},"
        what = f"{steps} had a loss or gradient that was not finite"
        advice = "a lower optim.lr or a longer warm-up may help"
        if self.guard.rewinds > self.config.guard.max_rewinds:
            times = self.config.guard.max_rewinds
            raise RunError(f"{what}, after guard.max_rewinds={times} rewinds; {advice}")
        self.saver.wait()
        path, notes = checkpoint.newest_sound(self.dir.checkpoints, self.world)
        for note in notes:
            self.report.say(f"warning   {note}")
        if path is None:
            raise RunError(f"{what}, and there is no checkpoint to go back to; {advice}")
        position, left = self.progress.position, self.progress.step
        self.progress = Progress.from_dict(checkpoint.state_of(path)["progress"])
        checkpoint.load(path, self.tensors)
        self.report.rewound(self.progress, left, skipped_to=position)
        self.progress.position = position
        self.entered = None

    def _enter(self, place: Place) -> Stage:
        """Make the stage of `place` the current one; before its first step, report what the switch costs."""
        name = self.schedule.names[place.stage]
        stage = self.schedule.stages[name]
        if self.entered == place.stage:
            return stage
        self.entered = place.stage
        self.model.attend_with(self.attention[name], self.full_attention)
        self.flops = step_flops(self.config.model, stage) // self.world.size
        reset_peak_memory(self.device)
        # A plan that was changed on resume may continue in any stage: records follow what really runs.
        records, settings = self.progress.stages, stage.attention_settings()
        begins = not records or (records[-1].name, records[-1].settings) != (name, settings)
        if begins:
            records.append(StageRecord(name, settings=settings))
        self.record = records[-1]
        self.clock = StageClock(self.record)
        self.logged, self.waited = (self.record.steps, self.record.busy), self.record.seconds["data"]
        if begins and len(records) > 1:
            self.guard.new_stage()
            with self.clock.measure("validation"):
                val_loss = self._validation_loss(stage)
            self.clock.lap()
            self.report.switch(val_loss)
        return stage

    def _warm_up(self) -> float:
        """Compile what the stages still to come run, on tokens that train nothing; returns the seconds."""
        if not (compiles(self.config.compute, self.device) or self.device.type == "cuda"):
            return 0.0
        began = time.perf_counter()
        first = bisect_right(self.schedule.ends, self.progress.step)
        share = self.parallel.share
        for name in self.schedule.names[first:]:
            stage = self.schedule.stages[name]
            self.model.attend_with(self.attention[name], self.full_attention)
            rows = stage.n_sequences // stage.grad_accum // share.dp_size
            here = share.positions(stage.seq_len).to(self.device)
            tokens = torch.zeros(rows, len(here), dtype=torch.int64, device=self.device)
            positions = here if share.cp_size > 1 else None
            self.model.loss(tokens, tokens, positions, z_loss=self.config.optim.z_loss).backward()
            with torch.no_grad():
                self.model.loss(tokens, tokens, positions).item()
        self.optimizer.zero_grad(set_to_none=True)
        seconds = time.perf_counter() - began
        self.report.say(f"compile   {seconds:.1f} s, outside the stages' clocks")
        return seconds

    def _validate(self, stage: Stage) -> None:
        self._look()
        with self.clock.measure("validation"):
            self.record.val_loss = self._validation_loss(stage)
        self.clock.lap()
        self.report.validation()

    def _validation_loss(self, stage: Stage) -> float:
        """Mean loss over the validation tokens, with the attention of the current stage."""
        with self.watchdog.phase("validation"), torch.no_grad():
            return self._validated(stage)

    def _validated(self, stage: Stage) -> float:
        # Of the losses, and of the targets, which float32 could not count.
        sums = torch.zeros(2, device=self.device, dtype=torch.float64)
        for batch in validation_batches(
            self.val_order,
            self.config.eval.tokens,
            stage,
            self.corpus.tokenizer.eos,
            self.device,
            self.parallel.share,
        ):
            loss = self.model.loss(batch.tokens, batch.targets, batch.positions)
            sums += sums.new_tensor([loss.item() * batch.n_targets, batch.n_targets])
        loss, count = self.world.mean(sums).tolist()
        return loss / count

    def _save(self) -> None:
        self._look()  # the guard's state is saved
        state = {
            "progress": self.progress.as_dict(),
            "config": as_container(self.config),
            "data": self.corpus.fingerprint,
            "tokenizer": self.corpus.tokenizer.as_meta(),
            "guard": self.guard.as_dict(),
        }
        with self.clock.measure("checkpoint"), self.watchdog.phase("save"):
            self.saver.save(self.progress.step, self.tensors, state)
        self.clock.lap()
        self._check_launcher()

    def _check_launcher(self) -> None:
        """Say once that what started the ranks would end them before a signal's step and save are over."""
        saved, record = self.saver.saved, self.record
        if self.launcher_checked or not saved.count or not record.steps:
            return
        if line := too_short(record.busy / record.steps + saved.write_seconds / saved.count):
            self.launcher_checked = True
            self.report.say(f"warning   {line}")

    def _saved(self) -> str:
        """What a run that leaves at once has saved, in words."""
        done = checkpoint.complete(self.dir.checkpoints)
        newest = f"the newest checkpoint is {done[-1].name}" if done else "there is no checkpoint yet"
        return f"{newest} in {self.dir.checkpoints}; later steps are lost"

    def _parameters(self) -> dict[str, int]:
        total, inner = self.model.n_parameters()
        return {"parameters": total, "parameters_without_embeddings": inner}


def _remove_empty(run_dir: Path) -> None:
    """Remove the directory that was made for a run of which nothing came."""
    shutil.rmtree(run_dir / "ranks", ignore_errors=True)
    (run_dir / ".lock").unlink(missing_ok=True)
    if run_dir.is_dir() and not any(run_dir.iterdir()):
        run_dir.rmdir()


def run(composed: DictConfig) -> None:
    """Hydra's task: train one composed configuration. Exits with 128 + n after signal n."""
    config = build(composed, find_ranks().size)
    sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    if sweep:
        config.run.dir = HydraConfig.get().runtime.output_dir
    train_config(config, leave=not sweep)


def train_config(config: Config, leave: bool = True) -> None:
    """Train a valid configuration. Exits with 128 + n after signal n.

    leave: leave the other ranks at the end; not where another run of a sweep follows with the same ranks.
    """
    world = launch(config)
    config.run.dir = world.on_main(lambda: config.run.dir)  # which may hold the time
    memory = world.least(gpu_memory(world.device)) or None
    config = filled(with_absolute_paths(config), world.size, memory)
    run_dir = Path(config.run.dir)
    # A new run finds out at once that the place is taken; one that continues may wait for its predecessor.
    lock = RunLock(run_dir, patience=0 if config.resume is Resume.never else PATIENCE)
    is_new = world.on_main(lambda: not run_dir.is_dir() or not any(run_dir.iterdir()))
    starting = False
    try:
        with Watchdog(config.watchdog, run_dir, world.rank, attempt=world.attempt) as watchdog:
            world.on_main(lock.take)
            same_folder(run_dir, world)
            starting = True
            trainer = Trainer(config, run_dir, world, watchdog)
            starting = False
            result = trainer.run()
    except Exception:
        if starting and world.is_main and is_new:
            _remove_empty(run_dir)  # not before the watchdog has ended, which writes there
        raise
    lock.release()
    if leave:
        close()
    if result["signal"] and not result["finished"]:
        sys.exit(128 + result["signal"])
