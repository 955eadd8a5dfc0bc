"""The scripts that make texts for the comparison of recipes: hidden pairs, joined documents."""

import importlib.util
import json
import random
import re
import sys
from pathlib import Path

import pytest

from lhtrain.evaluation.recall import KEYS

BENCH = Path(__file__).parents[2] / "scripts" / "bench"
SENTENCE = re.compile(r" The number of the ([a-z]+) is (\d{5})\. ")


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))  # as for a script in this folder

    def opened(name):
        spec = importlib.util.spec_from_file_location(name, BENCH / f"{name}.py")
        found = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(found)
        return found

    yield opened
    sys.modules.pop("join", None)


def test_pairs_are_repeated_and_the_rest_of_the_text_stays(script):
    text = "".join(f"{number:06d} " for number in range(30_000))
    pairs = script("pairs")
    inserted = pairs.pairs_of(text, ["value", "order"], random.Random(0), every=600, repeats=2)
    hidden = pairs.with_inserted(text, inserted)
    assert SENTENCE.sub("", hidden) == text
    found = [match.groups() for match in SENTENCE.finditer(hidden)]
    counts = [found.count(pair) for pair in set(found)]
    assert len(counts) > 50 and max(counts) <= 3 and counts.count(3) > len(counts) / 2


def test_quotes_repeat_earlier_passages_and_are_the_wanted_share(script):
    text = "".join(f"{number:06d} " for number in range(100_000))
    pairs = script("pairs")
    inserted = pairs.quotes_of(text, random.Random(0), share=0.25)
    assert all(passage in text[:place] for place, passage in inserted)
    # Some lie behind the end of the text.
    assert 0.21 < 1 - len(text) / len(pairs.with_inserted(text, inserted)) < 0.26


def test_keys_are_words_of_the_texts_that_the_evaluation_does_not_ask_for(script):
    keys = script("pairs").keys_of([f"{KEYS} value value order a The abcdefghij"], count=5)
    assert keys == ["value", "order"]


def test_documents_of_a_file_are_joined_to_the_length(script, tmp_path, monkeypatch):
    lines = ["a" * 40, "b" * 70, "c" * 100, "d" * 30]
    for name, texts in (("one", lines), ("two", ["e" * 99])):
        rows = (json.dumps({"text": text}) + "\n" for text in texts)
        (tmp_path / f"{name}.jsonl").write_text("".join(rows))
    files = [str(tmp_path / f"{name}.jsonl") for name in ("one", "two")]
    monkeypatch.setattr(
        sys, "argv", ["join.py", *files, "--characters", "100", "--out", str(tmp_path / "out")]
    )
    assert script("join").main() == 0
    joined = [json.loads(line)["text"] for line in (tmp_path / "out").read_text().splitlines()]
    assert joined == [f"{'a' * 40}\n\n{'b' * 70}", "c" * 100]


def test_pairs_are_written_for_documents_that_are_long_enough(script, tmp_path, monkeypatch, capsys):
    texts = ["word " * 20_000, "short"]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    monkeypatch.setattr(sys, "argv", ["pairs.py", str(tmp_path / "in.jsonl"), "--out", str(tmp_path / "out")])
    assert script("pairs").main() == 0
    (line,) = (tmp_path / "out").read_text().splitlines()
    assert SENTENCE.search(json.loads(line)["text"])
    assert "1 documents" in capsys.readouterr().out
