"""Rules on plugins: the modules to import, and the options for the objects that they add."""

from collections.abc import Iterable, Iterator
from typing import Any

from lhtrain.conf.problems import Problem
from lhtrain.conf.rules.tracking import tracker_names
from lhtrain.conf.schema import Config
from lhtrain.registry import ATTENTIONS, OPTIMIZERS, SCORERS, TRACKERS, Registry, load_plugins


def load(modules: Iterable[str]) -> Iterator[Problem]:
    """Import the modules of `plugins`; yield a problem for each one that cannot be imported."""
    for module in modules:
        try:
            load_plugins([module])
        except (Exception, SystemExit) as error:  # a module of the user may raise anything
            why = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            rule = f"cannot be imported ({why}); it is searched on PYTHONPATH and in the current folder"
            yield Problem("plugins", module, rule)


def option_problems(config: Config) -> Iterator[Problem]:
    """Yield a problem for each option that its object refuses. The objects of lhtrain have no options."""
    yield from _refused("optim", config.optim.options, [(OPTIMIZERS, config.optim.kind)])
    trackers = tracker_names(config.logger) or [config.logger.kind]
    yield from _refused("logger", config.logger.options, [(TRACKERS, name) for name in trackers])
    for name, stage in config.stages.items():
        readers = [(ATTENTIONS, stage.attention), (SCORERS, stage.scorer)]
        yield from _refused(f"stages.{name}", stage.options, readers)


def _refused(group: str, options: dict[str, Any], readers: list[tuple[Registry, str]]) -> Iterator[Problem]:
    """Yield a problem for each option of `group` that is refused.

    An object of a plugin may define `problems(options)`, which yields (name, value, rule) for each wrong
    option.

    Args:
        group: key that has the options.
        options: the options.
        readers: the objects that get the options, by registry and name.
    """
    known = [(registry, name) for registry, name in readers if name in registry]
    plugins = [registry[name] for registry, name in known if not registry.is_ours(name)]
    if not plugins and len(known) == len(readers):
        named = " and ".join(f"{registry.noun} {name}" for registry, name in known)
        for name, value in options.items():
            yield Problem(f"{group}.options.{name}", value, f"{named}: has no options")
    for plugin in plugins:
        for name, value, rule in getattr(plugin, "problems", _none)(options):
            yield Problem(f"{group}.options.{name}", value, rule)


def _none(options: dict[str, Any]) -> Iterable[tuple[str, Any, str]]:
    return ()
