"""Commands that do not train end at Ctrl-C and TERM with one line, and leave no incomplete files."""

import os
import signal
import threading

import pytest

from lhtrain.cli import main
from lhtrain.commands import train_tokenizer
from lhtrain.data.store.tokens import TokenStoreWriter

STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}
WORDS = {signal.SIGINT: "lhtrain: interrupted", signal.SIGTERM: "lhtrain: stopped by SIGTERM"}


@pytest.fixture
def texts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.txt").write_text(f"text {number} " * 500)
    return folder


def ended(words, number, capsys):
    with pytest.raises(SystemExit) as end:
        main(words)
    (line,) = capsys.readouterr().err.splitlines()
    assert end.value.code == STATUS[number] and line.startswith(WORDS[number])
    return line


@pytest.mark.parametrize("number", STATUS)
def test_training_of_a_tokenizer_that_does_not_look_at_signals(texts, number, capsys, monkeypatch):
    going = threading.Event()

    def merges(*_):
        os.kill(os.getpid(), number)
        going.wait()

    monkeypatch.setattr(train_tokenizer, "train_tokenizer", merges)
    words = ["data", "train-tokenizer", "texts", "--vocab-size", "300", "--out", "new.json"]
    try:
        ended(words, number, capsys)
    finally:
        going.set()
    assert os.listdir() == ["texts"]


@pytest.mark.parametrize("number", STATUS)
def test_prepare_keeps_no_half_of_a_shard_and_continues(texts, number, capsys, monkeypatch):
    write = TokenStoreWriter.append

    def interrupted(writer, tokens):
        write(writer, tokens)
        os.kill(os.getpid(), number)

    monkeypatch.setattr(TokenStoreWriter, "append", interrupted)
    words = ["data", "prepare", "data=text", "data.path=texts", "data.out=out", "data.workers=1"]
    assert "the same command continues" in ended(words, number, capsys)
    assert sorted(os.listdir("out")) == ["plan.json", "prepare.lock"]
    monkeypatch.setattr(TokenStoreWriter, "append", write)
    main(words)
    main(["data", "verify", "out"])
