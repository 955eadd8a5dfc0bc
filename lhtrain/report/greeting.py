"""Lines that a run prints before its first step: model, device, memory, data, cost and stages."""

import shlex
from collections.abc import Mapping
from pathlib import Path

import torch

from lhtrain.attention.flash4 import fa4_runs
from lhtrain.compute.advice import outlook
from lhtrain.compute.cost import cost
from lhtrain.compute.device import describe, gpu_memory, peak_flops
from lhtrain.compute.rotary import low_bases
from lhtrain.compute.trained import Trained
from lhtrain.conf.parameters import count
from lhtrain.conf.schema import Config, DocumentMode
from lhtrain.conf.sliding import sliding_layers
from lhtrain.data import Corpus
from lhtrain.distributed.world import World
from lhtrain.model.decoder import GPT
from lhtrain.schedule import Schedule
from lhtrain.stage import stages_of
from lhtrain.text import counted


def greeting(config: Config, world: World, corpus: Corpus, model: GPT, done: int) -> list[str]:
    """Return the lines for a run that has already done `done` steps."""
    parameters = model.parameters_by_kind()
    return [
        *about_model(config, parameters, model.dtype, world),
        *about_memory(config, world, gpu_memory(world.device)),
        *about_data(config, corpus),
        *about_cost(config, corpus, parameters["parameters"], world, done),
        *about_stages(config),
    ]


def about_model(config: Config, parameters: Mapping[str, int], dtype: torch.dtype, world: World) -> list[str]:
    """Return lines about the model's size, the device and the precision."""
    hardware = describe(world.device)["hardware"]
    device = hardware.get("gpu", hardware["cpu"])
    inner = f"{parameters['parameters_without_embeddings']:,} without embeddings"
    return [
        f"model     {config.model.name}: {parameters['parameters']:,} parameters, {inner}",
        f"device    {world.size} x {device}, {str(dtype).removeprefix('torch.')}",
    ]


def about_memory(config: Config, world: World, memory: int) -> list[str]:
    """Return the estimated memory use, and advice if it does not fit; no lines on a CPU.

    memory: bytes of the GPU, 0 on a CPU.
    """
    if not memory:
        return []
    line, warnings = outlook(config, world.size, memory)
    return [f"memory    {line}", *(f"warning   {text.strip()}" for text in warnings)]


def about_data(config: Config, corpus: Corpus) -> list[str]:
    """Return the number of tokens, and whether documents are kept apart."""
    train = sum(part.split.n_tokens for part in corpus.parts["train"] if part.stream is None)
    words = [f"{train:,} training tokens"] if train else []
    if corpus.streams:
        units = sum(stream.n_units for stream in corpus.streams)
        words.append(f"{counted(units, 'part')} of sources that are tokenized during training")
    lines = [f"data      {', '.join(words)}, {corpus.n_tokens('val'):,} validation tokens"]
    if config.data.documents is DocumentMode.apart:
        where = f"positions {config.data.positions.value}"
        lines.append(f"data      documents apart: no attention from one document to another; {where}")
    return lines


def about_cost(config: Config, corpus: Corpus, n_parameters: int, world: World, done: int) -> list[str]:
    """Return the cost of the steps after the first `done`; no lines if none are left."""
    if done == config.run.steps:
        return []
    train, peak = None if corpus.streams else corpus.n_tokens("train"), peak_flops(world.device)
    gpu, kernel = describe(world.device)["hardware"].get("gpu", ""), ""
    if gpu:
        kernel = "fa4" if fa4_runs() else "cudnn"
    lines = cost(config, n_parameters, train, peak, world.size, done, gpu, kernel)
    return [f"cost      {line}" for line in lines]


def about_stages(config: Config) -> list[str]:
    """Return a line for each stage, and warnings about useless windows and low rotary bases."""
    lines, sliding, n_layers = [], sliding_layers(config.model), config.model.n_layers
    for name, stage in stages_of(config).items():
        layers = f"{stage.attention} attention, seq_len {stage.seq_len:,}"
        if stage.pyramid is not None:
            layers += f" reduced to {stage.pyramid.n_selected:,} rows (budget k = {stage.pyramid.budget:,})"
            layers += f" and an exact window of {counted(stage.window, 'token')}" if stage.window else ""
            if others := {*stage.dense_layers, *sliding}:
                layers += f" in {n_layers - len(others)} of {n_layers} layers"
        if sliding:
            layers += f"; sliding window of {counted(config.model.sliding_window or 0, 'token')}"
            layers += f" in {counted(len(sliding), 'layer')}"
        parts = f" in {stage.grad_accum} micro-batches" if stage.grad_accum > 1 else ""
        steps = f"{counted(stage.steps, 'step')} of {stage.batch_tokens:,} tokens"
        lines.append(f"stage     {name}: {steps}{parts}, {layers}")
        if words := stage.data_in_words():
            lines.append(f"stage     {name}: {words}")
        if stage.frozen:
            trained = Trained(config.model, stage.frozen)
            of = f"{trained.weights:,} of {count(trained.shapes, trained.shapes):,} parameters"
            lines.append(f"stage     {name}: trains {of}; frozen: {', '.join(stage.frozen)}")
        if stage.window >= stage.seq_len:
            lines.append(
                f"warning   stages.{name}.window={stage.window}: covers the whole seq_len={stage.seq_len}, "
                f"so the layers compute full attention; stages.{name}.attention=dense does the same"
            )
    return [*lines, *(f"warning   {text}" for text in low_bases(config))]


def begin_line(schedule: Schedule, index: int, done: int) -> str:
    """Return the line for a stage that begins after `done` steps: length, rotary base, learning rate."""
    name = schedule.names[index]
    stage = schedule.stages[name]
    rope = f"rotary base {stage.rope_theta:,.10g}"
    rope += f" scaled by {stage.rope_scaling['rope_type']}" if stage.rope_scaling else ""
    words = f", {text}" if (text := stage.data_in_words()) else ""
    rate = f"learning rate {schedule.course(index, done)}{words}"
    return f"begins    {name} at step {done + 1:,}: seq_len {stage.seq_len:,}, {rope}, {rate}"


def about_end(run_dir: Path, steps: int, done: int) -> list[str]:
    """Return a line on how to add steps if all are done."""
    if done < steps:
        return []
    command = shlex.join(["lhtrain", "extend", str(run_dir), "steps=+N"])
    return [f"finished  the plan of {counted(steps, 'step')} is already done; to add N steps: {command}"]
