"""Shell completion: this file completes commands, arguments and options; Hydra completes settings."""

import os
import sys
from argparse import Namespace

from lhtrain.commands.command import Command
from lhtrain.commands.table import HELP, find, members
from lhtrain.commands.train import hydra_main
from lhtrain.errors import UsageError

SHELLS = ("bash", "zsh", "fish")


def completion(arguments: Namespace) -> None:
    """Print Hydra's script for a shell; the script calls `lhtrain -sc query=SHELL`. Raises UsageError."""
    action = arguments.SHELL
    if action.startswith("query="):
        return complete(action)
    if action not in (*SHELLS, *(f"{verb}={shell}" for verb in ("install", "uninstall") for shell in SHELLS)):
        raise UsageError(f"completion {action}: must be one of {', '.join(SHELLS)}")
    _ask_hydra(action if "=" in action else f"install={action}")


def complete(query: str) -> None:
    """Print the candidates for the last word of $COMP_LINE. query: query=SHELL.

    If nothing is printed, the shell completes file names.
    """
    words = os.environ.get("COMP_LINE", "").split(" ")
    words, last = [word for word in words[1:-1] if word], words[-1] if len(words) > 1 else ""
    try:
        command, rest = find(words)
    except UsageError:
        return
    for word in command.options() if last.startswith("-") else _offered(command, rest, is_first=not words):
        if word.startswith(last):
            print(word)
    if command.settings and not last.startswith("-"):
        os.environ["COMP_LINE"] = " ".join(["lhtrain", *(word for word in rest if "=" in word), last])
        _ask_hydra(query)


def _offered(command: Command, rest: list[str], is_first: bool) -> list[str]:
    """The words, other than settings of a run, that may follow `rest` of `command`."""
    offered = [f"{key.name}=" for key in command.keys]
    if is_first:
        offered += members()
    if not rest:
        offered += members(command.name)
    if command is HELP:
        from lhtrain.conf.keys import all_keys
        from lhtrain.conf.presets import presets

        offered += [*(members() if not rest else members(rest[0])), *all_keys(), *map(str, presets())]
    return offered


def _ask_hydra(action: str) -> None:
    sys.argv[1:] = ["-sc", action]
    hydra_main()
