"""A Markdown page: its fenced blocks, headings, links and inline code."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[2]
SHELLS = ("bash", "sh", "zsh", "shell", "console")
NOT_SEARCHED = {"runs", "build", "dist", "wandb", "multirun", "node_modules"}
MARK = re.compile(r"<!-- (gpu|slurm|not run: \S.*) -->")
FENCE = re.compile(r"( *)```+ *(\S*)")


@dataclass(frozen=True)
class Block:
    """A fenced block. number: of its first line in the page, from 1. mark: why it is not run, or ''."""

    language: str
    lines: list[str]
    number: int
    mark: str = ""

    @property
    def is_shell(self) -> bool:
        return self.language in SHELLS

    @property
    def file(self) -> str | None:
        """The file that the reader is to make of the block: its first line is a comment with the name."""
        match = re.fullmatch(r"# ([\w./-]+\.(?:py|yaml))(?:[:,].*)?", self.lines[0] if self.lines else "")
        return match[1] if match and self.language in ("python", "yaml") else None

    @property
    def text(self) -> str:
        return "\n".join([*self.lines, ""])

    def commands(self) -> Iterator[tuple[int, str]]:
        """The line number and text of each command; a backslash at the end of a line continues it."""
        whole, begin = "", 0
        for number, line in enumerate(self.lines, self.number):
            begin = begin if whole else number
            whole += line
            if line.endswith("\\"):
                whole = whole[:-1]
                continue
            if whole.strip() and not whole.lstrip().startswith("#"):
                yield begin, whole.strip()
            whole = ""


class Page:
    def __init__(self, path: Path):
        self.path = path
        self.name = str(path.relative_to(ROOT))
        self.source = path.read_text(encoding="utf-8").splitlines()

    @cached_property
    def blocks(self) -> list[Block]:
        out, number = [], 0
        while number < len(self.source):
            if match := FENCE.match(self.source[number]):
                indent, language = match[1], match[2]
                end = next(
                    at
                    for at in range(number + 1, len(self.source))
                    if re.match(r" *```+ *$", self.source[at])
                )
                lines = [line.removeprefix(indent) for line in self.source[number + 1 : end]]
                before = next((line for line in reversed(self.source[:number]) if line.strip()), "")
                mark = MARK.fullmatch(before.strip())
                out.append(Block(language, lines, number + 2, mark[1] if mark else ""))
                number = end
            number += 1
        return out

    @cached_property
    def prose(self) -> list[tuple[int, str]]:
        """The numbered lines outside fenced blocks."""
        inside = {
            at for block in self.blocks for at in range(block.number - 1, block.number + len(block.lines) + 1)
        }
        return [(number, line) for number, line in enumerate(self.source, 1) if number not in inside]

    @cached_property
    def anchors(self) -> set[str]:
        """The anchors of the page's headings, as GitHub makes them."""
        out: set[str] = set()
        for _, line in self.prose:
            if match := re.match(r"#{1,6} +(.*?) *#*$", line):
                text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", match[1])
                slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
                copies = (f"{slug}-{count}" for count in range(1, 100))
                out.add(slug if slug not in out else next(copy for copy in copies if copy not in out))
            out |= set(re.findall(r'<a (?:id|name)="([^"]+)"', line))
        return out

    def links(self) -> Iterator[tuple[int, str]]:
        """The line number and target of each link and image."""
        for number, line in self.prose:
            without_code = re.sub(r"`[^`]*`", "`", line)
            for match in re.finditer(r"\]\(([^()\s]+)(?: \"[^\"]*\")?\)", without_code):
                yield number, match[1]
            for match in re.finditer(r"(?:src|href)=\"([^\"]+)\"", without_code):
                yield number, match[1]

    def code(self) -> Iterator[tuple[int, str]]:
        """The line number and text of each piece of inline code."""
        for number, line in self.prose:
            for text in re.findall(r"`([^`]+)`", line):
                yield number, text


def pages() -> list[Page]:
    """All Markdown pages of the project."""
    found, folders = [], [ROOT]
    for folder in folders:
        for path in sorted(folder.iterdir()):
            is_hidden = path.name.startswith(".") and path.name != ".github"
            if path.is_dir() and not path.is_symlink() and not is_hidden and path.name not in NOT_SEARCHED:
                folders.append(path)
            elif path.suffix == ".md" and not path.is_symlink():
                found.append(path)
    return [Page(path) for path in found]


def guides() -> list[Page]:
    """The pages whose commands a reader types."""
    of_readers = ("README.md", "CONTRIBUTING.md", "data/README.md")
    return [page for page in pages() if page.name in of_readers or page.name.startswith("docs/")]
