"""Formats names, paths and numbers as safe text and strict JSON, whatever characters and values they hold."""

import json
import math
from typing import Any

KEPT = "\n\t"


def printable(text: object) -> str:
    """Replace characters that cannot be printed, such as control characters, by "?"; keep line breaks."""
    return "".join(c if c.isprintable() or c in KEPT else "?" for c in str(text))


def is_utf8(text: str) -> bool:
    """Return whether all bytes of an argument were UTF-8; Python replaces others by lone surrogates."""
    return text.isascii() or text.encode(errors="replace").decode() == text


def one_line(text: object, most: int = 80) -> str:
    """Return a name as one line of at most `most` characters; cut out the middle of a longer one."""
    line = " ".join(printable(text).split(None))
    if len(line) <= most:
        return line
    tail = (most - 3) // 2
    return f"{line[: most - 3 - tail]}...{line[len(line) - tail :]}"


def number(value: float | None, form: str = ".4f") -> str:
    """Format a number; "-" for None. Scientific notation if `form` would print many digits or only zeros."""
    if value is None:
        return "-"
    huge_or_tiny = math.isfinite(value) and value != 0 and not 1e-4 <= abs(value) < 1e6
    return format(value, ".3e" if form.endswith("f") and "," not in form and huge_or_tiny else form)


def with_width(mean: float | None, stderr: float | None) -> str:
    """Format a mean and its standard error: "2.396 ± 0.034", with the meaningful decimals, at most 4."""
    if mean is None or stderr is None or not stderr > 0:
        return number(mean)
    decimals = min(max(1 - math.floor(math.log10(stderr)), 0), 4)
    form = f".{decimals}f"
    return f"{number(mean, form)} ± {number(stderr, form)}"


def counted(n: int, noun: str) -> str:
    """Return "1 step", "2 steps" and so on."""
    return f"{n:,} {noun}" + ("" if n == 1 else "s")


def duration(seconds: float) -> str:
    """Format seconds as 0:57, 1:02:03 or 2 d 3:04:05."""
    whole = round(max(seconds, 0))
    days, whole = divmod(whole, 86_400)
    hours, whole = divmod(whole, 3600)
    clock = f"{whole // 60}:{whole % 60:02d}"
    if hours or days:
        clock = f"{hours}:{whole // 60:02d}:{whole % 60:02d}"
    return f"{days} d {clock}" if days else clock


def finite(value: Any) -> Any:
    """Replace every NaN and infinity by None, because JSON cannot represent them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return value


def to_json(value: Any, indent: int | None = None) -> str:
    """Return strict JSON, which every parser reads; numbers that are not finite become null."""
    return json.dumps(finite(value), indent=indent, allow_nan=False)


def from_json(text: str | bytes) -> Any:
    """Parse JSON; NaN and infinities, which earlier versions wrote, become None. Raises ValueError."""
    return json.loads(text, parse_constant=lambda _: None)


def number_at(parsed: dict[str, Any], key: str) -> float | None:
    """Return the finite number at `key` of parsed JSON; None if there is none."""
    value = parsed.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def dict_at(parsed: dict[str, Any], key: str) -> dict[str, Any]:
    """Return the object at `key` of parsed JSON; {} if there is none."""
    value = parsed.get(key)
    return value if isinstance(value, dict) else {}


def dicts_at(parsed: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """Return the objects in the list at `key` of parsed JSON; [] if there is none."""
    values = parsed.get(key)
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []
