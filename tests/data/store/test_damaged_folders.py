"""Damaged or crafted prepared folders: `verify` and training find the damage, or it has no effect.

Each file of a folder is flipped in one bit, truncated, emptied, removed, exchanged, or replaced by a special
file.
"""

import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from lhtrain.cli import main
from lhtrain.data import Corpus, DataError, SequenceOrder, Split, TokenStore, open_corpus
from lhtrain.data.errors import DamagedStore
from lhtrain.data.prepare import inspect as statistics
from lhtrain.data.prepare.pipeline import prepare
from lhtrain.data.prepare.recipe import Recipe
from lhtrain.data.sources import units
from lhtrain.data.store.descriptors import Descriptors
from lhtrain.data.store.manifest import CHECKSUM, Manifest
from lhtrain.data.store.tokens import TokenStoreWriter
from lhtrain.data.store.verify import verify

FILES = ("00000.bin", "00002.bin", "00001.skipped.json", "plan.json", "meta.json", "tokenizer.json")


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    """Fail instead of waiting forever: opening a pipe may block."""

    def too_late(*_: object) -> None:
        raise TimeoutError("hangs")

    before = signal.signal(signal.SIGALRM, too_late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def make(folder: Path, name: str, words: str) -> Path:
    """Prepare three shards with a tokenizer.json, two bytes per token."""
    texts = folder / f"{name}-texts"
    texts.mkdir()
    for i in range(12):
        (texts / f"{i:02}.txt").write_text(f"{words} {i} " * (20 + i))
    (texts / "empty.txt").write_text("")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({s: i for i, s in enumerate([*alphabet, words[0], "</s>"])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.save(str(folder / f"{name}.json"))
    recipe = Recipe(source="text", path=str(texts), tokenizer=str(folder / f"{name}.json"))
    prepare(recipe, folder / name, 1, progress=False)
    return folder / name


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(units, "UNIT_BYTES", 1500)
        folder = tmp_path_factory.mktemp("sound")
        yield {"one": make(folder, "one", "some words"), "other": make(folder, "other", "Other things")}


@pytest.fixture
def folder(sound: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound["one"], tmp_path / "folder"))


def trained_on(folder: Path) -> str:
    """Return a digest of everything that training reads from a folder."""
    corpus = open_corpus("prepared", path=str(folder), progress=False)
    digest = hashlib.sha256(json.dumps(corpus.tokenizer.as_meta() | {"name": None}).encode())
    for split in (corpus.train, corpus.val):
        order = SequenceOrder(split, 32, seed=0)
        digest.update(order.read(0, order.n_blocks, 32).tobytes())
    return digest.hexdigest()


def flip(path: Path, at: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(at * (len(content) - 1))] ^= 1
    path.write_bytes(content)


def cut(path: Path, count: int) -> None:
    path.write_bytes(path.read_bytes()[:-count])


def instead(path: Path, put: Callable[[Path], object]) -> None:
    path.unlink()
    put(path)


def linked(path: Path, target: Path) -> None:
    path.unlink()
    path.symlink_to(target)


def outside(path: Path) -> Path:
    """Copy a file to another folder and return the copy."""
    return Path(shutil.copy(path, path.parents[1] / "outside"))


DAMAGES: dict[str, Callable[[Path, Path], object]] = {
    **{f"flip at {at}": lambda path, other, at=at: flip(path, at) for at in (0, 0.1, 0.35, 0.6, 0.85, 1)},
    "cut by one": lambda path, other: cut(path, 1),
    "cut by half": lambda path, other: cut(path, path.stat().st_size // 2),
    "emptied": lambda path, other: path.write_bytes(b""),
    "removed": lambda path, other: path.unlink(),
    "of another folder": lambda path, other: shutil.copy(other / path.name, path),
    "longer": lambda path, other: path.write_bytes(path.read_bytes() + b"x"),
    "noise": lambda path, other: path.write_bytes(bytes(range(256)) * 8),
    "a directory": lambda path, other: instead(path, Path.mkdir),
    "a link": lambda path, other: linked(path, outside(path)),
    "a link that leads nowhere": lambda path, other: instead(path, lambda p: p.symlink_to("nowhere")),
    "a link to itself": lambda path, other: instead(path, lambda p: p.symlink_to(p)),
    "a pipe": lambda path, other: instead(path, os.mkfifo),
    "a device": lambda path, other: instead(path, lambda p: p.symlink_to("/dev/zero")),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_damage_is_found_or_has_no_effect(sound, folder, name, damage):
    DAMAGES[damage](folder / name, sound["other"])
    try:
        found = verify(folder)[1]
    except DataError as error:
        found = [str(error)]
    try:
        trained = trained_on(folder)
    except DataError as error:
        trained = "refused"
        assert str(folder) in str(error), error
    assert all(str(folder) in fault for fault in found)
    unharmed = trained == trained_on(sound["one"])
    assert unharmed or trained == "refused"
    # Damage that verify does not find must be harmless, for example in white space of a JSON file.
    assert found or (unharmed and (folder / name).is_file() and name.endswith(".json"))
    if name.endswith(".bin"):
        assert found and trained == "refused"


@pytest.mark.parametrize("name", FILES)
def test_inspect_raises_data_error(sound, folder, name, capsys):
    for damage in ("cut by half", "a pipe", "noise"):
        shutil.rmtree(folder)
        shutil.copytree(sound["one"], folder)
        DAMAGES[damage](folder / name, sound["other"])
        try:
            statistics.inspect(folder)
        except DataError as error:
            assert str(folder) in str(error)


def crafted(**changes: Any) -> Callable[[dict], object]:
    return lambda meta: meta.update(changes)


def in_shard(number: int = 0, **changes: Any) -> Callable[[dict], object]:
    return lambda meta: meta["shards"][number].update(changes)


def in_tokenizer(**changes: Any) -> Callable[[dict], object]:
    return lambda meta: meta["tokenizer"].update(changes)


CRAFTED = {
    "absolute": (in_shard(file="/etc/passwd"), r"shards\[0\]\.file='/etc/passwd': must be '00000\.bin'"),
    "above": (in_shard(file="../other/00000.bin"), r"shards\[0\]\.file='\.\./other/00000\.bin': must be"),
    "twice": (in_shard(1, file="00000.bin"), r"shards\[1\]\.file='00000\.bin': must be '00001\.bin'"),
    "no text": (in_shard(file=None), r"shards\[0\]\.file=None: must be"),
    "a shard that is a list": (lambda meta: meta["shards"].insert(0, [1]), r"shards\[0\]=a list of 1"),
    "no shards": (crafted(shards=[]), r"shards=a list of 0: must be a non-empty list"),
    "shards in a text": (crafted(shards="00000.bin"), r"shards='00000\.bin': must be a non-empty list"),
    "negative": (in_shard(documents=-1), r"shards\[0\]\.documents=-1: must be a whole number from 0"),
    "a fraction": (in_shard(tokens=1.5), r"shards\[0\]\.tokens=1\.5: must be a whole number"),
    "true": (in_shard(documents=True), r"shards\[0\]\.documents=True: must be a whole number"),
    "huge": (in_shard(tokens=10**400), r"shards\[0\]\.tokens=a number of about 400 digits: must be"),
    "more documents": (
        in_shard(documents=999, tokens=9999),
        r"documents=12: must be the sum over the shards",
    ),
    "a wrong sum": (crafted(tokens=1), r"tokens=1: must be the sum over the shards"),
    "checksum": (in_shard(crc=2**32), r"shards\[0\]\.crc=4294967296: must be a whole number"),
    "another checksum": (in_shard(crc=5), "meta.json must agree with 00000.bin"),
    "format": (crafted(format="2"), r"format='2': must be a whole number"),
    "newer": (crafted(format=3), "format=3: was written by a newer lhtrain; this version reads 2; update"),
    "older": (crafted(format=1), "format=1: must be 2; prepare the data again"),
    "no format": (lambda meta: meta.pop("format"), r"format=\(missing\)"),
    "fingerprint": (crafted(fingerprint=["x"]), "fingerprint=a list of 1: must be a string"),
    "recipe": (crafted(recipe=None), "recipe=None: must be a JSON object"),
    "recipe's path": (lambda meta: meta["recipe"].update(path="x"), r"recipe\.path='x': must be a list"),
    "recipe's source": (lambda meta: meta["recipe"].pop("source"), r"recipe\.source=\(missing\)"),
    "surrogate": (lambda meta: meta["recipe"].update(source="\ud800"), r"recipe\.source='\\ud800'"),
    "skipped": (crafted(skipped={"empty": -1}), r"skipped\.empty=-1: must be a whole number"),
    "no tokenizer": (crafted(tokenizer={}), r"tokenizer\.vocab_size=\(missing\)"),
    "no vocabulary": (in_tokenizer(vocab_size=0), r"tokenizer\.vocab_size=0: must be a whole number from 1"),
    "end beyond it": (in_tokenizer(eos=10**6), r"tokenizer\.eos=1000000: must be a whole number from 0 to"),
    "bos": (in_tokenizer(bos="x"), r"tokenizer\.bos='x': must be a whole number"),
    "hash": (in_tokenizer(hash="../x"), r"tokenizer\.hash='\.\./x': must be 64 hexadecimal digits"),
    "another hash": (
        in_tokenizer(hash="0" * 64),
        "its shards were made with a different tokenizer|must agree with",
    ),
    "another vocabulary": (in_tokenizer(vocab_size=90000), "its shards were made with a different tokenizer"),
}


@pytest.mark.parametrize("name", CRAFTED)
def test_a_crafted_meta_json_is_refused(folder, name):
    """No file outside the folder is read, and one line names the key, the value and the rule."""
    change, message = CRAFTED[name]
    without_checksum(folder, change)
    for read in (trained_on, statistics.inspect):
        with pytest.raises(DataError, match=message) as caught:
            read(folder)
        assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
        assert len(str(caught.value)) < 900
    try:
        assert verify(folder)[1]
    except DataError as error:
        assert str(folder) in str(error)


def without_checksum(folder: Path, change: Callable[[dict], object]) -> None:
    meta = json.loads((folder / "meta.json").read_text())
    meta.pop(CHECKSUM)
    change(meta)
    (folder / "meta.json").write_text(json.dumps(meta))


def test_verify_notices_a_shard_missing_from_meta_json(folder):
    def leave_out(meta: dict) -> None:
        shard = meta["shards"].pop()
        meta["documents"] -= shard["documents"]
        meta["tokens"] -= shard["tokens"]

    without_checksum(folder, leave_out)
    assert any("plan.json': must agree with meta.json" in fault for fault in verify(folder)[1])


def test_verify_compares_the_size_of_an_encoding_without_downloading_it(folder):
    without_checksum(folder, in_tokenizer(name="gpt2"))
    assert any("must be 50257, the size of gpt2" in fault for fault in verify(folder)[1])


def test_unknown_keys_have_no_effect(sound, folder):
    without_checksum(folder, lambda meta: [part.update(more=1) for part in (meta, meta["tokenizer"])])
    assert trained_on(folder) == trained_on(sound["one"]) and verify(folder)[1] == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe{}",
        b"[" * 200_000,
        b'{"a":' * 100_000,
        b"null",
        b"[1]",
        b'{"format": NaN}',
        b'{"format": 1e999}',
        b'{"format": ' + b"9" * 10_000 + b"}",
        b'{"format": 2',
        "{}".encode("utf-16"),
    ],
)
def test_a_meta_json_that_is_not_valid(folder, content):
    (folder / "meta.json").write_bytes(content)
    for read in (verify, trained_on, statistics.inspect):
        with pytest.raises(DataError, match=r"meta\.json'"):
            read(folder)


@pytest.mark.parametrize("itself", ["prepared:{folder}", "prepared:.", "{folder}/other.json", "/etc/passwd"])
def test_a_folder_does_not_choose_which_file_is_its_tokenizer(folder, itself):
    """A folder that names itself as its tokenizer would be opened forever; other files must not be read."""
    without_checksum(folder, in_tokenizer(name=itself.format(folder=folder)))
    assert open_corpus("prepared", path=str(folder)).tokenizer.path == folder / "tokenizer.json"
    (folder / "tokenizer.json").unlink()
    with pytest.raises(DataError, match="must exist and be a regular file, the copy of the tokenizer"):
        open_corpus("prepared", path=str(folder))
    assert any("tokenizer.json" in fault for fault in verify(folder)[1])


def crafted_shard(folder: Path, tokens: list[int], **options: Any) -> None:
    """Give a folder a single shard with these tokens, with valid checksums."""
    manifest = Manifest.read(folder)
    with TokenStoreWriter(
        folder / "00000.bin", np.dtype("<u2"), manifest.tokenizer["hash"], **options
    ) as writer:
        for i in range(60):
            writer.append(np.array(tokens))
            writer.end_document(manifest.tokenizer["eos"], i << 58)
    shard = {"file": "00000.bin", "documents": 60, "tokens": writer.n_tokens, "crc": writer.crc}
    without_checksum(folder, crafted(shards=[shard], documents=60, tokens=writer.n_tokens))


def test_tokens_beyond_the_vocabulary_are_found_before_they_are_read(folder):
    crafted_shard(folder, [1, 2, 60_000])
    message = r"00000\.bin': token 2 is 60000; tokens must be below the vocabulary size 258"
    with pytest.raises(DamagedStore, match=message):
        open_corpus("prepared", path=str(folder))
    assert len(verify(folder)[1]) >= 1
    corpus = open_corpus("prepared", path=str(folder), verify=False)
    with pytest.raises(DamagedStore, match=r"00000\.bin': token \d+ is 60000; tokens must be below"):
        SequenceOrder(corpus.train, 32, seed=0).read(0, 4, 32)


def test_an_escaped_token_beyond_the_vocabulary(folder):
    crafted_shard(folder, [1, 2], escaped=70_000)
    with pytest.raises(DamagedStore, match="escaped token 70000 must be below the vocabulary size 258"):
        open_corpus("prepared", path=str(folder))


def test_shards_of_two_widths(folder):
    manifest = Manifest.read(folder)
    store = manifest.open_store(folder, manifest.shards[1])
    with TokenStoreWriter(folder / "wide", np.dtype("<u4"), manifest.tokenizer["hash"]) as writer:
        for i in range(store.n_documents):
            writer.append(store.document(i)[:-1])
            writer.end_document(manifest.tokenizer["eos"], int(store.hashes[i]))
    (folder / "wide").replace(folder / "00001.bin")
    without_checksum(folder, in_shard(1, crc=writer.crc))
    with pytest.raises(
        DamagedStore, match=r"00001\.bin': must store tokens in the same format as 00000\.bin"
    ):
        open_corpus("prepared", path=str(folder))
    assert any("must store tokens in the same format as" in fault for fault in verify(folder)[1])


def test_a_shard_is_compared_again_only_after_it_changed(folder, monkeypatch):
    """Even if its modification time was restored."""
    compared = []
    real = TokenStore.verify
    monkeypatch.setattr(
        TokenStore, "verify", lambda store, size: (compared.append(store.path.name), real(store, size))
    )
    for expected in (["00000.bin", "00001.bin", "00002.bin"], []):
        open_corpus("prepared", path=str(folder))
        assert compared == expected
        compared.clear()
    before = (folder / "00001.bin").stat()
    flip(folder / "00001.bin", 0.5)
    os.utime(folder / "00001.bin", ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(DamagedStore, match=r"00001\.bin': .*(crc32|tokens must be below)"):
        open_corpus("prepared", path=str(folder))
    assert compared == ["00001.bin"]


def test_a_large_folder_is_compared_as_it_is_read(folder, monkeypatch):
    monkeypatch.setattr("lhtrain.data.store.checks.AT_ONCE", 0)
    flip(folder / "00001.bin", 0.5)
    corpus = open_corpus("prepared", path=str(folder))
    order = SequenceOrder(corpus.train, 32, seed=0)
    with pytest.raises(DamagedStore, match=r"00001\.bin'"):
        order.read(0, order.n_blocks, 32)


def test_comparing_can_be_turned_off(folder):
    flip(folder / "00001.bin", 0.3)
    open_corpus("prepared", path=str(folder), verify=False)
    with pytest.raises(DamagedStore):
        open_corpus("prepared", path=str(folder))


def test_a_damaged_text_in_the_cache_is_tokenized_again(sound, tmp_path):
    path, cache = str(sound["one"].parent / "one-texts"), tmp_path / "cache"

    def opened() -> Corpus:
        return open_corpus("text", path, cache_dir=cache, progress=False)

    first = opened()
    whole = (first.folder / "00000.bin").read_bytes()
    flip(first.folder / "00000.bin", 0.3)
    assert (opened().folder / "00000.bin").read_bytes() == whole


def test_a_folder_that_is_moved_while_it_is_read(folder, tmp_path):
    """Files that are already open stay readable; opening another one is an error that gives the reason."""
    corpus = open_corpus("prepared", path=str(folder))
    few = Split("train", corpus.train.stores, corpus.train.starts, corpus.train.lengths, Descriptors(1))
    expected = SequenceOrder(corpus.train, 32, seed=0).read(0, 9, 32)
    folder.rename(tmp_path / "moved")
    np.testing.assert_array_equal(SequenceOrder(corpus.train, 32, seed=0).read(0, 9, 32), expected)
    with pytest.raises(DamagedStore, match="was moved or removed while it was in use; put it back"):
        SequenceOrder(few, 32, seed=0).read(0, 40, 32)
    (tmp_path / "moved").rename(folder)
    (folder / "00001.bin").write_bytes((folder / "00001.bin").read_bytes())
    with pytest.raises(DamagedStore, match="was replaced or changed while it was in use"):
        SequenceOrder(few, 32, seed=0).read(0, 40, 32)


def test_a_shard_that_is_truncated_while_it_is_read(folder):
    """With a memory map, this would end the process."""
    corpus = open_corpus("prepared", path=str(folder))
    for store in corpus.train.stores:
        os.truncate(store.path, 100)
    with pytest.raises(DamagedStore, match=r"\.bin': ends at byte \d+; it was truncated while it was in use"):
        SequenceOrder(corpus.train, 32, seed=0).read(0, 40, 32)


def test_more_shards_than_a_process_may_have_files(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # write 200 shards fast
    manifest, shards = Manifest.read(folder), []
    for number in range(200):
        path = tmp_path / "many" / f"{number:05}.bin"
        path.parent.mkdir(exist_ok=True)
        with TokenStoreWriter(path, np.dtype("<u2"), manifest.tokenizer["hash"]) as writer:
            writer.append(np.full(20, number % 250))
            writer.end_document(manifest.tokenizer["eos"], hash(str(number)) % 2**64)
        shards.append({"file": path.name, "documents": 1, "tokens": 21, "crc": writer.crc})
    meta = json.loads((folder / "meta.json").read_text())
    meta.pop(CHECKSUM)
    meta |= {"shards": shards, "documents": 200, "tokens": 4200}
    (tmp_path / "many/meta.json").write_text(json.dumps(meta))
    shutil.copy(folder / "tokenizer.json", tmp_path / "many")
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 60, limit[1]))
    try:
        corpus = open_corpus("prepared", path=str(tmp_path / "many"))
        assert len(corpus.train.stores) == 200
        order = SequenceOrder(corpus.train, 21, seed=0)
        read = order.read(0, order.n_blocks, 21)[:, 0]
        assert len(set(read.tolist())) == corpus.train.n_documents > 150
        assert verify(tmp_path / "many")[1] == [] and "shards      200" in statistics.inspect(
            tmp_path / "many"
        )
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)


def test_verify_checks_all_folders_and_all_files(sound, folder, tmp_path, capsys):
    cut(folder / "00000.bin", 5)
    flip(folder / "00002.bin", 0.5)
    (folder / "plan.json").unlink()
    (tmp_path / "empty").mkdir()
    folders = [tmp_path / "missing", folder, tmp_path / "empty", sound["other"]]
    with pytest.raises(SystemExit) as ended:
        main(["data", "verify", *map(str, folders)])
    out, err = capsys.readouterr()
    assert ended.value.code == 1
    for name in ("missing/meta.json", "00000.bin", "00002.bin", "plan.json", "empty/meta.json"):
        assert name in err
    assert f"{folder}: " in out and "3 files damaged: delete" in out
    assert f"{sound['other']}: " in out and "4 shards, sound" in out


def test_inspect_reports_all_folders(sound, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["data", "inspect", str(tmp_path / "missing"), str(sound["one"])])
    out, err = capsys.readouterr()
    assert ended.value.code == 1 and "missing/meta.json" in err and f"folder      {sound['one']}" in out


def test_inspect_shows_no_control_characters_and_needs_no_split(tmp_path):
    """A text or a crafted name must not control the terminal; a single byte cannot be split."""
    (tmp_path / "a.txt").write_text("\x1b")
    prepare(Recipe(source="text", path=str(tmp_path / "a.txt")), tmp_path / "out", 1, progress=False)
    without_checksum(tmp_path / "out", crafted(skipped={"\x1b[2J": 1}))
    report = statistics.inspect(tmp_path / "out")
    assert "\x1b" not in report and "1 skipped (\\x1b[2J)" in report
    assert "tokens      2, data: the only document has 1 tokens" in report


def test_inspect_on_an_ascii_terminal(sound):
    command = [sys.executable, "-m", "lhtrain", "data", "inspect", str(sound["one"])]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    found = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert found.returncode == 0 and "document 0" in found.stdout and not found.stderr


@pytest.mark.parametrize("document", ["-1", "²", "1.5", "", "9" * 5000])
def test_no_such_document(sound, document, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["data", "inspect", str(sound["one"]), "--document", document])
    assert ended.value.code == 2 and "--document" in capsys.readouterr().err
