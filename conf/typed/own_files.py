"""Reads YAML files for Hydra so that values keep their spelling and mistakes are reported by file and line.

Plain YAML turns 24:00:00 into 86400, 010 into 8 and `off` into false. Here, a value without quotes is text
until the schema gives it a type: `010` is the number 10 for a key that holds numbers, and text for others.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field, fields, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, get_args

import yaml
from hydra._internal.core_plugins.file_config_source import FileConfigSource as HydraFiles
from hydra._internal.core_plugins.importlib_resources_config_source import (
    ImportlibResourcesConfigSource as HydraPackage,
)
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigLoadError, ConfigResult
from omegaconf import OmegaConf

from lhtrain.conf.keys import all_keys, has_no_type, is_container, like_run, type_of
from lhtrain.conf.nearest import nearest
from lhtrain.conf.problems import ConfigError, Problem
from lhtrain.conf.renamed import current, current_tree
from lhtrain.conf.rules.types import misfit
from lhtrain.conf.stage_data import needs_other

OURS = ("lhtrain.conf", "hydra.conf")  # packages whose files need no check
PACKAGES = {
    "stage": "stages",
    "experiment": "_global_",
}  # group -> package, for groups whose keys are not below the group's name

_PACKAGE = re.compile(r"#\s*@\s*package\s*:?\s+(\S+)\s*")
_NULL = re.compile(r"^(?:~|null|Null|NULL|)$")
_BOOL = re.compile(r"true|false")
_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.?[0-9]+)([eE][-+]?[0-9]+)?")


class _Loader(yaml.SafeLoader):
    """Reads plain values as text, except null."""

    yaml_implicit_resolvers: ClassVar = {
        first: [("tag:yaml.org,2002:null", _NULL), ("tag:yaml.org,2002:merge", re.compile(r"^<<$"))]
        for first in ("~", "n", "N", "", "<")
    }


# The user's files that Hydra has read. Hydra makes and copies its sources itself, so they cannot keep this.
_documents: ContextVar[list["Document"] | None] = ContextVar("documents", default=None)


@contextmanager
def recorded() -> Iterator[None]:
    """Record the user's files that are read in this context, for `documents`."""
    token = _documents.set([])
    try:
        yield
    finally:
        _documents.reset(token)


def documents() -> list["Document"]:
    """Return the user's files that were read, in order; a file may occur several times."""
    return _documents.get() or []


def _record(document: "Document") -> None:
    if (read_so_far := _documents.get()) is not None:
        read_so_far.append(document)


@dataclass
class Document:
    """A file of settings: its content, and the line of each key."""

    place: str  # path of the file in messages
    config_path: str  # Hydra's name of the file: GROUP/NAME
    group: str  # "" for a file that belongs to no group
    header: str | None = None  # package in its line '# @package'
    content: dict[str, Any] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)  # key with its package -> line number, from 1

    @property
    def package(self) -> str:
        """The key below which the file's keys are; "" for the top level."""
        package = "_group_" if self.header is None else self.header.removeprefix("_global_").lstrip(".")
        return package.replace("_group_", self.group.replace("/", "."))

    def typed(self) -> dict[str, Any]:
        """Return the content of a complete configuration, with values of the types of their keys."""
        return {name: _with_types(name, value) for name, value in self.content.items()}

    def at(self, key: str) -> str:
        """Return FILE:LINE of `key`, or of the nearest parent key that the file contains."""
        while key and key not in self.lines:
            key = key.rpartition(".")[0]
        return f"{self.place}:{self.lines[key]}" if key else self.place


def read(data: bytes, place: str, config_path: str) -> Document:
    """Parse the content of a file. config_path: Hydra's name of the file, GROUP/NAME.

    Raises ConfigError: it is not text, not YAML or not a mapping, or has a key twice.
    """
    document = Document(place, config_path, os.path.dirname(config_path), _header(data, place))
    try:
        loader = _Loader(data.decode("utf-8-sig"))
        node = loader.get_single_node()
        if node is None:
            return document
        if not isinstance(node, yaml.MappingNode):
            raise _wrong(place, node.start_mark, "must contain KEY: VALUE lines")
        prefix = f"{document.package}." if document.package else ""
        document.lines = dict(_lines(node, prefix, place))
        document.content = current_tree(loader.construct_document(node), document.package, place)
        document.lines |= {current(key): line for key, line in document.lines.items()}
    except UnicodeDecodeError as error:
        raise ConfigError([Problem("", None, f"must be UTF-8 text ({error.reason})", place)]) from error
    except yaml.MarkedYAMLError as error:
        raise _wrong(place, error.problem_mark or error.context_mark, _rule(error)) from error
    except yaml.YAMLError as error:  # a character that YAML does not allow
        raise ConfigError(
            [Problem("", None, f"is not YAML: {' '.join(str(error).split())}", place)]
        ) from error
    except RecursionError as error:
        raise ConfigError([Problem("", None, "must not be nested so deeply", place)]) from error
    _give_types(document)
    return document


def problems_of(document: Document) -> Iterator[Problem]:
    """Yield problems for keys that do not exist and values of a wrong type. `validate` checks other rules."""
    if document.package.startswith("hydra"):
        return
    if document.package and type_of(document.package) is None:
        yield Problem("", None, _no_package(document), f"{document.place}:1")
        return
    # Hydra itself checks `defaults`, the list of other files, and `hydra`, its own settings.
    hidden = {"defaults"} if document.package else {"defaults", "hydra"}
    tree: Any = {name: value for name, value in document.content.items() if name not in hidden}
    for name in reversed(document.package.split(".") if document.package else []):
        tree = {name: tree}
    yield from _misfits(tree, "", document, list(all_keys()))


def _misfits(tree: dict[str, Any], prefix: str, document: Document, known: list[str]) -> Iterator[Problem]:
    for name, value in tree.items():
        key = f"{prefix}{name}"
        place, kind = document.at(key), type_of(key)
        if kind is None:
            near = f"; it is now {current(key)}" if current(key) != key else nearest(key, known)
            yield Problem(key, value, needs_other(key) or f"no such key{near}", place)
        elif isinstance(value, dict) and is_container(kind):
            yield from _misfits(value, f"{key}.", document, known)
        elif value is None and is_container(kind):
            yield Problem(key, None, "is empty: are the lines below it indented?", place)
        elif is_container(kind):
            first = fields(kind)[0].name if is_dataclass(kind) else "NAME"
            yield Problem(key, value, f"must contain keys, such as {key}.{first}", place)
        elif rule := misfit(key, value):
            yield Problem(key, value, rule, place)


def _no_package(document: Document) -> str:
    package = PACKAGES.get(document.group, "_global_")
    return (
        f"the first line must be '# @package {package}'; without it, the keys of the file belong to "
        f"{document.package!r}, which does not exist"
    )


def _header(data: bytes, place: str) -> str | None:
    """Return the package in a comment '# @package NAME' before the first key; None if there is none."""
    for number, line in enumerate(data.decode("utf-8-sig", "replace").splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            return None
        if re.match(r"\s*#\s*@\s*package\b", line, re.IGNORECASE):
            if match := _PACKAGE.fullmatch(line.strip()):
                return match[1]
            rule = f"{line.strip()!r} must be '# @package NAME', such as '# @package stages'"
            raise ConfigError([Problem("", None, rule, f"{place}:{number}")])
    return None


def _lines(
    node: yaml.MappingNode, prefix: str, place: str, above: tuple[int, ...] = ()
) -> Iterator[tuple[str, int]]:
    """Yield each key with its line."""
    seen: dict[str, int] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if key_node.tag == "tag:yaml.org,2002:merge":
            continue
        if not isinstance(key_node, yaml.ScalarNode):
            raise _wrong(place, key_node.start_mark, "a key must be a name")
        name = key_node.value
        if name in seen:
            key = f"{prefix}{name}"
            raise ConfigError(
                [Problem("", None, f"{key}: is also on line {seen[name]}; remove one", f"{place}:{line}")]
            )
        seen[name] = line
        key_node.tag = "tag:yaml.org,2002:str"  # so that a key `null` or `on` is a name
        if has_no_type(f"{prefix}{name}"):
            _give_scalar_types(value_node)
        yield f"{prefix}{name}", line
        yield from _lines_below(value_node, f"{prefix}{name}.", place, (*above, id(node)))


def _give_scalar_types(node: yaml.Node) -> None:
    """Read numbers, true and false below `node` by their form, since the schema does not have their types."""
    if isinstance(node, yaml.SequenceNode):
        for child in node.value:
            _give_scalar_types(child)
    elif isinstance(node, yaml.ScalarNode) and node.style is None:
        kinds = ((_BOOL, "bool"), (_INT, "int"), (_FLOAT, "float"))
        for pattern, name in kinds:
            if pattern.fullmatch(node.value):
                node.tag = f"tag:yaml.org,2002:{name}"
                return


def _lines_below(
    node: yaml.Node, prefix: str, place: str, above: tuple[int, ...]
) -> Iterator[tuple[str, int]]:
    if id(node) in above:
        raise _wrong(place, node.start_mark, "must not contain itself")
    if isinstance(node, yaml.MappingNode):
        yield from _lines(node, prefix, place, above)
    elif isinstance(node, yaml.SequenceNode):
        for number, child in enumerate(node.value):
            yield from _lines_below(child, f"{prefix}{number}.", place, (*above, id(node)))


def _with_types(key: str, value: Any) -> Any:
    if has_no_type(key):
        return value  # already read by its form
    kind = type_of(key)
    if isinstance(value, dict):
        return {name: _with_types(f"{key}.{name}", child) for name, child in value.items()}
    if like_run(key).startswith("data.mix."):
        return number(value) if key.endswith(".weight") else value
    if isinstance(value, list):
        inner = get_args(kind)[0] if get_args(kind) else str
        return [_as_kind(child, inner) for child in value]
    if key.endswith(("batch_tokens", "grad_accum")):  # these may also be auto
        return number(value)
    return _as_kind(value, kind)


def number(value: Any) -> Any:
    """Return the number that a text spells; any other value unchanged."""
    if isinstance(value, str):
        for kind in (int, float):
            with suppress(ValueError):
                return kind(value)
    return value


def _as_kind(value: Any, kind: Any) -> Any:
    if not isinstance(value, str):
        return value
    if kind is bool and value in ("true", "false"):
        return value == "true"
    if kind in (int, float):
        with suppress(ValueError):
            return kind(value)
    return value


def _give_types(document: Document) -> None:
    """Convert values below `hydra` to numbers, true and false, if the conversion loses nothing of the text.

    Some keys there, such as those of launchers, have no type in any schema. The values of a sweep stay text.
    """
    if document.package == "hydra" or document.package.startswith("hydra."):
        document.content = _typed(document.content)
    elif isinstance(document.content.get("hydra"), dict):
        hydra = document.content["hydra"]
        sweeper = hydra.get("sweeper")
        params = sweeper.get("params") if isinstance(sweeper, dict) else None
        document.content["hydra"] = _typed(hydra)
        if params is not None:
            document.content["hydra"]["sweeper"]["params"] = params


def _typed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _typed(child) for key, child in value.items()}
    if isinstance(value, list):
        return [_typed(child) for child in value]
    if not isinstance(value, str):
        return value
    if value in ("true", "false"):
        return value == "true"
    for kind in (int, float):
        try:
            number = kind(value)
        except ValueError:
            continue
        if str(number) == value:
            return number
    return value


def _rule(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or "is not YAML"
    if "'\\t'" in problem:
        return "contains a tab; indent YAML with spaces"
    if "could not determine a constructor for the tag" in problem:
        return f"{problem}; only plain YAML without tags is allowed"
    return f"{problem}; check the indentation, brackets and quotes here and in the line before"


def _wrong(place: str, mark: yaml.Mark | None, rule: str) -> ConfigError:
    return ConfigError([Problem("", None, rule, f"{place}:{mark.line + 1}" if mark else place)])


def _result(source: Any, document: Document) -> ConfigResult:
    return ConfigResult(
        config=OmegaConf.create(document.content),
        path=source.full_path(),
        provider=source.provider,
        header={"package": document.header},
    )


# These have the names of Hydra's own classes: Hydra registers its own too, and keeps the first of each name.
class FileConfigSource(HydraFiles):
    """A folder of the user's files, from --config-dir or hydra.searchpath."""

    def load_config(self, config_path: str) -> ConfigResult:
        path = Path(self.path, self._normalize_file_name(config_path))
        try:
            data = path.read_bytes()
        except OSError as error:
            rule = f"must be a readable file ({error.strerror})"
            raise ConfigError([Problem("", None, rule, str(path))]) from error
        document = read(data, _shown(path), config_path)
        _record(document)
        if problems := list(problems_of(document)):
            raise ConfigError(problems)
        return _result(self, document)


class ImportlibResourcesConfigSource(HydraPackage):
    """A folder in a Python package; files in packages other than lhtrain are the user's."""

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """List groups and files, without the folders that contain Python code."""
        here = resources.files(self.path).joinpath(config_path)
        names = super().list(config_path, results_filter)
        return [name for name in names if not here.joinpath(name, "__init__.py").is_file()]

    def load_config(self, config_path: str) -> ConfigResult:
        name = self._normalize_file_name(config_path)
        file = resources.files(self.path).joinpath(name)
        if not file.is_file():
            raise ConfigLoadError(f"Config not found : {name}")
        document = read(file.read_bytes(), f"{self.path}:{name}", config_path)
        if self.path not in OURS:
            _record(document)
            if problems := list(problems_of(document)):
                raise ConfigError(problems)
        return _result(self, document)


def _shown(path: Path) -> str:
    """Return the path for messages: relative if the file is below the current folder."""
    try:
        return str(path.absolute().relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(path)


def register() -> None:
    """Make Hydra read all YAML files by the classes of this module."""
    types = SourcesRegistry.instance().types
    types["file"], types["pkg"] = FileConfigSource, ImportlibResourcesConfigSource
