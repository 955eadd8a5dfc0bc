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


def test_speed_energy_and_money_are_predicted(capsys):
    main(["estimate", "model=lighthouse_530m", "ranks=8", "price=3", "run.steps=1000"])
    out = capsys.readouterr().out
    rows = {cells[0]: cells[1:] for cells in map(columns, out.splitlines()) if len(cells) > 1}
    steps, speed = numbers(rows["steps"]), numbers(rows["tokens/s"])
    assert steps[0] + steps[1] == steps[2] == 1000
    hours = [count * 8 * 98_304 / each / 3600 for count, each in zip(steps, speed, strict=True)]
    assert numbers(rows["hours"]) == pytest.approx(hours, rel=0.02)
    assert numbers(rows["kWh, 700 W per GPU"]) == pytest.approx([8 * 0.7 * each for each in hours], rel=0.02)
    assert numbers(rows["cost, 3 per GPU hour"]) == pytest.approx([24 * each for each in hours], rel=0.02)
    assert numbers(rows["tokens/s per GPU"]) == pytest.approx([each / 8 for each in speed], rel=0.02)
    assert "not measured" in out and "limited by attention (compute)" in out
    assert all(f"  {count} GPU" in out for count in (1, 2, 4, 8))


def columns(line):
    return [cell.strip() for cell in line.strip("│ ").split("│")]


def numbers(cells):
    return [float(cell.replace(",", "")) for cell in cells]


def test_ranks_of_several_machines(capsys):
    main(["estimate", "model=llama3_8b", "ranks=512", "parallel.dp_replicate=64", "network=1"])
    out = capsys.readouterr().out
    assert "512 H100 (dp_replicate=64 dp_shard=8)" in out and "1 GB/s per GPU (network=), assumed" in out
    assert "limited by the link between machines" in out
    assert "  dp_shard=512: " in out and "  dp_replicate=64 dp_shard=8: " in out


def test_what_is_assumed_is_said(capsys):
    main(["estimate", "gpu=48"])
    assert "gpu=48 names no GPU, so the speed of an H100 is assumed" in capsys.readouterr().out
    main(["estimate", "gpu=b200", "data.documents=apart"])
    out = capsys.readouterr().out
    assert "no B200 was measured" in out and "documents are kept apart" in out


@pytest.mark.parametrize("argument", ["price=free", "price=0", "ranks=2.5", "node=0", "network=-1"])
def test_numbers_of_the_command_are_checked(argument, capsys):
    with pytest.raises(SystemExit):
        main(["estimate", argument])
    assert f"{argument}: must be a" in capsys.readouterr().err
