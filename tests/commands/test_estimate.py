"""`lhtrain estimate`, from its arguments to its table."""

import pytest

from lhtrain.cli import main


def test_the_command_says_whether_it_fits(capsys):
    main(["estimate", "model=lighthouse_530m", "gpu=h100", "compute.recompute=none"])
    out = capsys.readouterr().out
    assert "530,117,632 parameters" in out and "of 80" in out
    fits = next(line for line in out.splitlines() if "fits" in line)
    assert "yes" in fits and "NO" in fits  # Lighthouse does, full attention does not
    assert "compute.recompute=full" in out and "cheapest first" in out
    main(["estimate", "model=lighthouse_530m", "compute.recompute=full", "gpu=94.5"])
    out = capsys.readouterr().out
    assert "of 94.5" in out and "cheapest first" not in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gpu=h9000"], "gpu=h9000: must be one of a100, h100"),
        (["model.dim=0"], "model.dim=0: must be at least 1"),
    ],
)
def test_mistakes_are_named(arguments, message, capsys):
    with pytest.raises(SystemExit):
        main(["estimate", *arguments])
    assert message in capsys.readouterr().err
