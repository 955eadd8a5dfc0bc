"""What a shell is offered when TAB is pressed: commands and their words here, settings by Hydra."""

import os
import sys

from lhtrain.cli import COMMANDS

# Words of a command that come before its settings, and the commands that take settings.
WORDS = {"data": ("prepare", "verify", "inspect"), "slurm": ("submit", "status")}
SETTINGS = ((), ("train",), ("estimate",), ("data", "prepare"), ("slurm", "submit"))
OPTIONS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("slurm", "submit"): ("--dry-run", "--config-dir"),
    ("data", "inspect"): ("--document",),
}


def complete(query: str) -> None:
    """Print the candidates for the last word of $COMP_LINE; `query`: query=SHELL, as Hydra's scripts call it.

    Where nothing is printed the shell offers files.
    """
    words = os.environ.get("COMP_LINE", "").split(" ")
    words, last = [word for word in words[1:-1] if word], words[-1] if len(words) > 1 else ""
    command = tuple(word for word in words if "=" not in word and not word.startswith("-"))[:2]
    command = command[:1] if command[:1] and command[0] not in WORDS else command
    offered: list[str] = []
    if not words:
        offered += [*COMMANDS, "help"]
    elif len(words) == 1:
        offered += WORDS.get(words[0], ()) if words[0] != "help" else COMMANDS
    if last.startswith("-"):
        offered += OPTIONS.get(command, ("--config-dir", "--help"))
    for word in offered:
        if word.startswith(last):
            print(word)
    if command in SETTINGS and not last.startswith("-") and len(command) == len(words[: len(command)]):
        rest = words[len(command) :]
        os.environ["COMP_LINE"] = " ".join(["lhtrain", *rest, last])
        sys.argv[1:] = ["-sc", query]
        from lhtrain.cli import _hydra_main

        _hydra_main()
