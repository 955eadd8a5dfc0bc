"""Suggests the nearest existing name for one that does not exist, for messages."""

import difflib
import itertools
from collections.abc import Iterable


def nearest(key: str, known: Iterable[str]) -> str:
    """Return '; did you mean …?', or '' if no known key is similar. NAME in `known` stands for any name."""
    names = key.split(".")
    options = []
    for option in known:
        parts = [
            own if part == "NAME" else part
            for part, own in itertools.zip_longest(option.split("."), names[: option.count(".") + 1])
        ]
        options.append(".".join(part or "NAME" for part in parts))
    close = difflib.get_close_matches(key, [name for name in options if name != key], n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""
