"""`lhtrain help [TOPIC ...]`, and the texts of all `--help`."""

from argparse import Namespace
from pathlib import Path

import lhtrain
from lhtrain.commands.command import Command
from lhtrain.commands.table import COMMANDS, TRAIN, members
from lhtrain.errors import UsageError

TITLE = "lhtrain: pre-train language models on long contexts, with Lighthouse Attention, then full attention."
STATUS = """\
Exit status: 0 done; 1 an error; 2 wrong arguments or settings, nothing was started; 75 a rank hung;
128 + N stopped by signal N before the end of the run, which lhtrain resume continues"""


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
        print(_topic(topic))


def help_of(command: Command) -> str:
    """The text that `lhtrain COMMAND --help` prints."""
    if family := members(command.name):
        usage = f"usage: lhtrain {command.name} {{{','.join(family)}}} ..."
        title = f"lhtrain {command.name}: {command.summary}."
        return "\n".join([usage, "", title, "", *_listed(command.name), "", command.text()])
    text = command.help()
    return f"{text}\n\n{_groups_text()}" if command is TRAIN else text


def overview() -> str:
    """The text that `lhtrain --help` prints."""
    return "\n".join(
        [
            TITLE,
            "\nUsage: lhtrain [COMMAND] [GROUP=NAME ...] [KEY=VALUE ...] [OPTIONS]\n",
            *_listed(),
            f"\n{TRAIN.details}\n",
            _groups_text(),
            "\nOptions: -m, --config-dir DIR, --cfg job and others, see lhtrain train --help; --version",
            STATUS,
            "More: README.md and docs/",
        ]
    )


def _listed(family: str = "") -> list[str]:
    """A heading and a line for each command of a family; without a family, for each first word."""
    lines = [f"Commands (lhtrain {f'{family} ' if family else ''}COMMAND --help explains one)"]
    names = members(family)
    width = max(map(len, names))
    return lines + [f"  {name:{width}}  {COMMANDS[f'{family} {name}'.strip()].summary}" for name in names]


def _groups_text() -> str:
    rows = (f"  {group}: {', '.join(choices)}" for group, choices in groups().items())
    return "\n".join(
        [
            "Presets (GROUP=NAME picks one, lhtrain help GROUP describes them)",
            *rows,
        ]
    )


def groups() -> dict[str, list[str]]:
    """Group -> names of its presets, by the files in conf/. Does not import Hydra, which takes 0.5 s."""
    out: dict[str, list[str]] = {}
    for folder in sorted(Path(lhtrain.__file__).with_name("conf").iterdir()):
        names = sorted(file.stem for file in folder.glob("*.yaml"))
        out |= {folder.name: names} if names else {}
    return out


def _topic(text: str) -> str:
    """The help on a command, a group of settings, a key or a preset. Raises UsageError."""
    is_setting = text.partition("=")[0] in ("resume", *groups())  # some of which are commands too
    if text in COMMANDS and not is_setting:
        return help_of(COMMANDS[text])
    from hydra import compose  # takes 0.2 s of CPU time with lhtrain.conf; other help does not need it

    from lhtrain.conf.compose import hydra
    from lhtrain.conf.explain import explain_topic, no_such_topic

    with hydra():
        found = explain_topic(text, compose("config"))
    if found is None:
        raise UsageError(f"help: {no_such_topic(text, COMMANDS)}; lhtrain help lists commands and presets")
    return (
        f"{help_of(COMMANDS[text])}\n\n{text} is also the name of settings:\n\n{found}"
        if text in COMMANDS
        else found
    )
