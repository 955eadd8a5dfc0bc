"""Text written so that Hydra, or Hydra behind a shell, reads it back unchanged."""

import re
import shlex

# What Hydra reads as text without quotes, and as nothing else: no number, no null, no list.
_PLAIN = re.compile(r"(?!(?i:null|true|false|inf|nan)$)[A-Za-z_/][A-Za-z0-9_./\-]*")


def override(text: str) -> str:
    """`text` as the value of a Hydra override.

    Hydra takes backslashes as they are, unless they stand before a quote.
    """
    if _PLAIN.fullmatch(text):
        return text
    quoted = re.sub(r"(\\*)'", lambda match: match[1] * 2 + r"\'", text)
    return "'" + re.sub(r"(\\+)$", lambda match: match[1] * 2, quoted) + "'"


def setting(key: str, value: object) -> str:
    """KEY=VALUE as one word of a shell, for commands that a message suggests."""
    return word(f"{key}={override(literal(str(value)))}")


def literal(text: str) -> str:
    """`text` such that OmegaConf takes ${ in it for these characters."""
    return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", text)


def word(text: object) -> str:
    """`text` as one word of bash or zsh, which expands a leading `=` too."""
    text = str(text)
    return f"'{text}'" if text.startswith("=") and shlex.quote(text) == text else shlex.quote(text)
