"""The estimated cost of a run."""

import pytest

from lhtrain.compute.cost import ASSUMED_MFU, _bytes, cost, repeats
from lhtrain.compute.fill import compose_config
from lhtrain.compute.flops import step_flops
from lhtrain.compute.trained import state_bytes
from lhtrain.stage import stages_of


def test_the_papers_run():
    config = compose_config(["experiment=paper_98k"], 8, 80 * 10**9)
    tokens, checkpoints, time = cost(config, 530_117_632, 50_949_000_000, 989e12, 8)
    assert "50,331,648,000 tokens" in tokens and "0.99 epochs" in tokens
    assert "95 tokens per parameter in the whole run" in tokens
    # One every 1,000 of 16,000 steps; the end of the first stage is one of them.
    assert all(part in checkpoints for part in ("16 checkpoints of 6.36 GB", "3 are kept", "19.1 GB on disk"))
    flops = 10_000 * step_flops(config.model, stages_of(config)["lighthouse"])
    flops += 6_000 * step_flops(config.model, stages_of(config)["recovery"])
    hours = flops / (989e12 * 8 * ASSUMED_MFU) / 3600
    assert time.startswith(f"about {hours:.0f} hours") and "50% of the peak FLOP/s of 8" in time
    # One H100 trained 93.2k and 26.3k tokens/s (multi_gpu.csv): 11.7 and 24.9 hours with eight.
    assert hours == pytest.approx(11.7 + 24.9, rel=0.1)


def test_the_time_on_a_gpu_that_was_measured_is_predicted():
    """One H100 trained 93.2k and 26.3k tokens/s (multi_gpu.csv): 11.7 and 24.9 hours with eight."""
    config = compose_config(["experiment=paper_98k"], 8, 80 * 10**9)
    gpu = "NVIDIA H100 80GB HBM3"
    fast, slow = (
        cost(config, 10**9, 10**9, 989e12, 8, gpu=gpu, kernel=kernel)[-1] for kernel in ("fa4", "cudnn")
    )
    assert "predicted from rates measured on 8 of these GPUs" in fast and fast.startswith("about ")
    hours = [float(line.split()[1]) for line in (fast, slow)]
    assert hours[0] == pytest.approx(11.7 + 24.9, rel=0.1)
    assert hours[0] < hours[1] < 1.2 * hours[0]
    other = cost(config, 10**9, 10**9, 756e12, 8, gpu="NVIDIA H100 PCIe")[-1]
    assert "50% of the peak" in other


def test_documents_apart_take_at_most_the_time_of_whole_sequences():
    settings = (["experiment=paper_98k", *more] for more in ([], ["data.documents=apart"]))
    together, apart = (cost(compose_config(one, 8), 10**9, 10**9, 989e12)[-1] for one in settings)
    assert apart == together.replace("about", "at most") != together


def test_what_is_left_after_a_resume():
    config = compose_config(["run.steps=160", "checkpoint.every=30"])  # 100 + 60
    whole, rest = cost(config, 1000, 40_960), cost(config, 1000, 40_960, done=120)
    assert "655,360 tokens" in whole[0] and "16 epochs" in whole[0]
    assert "163,840 tokens" in rest[0] and "4 epochs" in rest[0]
    assert "655 tokens per parameter" in whole[0] and "655 tokens per parameter" in rest[0]
    # At steps 30, 60, 90, 100, 120, 150, 160.
    n_bytes = 4 * 1000 + state_bytes(config)
    each, two, three = (_bytes(count * n_bytes) for count in (1, 2, 3))
    assert f"7 checkpoints of {each}" in whole[1] and f"3 are kept, {three}" in whole[1]
    assert f"2 checkpoints of {each}" in rest[1] and f"2 are kept, {two}" in rest[1]
    assert len(whole) == 2  # no estimate of the time without the peak FLOP/s of a data sheet
    assert cost(config, 1000, 40_960, done=160)[1].startswith("0 checkpoints")


def test_a_warning_if_the_data_are_read_too_often():
    assert repeats({"stdlib": 4}, {"stdlib": 163_840}) is None
    warning = repeats({"stdlib": 1000.5}, {"stdlib": 655})
    assert warning is not None
    assert "its data 1,000 times (655 tokens" in warning and "more data or fewer steps" in warning


def test_a_warning_names_the_sources_that_are_read_too_often():
    tokens = dict.fromkeys("abcdefgh", 655)
    warning = repeats({"a": 4, "b": 5, "c": 60}, tokens)
    assert warning is not None and "reads c 60 times (655 tokens each time), b 5 times" in warning
    many = repeats(dict.fromkeys("abcdefgh", 5.0), tokens)
    assert many is not None and "and 3 further sources as often" in many and "f 5" not in many


@pytest.mark.parametrize(("steps", "unit"), [(1, "seconds"), (50_000, "minutes"), (10**9, "days")])
def test_the_unit_of_the_time_fits_its_size(steps, unit):
    config = compose_config([f"run.steps={steps}", "stage=dense"])
    assert f" {unit}, estimated" in cost(config, 1000, 4096, 989e10)[2]
