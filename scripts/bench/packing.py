"""Measure the padding and the cut documents of each packing.

    python scripts/bench/packing.py
    python scripts/bench/packing.py --folder edu --seq-lens 32768 --seq-lens 98304,12288

Without --folder, the documents are synthetic: 20,000 lengths, log-normal around a mean, as those of web pages
are. `--seq-lens 32768,4096` is a run with stages of both lengths. "by alignment" is padding that no packing
avoids, because documents that are kept apart begin at multiples of the coarsest Lighthouse window. "documents
cut" is the share of documents that are cut although they fit, for each sequence length.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lhtrain.data import open_corpus
from lhtrain.data.order.pack import METHODS, Packing, pack
from lhtrain.data.order.permutation import uniform

N_DOCUMENTS = 20_000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="prepared data; default: synthetic documents")
    parser.add_argument("--seq-lens", action="append", help="sequence lengths of a run's stages")
    parser.add_argument("--mean", type=int, default=8000, help="mean length of synthetic documents")
    parser.add_argument("--alignment", type=int, action="append", help="documents begin at multiples of it")
    arguments = parser.parse_args()
    print(
        "| documents | sequences | alignment | packing | padding | by alignment | documents cut | tokens/s |"
    )
    print("|---|---|---:|---|---:|---:|---:|---:|")
    for name, lengths in corpora(arguments.folder, arguments.mean):
        for text in arguments.seq_lens or ["32768"]:
            seq_lens = sorted((int(n) for n in text.split(",")), reverse=True)
            for alignment in arguments.alignment or [1]:
                for method in METHODS:
                    print(f"| {name} | {text} | {alignment} | {row(lengths, seq_lens, alignment, method)} |")


def corpora(folder: Path | None, mean: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield names and lengths of documents, in tokens."""
    if folder is not None:
        yield folder.name, open_corpus("prepared", path=str(folder), verify=False).train.lengths
        return
    radius = np.sqrt(-2 * np.log(1 - uniform(N_DOCUMENTS, 0, 1)))
    normal = radius * np.cos(2 * np.pi * uniform(N_DOCUMENTS, 0, 2))
    for spread in (0.1, 0.3, 0.6, 1.0, 1.3):
        lengths = np.maximum(mean * np.exp(spread * normal - spread**2 / 2), 2).astype(np.int64)
        yield f"mean {mean:,}, sigma {spread}", lengths


def row(lengths: np.ndarray, seq_lens: list[int], alignment: int, method: str) -> str:
    """Return the last columns of the table."""
    began = time.perf_counter()
    packing = pack(np.cumsum(lengths) - lengths, lengths, seq_lens, 0, alignment, method)
    seconds = time.perf_counter() - began
    positions = packing.n_blocks * seq_lens[0]
    held = np.minimum(packing.length, seq_lens[0] - packing.offset)
    shares = 1 - held.sum() / positions, (-held % alignment).sum() / positions
    cut = ", ".join(f"{cut_share(packing, lengths, seq_lens[0], seq_len):.2%}" for seq_len in seq_lens)
    padding = " | ".join(f"{share:.2%}" for share in shares)
    return f"{method} | {padding} | {cut} | {lengths.sum() / seconds:.1e}"


def cut_share(packing: Packing, lengths: np.ndarray, block_len: int, seq_len: int) -> float:
    """Return the share of the documents that fit into a sequence of seq_len tokens but are cut there."""
    document = np.searchsorted(np.cumsum(lengths), packing.start, side="right")
    last = np.minimum(packing.offset + packing.length, block_len) - 1
    sequences = last // seq_len - packing.offset // seq_len + 1  # that the piece is in
    parts = np.bincount(document, sequences, len(lengths))
    return float(((parts > 1) & (lengths <= seq_len)).mean())


if __name__ == "__main__":
    main()
