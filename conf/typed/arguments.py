"""The arguments of a command that takes settings: KEY=VALUE, and --config-dir DIR."""

from lhtrain.conf.compose import search_path
from lhtrain.conf.problems import ConfigError, Problem


def settings_of(arguments: list[str], command: str) -> list[str]:
    """The settings among the arguments of `lhtrain COMMAND`, those of --config-dir first.

    Raises ConfigError: another option, or a folder that does not exist.
    """
    settings: list[str] = []
    folders: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        option, equals, value = argument.partition("=")
        if option in ("--config-dir", "-cd"):
            folder = value if equals else next(rest, None)
            if not folder:
                raise ConfigError([Problem("", None, f"{option}: needs a folder")])
            folders.append(search_path(folder))
        elif argument.startswith("-"):
            more = "; a sweep goes through lhtrain -m" if option in ("-m", "--multirun") else ""
            rule = f"{argument}: no such option of lhtrain {command} (there is: --config-dir, --help){more}"
            raise ConfigError([Problem("", None, rule)])
        else:
            settings.append(argument)
    return [*folders, *settings]
