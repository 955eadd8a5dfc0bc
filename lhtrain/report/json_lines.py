"""A file of JSON lines that a resumed run continues, such as samples.jsonl."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from lhtrain.files import write_atomic
from lhtrain.text import to_json


class JsonLines:
    """A file with a row in each line. Each row has its `step`."""

    def __init__(self, path: Path):
        self.path = path

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Append rows. Raises OSError."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(to_json(row) + "\n" for row in rows))

    def keep_until(self, step: int) -> None:
        """Drop rows after `step`, which will be written again, and an incomplete one. Raises OSError."""
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_bytes().splitlines():
            with suppress(ValueError, KeyError, TypeError):
                if json.loads(line)["step"] <= step:
                    kept.append(line.decode() + "\n")
        write_atomic(self.path, "".join(kept))
