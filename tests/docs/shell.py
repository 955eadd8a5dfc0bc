"""A line of shell: its commands, and words that zsh would take for patterns."""

import shlex


def commands(line: str) -> list[list[str]]:
    """The words of each command of a line; `&&` ends one."""
    out: list[list[str]] = [[]]
    for word in shlex.split(line, comments=True):
        if word == "&&":
            out.append([])
        else:
            out[-1].append(word)
    return [words for words in out if words]


def unquoted_patterns(line: str) -> str:
    """The unquoted characters by which a shell would search for files, or build several words."""
    quote, found, previous = "", "", " "
    for character in line:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character == "#" and previous.isspace():
            break
        elif character in "[]*?{}":
            found += character
        previous = character
    return found
