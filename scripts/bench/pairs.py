"""Hide pairs of a key and a value in texts and repeat them, so that a small model learns to recall.

Reads documents, JSON lines with `text` (.xz too), from files, and writes JSON lines. About every 600 tokens
(--every) a sentence `The number of the KEY is VALUE.` is inserted, with a random key and a random value of
five digits, and it is repeated twice (--repeats), at distances that are drawn on a logarithmic scale up to
32,768 tokens. The keys are words of the texts, without those that `recall` of `lhtrain eval` asks for, so
that the task is not known by heart. About 5 % of the tokens belong to these sentences.

With --quotes=0.2, a fifth of the tokens repeats passages of 20 to 120 tokens, word for word, at distances
that are drawn in the same way: a model learns from them to look for what followed the same words before.

    python scripts/bench/pairs.py prose.jsonl.xz code.jsonl.xz --characters 110e6 --out texts.jsonl
"""

import argparse
import json
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from join import texts_of

from lhtrain.evaluation.recall import KEYS

CHARACTERS = 3.1  # of a token, in these texts with a vocabulary of 49,152
NEAREST, FARTHEST = 32, 32_768  # tokens
SHORTEST, LONGEST = 20, 120  # tokens of a quoted passage


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--characters", type=float, default=1e12, help="of each file, at most")
    parser.add_argument("--shortest", type=int, default=100_000, help="characters of a document, at least")
    parser.add_argument("--every", type=float, default=600, help="tokens between two new pairs, on average")
    parser.add_argument("--repeats", type=int, default=2, help="of each pair")
    parser.add_argument("--quotes", type=float, default=0.0, help="share of the tokens that repeats passages")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    texts = [text for path in arguments.files for text in chosen(path, arguments, draw)]
    draw.shuffle(texts)
    keys = keys_of(texts)
    with arguments.out.open("w") as out:
        for text in texts:
            inserted = pairs_of(text, keys, draw, arguments.every, arguments.repeats)
            if arguments.quotes:
                inserted += quotes_of(text, draw, arguments.quotes)
            out.write(json.dumps({"text": with_inserted(text, inserted)}) + "\n")
    print(f"{len(texts)} documents, {sum(map(len, texts)):,} characters without the pairs, {len(keys)} keys")
    return 0


def chosen(path: Path, arguments: argparse.Namespace, draw: random.Random) -> Iterator[str]:
    """Yield documents of a file in random order, up to the wanted number of characters."""
    texts = [text for text in texts_of(path) if len(text) >= arguments.shortest]
    draw.shuffle(texts)
    total = 0
    for text in texts:
        if total + len(text) > arguments.characters:
            return
        total += len(text)
        yield text


def keys_of(texts: list[str], count: int = 2000) -> list[str]:
    """Return the most frequent lower-case words of 4 to 9 letters, without the keys of the evaluation."""
    words = Counter(word for text in texts for word in re.findall(r"\b[a-z]{4,9}\b", text[:100_000]))
    asked = set(KEYS.split())
    return [word for word, _ in words.most_common(count + len(asked)) if word not in asked][:count]


def pairs_of(
    text: str, keys: list[str], draw: random.Random, every: float, repeats: int
) -> list[tuple[int, str]]:
    """Return places in `text`, in characters, and sentences for them, each once and then `repeats` times."""
    places: list[tuple[int, str]] = []
    at = 0.0
    while (at := at + draw.expovariate(1 / (every * CHARACTERS))) < len(text):
        sentence = f" The number of the {draw.choice(keys)} is {draw.randrange(10_000, 100_000)}. "
        places += [(int(at), sentence), *((int(at) + distance(draw), sentence) for _ in range(repeats))]
    return places


def quotes_of(text: str, draw: random.Random, share: float) -> list[tuple[int, str]]:
    """Return places in `text`, in characters, and earlier passages of it: `share` of the resulting text."""
    places: list[tuple[int, str]] = []
    every = (SHORTEST + LONGEST) / 2 * (1 - share) / share
    at = 0.0
    while (at := at + draw.expovariate(1 / (every * CHARACTERS))) < len(text):
        length = int(draw.uniform(SHORTEST, LONGEST) * CHARACTERS)
        start = max(int(at) - length, 0)
        places.append((int(at) + distance(draw), text[start : int(at)]))
    return places


def distance(draw: random.Random) -> int:
    """Return characters of a distance between NEAREST and FARTHEST tokens, drawn on a logarithmic scale."""
    return int(CHARACTERS * NEAREST * (FARTHEST / NEAREST) ** draw.random())


def with_inserted(text: str, inserted: list[tuple[int, str]]) -> str:
    """Return `text` with the passages at their places; those behind the end of the text are left out."""
    parts, done = [], 0
    for place, passage in sorted(inserted):
        if place <= len(text):
            parts += [text[done:place], passage]
            done = place
    return "".join([*parts, text[done:]])


if __name__ == "__main__":
    sys.exit(main())
