"""What to change when memory runs out, with the estimates."""

from lhtrain.compute.advice import advice, outlook
from lhtrain.compute.fill import compose_config


def test_each_choice_with_its_peak_and_whether_it_fits():
    lines = advice(compose_config(["model=lighthouse_530m"]), 80)
    assert lines[0].startswith("Estimated peak: lighthouse 7") and "the GPU has 80 GB" in lines[0]
    by_choice = {line.split("  ")[1].strip(): line for line in lines[1:-1]}
    assert list(by_choice) == [
        "compute.recompute=selective",
        "compute.recompute=full",
        "compute.recompute=full compute.offload=true",
    ]
    assert by_choice["compute.recompute=full"].endswith(": fits")
    small = advice(compose_config(["model=lighthouse_530m"]), 8)
    assert all(line.endswith(": does not fit") for line in small[1:-1])


def test_only_what_is_left_to_do():
    settings = ["model=lighthouse_530m", "run.batch_tokens=393216", "compute.recompute=full"]
    settings += ["run.grad_accum=1"]
    lines = advice(compose_config(settings), 40)
    assert lines[1].split()[0] == "run.grad_accum=2"
    assert [line.split("  ")[1].strip() for line in lines[2:-1]] == [
        "compute.recompute=full compute.offload=true"
    ]


def test_a_choice_says_all_that_it_changes():
    """What is estimated is what the settings on the line make of the command."""
    settings = ["model=lighthouse_530m", "run.batch_tokens=786432", "stages.recovery.grad_accum=2"]
    settings += ["compute.recompute=full", "compute.recompute_every=3", "run.grad_accum=1"]
    lines = advice(compose_config(settings), 40)
    choices = [line[2:].split(" lighthouse ")[0].split() for line in lines[1:-1]]
    assert choices[0] == ["run.grad_accum=2", "stages.recovery.grad_accum=4"]
    assert len(choices) == 4 and all(c[-1] == "compute.recompute_every=1" for c in choices[1:])
    for choice, line in zip(choices, lines[1:], strict=False):
        said = advice(compose_config([*settings, *choice]), 40)[0].split(": ")[1].split(";")[0]
        assert said in line


def test_a_run_says_what_memory_it_needs_and_warns_where_there_is_less():
    config = compose_config(["model=gpt_1b"], 4, 80 * 10**9)
    line, warnings = outlook(config, 4, 80 * 10**9)
    assert line.startswith("lighthouse 5") and "recovery 6" in line and not warnings
    assert line.endswith("of 80.0 GB, estimated, with compute.recompute=selective run.grad_accum=1")
    _, warnings = outlook(config, 4, 20 * 10**9)
    assert warnings[0].startswith("Estimated peak: ") and warnings[-1].strip().startswith("more GPUs")
