"""Measure the speed of the data pipeline: prepare with one worker and with all, and reading sequences.

    python scripts/bench/data.py --mb 256 --tokenizer gpt2 --csv scripts/bench/results/data.csv

The text is the standard library of the running Python, repeated; each document has a different first line.
Each time is the best of two or three. Compare times only within one run of this script.
"""

import argparse
import csv
import datetime
import itertools
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from lhtrain.data import SequenceOrder, open_corpus
from lhtrain.data.order.pack import METHODS
from lhtrain.data.prepare.pipeline import prepare
from lhtrain.data.prepare.recipe import Recipe
from lhtrain.data.tokenizers.named import open_tokenizer

COLUMNS = [
    "cpu",
    "cores",
    "python",
    "date",
    "what",
    "megabytes",
    "seconds",
    "mb_per_second",
    "mtokens_per_second",
]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mb", type=int, default=256, help="megabytes of text")
    parser.add_argument(
        "--tokenizer",
        help="tiktoken encoding or tokenizer.json for the BPE measurements; without it they are skipped",
    )
    parser.add_argument("--csv", type=Path, help="file to write the results to")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        rows = list(measure(Path(scratch), arguments))
    about = {
        "cpu": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
    }
    for row in rows:
        tokens = f"{row['mtokens_per_second']:8.1f} Mtok/s" if row["mtokens_per_second"] else ""
        print(f"{row['what']:<44} {row['seconds']:8.2f} s {row['mb_per_second']:8.1f} MB/s {tokens}")
    if arguments.csv:
        with arguments.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(about | row for row in rows)


def measure(scratch: Path, arguments: argparse.Namespace):
    source, n_bytes = write_rows(scratch / "bytes.jsonl", arguments.mb)
    for workers in (1, None):
        seconds = prepared(Recipe(source="files", path=str(source)), scratch / "out", workers)
        yield row(f"prepare, bytes, {workers or 'all'} worker(s)", n_bytes, seconds, n_bytes)
    text_folder, text_bytes = write_texts(scratch / "texts", arguments.mb)
    seconds = prepared(Recipe(source="text", path=str(text_folder)), scratch / "plain", 1)
    yield row("prepare, bytes, plain text, 1 worker", text_bytes, seconds, text_bytes)
    yield from reading(scratch / "plain")
    if arguments.tokenizer:
        yield from merging(scratch, arguments)


def prepared(recipe: Recipe, folder: Path, workers: int | None) -> float:
    """Return the seconds of the fastest of three runs of prepare, including the flush to disk."""

    def run() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        prepare(recipe, folder, workers, progress=False)

    return timed(run, 3)


def reading(folder: Path):
    """Measure the trainer's reads of sequences, from files that are in the page cache."""
    split = open_corpus("prepared", path=str(folder)).train
    steps = 200
    for packing, seq_len in itertools.product(METHODS, (4096, 65_536)):
        order = SequenceOrder(split, 65_536, seed=0, packing=packing)
        n_sequences = 65_536 // seq_len

        def read(order=order, seq_len=seq_len, n_sequences=n_sequences) -> None:
            for step in range(steps):
                order.read(step * 65_536, n_sequences, seq_len)

        read()
        n_tokens = steps * 65_536
        yield row(f"read sequences of {seq_len}, {packing}", 2 * n_tokens, timed(read, 3), n_tokens)


def merging(scratch: Path, arguments: argparse.Namespace):
    """Measure BPE on all cores: the tokenizer alone, prepare, and datasets.map."""
    source, n_bytes = write_rows(scratch / "merges.jsonl", arguments.mb)
    texts = [json.loads(line)["text"] for line in source.read_text().splitlines()]
    cores = len(os.sched_getaffinity(0))
    shares = [texts[i::cores] for i in range(cores)]
    with ProcessPoolExecutor(cores, initializer=_load, initargs=(arguments.tokenizer,)) as pool:
        list(pool.map(_count, [texts[:1]] * cores))  # start the processes before the clock
        n_tokens = sum(pool.map(_count, shares))
        seconds = timed(lambda: sum(pool.map(_count, shares)), 2)
        yield row("tokenizer alone, all cores", n_bytes, seconds, n_tokens)
    recipe = Recipe(
        source="text", path=str(write_split(scratch / "merge_texts", texts)), tokenizer=arguments.tokenizer
    )
    seconds = prepared(recipe, scratch / "merged", None)
    yield row("prepare, BPE, all workers", n_bytes, seconds, n_tokens)
    import datasets

    datasets.disable_progress_bars()
    data = datasets.Dataset.from_dict({"text": texts})
    _load(arguments.tokenizer)
    for what, encode in (("arrays", _encode), ("lists", _encode_lists)):

        def run(encode=encode) -> None:
            data.map(encode, num_proc=cores, remove_columns=["text"], load_from_cache_file=False)

        yield row(f"datasets.map of {what}, all cores", n_bytes, timed(run, 2), n_tokens)


_tokenizer = None


def _load(name: str) -> None:
    global _tokenizer
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _tokenizer = open_tokenizer(name)


def _count(texts: list[str]) -> int:
    return sum(len(_tokenizer.encode(text)) for text in texts)


def _encode(example: dict) -> dict:
    if _tokenizer is None:
        raise RuntimeError("this process must be forked: it inherits the tokenizer")
    return {"tokens": np.asarray(_tokenizer.encode(example["text"]))}


def _encode_lists(example: dict) -> dict:
    """Return a list of ints, as most scripts do."""
    return {"tokens": _tokenizer.encode(example["text"]).tolist()}


def stdlib_texts() -> list[str]:
    import sysconfig

    folder = Path(sysconfig.get_path("stdlib"))
    return [path.read_text(errors="ignore") for path in sorted(folder.glob("*.py"))]


def documents(megabytes: int):
    """Yield `megabytes` texts of about 1 MB each."""
    base = "\n".join(stdlib_texts())
    for number in range(megabytes):
        start = (number * 777_777) % (len(base) - 1_000_000)
        yield f"document {number}\n" + base[start : start + 1_000_000]


def write_rows(path: Path, megabytes: int) -> tuple[Path, int]:
    with path.open("w") as file:
        for text in documents(megabytes):
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    return path, path.stat().st_size


def write_texts(folder: Path, megabytes: int) -> tuple[Path, int]:
    return write_split(folder, documents(megabytes)), sum(p.stat().st_size for p in folder.iterdir())


def write_split(folder: Path, texts) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for number, text in enumerate(texts):
        (folder / f"{number:05}.txt").write_text(text)
    return folder


def timed(function: Callable[[], object], times: int = 1) -> float:
    best = float("inf")
    for _ in range(times):
        began = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - began)
    return best


def row(what: str, n_bytes: int, seconds: float, n_tokens: int) -> dict:
    return {
        "what": what,
        "megabytes": round(n_bytes / 1e6, 1),
        "seconds": round(seconds, 3),
        "mb_per_second": round(n_bytes / seconds / 1e6, 1),
        "mtokens_per_second": round(n_tokens / seconds / 1e6, 1),
    }


if __name__ == "__main__":
    main()
