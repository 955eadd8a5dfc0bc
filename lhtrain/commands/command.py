"""What a command consists of, and how the words after its name are parsed."""

import difflib
import importlib
import os
import re
from argparse import SUPPRESS, ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

from lhtrain.distributed.ranks import find_ranks
from lhtrain.errors import RunError, UsageError
from lhtrain.health.signals import ending_at_once

SETTINGS = "settings of the run; lhtrain help KEY explains one"
SWEEP = "; lhtrain -m starts a sweep, lhtrain -m hydra/launcher=lhtrain_slurm starts its runs as jobs"
_KEY_VALUE = re.compile(r"([A-Za-z_.]+)=(.*)", re.DOTALL)


@dataclass(frozen=True)
class Argument:
    """An argument or option of a command, as names and keywords for argparse's `add_argument`."""

    names: tuple[str, ...]
    keywords: dict[str, Any]

    @property
    def is_option(self) -> bool:
        return self.names[0].startswith("-")


def argument(*names: str, **keywords: Any) -> Argument:
    return Argument(names, keywords)


@dataclass(frozen=True)
class Key:
    """A KEY=VALUE that only this command has. shown: an example value, for the help."""

    name: str
    shown: str
    help: str
    default: str | None = None


@dataclass(frozen=True)
class Command:
    """A command of the program. A command whose name has two words belongs to the family of the first word.

    Attributes:
        target: "module:function". The function gets the parsed arguments and returns the exit status or None.
            Empty for a family.
        settings: whether KEY=VALUE settings of a run may follow.
        details: the end of the help: what the command does, and examples.
        docs: pages of docs/ that tell more.
        trains: whether the command trains, so that signals must be handled from its start.
        alone: whether the command runs in one process; it is refused if a launcher starts several.
        hidden: whether help and completion leave it out.
    """

    name: str
    summary: str
    target: str = ""
    arguments: tuple[Argument, ...] = ()
    keys: tuple[Key, ...] = ()
    settings: bool = False
    details: str = ""
    docs: tuple[str, ...] = ()
    trains: bool = False
    alone: bool = False
    hidden: bool = False

    def parse(self, words: list[str]) -> Namespace:
        """Return the arguments by name, with the KEY=VALUE of a run in `settings`. Raises UsageError."""
        own, rest = self._own_keys(words)
        if option := next((word for word in rest if self._is_unknown_option(word)), None):
            near = nearest(option.partition("=")[0], self.options())
            rule = f"no such option of lhtrain {self.name} (options: {', '.join(self.options())})"
            raise UsageError(f"{option}: {rule}{near}{SWEEP if option in ('-m', '--multirun') else ''}")
        parser = self._parser()
        out = parser.parse_intermixed_args(rest)
        if not self.settings and getattr(out, "settings", None):
            parser.error(f"unrecognized arguments: {' '.join(out.settings)}")
        for key in self.keys:
            setattr(out, key.name, own.get(key.name, key.default))
        return out

    def run(self, words: list[str]) -> int | None:
        """Parse `words` and run the command; return the exit status. Raises ExplainedError."""
        arguments = self.parse(words)
        if self.alone and (size := n_started()) > 1:
            rule = f"runs in one process, but a launcher started {size}; start it without torchrun or srun"
            raise UsageError(f"{self.name}: {rule}")
        module, _, name = self.target.partition(":")
        with ending_at_once(self.trains):
            function: Callable[[Namespace], int | None] = getattr(importlib.import_module(module), name)
        return function(arguments)

    def options(self) -> list[str]:
        """The long names of the options."""
        names = (name for one in self.arguments for name in one.names)
        return [*(name for name in names if name.startswith("--")), "--help"]

    def help(self) -> str:
        """The text that `lhtrain COMMAND --help` prints."""
        return self._parser().format_help().rstrip()

    def _own_keys(self, words: list[str]) -> tuple[dict[str, str], list[str]]:
        """Split `words` into the command's own KEY=VALUE and other words.

        A word that names an existing file is that file, even if it contains =.
        """
        own: dict[str, str] = {}
        rest = []
        names = [key.name for key in self.keys]
        for word in words:
            match = _KEY_VALUE.fullmatch(word) if names else None
            if match is None or (match[1] not in names and self.settings) or os.path.exists(word):
                rest.append(word)
            elif match[1] not in names:
                rule = f"no such setting{nearest(match[1], names)} (settings: {', '.join(names)})"
                raise UsageError(f"{self.name}: {match[1]}: {rule}. Write a path that contains = as ./a=b")
            elif match[1] in own:
                raise UsageError(f"{self.name}: {match[1]}= is given twice")
            else:
                own[match[1]] = match[2]
        return own, rest

    def _is_unknown_option(self, word: str) -> bool:
        known = (name for one in self.arguments for name in one.names)
        return bool(re.match(r"-\D|--", word)) and word.partition("=")[0] not in known

    def _parser(self) -> ArgumentParser:
        parser = _Parser(
            prog=f"lhtrain {self.name}",
            description=f"lhtrain {self.name}: {self.summary}.",
            epilog=self._epilog(),
            formatter_class=lambda prog: RawDescriptionHelpFormatter(prog, max_help_position=30, width=110),
            add_help=False,
            allow_abbrev=False,
        )
        words, options = parser.add_argument_group("Arguments"), parser.add_argument_group("Options")
        for one in self.arguments:
            (options if one.is_option else words).add_argument(*one.names, **one.keywords)
        if self.settings or self.keys:
            shown = SETTINGS if self.settings else SUPPRESS
            words.add_argument("settings", nargs="*", metavar="KEY=VALUE", help=shown)
        options.add_argument("-h", "--help", action="help", help="print this help")
        return parser

    def _epilog(self) -> str:
        width = max((len(f"{key.name}={key.shown}") for key in self.keys), default=0)
        rows = [f"  {f'{key.name}={key.shown}':{width}}  {key.help}" for key in self.keys]
        return "\n".join([*(["Settings of this command", *rows, ""] if rows else []), self.text()])

    def text(self) -> str:
        """The details, and where to read more."""
        pages = ", ".join(f"docs/{page}.md" for page in self.docs)
        return f"{self.details}\n\nMore: {pages}" if pages else self.details


def n_started() -> int:
    """Return how many processes a launcher started; 1 without a launcher, or if its variables are wrong."""
    try:
        return find_ranks().size
    except RunError:
        return 1


class _Parser(ArgumentParser):
    """An argparse parser that raises UsageError, where argparse would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        if message.startswith("the following arguments are required"):
            usage = " ".join(self.format_usage().split()).removeprefix(f"usage: {self.prog} ")
            message = "needs " + re.sub(r"\[-[^]]*] *", "", usage)
        raise UsageError(f"{self.prog.removeprefix('lhtrain ')}: {message}; try {self.prog} --help")


def nearest(word: str, known: Iterable[str]) -> str:
    """'; did you mean WORD?', or '' if no known word is similar."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""
