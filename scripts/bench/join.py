"""Join documents of a file, one after the other, into texts of at least a number of characters.

Held-out documents are seldom as long as a context of 262,144 tokens; these texts are. Each file is joined on
its own, so that a text has one kind of content. What remains at the end of a file is left out.

    python scripts/bench/join.py prose.jsonl code.jsonl --characters 1.2e6 --out joined.jsonl
"""

import argparse
import json
import lzma
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path, help="JSON lines with text, also .xz")
    parser.add_argument("--characters", type=float, required=True, help="of a text, at least")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    with arguments.out.open("w") as out:
        for path in arguments.files:
            for text in joined(texts_of(path), arguments.characters):
                out.write(json.dumps({"text": text}) + "\n")
    return 0


def texts_of(path: Path) -> list[str]:
    with (lzma.open if path.suffix == ".xz" else open)(path, "rt") as lines:
        return [json.loads(line)["text"] for line in lines]


def joined(texts: Iterable[str], characters: float) -> Iterator[str]:
    """Yield texts of whole documents, each with at least `characters` characters."""
    parts: list[str] = []
    for text in texts:
        parts.append(text)
        if sum(map(len, parts)) >= characters:
            yield "\n\n".join(parts)
            parts = []


if __name__ == "__main__":
    sys.exit(main())
