"""The advice for a run that does not fit on a GPU."""

from lhtrain.compute.advice import advice, outlook
from lhtrain.compute.fill import compose_config


def test_each_choice_with_its_peak_and_whether_it_fits():
    lines = advice(compose_config(["model=lighthouse_530m"]), 80)
    assert lines[0].startswith("Estimated peak: lighthouse 7") and "the GPU has 80 GB" in lines[0]
    by_choice = {line.split("  ")[1].strip(): line for line in lines[1:-1]}
    assert list(by_choice) == [
        "compute.recompute=selective",
        "compute.recompute=attention",
        "compute.recompute=full",
        "compute.recompute=full compute.offload=true",
    ]
    assert by_choice["compute.recompute=full"].endswith(": fits")
    small = advice(compose_config(["model=lighthouse_530m"]), 8)
    assert all(line.endswith(": does not fit") for line in small[1:-1])


def test_settings_that_are_already_used_are_not_suggested():
    settings = ["model=lighthouse_530m", "run.batch_tokens=393216", "compute.recompute=full"]
    settings += ["run.grad_accum=1"]
    lines = advice(compose_config(settings), 40)
    assert lines[1].split()[0] == "run.grad_accum=2"
    assert [line.split("  ")[1].strip() for line in lines[2:-1]] == [
        "compute.recompute=full compute.offload=true"
    ]


def test_a_suggestion_names_every_setting_that_it_changes():
    """The estimate on a line is that of the command with the settings of this line."""
    settings = ["model=lighthouse_530m", "run.batch_tokens=786432", "stages.recovery.grad_accum=2"]
    settings += ["compute.recompute=full", "compute.recompute_every=3", "run.grad_accum=1"]
    lines = advice(compose_config(settings), 40)
    choices = [line[2:].split(" lighthouse ")[0].split() for line in lines[1:-1]]
    assert choices[0] == ["run.grad_accum=2", "stages.recovery.grad_accum=4"]
    assert len(choices) == 5 and all(c[-1] == "compute.recompute_every=1" for c in choices[1:])
    for choice, line in zip(choices, lines[1:], strict=False):
        estimate = advice(compose_config([*settings, *choice]), 40)[0].split(": ")[1].split(";")[0]
        assert estimate in line


def test_a_run_prints_its_estimated_memory_and_warns_if_the_gpu_has_less():
    config = compose_config(["model=gpt_1b"], 4, 80 * 10**9)
    line, warnings = outlook(config, 4, 80 * 10**9)
    assert "lighthouse 5" in line and "recovery 6" in line and "of 80.0 GB" in line and not warnings
    assert line.endswith("with compute.recompute=selective run.grad_accum=1")
    _, warnings = outlook(config, 4, 20 * 10**9)
    assert warnings[0].startswith("Estimated peak: ") and warnings[-1].strip().startswith("more GPUs")
