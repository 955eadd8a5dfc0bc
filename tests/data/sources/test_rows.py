"""Rows of files: every format gives the same documents; errors name the file and the line or row."""

import gzip
import json
import logging
import lzma
import os
from contextlib import suppress
from pathlib import Path
from random import Random

import datasets
import pyarrow as pa
import pytest
import zstandard
from pyarrow import ipc, parquet

from lhtrain.data.errors import DataError
from lhtrain.data.prepare import plan
from lhtrain.data.prepare.pipeline import prepare
from lhtrain.data.prepare.recipe import Recipe
from lhtrain.data.sources import rows, table, units
from lhtrain.data.sources.documents import Skip
from lhtrain.data.sources.filters import Filters
from lhtrain.data.sources.rows import read_rows, row_units

ROWS = [
    {"text": f"über row {i}\n" * (i % 5), "score": i, "meta": {"lang": "en" if i % 2 else "de"}}
    for i in range(300)
]


def lines() -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=i % 2 == 0).encode() + b"\n" for i, row in enumerate(ROWS))


def write(path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    if path.suffix == ".parquet":
        parquet.write_table(table, path, row_group_size=70)
    elif path.suffix == ".arrow":
        with ipc.new_stream(str(path), table.schema) as stream:
            stream.write_table(table)
    else:
        pack = {".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstandard.compress}
        path.write_bytes(pack.get(path.suffix, lambda content: content)(lines()))


def documents(path: Path, filters=(), column="text"):
    """Return the texts of a file, in order, and the number of rows left out."""
    texts, left_out = [], 0
    for unit in row_units([str(path)]):
        for item in unit.items:
            for document in read_rows(item, column, Filters(filters), lambda n: None):
                if isinstance(document, Skip):
                    left_out += 1
                else:
                    texts.append(b"".join(document.chunks).decode())
    return texts, left_out


FORMATS = ["a.jsonl", "a.json", "a.jsonl.gz", "a.jsonl.xz", "a.jsonl.zst", "a.parquet", "a.arrow"]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_documents(tmp_path, name):
    write(tmp_path / name)
    texts, left_out = documents(tmp_path / name)
    assert texts == [row["text"] for row in ROWS if row["text"]] and left_out == 60


@pytest.mark.parametrize("name", FORMATS)
def test_progress_adds_up_to_the_source(tmp_path, name):
    write(tmp_path / name)
    units, reported = list(row_units([str(tmp_path / name)])), []
    for unit in units:
        list(read_rows(unit.items[0], "text", Filters([]), reported.append))
    assert sum(reported) == pytest.approx(sum(unit.size for unit in units), rel=0.25)
    assert len(reported) >= 5  # progress is reported inside a file too, even if it is one row group


@pytest.mark.parametrize("unit_bytes", [97, 1000, 5000])
def test_parts_of_a_file_have_each_line_once(tmp_path, monkeypatch, unit_bytes):
    for module in (units, rows):
        monkeypatch.setattr(module, "UNIT_BYTES", unit_bytes)
    write(tmp_path / "a.jsonl")
    assert len(list(row_units([str(tmp_path / "a.jsonl")]))) > 1
    assert documents(tmp_path / "a.jsonl")[0] == [row["text"] for row in ROWS if row["text"]]


def test_filters_choose_rows(tmp_path):
    write(tmp_path / "a.parquet")
    kept, _ = documents(tmp_path / "a.parquet", ["score >= 100", "meta.lang == en", "chars > 20"])
    wanted = [
        r["text"] for r in ROWS if r["score"] >= 100 and r["meta"]["lang"] == "en" and len(r["text"]) > 20
    ]
    assert kept == wanted and wanted


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        (b'{"text": "a"}\n{"text": \n', {}, "line 2: must be one JSON object per line"),
        (b"[1]\n", {}, "must be one JSON object per line, in UTF-8, not list.*jq -c"),
        (b'[\n{"text": "a"}\n]\n', {}, "line 1: must be one JSON object per line, in UTF-8.*jq -c"),
        (b'{\n"text": "a"\n}\n', {}, "line 1: must be one JSON object per line, in UTF-8.*jq -c"),
        (
            b'{"text": "a"}\n\n{"text": "caf\xe9"}\n',
            {},
            "line 3: must be one JSON object per line, in UTF-8 .*0xe9",
        ),
        ('{"text": "a"}\n'.encode("utf-16"), {}, "line 1: must be UTF-8, looks like UTF-16"),
        ('{"text": "a"}\n'.encode("utf-16-be"), {}, "line 1: must be UTF-8, looks like UTF-16"),
        (b'{"text": "a", "text": "b"}\n', {}, "line 1: has the key 'text' more than once"),
        (b'{"body": "a"}\n', {}, "data.column='text': .* has no such column; columns: body"),
        (b'{"n": 1, "txet": "a"}\n', {}, "no such column; columns: txet, n"),
        (b'{"text": 7}\n', {}, r"line 1 has 7 \(int\); must be a string or null"),
        (b'{"text": 0}\n', {}, r"line 1 has 0 \(int\); must be a string or null"),
        (b'{"text": ""}\n{"text": false}\n', {}, r"line 2 has False \(bool\)"),
        (b'{"text": []}\n', {}, r"line 1 has \[\] \(list\)"),
        (b'{"text": {}}\n', {}, r"line 1 has \{\} \(dict\)"),
        (
            b'{"text": {"a": "b"}}\n',
            {"column": "text.b"},
            r"data.column='text.b': .* no such column; columns: a",
        ),
        (b'{"text": "a"}\n', {"column": "text.b"}, r"text must be an object, is a str"),
        (b'{"meta": {"a": "b"}}\n', {}, r"columns: meta; .* write meta\.NAME"),
        (b'{"text": "a"}\n', {"filters": ["size > 3"]}, "data.filters='size': .* line 1 has no such column"),
        (
            b'{"text": "a"}\n',
            {"filters": ["text > 3"]},
            "line 1: text='a' > 3: str and int cannot be compared",
        ),
        (b'{"text": "a"}\n', {"filters": ["text"]}, "must be 'COLUMN OPERATOR VALUE'"),
    ],
)
def test_errors_name_the_line(tmp_path, content, arguments, message):
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=message):
        documents(tmp_path / "a.jsonl", **arguments)


@pytest.mark.parametrize("unit_bytes", [50, 1 << 26])
def test_line_numbers_count_from_the_start_of_the_file(tmp_path, monkeypatch, unit_bytes):
    for module in (units, rows):
        monkeypatch.setattr(module, "UNIT_BYTES", unit_bytes)
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "some text"}\r\n\r\n' * 20 + b"{\n")
    with pytest.raises(DataError, match=r"a\.jsonl' line 41: must be"):
        documents(tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        (b'\xef\xbb\xbf{"text": "a"}\n{"text": "b"}\n', ["a", "b"]),
        (b'\xef\xbb\xbf\r\n{"text": "a"}', ["a"]),
        (b'\xef\xbb\xbf{"text": "a"}\n\xef\xbb\xbf{"text": "b"}\n', ["a", "b"]),
        (b'\n\n{"text": "a"}\r\n  \n{"text": null}\n{"text": "b"}', ["a", "b"]),
        (b'{"text": "a\\ud800b"}\n{"text": "\\ud83d\\ude00"}\n', ["a\ufffdb", "😀"]),
        (b'{"text": "a\\u0000b\\r\\n\xe2\x80\xa8c"}\n', ["a\0b\r\n\u2028c"]),
        (b'{"text": "a", "meta": {"x": 1, "x": 2}}\n', ["a"]),
        (b'{"id": NaN, "text": "a"}\n', ["a"]),
    ],
)
def test_odd_lines_are_read(tmp_path, content, texts):
    for name, pack in (("a.jsonl", bytes), ("A.JSONL", bytes), ("a.jsonl.gz", gzip.compress)):
        (tmp_path / name).write_bytes(pack(content))
        assert documents(tmp_path / name)[0] == texts


@pytest.mark.parametrize("name", FORMATS)
def test_a_column_in_an_object(tmp_path, name):
    write(tmp_path / name)
    texts, left_out = documents(tmp_path / name, column="meta.lang", filters=["score < 4"])
    assert texts == ["de", "en", "de", "en"] and left_out == 296


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.arrow"])
def test_a_column_of_exactly_this_name_comes_first(tmp_path, monkeypatch, name):
    monkeypatch.setitem(globals(), "ROWS", [{"a.b": "flat", "a": {"b": "nested"}, "n.q": 1, "n": {"q": 2}}])
    write(tmp_path / name)
    assert documents(tmp_path / name, column="a.b", filters=["n.q == 1"])[0] == ["flat"]


def test_null_on_the_way_to_a_column_is_empty(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"meta": null}\n{"meta": {"q": "b"}}\n')
    assert documents(tmp_path / "a.jsonl", column="meta.q") == (["b"], 1)


@pytest.mark.parametrize(
    "array",
    [
        pa.array(["a", None, "b"]),
        pa.array(["a", None, "b"], pa.large_string()),
        pa.array(["a", None, "b"], pa.string_view()),
        pa.array(["a", None, "b"]).dictionary_encode(),
    ],
)
@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_every_type_of_text_is_read(tmp_path, array, kind):
    table = pa.table({"text": array})
    if kind == "parquet":
        parquet.write_table(table, tmp_path / "a.parquet")
    else:
        with ipc.new_file(str(tmp_path / "a.arrow"), table.schema) as file:
            file.write_table(table)
    assert documents(tmp_path / f"a.{kind}") == (["a", "b"], 1)


@pytest.mark.parametrize("values", [[b"a"], [["a"]], [1.5], [{"a": "b"}]])
def test_the_error_names_the_row_of_a_column_of_another_type(tmp_path, values):
    parquet.write_table(pa.table({"text": values}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet' row group 0 row 0 has .*; must be a string or null"):
        documents(tmp_path / "a.parquet")


def test_files_of_other_columns_and_without_rows(tmp_path):
    parquet.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "a.parquet")
    parquet.write_table(pa.table({"n": [1], "text": ["a"]}), tmp_path / "b.parquet")
    parquet.write_table(pa.table({"text": ["b"], "other": [{"x": 1}]}), tmp_path / "c.parquet")
    assert documents(tmp_path) == (["a", "b"], 0)
    parquet.write_table(pa.table({"Text": ["c"], "n": [1]}), tmp_path / "d.parquet")
    with pytest.raises(
        DataError, match=r"d\.parquet' row group 0 row 0 has no such column; columns: Text, n"
    ):
        documents(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n', mtime=0) + b"garbage"),
        ("a.jsonl.zst", zstandard.compress(b'{"text": "a"}\n') + b"garbage"),
        ("a.jsonl.xz", lzma.compress(b'{"text": "a"}\n') + b"garbage"),
        ("a.jsonl.gz", b'{"text": "a"}\n'),
        ("a.jsonl.zst", b'{"text": "a"}\n'),
        ("a.arrow", b'{"text": "a"}\n'),
        ("a.parquet", b'{"text": "a"}\n'),
        ("a.parquet", b"PAR1" * 3),
    ],
)
def test_the_error_names_a_file_with_the_wrong_content(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name}': must be"):
        documents(tmp_path / name)


@pytest.mark.parametrize(
    ("ending", "pack"), [("gz", gzip.compress), ("zst", zstandard.compress), ("xz", lzma.compress)]
)
def test_compressed_frames_that_follow_each_other_are_read(tmp_path, ending, pack):
    path = tmp_path / f"a.jsonl.{ending}"
    padding = b"" if ending == "zst" else b"\0" * 8
    path.write_bytes(pack(b'{"text": "a"}\n{"te') + padding + pack(b'xt": "b"}\n') + padding)
    assert documents(path)[0] == ["a", "b"]


def test_an_arrow_stream_cut_between_two_batches_is_an_error(tmp_path):
    """pyarrow takes the cut for the end of the stream."""
    table = pa.table({"text": ["a", "b"]})
    with ipc.new_stream(str(tmp_path / "a.arrow"), table.schema) as stream:
        stream.write_table(table)
    (tmp_path / "a.arrow").write_bytes((tmp_path / "a.arrow").read_bytes()[:-8])
    with pytest.raises(DataError, match=r"a\.arrow': must be a complete arrow file"):
        documents(tmp_path / "a.arrow")


@pytest.mark.parametrize("name", ["a.arrow", "a.parquet"])
def test_damaged_files_are_read_or_raise_data_error(tmp_path, name):
    """No other exception, and no crash of the process."""
    write(tmp_path / name)
    content, random = (tmp_path / name).read_bytes(), Random(0)
    for _ in range(60):
        damaged = bytearray(content[: random.randrange(1, len(content))])
        if random.random() < 0.7:
            damaged = bytearray(content)
            for _ in range(4):
                damaged[random.randrange(len(content))] = random.randrange(256)
        (tmp_path / name).write_bytes(damaged)
        with suppress(DataError):
            documents(tmp_path / name)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet", "a.arrow"])
def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path, monkeypatch, name):
    write(tmp_path / name)

    def changing(*arguments):
        os.utime(tmp_path / name, ns=(1, 1))
        return read_rows(*arguments)

    monkeypatch.setattr(table, "read_rows", changing)
    with pytest.raises(DataError, match=rf"{name}' changed while it was prepared"):
        prepare(Recipe(source="files", path=str(tmp_path / name)), tmp_path / "out", 1, progress=False)


def test_files_of_other_kinds_in_a_folder_are_counted(tmp_path, caplog):
    write(tmp_path / "a.jsonl")
    for name in ("b.csv", "c.jsonl.bz2", "README"):
        (tmp_path / name).write_text("x")
    with caplog.at_level(logging.WARNING):
        list(row_units([str(tmp_path)]))
    assert "skipped 3 file(s) of other kinds" in caplog.text and ".jsonl.gz" in caplog.text


def test_an_empty_file_given_by_name_is_refused(tmp_path):
    (tmp_path / "a.jsonl").touch()
    with pytest.raises(DataError, match=r"a\.jsonl': has 0 bytes"):
        documents(tmp_path / "a.jsonl")


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.xz", "a.jsonl.zst", "a.parquet"])
def test_a_truncated_file_is_an_error(tmp_path, name):
    write(tmp_path / name)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="must be"):
        documents(tmp_path / name)


def test_a_folder_without_rows_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    recipe = Recipe(source="files", path=str(tmp_path))
    with pytest.raises(DataError, match=r"must contain at least one file to read \(JSON lines, plain or"):
        plan.make_plan(recipe)


def test_a_file_of_another_kind_given_by_name_is_refused(tmp_path):
    (tmp_path / "a.pdf").write_bytes(b"x")
    with pytest.raises(DataError, match=r"a\.pdf': must end in one of \.jsonl"):
        documents(tmp_path / "a.pdf")


def test_a_document_of_a_hundred_megabytes_passes_in_chunks(tmp_path):
    """Only the line and its text are in memory as a whole, not the tokens."""
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "long " * 20_000_000}) + "\n")
    units = list(row_units([str(tmp_path / "a.jsonl")]))
    assert len(units) == 2  # the second part of the file begins inside the line, so it has no line of its own
    [document] = [
        document
        for unit in units
        for document in read_rows(unit.items[0], "text", Filters([]), lambda n: None)
    ]
    sizes = [len(chunk) for chunk in document.chunks]
    assert sum(sizes) == 100_000_000 and max(sizes) <= 1 << 22


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.jsonl.xz", "a.parquet", "a.arrow"]
)
def test_pointers_of_git_lfs_are_named(tmp_path, name):
    """A clone has pointers instead of the files if `git lfs` is not installed."""
    (tmp_path / name).write_bytes(LFS)
    with pytest.raises(DataError, match=rf"{name}': is a Git LFS pointer.*git lfs pull"):
        documents(tmp_path / name)


def test_a_folder_that_datasets_saved_is_read(tmp_path):
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    texts, left_out = documents(tmp_path / "saved")
    assert texts == [row["text"] for row in ROWS if row["text"]] and left_out == 60
