"""How the program prints errors and exits."""

import errno

import pytest

import lhtrain.commands.help
from lhtrain.cli import fail, main


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({}, "lhtrain: wrong"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "lhtrain: wrong"),
        ({"RANK": "1", "WORLD_SIZE": "2"}, ""),  # the first rank prints it
        ({"RANK": "1"}, "lhtrain: rank 1: wrong"),
        ({"RANK": "5", "WORLD_SIZE": "2"}, "lhtrain: rank 5: wrong"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, "lhtrain: rank x: wrong"),
        ({"SLURM_STEP_ID": "0", "SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, ""),
        ({"SLURM_STEP_ID": "0", "SLURM_PROCID": "x", "SLURM_NTASKS": "1"}, "lhtrain: rank x: wrong"),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, "lhtrain: wrong"),  # an interactive shell in a job
    ],
)
def test_an_error_is_printed_even_if_there_is_no_first_rank(monkeypatch, capsys, variables, words):
    for name in ("RANK", "WORLD_SIZE", "SLURM_STEP_ID", "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        fail("wrong")
    assert capsys.readouterr().err.strip() == words


def test_a_full_disk_behind_stdout_is_one_message(monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(lhtrain.commands.help, "explain", full)
    with pytest.raises(SystemExit) as end:
        main(["help"])
    assert end.value.code == 1 and "No space left on device" in capsys.readouterr().err
