"""Names, paths and numbers as plain text and plain JSON, whatever characters and values they hold."""

import json
import math
from typing import Any

KEPT = "\n\t"


def printable(text: object) -> str:
    """The text with "?" for control characters and others that cannot be printed; line breaks stay."""
    return "".join(c if c.isprintable() or c in KEPT else "?" for c in str(text))


def one_line(text: object, most: int = 80) -> str:
    """A name on one line of at most `most` characters; the middle of a longer one is left out."""
    line = " ".join(printable(text).split(None))
    if len(line) <= most:
        return line
    tail = (most - 3) // 2
    return f"{line[: most - 3 - tail]}...{line[len(line) - tail :]}"


def number(value: float | None, form: str = ".4f") -> str:
    """ "-" for None; scientific notation where `form` would print many digits, or zero for a small value."""
    if value is None:
        return "-"
    huge_or_tiny = math.isfinite(value) and value != 0 and not 1e-4 <= abs(value) < 1e6
    return format(value, ".3e" if form.endswith("f") and "," not in form and huge_or_tiny else form)


def with_width(mean: float | None, stderr: float | None) -> str:
    """ "2.396 ± 0.034": the mean to the digits that its standard error leaves meaningful, at most 4."""
    if mean is None or stderr is None or not stderr > 0:
        return number(mean)
    decimals = min(max(1 - math.floor(math.log10(stderr)), 0), 4)
    form = f".{decimals}f"
    return f"{number(mean, form)} ± {number(stderr, form)}"


def counted(n: int, noun: str) -> str:
    return f"{n:,} {noun}" + ("" if n == 1 else "s")


def duration(seconds: float) -> str:
    """0:57, 1:02:03, 2 d 3:04:05."""
    whole = round(max(seconds, 0))
    days, whole = divmod(whole, 86_400)
    hours, whole = divmod(whole, 3600)
    clock = f"{whole // 60}:{whole % 60:02d}"
    if hours or days:
        clock = f"{hours}:{whole // 60:02d}:{whole % 60:02d}"
    return f"{days} d {clock}" if days else clock


def finite(value: Any) -> Any:
    """The value with None for every number that JSON does not have: NaN and the infinities."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return value


def to_json(value: Any, indent: int | None = None) -> str:
    """Strict JSON, which every parser reads: null for what is not finite."""
    return json.dumps(finite(value), indent=indent, allow_nan=False)


def from_json(text: str | bytes) -> Any:
    """The value; None for NaN and infinities, which earlier versions wrote. Raises ValueError."""
    return json.loads(text, parse_constant=lambda _: None)
