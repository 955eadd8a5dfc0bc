"""Settings of the command line, KEY=VALUE, whose text values keep their spelling.

Hydra reads 2024_11_05 as 20241105, 3.10 as 3.1 and 007 as 7, and refuses `~`, `=` and letters outside ASCII.
Therefore the values of text keys are quoted before Hydra parses them. Other values are not changed.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from lhtrain.conf.keys import ONE_OR_MORE, holds_text, is_one_text, is_option, is_path, like_run
from lhtrain.conf.renamed import current, hint
from lhtrain.conf.typed.paths import exists, expanded
from lhtrain.quote import literal, override

_SETTING = re.compile(r"(?P<prefix>\+{0,2}|~)(?P<key>[^=]+)=(?P<value>.*)", re.DOTALL)
_QUOTED = re.compile(r"""'(?:(?:\\\\)*|.*?[^\\](?:\\\\)*)'|"(?:(?:\\\\)*|.*?[^\\](?:\\\\)*)\"""", re.DOTALL)
_FUNCTION = re.compile(r"(?:int|str|bool|float|choice|range|interval|tag|sort|shuffle|glob)\s*\(")
_ESCAPED = re.compile(r"\\([\\()\[\]{}:=, \t])")


@dataclass(frozen=True)
class Setting:
    """A setting as typed, and as an override for Hydra."""

    typed: str
    prefix: str  # "", +, ++ or ~
    key: str
    value: str  # as typed
    override: str

    @classmethod
    def of(cls, typed: str, sweep: bool = False) -> "Setting":
        """Parse one setting. sweep: whether commas separate values; otherwise they are part of a text."""
        match = _SETTING.fullmatch(typed)
        if match is None:  # ~KEY, which removes a key
            return cls(typed, typed[:1], typed[1:], "", typed)
        prefix, key, value = match["prefix"], match["key"], match["value"]
        if (new := current(key)) != key:
            hint(key, new)
            return cls.of(f"{prefix}{new}={value}", sweep)
        if not prefix and is_option(key):  # the schema does not have it, so Hydra needs ++ to set it
            return cls(typed, "++", key, value, f"++{typed}")
        if prefix == "~" or not holds_text(key):
            return cls(typed, prefix, key, value, typed)
        return cls(typed, prefix, key, value, f"{prefix}{key}={_spelled(key, value, sweep)}")


def spelled(overrides: list[str], sweep: bool = False) -> list[str]:
    """Return the overrides for Hydra. Applying this twice changes nothing more."""
    return [Setting.of(typed, sweep).override for typed in overrides]


def _spelled(key: str, value: str, sweep: bool) -> str:
    """Return the `value` of the text key `key`, quoted for Hydra if needed."""
    if is_path(key) and value not in ("", "null") and exists(expanded(value)):
        return override(literal(value))
    try:
        elements = _Reader(value).elements()
    except ValueError:  # unpaired brackets or quotes, so this is not a list or a dictionary
        elements = []
    if is_one_text(key) or like_run(key) in ONE_OR_MORE:
        containers = ("[", "{") if is_one_text(key) else ("{",)
        is_text = len(elements) > 1 and not sweep and is_one_text(key)
        if not elements or is_text or any(element.startswith(containers) for element in elements):
            return override(value.strip()) if value.strip() else value
    return ",".join(elements) if elements else value


class _Reader:
    """Parses a value into its elements, each quoted for Hydra if needed.

    The notation is Hydra's: [a,b], {key: value}, 'text', "text", a backslash before a special character,
    ${interpolation}, FUNCTION(…), and commas between the values of a sweep. Any other character is text.
    """

    def __init__(self, text: str):
        self.text, self.at = text, 0

    def elements(self) -> list[str]:
        """Return the elements. Raises ValueError: brackets are not paired, or followed by text."""
        out = self._separated(self._element, "")
        if self.at < len(self.text):
            raise ValueError(self.text)
        return out

    def _separated(self, read: Callable[[str], str], closing: str) -> list[str]:
        out = [read("," + closing)]
        while self._take(","):
            out.append(read("," + closing))
        return out

    def _element(self, ends: str) -> str:
        self._skip_spaces()
        if self._take("["):
            return self._container("[", "]", self._element)
        if self._take("{"):
            return self._container("{", "}", self._pair)
        if match := _FUNCTION.match(self.text, self.at):
            return self._function(match.end(), ends)
        if match := _QUOTED.match(self.text, self.at):
            begin, self.at = self.at, match.end()
            self._skip_spaces()
            if self.at == len(self.text) or self.text[self.at] in ends:
                return match[0]
            self.at = begin
        return self._plain(ends)

    def _container(self, opening: str, closing: str, read: Callable[[str], str]) -> str:
        self._skip_spaces()
        if self._take(closing):
            inner = []
        else:
            inner = self._separated(read, closing)
            if not self._take(closing):
                raise ValueError(f"no {closing}")
        self._skip_spaces()
        return opening + ",".join(inner) + closing

    def _pair(self, ends: str) -> str:
        """Parse KEY: VALUE. Hydra does not allow quotes around a key."""
        colon = re.compile(r"\s*([^:,{}\[\]]+?)\s*:").match(self.text, self.at)
        if colon is None:
            raise ValueError("no key")
        self.at = colon.end()
        return f"{colon[1]}: {self._element(ends)}"

    def _function(self, inside: int, ends: str) -> str:
        begin, depth, self.at = self.at, 1, inside
        while depth and self.at < len(self.text):
            if match := _QUOTED.match(self.text, self.at):
                self.at = match.end()
                continue
            depth += {"(": 1, ")": -1}.get(self.text[self.at], 0)
            self.at += 1
        call = self.text[begin : self.at]
        self._skip_spaces()
        if depth or (self.at < len(self.text) and self.text[self.at] not in ends):
            raise ValueError("no function")
        return call

    def _plain(self, ends: str) -> str:
        """Parse text up to one of `ends`, unless that is escaped or inside ${…}."""
        begin, depth = self.at, 0
        while self.at < len(self.text):
            if self.text.startswith("${", self.at):
                depth += 1
                self.at += 1
            elif depth and self.text[self.at] == "}":
                depth -= 1
            elif _ESCAPED.match(self.text, self.at):
                self.at += 1
            elif not depth and self.text[self.at] in ends:
                break
            elif not depth and self.text[self.at] in "[]{}" and ends != ",":
                raise ValueError("brackets inside of a list need quotes")
            self.at += 1
        text = self.text[begin : self.at].strip()
        if not text:
            if ends == "," and begin == 0 and self.at == len(self.text):
                return ""
            raise ValueError("an element is empty")
        if text.lower() == "null":
            return "null"
        return override(_ESCAPED.sub(r"\1", text))

    def _skip_spaces(self) -> None:
        while self.at < len(self.text) and self.text[self.at] in " \t":
            self.at += 1

    def _take(self, character: str) -> bool:
        found = self.text.startswith(character, self.at)
        self.at += found
        return found
