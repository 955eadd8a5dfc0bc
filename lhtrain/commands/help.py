"""`lhtrain help [COMMAND|GROUP|KEY …]`, and what every `--help` prints."""

from argparse import Namespace
from pathlib import Path

import lhtrain
from lhtrain.commands.command import Command
from lhtrain.commands.table import COMMANDS, TRAIN, members
from lhtrain.errors import UsageError

TITLE = "lhtrain: pre-train a GPT on long contexts, with Lighthouse Attention and then full attention."
STATUS = "Exit status: 0 done, 1 error, 2 wrong settings, 75 a rank hung, 128 + N stopped by signal N."


def explain(arguments: Namespace) -> None:
    """Print the help on each topic; without topics, the overview."""
    topics = list(arguments.TOPIC)
    if not topics:
        print(overview())
    while topics:
        two_words = " ".join(topics[:2])
        if two_words in COMMANDS and " " in two_words:
            topics = topics[2:]
            print(help_of(COMMANDS[two_words]))
            continue
        topic = topics.pop(0)
        print(help_of(COMMANDS[topic]) if topic in COMMANDS else _setting(topic.partition("=")[0]))


def help_of(command: Command) -> str:
    """What `lhtrain COMMAND --help` prints."""
    if family := members(command.name):
        usage = f"usage: lhtrain {command.name} {{{','.join(family)}}} ..."
        title = f"lhtrain {command.name}: {command.summary}."
        return "\n".join([usage, "", title, "", *_listed(command.name), "", command.details])
    text = command.help()
    return f"{text}\n\n{_groups_text()}" if command is TRAIN else text


def overview() -> str:
    """What `lhtrain --help` prints."""
    return "\n".join(
        [
            TITLE,
            "\nUsage: lhtrain [COMMAND] [GROUP=NAME ...] [KEY=VALUE ...] [OPTIONS]\n",
            *_listed(),
            f"\n{TRAIN.details}\n",
            _groups_text(),
            "\nOptions: -m, --config-dir DIR, --cfg job and others of lhtrain train --help; --version",
            STATUS,
        ]
    )


def _listed(family: str = "") -> list[str]:
    """A heading, and a line for each command of a family, or for all commands that are in none."""
    lines = [f"Commands (lhtrain {f'{family} ' if family else ''}COMMAND --help explains one)"]
    names = members(family)
    width = max(map(len, names))
    return lines + [f"  {name:{width}}  {COMMANDS[f'{family} {name}'.strip()].summary}" for name in names]


def _groups_text() -> str:
    rows = (f"  {group}: {', '.join(choices)}" for group, choices in groups().items())
    return "\n".join(["Groups (GROUP=NAME picks a file; its keys can then be set one by one)", *rows])


def groups() -> dict[str, list[str]]:
    """Every group of settings with its choices: the YAML files of `conf/`. Read without Hydra, which takes
    half a second to import."""
    out: dict[str, list[str]] = {}
    for folder in sorted(Path(lhtrain.__file__).with_name("conf").iterdir()):
        names = sorted(file.stem for file in folder.glob("*.yaml"))
        out |= {folder.name: names} if names else {}
    return out


def _setting(key: str) -> str:
    """The help on a key, or on a group with its choices. Raises UsageError."""
    from hydra import compose  # with lhtrain.conf 0.2 CPU s, which the help on commands does not need

    from lhtrain.conf.compose import hydra
    from lhtrain.conf.explain import default_of, explain, no_such_key

    choices = f"{key}=NAME, one of: {', '.join(groups()[key])}" if key in groups() else None
    with hydra():
        text = explain(key, default_of(compose("config"), key))
    if text is None and choices is None:
        raise UsageError(f"help: {no_such_key(key)}; try lhtrain help")
    return "\n".join(part for part in (choices, text) if part)
