"""Evaluates a trained model: a run, a checkpoint or an exported folder. Each rank has the whole model."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lhtrain.compute.device import compute_dtype, pick_device
from lhtrain.conf.problems import ConfigError, Problem
from lhtrain.conf.rules.evaluation import FULL, OWN, extrapolation, length_problems
from lhtrain.conf.schema import Device, EvalConfig, ParallelConfig, Precision, Selection
from lhtrain.data import DataError
from lhtrain.distributed.mesh import Mesh
from lhtrain.distributed.world import World
from lhtrain.errors import RunError, UsageError
from lhtrain.evaluation.attention import FullAttention, StageAttention, length_problem
from lhtrain.evaluation.judge import AttentionAt, Judge
from lhtrain.evaluation.plan import Plan
from lhtrain.evaluation.result import described
from lhtrain.evaluation.sources import own_texts, trained_texts
from lhtrain.evaluation.tasks import measure
from lhtrain.evaluation.texts import Texts
from lhtrain.opened import Opened, open_trained
from lhtrain.stage import Stage


def evaluate_trained(
    source: Path,
    config: EvalConfig,
    device: Device = Device.auto,
    precision: Precision = Precision.auto,
    attention: str = "both",
    stage: str | None = None,
    weights: str = "last",
    batch_tokens: int = 32_768,
    say: Callable[[str], object] = print,
    opened_at: Callable[[Path], object] = lambda path: None,
) -> tuple[dict[str, Any], Path]:
    """Measure the tasks of `config`. A collective: the ranks divide the sequences.

    Args:
        source: one checkpoint; a run directory, for its newest one; or an exported folder.
        attention: "full", "lighthouse" (that of the stage) or "both".
        stage: a stage that ran, whose attention is measured. None: the last one.
        weights: "last", or "average": the moving average of the weights.
        batch_tokens: most tokens of a forward pass, unless one sequence has more.
        say: takes lines for the reader, on the first rank.
        opened_at: takes the path of what is measured, before that; what it raises ends the evaluation.

    Returns:
        The content of eval.json, and the checkpoint or folder that was measured.

    Raises:
        UsageError: there is no such stage, or it has no attention of its own.
        ConfigError: lengths that the stage does not allow.
        RunError, DataError: the checkpoint or the texts cannot be read.
    """
    place = pick_device(device)
    world = World.start(place, mine={"command": " ".join(sys.argv[1:])})  # alone without a launcher
    place, say = world.device, say if world.is_main else _silent
    opened = open_trained(source, place, compute_dtype(precision, place), weights=weights)
    opened_at(opened.path)
    chosen = _stage(opened, stage, attention)
    opened.enter(chosen)  # its positions
    context = opened.longest if chosen is None else chosen.seq_len
    plan = Plan.of(config, context)
    if problems := [*_length_problems(config, plan, chosen)]:
        raise ConfigError(problems)
    with world.first_of_each_machine():
        texts = _texts(opened, config, say)
    mesh = Mesh(ParallelConfig(dp_replicate=world.size), opened.config, Selection.exact, world)
    attentions = _attentions(attention, chosen)
    scores = {name: Judge(opened.model, at, place, batch_tokens, mesh) for name, at in attentions.items()}
    where = f"stage {chosen.name}, " if chosen else ""
    on = f"{place}" if world.size == 1 else f"{world.size} ranks with {place.type}, which share the sequences"
    say(f"{opened.path}: {where}context {context:,}; texts: {texts.name}; on {on}")
    if warning := extrapolation(config, context):
        say(f"warning: {warning}")
    try:
        results = measure(scores, texts, plan, say)
    except torch.OutOfMemoryError as error:
        remedy = f"use less than batch_tokens={batch_tokens}, or shorter eval.lengths"
        raise RunError(f"{str(error).split('. ')[0]}; {remedy}") from error
    step = opened.state.get("progress", {}).get("step", 0)
    return described(results, plan, chosen, texts, step), opened.path


def _attentions(attention: str, stage: Stage | None) -> dict[str, AttentionAt]:
    """Return FULL, OWN or both -> the attention at each length."""
    found: dict[str, AttentionAt] = {}
    if attention != OWN:
        found[FULL] = FullAttention()
    if attention != FULL and stage is not None and stage.attention != "dense":
        found[OWN] = StageAttention(stage, "auto")
    return found


def _silent(_: str) -> None:
    """Say nothing: the first rank speaks for all."""


def _stage(opened: Opened, name: str | None, attention: str) -> Stage | None:
    """Return the stage `name`, or the last one. Raises UsageError."""
    stages = {stage.name: stage for stage in opened.stages}
    if name is not None and name not in stages:
        known = f"the stages that ran are {', '.join(stages)}" if stages else "it has no stages"
        raise UsageError(f"stage={name}: {opened.path} has no such stage; {known}")
    chosen = stages[name] if name else (opened.stages[-1] if opened.stages else None)
    if attention == OWN and (chosen is None or chosen.attention == "dense"):
        what = f"stage {chosen.name} has full attention" if chosen else f"{opened.path} has no stages"
        own = [stage.name for stage in opened.stages if stage.attention != "dense"]
        remedy = f"; stage={own[-1]} names one that has another" if own else ""
        raise UsageError(f"attention={OWN}: {what}{remedy}")
    return chosen


def _length_problems(config: EvalConfig, plan: Plan, stage: Stage | None) -> list[Problem]:
    found = [*length_problems(config, plan.context)]
    wrong = (length_problem(stage, length) for length in plan.lengths if stage is not None)
    if broken := next(filter(None, wrong), None):
        found.append(Problem("eval.lengths", config.lengths, broken))
    return found


def _texts(opened: Opened, config: EvalConfig, say: Callable[[str], object]) -> Texts:
    """Open eval.data, the validation documents of the run, or else the standard library of Python."""
    data = dict(opened.state.get("config", {}).get("data", {}))
    try:
        if config.data is not None or "source" not in data:
            return own_texts(config.data, opened.tokenizer, data, config.seed)
        texts, fingerprint = trained_texts(data, config.seed)
    except DataError as error:
        if config.data is not None:
            raise RunError(str(error).replace("data.path", "eval.data")) from error
        raise RunError(f"{error}; eval.data=PATH names other texts") from error
    if fingerprint != opened.state.get("data"):
        say("warning: the data are no longer those of the training; some may have been trained on")
    return texts
