"""What a command is, and how the words behind its name are read."""

import difflib
import importlib
import re
from argparse import SUPPRESS, ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from lhtrain.errors import UsageError

SETTINGS = "settings of training; lhtrain help KEY explains one"
SWEEP = "; a sweep is started by lhtrain -m, its runs as jobs by lhtrain -m hydra/launcher=lhtrain_slurm"
_KEY_VALUE = re.compile(r"([A-Za-z_.]+)=(.*)", re.DOTALL)


@dataclass(frozen=True)
class Argument:
    """A word or an option of a command: names and keywords of argparse's `add_argument`."""

    names: tuple[str, ...]
    keywords: dict[str, Any]

    @property
    def is_option(self) -> bool:
        return self.names[0].startswith("-")


def argument(*names: str, **keywords: Any) -> Argument:
    return Argument(names, keywords)


@dataclass(frozen=True)
class Key:
    """A KEY=VALUE that only this command has. shown: the value that the help shows."""

    name: str
    shown: str
    help: str
    default: str | None = None


@dataclass(frozen=True)
class Command:
    """A command of the program; a name of two words belongs to the family of the first.

    target: "module:function", called with the parsed arguments, which returns the exit status or None; a
    family has none. settings: whether KEY=VALUE of training may follow. details: the end of its help.
    """

    name: str
    summary: str
    target: str = ""
    arguments: tuple[Argument, ...] = ()
    keys: tuple[Key, ...] = ()
    settings: bool = False
    details: str = ""
    trains: bool = False
    hidden: bool = False

    def parse(self, words: list[str]) -> Namespace:
        """The arguments by name, with KEY=VALUE of training in `settings`. Raises UsageError."""
        own, rest = self._own_keys(words)
        if option := next((word for word in rest if self._is_unknown_option(word)), None):
            near = nearest(option.partition("=")[0], self.options())
            rule = f"no such option of lhtrain {self.name} (there is: {', '.join(self.options())})"
            raise UsageError(f"{option}: {rule}{near}{SWEEP if option in ('-m', '--multirun') else ''}")
        parser = self._parser()
        out = parser.parse_intermixed_args(rest)
        if not self.settings and getattr(out, "settings", None):
            parser.error(f"unrecognized arguments: {' '.join(out.settings)}")
        for key in self.keys:
            setattr(out, key.name, own.get(key.name, key.default))
        return out

    def run(self, words: list[str]) -> int | None:
        """Parse the words and do what the command says. Raises ExplainedError."""
        arguments = self.parse(words)
        module, _, name = self.target.partition(":")
        function: Callable[[Namespace], int | None] = getattr(importlib.import_module(module), name)
        return function(arguments)

    def options(self) -> list[str]:
        """The options of the command, by their long names."""
        names = (name for one in self.arguments for name in one.names)
        return [*(name for name in names if name.startswith("--")), "--help"]

    def help(self) -> str:
        """What `lhtrain COMMAND --help` prints."""
        return self._parser().format_help().rstrip()

    def _own_keys(self, words: list[str]) -> tuple[dict[str, str], list[str]]:
        """The command's own KEY=VALUE, and the other words. The name of a file that exists is that file."""
        own: dict[str, str] = {}
        rest = []
        names = [key.name for key in self.keys]
        for word in words:
            match = _KEY_VALUE.fullmatch(word) if names else None
            if match is None or (match[1] not in names and self.settings) or Path(word).exists():
                rest.append(word)
            elif match[1] not in names:
                rule = f"no such setting (there are: {', '.join(names)}){nearest(match[1], names)}"
                raise UsageError(
                    f"{self.name}: {match[1]}: {rule}; a path with = is written with a slash: ./a=b"
                )
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
        words, options = parser.add_argument_group("Words"), parser.add_argument_group("Options")
        for one in self.arguments:
            (options if one.is_option else words).add_argument(*one.names, **one.keywords)
        if self.settings or self.keys:
            shown = SETTINGS if self.settings else SUPPRESS
            words.add_argument("settings", nargs="*", metavar="KEY=VALUE", help=shown)
        options.add_argument("-h", "--help", action="help", help="print this text")
        return parser

    def _epilog(self) -> str:
        width = max((len(f"{key.name}={key.shown}") for key in self.keys), default=0)
        rows = [f"  {f'{key.name}={key.shown}':{width}}  {key.help}" for key in self.keys]
        return "\n".join([*(["Settings of this command", *rows, ""] if rows else []), self.details])


class _Parser(ArgumentParser):
    """An argparse parser that raises instead of printing its usage and leaving."""

    def error(self, message: str) -> NoReturn:
        if message.startswith("the following arguments are required"):
            usage = " ".join(self.format_usage().split()).removeprefix(f"usage: {self.prog} ")
            message = "needs " + re.sub(r"\[-[^]]*] *", "", usage)
        raise UsageError(f"{self.prog.removeprefix('lhtrain ')}: {message}; try {self.prog} --help")


def nearest(word: str, known: Iterable[str]) -> str:
    """'; did you mean …?', or nothing where no known word is near."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""
