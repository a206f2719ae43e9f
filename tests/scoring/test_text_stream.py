import bz2
import csv
import gzip
import json
import logging
import socket

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer_ext.errors import InputError
from trainer_ext.scoring import text_stream
from trainer_ext.scoring.text_stream import open_source

WANTED = [("The river took the road.", "a"), ("Nobody told us;\n\nnobody.", "b"), ("Käse, “quoted” and so on", "7")]


def read(path, **options):
    return list(open_source(str(path), **options))


def write(path, rows):
    """As somebody's other program would."""
    names = ("text", "number")
    if path.name.endswith((".jsonl", ".json")):
        objects = [dict(zip(names, row, strict=True)) for row in rows]
        lines = json.dumps(objects) if path.suffix == ".json" else "\n".join(map(json.dumps, objects)) + "\n"
        path.write_text(lines)
    elif path.suffix == ".parquet":
        columns = zip(*rows, strict=True)
        pyarrow.parquet.write_table(pyarrow.table(dict(zip(names, map(list, columns), strict=True))), path)
    else:
        with open(path, "w", newline="", encoding="utf-8") as file:
            csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",").writerows([names, *rows])


@pytest.mark.parametrize("name", ["x.csv", "x.tsv", "x.json", "x.jsonl", "x.parquet"])
def test_every_format_gives_the_same_rows(name, tmp_path):
    write(tmp_path / name, WANTED)
    source = open_source(str(tmp_path / name), id_column="number")
    assert [(row.text, row.id, row.error) for row in source] == [(*row, None) for row in WANTED]
    assert list(source) == list(source)  # read again
    assert [file["file"] for file in source.files] == [name]


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl"])
@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress])
def test_compressed_files_are_read(name, compress, tmp_path):
    write(tmp_path / name, WANTED)
    suffix = {gzip.compress: "gz", bz2.compress: "bz2"}[compress]
    path = tmp_path / f"{name}.{suffix}"
    path.write_bytes(compress((tmp_path / name).read_bytes()))
    assert [row.text for row in read(path)] == [text for text, _ in WANTED]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1, max_size=8))
def test_any_text_comes_through_csv_and_json(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("any")
    for name in ("x.csv", "x.jsonl"):
        write(folder / name, [(text, str(i)) for i, text in enumerate(texts)])
        rows = read(folder / name)
        assert [row.text for row in rows] == [text if text.strip() else None for text in texts]


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path, caplog):
    (tmp_path / "b").mkdir()
    write(tmp_path / "b" / "1.jsonl", WANTED[1:])
    write(tmp_path / "a.csv", WANTED[:1])
    (tmp_path / "z.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo")
    (tmp_path / "notes.md").write_text("no texts")
    (tmp_path / ".hidden.csv").write_text("text\nx\n")
    with caplog.at_level(logging.WARNING):
        source = open_source(str(tmp_path))
    assert "left out 1 files of other types, as notes.md" in caplog.text
    assert [file["file"] for file in source.files] == ["a.csv", "b/1.jsonl", "z.txt"]
    rows = list(source)
    assert [row.text for row in rows] == [*(text for text, _ in WANTED), "one", "two"]
    assert [row.file for row in rows] == [0, 1, 1, 2, 2]


BROKEN = {
    "x.csv": (
        b'text,id\nfirst,1\n"never closed,2\nthird,3\nfour,4,5\n\n,6\nb\xffd,7\n'
        b'"a ""good"" one",8\n"bad"quote,9\nlast,10\n',
        ["first", None, "third", None, None, None, 'a "good" one', None, "last"],
        [
            *("row 3: ',' expected after", "row 5: 3 fields; want 2", "row 7: the text is empty"),
            *("row 8: the text is not UTF-8", "row 10: "),
        ],
    ),
    "x.jsonl": (
        b'{"text": "first"}\n{"text": \n\n[1]\n{"text": 5}\n{"txt": "x"}\n{"text": "\\ud800"}\n{"text": "b\xffd"}\n'
        b'{"text": null}\n' + b"[" * 100_000 + b'\n{"text": "last"}',
        ["first", *[None] * 8, "last"],
        [
            *("row 2: not JSON", "row 4: a list; want an object", "row 5: text is a int; want a text"),
            *("row 6: text is missing", "row 7: the text is not UTF-8", "row 8: the text is not UTF-8"),
            *("row 9: text is missing", "row 10: not JSON"),
        ],
    ),
    "x.txt": (
        b"first\n\n \t\nb\xffd\nnull\x00inside\nlast",
        ["first", None, None, None, "null\x00inside", "last"],
        ["line 2: the text is empty", "line 3: the text is empty", "line 4: the text is not UTF-8"],
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_bad_row_is_a_row_and_those_after_it_are_read(name, tmp_path):
    content, texts, errors = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    rows = read(tmp_path / name)
    assert [row.text for row in rows] == texts
    said = [row.error for row in rows if row.error]
    assert len(said) == len(errors)
    for found, wanted in zip(said, errors, strict=True):
        assert found.startswith(f"{name}, {wanted}")


def test_a_quote_that_is_never_closed_costs_no_other_row(tmp_path):
    lines = ["text", *(f"row {i}" for i in range(2000))]
    lines[7] = '"row 6'
    (tmp_path / "x.csv").write_text("\n".join(lines) + "\n")
    assert [row.text for row in read(tmp_path / "x.csv")] == lines[1:]
    rows = read(tmp_path / "x.csv", quoting="minimal")
    assert [row.text for row in rows] == [None if i == 6 else f"row {i}" for i in range(2000)]
    assert rows[6].error == "x.csv, row 8: a quote is opened and not closed; a quote inside quotes is doubled"


def test_bad_values_of_a_parquet_file_are_rows(tmp_path):
    table = pyarrow.table({"text": pyarrow.array(["a", None, "", "b"]), "id": [1, 2, 3, 4]})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    rows = read(tmp_path / "x.parquet", id_column="id")
    assert [(row.text, row.id) for row in rows] == [("a", "1"), (None, "2"), (None, "3"), ("b", "4")]
    cells = pyarrow.array([b"a", b"b\xff", b"c"], pyarrow.binary()).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"text": cells}), tmp_path / "part[1]::z.parquet")
    assert [row.text for row in read(tmp_path / "part[1]::z.parquet")] == ["a", None, "c"]
    pyarrow.parquet.write_table(pyarrow.table({"text": [1.5]}), tmp_path / "y.parquet")
    assert read(tmp_path / "y.parquet")[0].error == "y.parquet, row 1: text is a float; want a text"


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("x.csv", b"body,id\na,1\n", "x.csv: no column 'text'; it has body, id"),
        ("x.jsonl", b'{"texts": "a"}\n', "did you mean 'texts'?"),
        ("x.json", b'"a"', "holds a str; want a list"),
        ("x.json", b"[1, 2", "x.json: row 2: not JSON"),
        ("x.parquet", b"no parquet", "x.parquet: cannot be read"),
        ("x.csv.gz", gzip.compress(b"text\n" + b"abc defg\n" * 9000)[:-20], "cannot be read beyond row"),
        ("x.docx", b"PK", "unknown file type '.docx'"),
    ],
)
def test_what_cannot_be_read_is_one_line(name, content, says, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as error:
        read(tmp_path / name)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["no.csv", "./folder", "a/b/c"])
def test_what_is_not_there_is_named(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no such file or folder"):
        open_source(name)
    with pytest.raises(InputError, match="owner/corpus: no such file, and not to be had from the Hub"):
        open_source("owner/corpus")
    with pytest.raises(InputError, match="no file to read in there"):
        open_source(str(tmp_path))


def test_an_address_that_gives_no_answer_is_an_error_within_seconds(monkeypatch):
    monkeypatch.setattr(text_stream, "_PATIENCE", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        names = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{silent.getsockname()[1]}", "AWS_ACCESS_KEY_ID": "a"}
        for name, value in (names | {"AWS_SECRET_ACCESS_KEY": "b"}).items():
            monkeypatch.setenv(name, value)
        with pytest.raises(InputError, match=r"s3://bucket/a: no answer in 0\.5 seconds; want a network, and keys"):
            open_source("s3://bucket/a")
    with pytest.raises(InputError, match=r"http://host/a\.csv: no address of a store; want s3://, gs://"):
        open_source("http://host/a.csv")
