"""open_corpus as a whole: real text, the cache, interruptions, several processes, the terminal."""

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from lhtrain.data import PADDING, Corpus, DataError, SequenceOrder, Split, open_corpus
from lhtrain.data import corpus as corpus_module
from lhtrain.data.prepare.pipeline import prepare
from lhtrain.data.prepare.recipe import Recipe

TEXTS = {f"folder/{name}.txt": f"text of {name}: é€😀\n" * (ord(name) - 90) for name in "abcdefghij"}


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    for name, text in TEXTS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def open_texts(path: object, cache: Path, **more: object) -> Corpus:
    return open_corpus("text", path, cache_dir=cache, progress=False, **more)


def documents(split: Split) -> list[str]:
    return [_text(split.document(i)) for i in range(split.n_documents)]


def _text(tokens: np.ndarray) -> str:
    assert tokens[-1] == 256
    return bytes(tokens[:-1].tolist()).decode()


@pytest.fixture
def forbid_tokenizing(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Make tokenizing fail, until forbid_tokenizing.undo()."""

    def refuse(*_: object) -> None:
        raise AssertionError("tokenized again")

    monkeypatch.setattr(corpus_module, "_tokenize", refuse)
    return monkeypatch


def run_python(code: str, *args: object, **options) -> subprocess.Popen:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)


def test_every_document_is_in_one_split(texts: Path, cache: Path) -> None:
    corpus = open_texts(texts, cache, val_fraction=0.3)
    train, val = documents(corpus.train), documents(corpus.val)
    assert train and val
    assert sorted(train + val) == sorted(TEXTS.values())
    assert [text for text in TEXTS.values() if text in train] == train  # in name order
    assert corpus.train.stores[0].dtype == np.uint8
    assert (corpus.tokenizer.vocab_size, corpus.tokenizer.eos) == (257, 256)
    meta = json.loads((cache / corpus.fingerprint / "meta.json").read_text())
    tokens = corpus.train.n_tokens + corpus.val.n_tokens
    assert (meta["documents"], meta["tokens"]) == (len(train) + len(val), tokens)
    assert meta["tokenizer"] == corpus.tokenizer.as_meta()


@pytest.mark.parametrize("source", ["text", "prepared", "mix"])
@pytest.mark.parametrize("validated", ["text", "prepared"])
def test_validation_documents_of_their_own(texts: Path, cache: Path, tmp_path: Path, source, validated):
    """All documents of the data are trained on, a copy is counted, and the texts are in their tokens."""
    own, settings = tmp_path / "own", {"path": str(texts)}
    own.mkdir()
    for name, text in (("new", "a new text"), ("old", TEXTS["folder/b.txt"])):
        (own / f"{name}.txt").write_text(text)
    folders = {"own": own, "texts": texts}
    for name in folders if source != "text" or validated == "prepared" else ():
        prepare(Recipe("text", str(folders[name])), tmp_path / f"{name}.out", 1, progress=False)
    if source != "text":
        settings = {"path": str(tmp_path / "texts.out")}
    if source == "mix":
        settings = {"mix": {"a": settings, "b": settings | {"weight": 2}}}
    settings |= {"source": source, "cache_dir": cache, "progress": False}
    val_path = str(own if validated == "text" else tmp_path / "own.out")
    corpus = open_corpus(**settings, val_path=val_path)
    assert sorted(documents(corpus.train)) == sorted(TEXTS.values())
    assert sorted(documents(corpus.val)) == sorted(["a new text", TEXTS["folder/b.txt"]])
    assert corpus.val.name == "val" and corpus.copies == 1
    assert len(corpus.parts["train"]) == (2 if source == "mix" else 1) and len(corpus.parts["val"]) == 1
    assert open_corpus(**settings, val_path=val_path, val_fraction=0.5).fingerprint == corpus.fingerprint
    assert open_corpus(**settings).fingerprint != corpus.fingerprint
    if validated == "text":
        (own / "old.txt").write_text("another")
        changed = open_corpus(**settings, val_path=val_path)
        assert changed.fingerprint != corpus.fingerprint and changed.copies == 0


def test_validation_documents_that_cannot_be_used(texts: Path, cache: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.val_path='.*none'"):
        open_texts(texts, cache, val_path=str(tmp_path / "none"))
    prepare(Recipe("text", str(texts), bos=True), tmp_path / "out", 1, progress=False)
    with pytest.raises(DataError, match=r"data\.val_path=.*was prepared with bytes .*bos 256\); must have"):
        open_texts(texts, cache, val_path=str(tmp_path / "out"))


def test_one_document_gives_its_tail_to_validation(texts: Path, cache: Path) -> None:
    corpus = open_texts(texts / "folder/j.txt", cache, val_fraction=0.25)
    head, tail = corpus.train.document(0), corpus.val.document(0)
    assert _text(np.concatenate([head, tail])) == TEXTS["folder/j.txt"]
    assert len(tail) == pytest.approx(0.25 * len(TEXTS["folder/j.txt"].encode()), abs=2)


def test_text_larger_than_a_chunk(tmp_path: Path, cache: Path) -> None:
    data = np.random.default_rng(0).integers(97, 123, 2_500_001, dtype=np.uint8).tobytes()
    (tmp_path / "large").write_bytes(data)
    corpus = open_texts(tmp_path / "large", cache, val_fraction=0.5)
    tokens = np.concatenate([corpus.train.document(0), corpus.val.document(0)])
    assert tokens[:-1].astype(np.uint8).tobytes() == data and tokens[-1] == 256


def test_the_second_open_reads_the_cache(texts: Path, cache: Path, forbid_tokenizing) -> None:
    with pytest.raises(AssertionError, match="tokenized again"):
        open_texts(texts, cache)
    forbid_tokenizing.undo()
    first = open_texts(texts, cache)
    forbid_tokenizing.setattr(corpus_module, "_tokenize", None)
    second = open_texts(texts, cache)
    assert second.fingerprint == first.fingerprint
    assert documents(second.train) == documents(first.train)


def test_the_fingerprint_depends_on_content_not_location(texts: Path, cache: Path, tmp_path: Path) -> None:
    first = open_texts(texts, cache)
    moved = texts.rename(tmp_path / "moved")
    same = open_texts(moved, cache)
    assert same.fingerprint == first.fingerprint
    both = open_texts([moved / "folder/b.txt", moved / "folder/a.txt"], cache)
    assert both.fingerprint == open_texts([moved / "folder/a.txt", moved / "folder/b.txt"], cache).fingerprint
    assert len(list(cache.iterdir())) == 2


def test_files_of_the_same_name_are_sorted_by_content(tmp_path: Path, cache: Path) -> None:
    opened = []
    for texts in (("one", "two"), ("two", "one")):
        for folder, text in zip("pq", texts, strict=True):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / "a.txt").write_text(text)
        opened.append(open_texts([tmp_path / "p", tmp_path / "q"], cache))
    assert opened[0].fingerprint == opened[1].fingerprint


@pytest.mark.parametrize("change", ["content", "name", "more", "val_fraction"])
def test_whatever_changes_tokens_changes_the_fingerprint(texts: Path, cache: Path, change: str) -> None:
    first = open_texts(texts, cache)
    path = texts / "folder/a.txt"
    if change == "content":
        path.write_text(path.read_text()[::-1])  # the same size
    elif change == "name":
        path.rename(texts / "folder/aa.txt")  # still the first in order
    elif change == "more":
        (texts / "new.txt").write_text("new")
    second = open_texts(texts, cache, val_fraction=0.5 if change == "val_fraction" else 0.05)
    assert second.fingerprint != first.fingerprint
    expected = sorted(file.read_text() for file in texts.rglob("*.txt"))
    assert sorted(documents(second.train) + documents(second.val)) == expected
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("name", ["00000.bin", "meta.json"])
@pytest.mark.parametrize("damage", ["truncated", "missing", "swapped"])
def test_a_damaged_cache_is_rebuilt(texts: Path, cache: Path, name: str, damage: str, caplog) -> None:
    first = open_texts(texts, cache)
    before, path = documents(first.train), first.folder / name
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":  # a new file, so that `first` keeps the old one open
        path.write_bytes(content[:-5] if damage == "truncated" else b"{}")
    assert documents(open_texts(texts, cache).train) == before
    assert path.read_bytes() == content
    [record] = caplog.records
    assert "rebuilding the damaged cache" in record.getMessage()


def test_a_store_of_another_corpus_is_noticed(texts: Path, cache: Path, caplog) -> None:
    first, other = open_texts(texts, cache), open_texts(texts / "folder/j.txt", cache)
    before = documents(first.val)
    (first.folder / "00000.bin").unlink()
    (first.folder / "00000.bin").write_bytes((other.folder / "00000.bin").read_bytes())
    assert documents(open_texts(texts, cache).val) == before
    assert "must agree with 00000.bin" in caplog.text


def test_a_file_that_changes_while_it_is_read(texts: Path, cache: Path, monkeypatch) -> None:
    tokenize = corpus_module._tokenize

    def change_then_tokenize(*args: object) -> None:
        (texts / "folder/c.txt").write_text("changed")
        tokenize(*args)

    monkeypatch.setattr(corpus_module, "_tokenize", change_then_tokenize)
    with pytest.raises(DataError, match=r"c\.txt': changed while it was read"):
        open_texts(texts, cache)
    assert list(cache.iterdir()) == []


def test_killed_while_tokenizing(texts: Path, cache: Path) -> None:
    killed = run_python(
        """
        import os, signal, sys
        from lhtrain.data import open_corpus
        from lhtrain.data.store.tokens import TokenStoreWriter

        def end_document(self, *args, done=[]):
            done.append(args)
            if len(done) == 4:
                os.kill(os.getpid(), signal.SIGKILL)
            end(self, *args)

        end, TokenStoreWriter.end_document = TokenStoreWriter.end_document, end_document
        open_corpus("text", sys.argv[1], cache_dir=sys.argv[2])
        """,
        texts,
        cache,
    )
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(cache.iterdir())) == 1
    corpus = open_texts(texts, cache)
    assert sorted(documents(corpus.train) + documents(corpus.val)) == sorted(TEXTS.values())
    assert list(cache.iterdir()) == [corpus.folder]


def test_two_processes_at_once(texts: Path, cache: Path) -> None:
    """Each waits in the middle of tokenizing until the other has started too."""
    code = """
        import os, sys, time
        from lhtrain.data import corpus

        def tokenize(folder, *args):
            while len(os.listdir(sys.argv[2])) < 2:
                time.sleep(0.01)
            write(folder, *args)
            print("built")

        write, corpus._tokenize = corpus._tokenize, tokenize
        opened = corpus.open_corpus("text", sys.argv[1], cache_dir=sys.argv[2])
        print(opened.fingerprint, opened.train.stores[0].tokens.sum())
    """
    processes = [run_python(code, texts, cache) for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    corpus = open_texts(texts, cache)
    sums = f"{corpus.fingerprint} {corpus.train.stores[0].tokens.sum()}"
    assert outputs == [f"built\n{sums}\n"] * 2
    assert list(cache.iterdir()) == [corpus.folder]


@pytest.mark.parametrize("progress, lines", [(True, 1), (False, 0)])
def test_one_plain_line_without_a_terminal(
    texts: Path, cache: Path, progress: bool, lines: int, capfd: pytest.CaptureFixture[str]
) -> None:
    open_corpus("text", texts, cache_dir=cache, progress=progress)
    open_corpus("text", texts, cache_dir=cache, progress=progress)
    out, err = capfd.readouterr()
    assert out == "" and len(err.splitlines()) == lines
    if lines:
        assert err.startswith("tokenized 10 document(s), 0.0 MB, in ")


def test_a_bar_on_a_terminal(texts: Path, cache: Path) -> None:
    ours, theirs = pty.openpty()
    code = "import sys, lhtrain.data as d; d.open_corpus('text', sys.argv[1], cache_dir=sys.argv[2])"
    process = run_python(code, texts, cache, stderr=theirs, env={**os.environ, "TERM": "xterm"})
    os.close(theirs)
    shown = ""
    with contextlib.suppress(OSError):  # Linux reports the closed other side like this
        while data := os.read(ours, 1 << 16):
            shown += data.decode(errors="replace")
    os.close(ours)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert "tokenizing" in shown and "━" in shown and "tokenized" not in shown


def test_errors_name_the_key(texts: Path, cache: Path) -> None:
    (texts / "empty").mkdir()
    for options, message in [
        ({"path": texts / "empty"}, r"data\.path='.*empty': must contain at least one text file"),
        ({"tokenizer": "gpt9"}, r"data\.tokenizer='gpt9'"),
        ({"val_fraction": 1.5}, r"data\.val_fraction=1\.5"),
        ({"path": texts / "gone"}, r"data\.path='.*gone': must exist"),
    ]:
        with pytest.raises(DataError, match=message):
            open_texts(**{"path": texts, "cache": cache, **options})


def test_stdlib(cache: Path) -> None:
    """The built-in corpus has megabytes of real text, and both splits are long enough for long sequences."""
    corpus = open_corpus("stdlib", cache_dir=cache, progress=False)
    assert corpus.train.n_documents > 300 and corpus.train.n_tokens > 5_000_000
    assert corpus.val.n_documents > 5 and corpus.val.n_tokens > 2**16
    rows = SequenceOrder(corpus.train, 8192, seed=0).read(0, 4, 8192)
    assert rows.shape == (4, 8193) and rows.min() >= PADDING and rows.max() <= 256
    text = corpus.tokenizer.decode(np.concatenate([corpus.train.document(i) for i in range(20)]))
    assert text.count("<|endoftext|>") >= 20 and "import " in text and "\ufffd" not in text


@pytest.mark.parametrize("source", ["text", "files", "code"])
@pytest.mark.parametrize("change", ["content", "more", "fewer"])
def test_a_changed_source_of_prepared_data_is_noticed(tmp_path, source, change):
    """Texts with a limit must be prepared, so training does not read them again."""
    (tmp_path / "src").mkdir()
    for name in "abc":
        (tmp_path / "src" / f"{name}.jsonl").write_text('{"text": "some words"}\n' * 9)
    settings = {"source": source, "path": str(tmp_path / "src"), "max_tokens": 10_000}
    recipe = Recipe(**settings)
    folder = recipe.folder(None, tmp_path / "cache")
    prepare(recipe, folder, 1, progress=False)
    assert open_corpus(cache_dir=tmp_path / "cache", **settings).n_tokens("train")
    if change == "fewer":
        (tmp_path / "src" / "c.jsonl").unlink()
    else:
        (tmp_path / "src" / ("a.jsonl" if change == "content" else "d.jsonl")).write_text(
            '{"text": "other"}\n'
        )
    with pytest.raises(
        DataError, match=rf"data={source}: .* was prepared from different files: .*data=prepared data\.path="
    ):
        open_corpus(cache_dir=tmp_path / "cache", **settings)
    assert open_corpus("prepared", str(folder)).n_tokens("train")


def test_a_changed_tokenizer_file_is_noticed(tmp_path):
    tokenizer = Tokenizer(models.WordLevel({"</s>": 0, "a": 1, "?": 2}, "?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "a.txt").write_text("a a a b a")
    settings = {"path": str(tmp_path / "a.txt"), "tokenizer": str(tmp_path / "tokenizer.json")}
    prepare(Recipe(source="text", **settings), tmp_path / "out", 1, progress=False)
    assert open_corpus("text", out=str(tmp_path / "out"), **settings)
    tokenizer.add_tokens(["b"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(DataError, match="the source or the tokenizer's file has changed since"):
        open_corpus("text", out=str(tmp_path / "out"), **settings)


@pytest.mark.parametrize("bos", [False, True])
def test_bytes_per_token(texts: Path, cache: Path, tmp_path: Path, bos: bool) -> None:
    """Of bytes 1, with and without tokens that begin documents; of a tokenizer as its texts have."""
    assert open_texts(texts, cache, bos=bos).bytes_per_token() == 1.0
    tokenizer = Tokenizer(models.WordLevel({"text": 0, "of": 1, "?": 2, "</s>": 3, "<s>": 4}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    one = tmp_path / "one"
    one.mkdir()
    for name in "ab":
        (one / f"{name}.txt").write_text(f"text of {name} é\n" * 50)  # 13 bytes, 4 tokens
    corpus = open_texts(one, cache, tokenizer=str(tmp_path / "tokenizer.json"), bos=bos)
    assert corpus.bytes_per_token() == 13 / 4
