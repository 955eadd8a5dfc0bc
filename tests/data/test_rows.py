"""Rows of files: every format gives the same documents; what is wrong is named with its place."""

import gzip
import json
import lzma
from pathlib import Path

import pyarrow as pa
import pytest
import zstandard
from pyarrow import ipc, parquet

from lhtrain.data import plan, rows
from lhtrain.data.documents import Skip
from lhtrain.data.errors import DataError
from lhtrain.data.filters import Filters
from lhtrain.data.recipe import Recipe
from lhtrain.data.rows import read_rows, row_units

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
    """Texts of a file, in order, and how many rows were left out."""
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
    units, told = list(row_units([str(tmp_path / name)])), []
    for unit in units:
        list(read_rows(unit.items[0], "text", Filters([]), told.append))
    assert sum(told) == pytest.approx(sum(unit.size for unit in units), rel=0.25)
    assert len(told) >= 5  # also within the file, which may be one row group


@pytest.mark.parametrize("unit_bytes", [97, 1000, 5000])
def test_parts_of_a_file_hold_each_line_once(tmp_path, monkeypatch, unit_bytes):
    for module in (plan, rows):
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
        (b'{"text": "a"}\n{"text": \n', {}, "byte 14: must be a JSON object a line"),
        (b"[1]\n", {}, "must be a JSON object a line, not list"),
        (b'{"body": "a"}\n', {}, "data.column='text': .* has no such column; there is body"),
        (b'{"text": 7}\n', {}, "must hold a text, not int"),
        (b'{"text": "a"}\n', {"filters": ["size > 3"]}, "data.filters: no column 'size'; there is text"),
        (b'{"text": "a"}\n', {"filters": ["text > 3"]}, "str and int cannot be compared"),
        (b'{"text": "a"}\n', {"filters": ["text"]}, "must be 'COLUMN OPERATOR VALUE'"),
    ],
)
def test_faults_are_named_with_their_place(tmp_path, content, arguments, message):
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=message):
        documents(tmp_path / "a.jsonl", **arguments)


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
    with pytest.raises(DataError, match=r"must hold at least one file to read \(JSON lines, plain or"):
        plan.make_plan(recipe)


def test_a_file_of_another_kind_given_by_name_is_refused(tmp_path):
    (tmp_path / "a.pdf").write_bytes(b"x")
    with pytest.raises(DataError, match=r"a\.pdf': must be one of \.jsonl"):
        documents(tmp_path / "a.pdf")


def test_a_document_of_a_hundred_megabytes_passes_in_chunks(tmp_path):
    """What is in memory at a time is the line and its text, never the tokens of all of it."""
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "long " * 20_000_000}) + "\n")
    units = list(row_units([str(tmp_path / "a.jsonl")]))
    assert len(units) == 2  # the second part of the file begins within the line, and has none of its own
    [document] = [
        document
        for unit in units
        for document in read_rows(unit.items[0], "text", Filters([]), lambda n: None)
    ]
    sizes = [len(chunk) for chunk in document.chunks]
    assert sum(sizes) == 100_000_000 and max(sizes) <= 1 << 22
