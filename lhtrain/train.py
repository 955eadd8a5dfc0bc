"""The trainer: one loop for every stage.

A step is data -> forward and backward -> clip -> AdamW. What differs between stages (attention, sequence
length, learning rate) is looked up in the schedule; weights, optimizer state and data position go on.
"""

import math
import sys
import time
from bisect import bisect_right
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from torch import Tensor, nn

from lhtrain import checkpoint, start
from lhtrain.attention import DenseAttention, LighthouseAttention, Pyramid
from lhtrain.blocks import compiles, prepare
from lhtrain.conf.compose import build
from lhtrain.conf.fill import filled
from lhtrain.conf.schema import Attention, Config, LighthouseConfig, OptimConfig, StageConfig
from lhtrain.data import SequenceOrder, open_corpus
from lhtrain.errors import RunError
from lhtrain.feed import Batch, Feed, validation_batches
from lhtrain.flops import peak_flops, step_flops
from lhtrain.hardware import compute_dtype, describe, peak_memory, pick_device, reset_peak_memory
from lhtrain.interrupt import Interrupt
from lhtrain.model import GPT, Attend
from lhtrain.optim import build_optimizer
from lhtrain.progress import Progress, StageClock, StageRecord
from lhtrain.reporter import Reporter
from lhtrain.run_dir import RunDir, as_container
from lhtrain.schedule import Place, Schedule


def attention_of(stage: StageConfig, lighthouse: LighthouseConfig) -> Attend:
    """What the layers of a stage attend with."""
    if stage.attention is Attention.dense:
        return DenseAttention()
    return LighthouseAttention(
        levels=stage.levels,
        pooling=stage.pooling,
        budget=stage.budget,
        scorer=stage.scorer.value,
        cover_prefix=stage.cover_prefix,
        backend=lighthouse.backend,
    )


def update(
    model: GPT, optimizer: torch.optim.Optimizer, batches: list[Batch], lr: float, optim: OptimConfig
) -> tuple[Tensor, Tensor]:
    """Forward, backward, clip, AdamW: mean loss and gradient norm before clipping, left on the device."""
    total = torch.zeros((), device=batches[0].tokens.device)
    for batch in batches:
        loss = model.loss(batch.tokens, batch.targets, z_loss=optim.z_loss) * batch.share
        loss.backward()
        total += loss.detach()
    grad_norm = nn.utils.clip_grad_norm_(model.parameters(), optim.clip_norm)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total, grad_norm


class Trainer:
    """One run of a filled, valid configuration; everything it leaves is in `run_dir`.

    Raises:
        RunError, DataError: at construction or in `run`, with what to do about it.
    """

    def __init__(self, config: Config, run_dir: Path):
        self.config, self.dir = config, RunDir(run_dir)
        resume_from = start.find_resume(self.dir, config.resume)
        self.device = pick_device(config.run.device)
        self.dtype = compute_dtype(config.compute.precision, self.device)
        self.schedule = Schedule.of(config)
        self.corpus = open_corpus(**asdict(config.data))
        lengths = {stage.seq_len for stage in config.stages.values()}
        parts, long_fraction = self.corpus.parts, config.data.long_fraction
        train_order = SequenceOrder(parts["train"], lengths, config.run.seed, long_fraction)
        self.feed = Feed(train_order, self.corpus.tokenizer.eos, self.device)
        self.val_order = SequenceOrder(parts["val"], lengths, seed=0)
        self.model = GPT(config.model, self.dtype)
        self.model.init_weights(config.run.seed)
        self.model.to(self.device)
        prepare(self.model, config.compute, self.device)
        self.optimizer = build_optimizer(self.model, config.optim)
        self.tensors = checkpoint.Tensors(self.model, self.optimizer)
        self.progress, self.start_note = Progress(), "a fresh start"
        if resume_from is not None:
            self.progress = start.resume_run(resume_from, self.tensors, config, self.corpus)
            self.start_note = f"going on from {resume_from.name}"
        elif config.init_from is not None:
            self.progress, self.start_note = start.start_from(
                Path(config.init_from), self.tensors, self.corpus
            )
        # One object a stage: a compiler takes another object for other code.
        self.attention = {
            name: attention_of(stage, config.lighthouse) for name, stage in config.stages.items()
        }
        self.entered: int | None = None  # index of the stage that the model is set up for

    def run(self) -> dict[str, Any]:
        """Train to the end of the run, or to a signal; returns the content of summary.json."""
        about = describe(self.device) | {"data": self.corpus.fingerprint, **self._parameters()}
        peak = peak_flops(self.device)
        with (
            Reporter(self.config, self.dir, self.progress, peak, about) as self.report,
            Interrupt() as interrupt,
        ):
            self._greet()
            self.report.about["compile_seconds"] = self._warm_up()
            while self.progress.step < self.schedule.steps and interrupt.requested is None:
                place = self.schedule.lookup(self.progress.step)
                stage = self._enter(place)
                self._step(place, stage)
                ends = self.progress.step in self.schedule.ends
                if ends or self.progress.step % self.config.eval.every == 0:
                    self._validate(stage)
                if ends or self.progress.step % self.config.checkpoint.every == 0 or interrupt.requested:
                    self._save()
            result = self.report.finish()
            if interrupt.requested and not result["finished"]:
                self.report.say(
                    f"{interrupt.requested.name}: stopped after step {self.progress.step}; "
                    f"the same command with run.dir={self.dir.path} resume=auto goes on"
                )
        self.feed.close()
        return result | {"signal": interrupt.requested}

    def _step(self, place: Place, stage: StageConfig) -> None:
        """One optimizer step: data, update, log."""
        began = time.perf_counter()
        with self.clock.measure("data"):
            batches, self.progress.position = self.feed.micro_batches(self.progress.position, stage)
        with self.clock.measure("compute"):
            measured = update(self.model, self.optimizer, batches, place.lr, self.config.optim)
            self.progress.step += 1
            first_or_last = place.step_in_stage == 0 or self.progress.step in self.schedule.ends
            logged = first_or_last or self.progress.step % self.config.run.log_every == 0
            if logged:  # the one place where a step waits for the device
                loss, grad_norm = (value.item() for value in measured)
        self.record.steps += 1
        self.record.tokens += stage.batch_tokens
        self.record.flops += self.flops
        self.record.peak_memory_bytes = max(self.record.peak_memory_bytes, peak_memory(self.device))
        self.clock.lap()
        if logged:
            self._check_finite(loss, grad_norm)
            self.record.first_loss = loss if self.record.first_loss is None else self.record.first_loss
            self.record.last_loss = loss
            seconds = time.perf_counter() - began
            self.report.train_step(place.lr, grad_norm, stage.batch_tokens, self.flops, seconds)

    def _enter(self, place: Place) -> StageConfig:
        """Make the stage of `place` the current one; before its first step, report what the switch costs."""
        name = self.schedule.names[place.stage]
        stage = self.config.stages[name]
        if self.entered == place.stage:
            return stage
        self.entered = place.stage
        self.model.attend_with(self.attention[name])
        self.flops = step_flops(self.config.model, stage)
        reset_peak_memory(self.device)
        begins = place.step_in_stage == 0
        if begins:
            self.progress.stages.append(StageRecord(name))
        self.record = self.progress.stages[-1]
        self.clock = StageClock(self.record)
        if begins and place.stage > 0:
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
        for name in self.schedule.names[first:]:
            stage = self.config.stages[name]
            self.model.attend_with(self.attention[name])
            rows = stage.batch_tokens // stage.seq_len // stage.grad_accum
            tokens = torch.zeros(rows, stage.seq_len, dtype=torch.int64, device=self.device)
            self.model.loss(tokens, tokens, z_loss=self.config.optim.z_loss).backward()
            with torch.no_grad():
                self.model.loss(tokens, tokens).item()
        self.optimizer.zero_grad(set_to_none=True)
        seconds = time.perf_counter() - began
        self.report.say(f"compile   {seconds:.1f} s, outside the stages' clocks")
        return seconds

    def _validate(self, stage: StageConfig) -> None:
        with self.clock.measure("validation"):
            self.record.val_loss = self._validation_loss(stage)
        self.clock.lap()
        self.report.validation()

    @torch.no_grad()
    def _validation_loss(self, stage: StageConfig) -> float:
        """Mean loss over the validation tokens, with the attention of the current stage."""
        total, count = torch.zeros((), device=self.device), 0
        for batch in validation_batches(
            self.val_order, self.config.eval.tokens, stage, self.corpus.tokenizer.eos, self.device
        ):
            total += self.model.loss(batch.tokens, batch.targets) * batch.n_targets
            count += batch.n_targets
        return total.item() / count

    def _save(self) -> None:
        state = {
            "progress": self.progress.as_dict(),
            "config": as_container(self.config),
            "data": self.corpus.fingerprint,
        }
        with self.clock.measure("checkpoint"):
            checkpoint.save(
                self.dir.checkpoints, self.progress.step, self.tensors, state, self.config.checkpoint.keep
            )
        self.clock.lap()

    def _check_finite(self, loss: float, grad_norm: float) -> None:
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise RunError(
                f"step {self.progress.step}: loss={loss}, grad_norm={grad_norm}: must be finite. The weights "
                f"are spoilt, the checkpoints are not; a lower optim.lr or a longer warm-up may help"
            )

    def _parameters(self) -> dict[str, int]:
        total, inner = self.model.n_parameters()
        return {"parameters": total, "parameters_without_embeddings": inner}

    def _greet(self) -> None:
        say, parameters = self.report.say, self._parameters().values()
        hardware = describe(self.device)["hardware"]
        say(f"run       {self.dir.path}: {self.start_note}")
        say(
            "model     {}: {:,} parameters, {:,} without embeddings".format(
                self.config.model.name, *parameters
            )
        )
        train, val = (self.corpus.n_tokens(split) for split in ("train", "val"))
        say(f"data      {train:,} tokens to train on, {val:,} to validate")
        say(f"device    {hardware.get('gpu', hardware['cpu'])}, {str(self.dtype).removeprefix('torch.')}")
        for name, stage in self.config.stages.items():
            what = f"{stage.attention.value} attention, seq_len {stage.seq_len:,}"
            if stage.attention is Attention.lighthouse:
                pyramid = Pyramid(stage.seq_len, stage.levels, stage.pooling, stage.budget)
                what += f" of which it attends to {pyramid.n_selected:,} rows (k {stage.budget:,})"
            say(f"stage     {name}: {stage.steps:,} steps of {stage.batch_tokens:,} tokens, {what}")


def run(composed: DictConfig) -> None:
    """Hydra's task: train one composed configuration. Exits with 128 + n after signal n."""
    config = build(composed)
    config.run.dir = HydraConfig.get().runtime.output_dir
    config = filled(config)
    run_dir = Path(config.run.dir)
    try:
        trainer = Trainer(config, run_dir)
    except Exception:
        if not any(run_dir.iterdir()):  # Hydra made it, and nothing came of the run
            run_dir.rmdir()
        raise
    result = trainer.run()
    if result["signal"] and not result["finished"]:
        sys.exit(128 + result["signal"])
