"""The lines that a run prints before its first step."""

from types import SimpleNamespace

import torch

from lhtrain.compute.fill import compose_config, filled
from lhtrain.distributed.world import Ranks, World
from lhtrain.report import greeting
from lhtrain.schedule import Schedule


def stages(*overrides):
    return greeting.about_stages(filled(compose_config(["data=text", "data.path=.", *overrides])))


def test_a_stage_line_counts_the_lighthouse_layers():
    """model.dense_layers may name a layer twice."""
    some = "model.dense_layers=[0,-1,3]", "model.n_layers=4"
    assert "(budget k = 128) in 2 of 4 layers" in stages(*some)[0]
    assert stages()[0].endswith("(budget k = 128)") and "layers" not in stages(*some)[1]


def test_a_stage_line_names_the_window():
    windowed, recovery = stages("lighthouse.window=512")
    assert windowed.endswith("(budget k = 128) and an exact window of 512 tokens") and "512" not in recovery
    _, warning, _ = stages("lighthouse.window=4096")
    assert warning.startswith("warning   stages.lighthouse.window=4096: ") and "attention=dense" in warning


def test_a_stage_line_names_the_sliding_layers():
    slides = "model.sliding_window=512", "model.sliding_window_pattern=2", "model.n_layers=4"
    for line in stages(*slides):
        assert line.endswith("; sliding window of 512 tokens in 2 layers")
    assert "(budget k = 128) in 2 of 4 layers" in stages(*slides)[0]


def test_a_stage_with_frozen_parameters_says_how_many_it_trains():
    more = "model.vocab_size=512", "model.dim=128", "model.tie_embeddings=true"
    _, line, recovery = stages(*more, "stages.lighthouse.frozen=[embedding]")
    assert "stage     lighthouse: trains " in line and line.endswith("; frozen: embedding")
    trained, whole = (int(number.replace(",", "")) for number in line.split() if number[0].isdigit())
    assert whole - trained == 512 * 128
    assert "trains" not in recovery


def test_a_low_rotary_base_is_named_after_the_stages():
    *_, recovery, warning = stages("model.rope_theta=1e4")
    assert recovery.startswith("stage     ") and warning.startswith("warning   model.rope_theta=10000: ")
    assert len(stages("model.rope_theta=1e4")) == len(stages()) + 1


def test_the_line_for_a_stage_that_begins():
    yarn = "{rope_type:yarn,factor:4,original_max_position_embeddings:4096}"
    typed = ["run.steps=8", "optim.lr=0.01", "stages.recovery.rope_theta=5e4"]
    schedule = Schedule.of(compose_config([*typed, f"stages.recovery.rope_scaling={yarn}"]))
    assert greeting.begin_line(schedule, 0, 0) == (
        "begins    lighthouse at step 1: seq_len 4,096, rotary base 33,000, learning rate 0.01"
    )
    assert greeting.begin_line(schedule, 1, 5).startswith(
        "begins    recovery at step 6: seq_len 4,096, rotary base 50,000 scaled by yarn, learning rate 0.01"
    )


def test_memory_is_estimated_before_a_run_on_a_gpu():
    config, world = compose_config(["model=gpt_1b"], 1, 80 * 10**9), World(Ranks(), torch.device("cpu"))
    assert greeting.about_memory(config, world, 0) == []
    assert len(greeting.about_memory(config, world, 80 * 10**9)) == 1
    first, *others = greeting.about_memory(config, world, 16 * 10**9)
    assert first.startswith("memory    ") and " of 16.0 GB per GPU, with compute.recompute=" in first
    assert others and all(line.startswith("warning   ") for line in others)


def part(n_tokens, units=None):
    stream = None if units is None else SimpleNamespace(n_units=units)
    return SimpleNamespace(split=SimpleNamespace(n_tokens=n_tokens), stream=stream)


def corpus_of(train):
    streams = [one.stream for one in train if one.stream is not None]
    return SimpleNamespace(parts={"train": train}, streams=streams, n_tokens=lambda split: 50)


def test_of_data_that_are_tokenized_during_training_only_the_parts_are_known():
    config = compose_config(["data=text", "data.path=."])
    [line] = greeting.about_data(config, corpus_of([part(1000, units=3), part(7)]))
    assert "7 training tokens, 3 parts of sources" in line and "50 validation tokens" in line
    [line] = greeting.about_data(config, corpus_of([part(1000, units=1)]))
    assert "1 part of sources" in line and "1,000" not in line


def test_documents_apart_are_named():
    corpus = corpus_of(train=[part(10**9)])
    apart = compose_config(["data=text", "data.path=.", "data.documents=apart", "data.positions=restarted"])
    assert "documents apart" in greeting.about_data(apart, corpus)[1]
    assert "positions restarted" in greeting.about_data(apart, corpus)[1]
    assert len(greeting.about_data(compose_config(["data=text", "data.path=."]), corpus)) == 1
