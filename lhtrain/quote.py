"""Quotes text so that Hydra, or a shell and then Hydra, reads it back unchanged."""

import re
import shlex

# Text that needs no quotes for Hydra, because it cannot be read as a number, null or a list.
_PLAIN = re.compile(r"(?!(?i:null|true|false|inf|nan)$)[A-Za-z_/][A-Za-z0-9_./\-]*")


def override(text: str) -> str:
    """Quote `text` as the value of a Hydra override.

    In Hydra's grammar a backslash is special only before a quote.
    """
    if _PLAIN.fullmatch(text):
        return text
    quoted = re.sub(r"(\\*)'", lambda match: match[1] * 2 + r"\'", text)
    return "'" + re.sub(r"(\\+)$", lambda match: match[1] * 2, quoted) + "'"


def setting(key: str, value: object) -> str:
    """Return KEY=VALUE as one shell word, for commands that a message suggests."""
    return word(f"{key}={override(literal(str(value)))}")


def literal(text: str) -> str:
    """Escape ${ in `text`, so that OmegaConf does not read it as an interpolation."""
    return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", text)


def word(text: object) -> str:
    """Quote `text` as one word of bash or zsh; zsh also expands a leading `=`."""
    text = str(text)
    return f"'{text}'" if text.startswith("=") and shlex.quote(text) == text else shlex.quote(text)
