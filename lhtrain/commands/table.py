"""All commands of the program by name, and the command that given words name.

Dispatch, help, spelling suggestions and shell completion all come from this table. The module of a command is
imported when the command runs, so that `lhtrain --help` imports neither Hydra nor PyTorch.
"""

from lhtrain.commands.command import Command, nearest
from lhtrain.commands.described.data import (
    DATA,
    DATA_INSPECT,
    DATA_PREPARE,
    DATA_TRAIN_TOKENIZER,
    DATA_VERIFY,
)
from lhtrain.commands.described.models import EVAL, EXPORT, GENERATE, IMPORT
from lhtrain.commands.described.other import COMPLETION, ENV, HELP
from lhtrain.commands.described.runs import COMPARE, REPORT, RUNS
from lhtrain.commands.described.slurm import (
    SLURM,
    SLURM_BEGIN,
    SLURM_END,
    SLURM_EXTEND,
    SLURM_RESUME,
    SLURM_STATUS,
    SLURM_SUBMIT,
)
from lhtrain.commands.described.training import ESTIMATE, EXTEND, RESUME, TRAIN
from lhtrain.errors import UsageError

# Commands by name, in the order in which they are listed.
COMMANDS: dict[str, Command] = {
    command.name: command
    for command in (
        *(
            TRAIN,
            RESUME,
            EXTEND,
            DATA,
            DATA_PREPARE,
            DATA_VERIFY,
            DATA_INSPECT,
            DATA_TRAIN_TOKENIZER,
            ESTIMATE,
        ),
        *(IMPORT, EXPORT, GENERATE, EVAL, RUNS, COMPARE, REPORT),
        *(SLURM, SLURM_SUBMIT, SLURM_RESUME, SLURM_EXTEND, SLURM_STATUS, SLURM_BEGIN, SLURM_END),
        *(ENV, COMPLETION, HELP),
    )
}


def find(words: list[str]) -> tuple[Command, list[str]]:
    """Return the command that `words` name, and the words after its name. Without a name: training.

    Raises UsageError if there is no such command.
    """
    if not words or words[0].startswith(("-", "+", "~")) or "=" in words[0]:
        return TRAIN, words
    first, *rest = words
    if first not in COMMANDS:
        names = ", ".join(sorted(members()))
        near = nearest(first, members())
        more = "A setting is KEY=VALUE. Try lhtrain --help"
        raise UsageError(f"no command {first!r}{near} (commands: {names}). {more}")
    family = members(first)
    if not family or not rest or rest[0].startswith("-"):
        return COMMANDS[first], rest
    second, *rest = rest
    if f"{first} {second}" not in COMMANDS:
        near = nearest(second, family)
        there = ", ".join(family)
        raise UsageError(
            f"no command {first} {second!r}{near} (commands: {there}). Try lhtrain {first} --help"
        )
    return COMMANDS[f"{first} {second}"], rest


def members(family: str = "") -> list[str]:
    """Return the second words of a family's commands; without a family, the first words of all commands."""
    names = [name for name, command in COMMANDS.items() if not command.hidden]
    if family:
        return [name.split()[1] for name in names if name.startswith(f"{family} ")]
    return [name for name in names if " " not in name]
