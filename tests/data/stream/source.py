"""A small source for data.prepare=during, tokenized in this process instead of in others."""

import json
from pathlib import Path
from random import Random

from lhtrain.data.errors import DataError
from lhtrain.data.prepare.plan import make_plan
from lhtrain.data.prepare.recipe import Recipe
from lhtrain.data.stream.job import Job
from lhtrain.data.stream.portions import Stream
from lhtrain.data.stream.worker import Worker
from lhtrain.data.tokenizers.bytes import ByteTokenizer

PORTION = 3000


def write_files(folder: Path, n_files: int = 8, n_rows: int = 40) -> Path:
    """Write files of JSON lines with about 1,800 bytes of text each; no two rows are equal."""
    folder.mkdir(exist_ok=True)
    draw = Random(0)
    for number in range(n_files):
        texts = (f"{number} {i} " + "".join(draw.choices("abcdef", k=20 + i)) for i in range(n_rows))
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (folder / f"{number}.jsonl").write_text(lines)
    return folder


def job_of(source: Path, folder: Path, most_bytes: int = 10**9, ahead_bytes: int = 10**9) -> Job:
    recipe = Recipe("files", str(source))
    return Job(folder, recipe, tuple(make_plan(recipe)), most_bytes, ahead_bytes)


def stream_of(job: Job, n_tokens: int = PORTION) -> Stream:
    return Stream(job, ByteTokenizer(), n_tokens)


class Here:
    """In place of `Workers`: tokenizes in this process. `written` has the units in the order of writing."""

    written: list[int]

    def __init__(self, job: Job, count: int | None = None) -> None:
        self.worker, self.written = Worker(job), []
        self.failed: dict[int, str] = {}

    def need(self, low: int, high: int) -> None:
        self.worker.needed = low, high
        while (number := self.worker.next()) is not None:
            self.written.append(number)
            if (message := self.worker.write(number)) and self.worker.is_needed:
                self.failed[number] = message
                return

    def follow(self, low: int) -> None:
        pass

    def check(self, number: int) -> None:
        if message := self.failed.get(number):
            raise DataError(message)

    def close(self) -> None:
        pass
