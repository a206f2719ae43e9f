"""One reader for training, pre-training, scoring and the demo: the same file gives the same rows everywhere."""

import csv
import gzip
import io
import json
import time
import tracemalloc
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trainer_ext.data import delimited
from trainer_ext.data.load import load_corpus, read_texts
from trainer_ext.data.pretraining_texts import PretrainingArguments, load_pretraining_corpus
from trainer_ext.data.rows import read_rows
from trainer_ext.errors import InputError
from trainer_ext.scoring.text_stream import READ_CHARACTERS, open_source

TEXTS = ["what a lovely day", "rain again\u2028and again", "we won the match\u0085\x0b\x0c", "Käse, “quoted”"]
LABELS = ["joy", "sadness", "joy", "sadness"]


def as_training(path: Path, **options) -> list[str]:
    return load_corpus(files={"train": str(path)}, **options).splits["train"]["text"][:]


def as_scoring(path: Path, **options) -> list[str | None]:
    return [row.text for row in open_source(str(path), **options)]


def as_pretraining(path: Path, **options) -> list[str]:
    data = PretrainingArguments(train_file=[str(path)], validation_split_percentage=0, data_dir=None, **options)
    return load_pretraining_corpus(data, seed=1).train["text"][:]


def as_stream(path: Path, **options) -> list[str]:
    data = PretrainingArguments(
        train_file=[str(path)], validation_split_percentage=0, data_dir=None, streaming=True, **options
    )
    return sorted(row["text"] for row in load_pretraining_corpus(data, seed=1).train)


def read_everywhere(path: Path, **options) -> list[str]:
    """The texts, after every reader gave the same ones."""
    texts = as_training(path, **options)
    assert as_scoring(path, **options) == texts
    assert as_pretraining(path, **options) == texts
    assert as_stream(path, **options) == sorted(texts)
    return texts


def csv_of(rows, delimiter=",", end="\n", quoting=csv.QUOTE_MINIMAL) -> str:
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter, lineterminator=end, quoting=quoting).writerows(rows)
    return out.getvalue()


TABLE = csv_of([["text", "label"], *zip(TEXTS, LABELS, strict=True)])
OBJECTS = [{"text": text, "label": label} for text, label in zip(TEXTS, LABELS, strict=True)]
JSON_LINES = "\n".join(json.dumps(row, ensure_ascii=False) for row in OBJECTS) + "\n"
FILES = {
    "commas": ("a.csv", TABLE.encode()),
    "semicolons": ("a.csv", csv_of([["text", "label"], *zip(TEXTS, LABELS, strict=True)], ";").encode()),
    "semicolons, and a comma in a name": (
        "a.csv",
        csv_of(
            [["text", "label", "why, in words"], *((*row, "") for row in zip(TEXTS, LABELS, strict=True))], ";"
        ).encode(),
    ),
    "tabs in a csv": ("a.csv", csv_of([["text", "label"], *zip(TEXTS, LABELS, strict=True)], "\t").encode()),
    "commas in a tsv": ("a.tsv", TABLE.encode()),
    "CRLF": ("a.csv", TABLE.replace("\n", "\r\n").encode()),
    "CR alone": ("a.csv", TABLE.replace("\n", "\r").encode()),
    "a byte order mark": ("a.csv", TABLE.encode("utf-8-sig")),
    "UTF-16": ("a.csv", TABLE.encode("utf-16")),
    "UTF-16 without a mark": ("a.csv", TABLE.encode("utf-16-be")),
    "UTF-32": ("a.csv", TABLE.encode("utf-32")),
    "gzip of UTF-16": ("a.csv.gz", gzip.compress(TABLE.encode("utf-16"))),
    "blank lines": ("a.csv", TABLE.replace("\n", "\n\n").encode()),
    "empty columns and rows": ("a.csv", TABLE.replace("\n", ",,\n").encode() + b",,,\n,,,\n"),
    "JSON lines": ("a.jsonl", JSON_LINES.encode()),
    "JSON lines in a json": ("a.json", JSON_LINES.encode()),
    "a list in a jsonl": ("a.jsonl", json.dumps(OBJECTS, indent=1).encode()),
    "JSON lines in UTF-16": ("a.jsonl", JSON_LINES.encode("utf-16")),
    "JSON lines with CR and blank lines": ("a.jsonl", JSON_LINES.replace("\n", "\r\r").encode()),
    "a list over many reads": ("a.json.gz", gzip.compress(json.dumps(OBJECTS, indent=40_000).encode("utf-16"))),
}
FILES["the separator as Excel says it"] = ("a.csv", b"sep=;\r\n" + FILES["semicolons"][1])


@pytest.mark.parametrize("name", FILES)
def test_every_part_reads_the_same_rows(name, tmp_path):
    file, content = FILES[name]
    (tmp_path / file).write_bytes(content)
    assert read_everywhere(tmp_path / file) == TEXTS


def test_a_line_of_text_ends_where_editors_end_it(tmp_path):
    for content in (
        "\n".join(TEXTS).encode(),
        "\r".join(TEXTS).encode("utf-16"),
        "\r\n".join(TEXTS).encode("utf-8-sig"),
    ):
        (tmp_path / "a.txt").write_bytes(content)
        assert as_scoring(tmp_path / "a.txt") == as_pretraining(tmp_path / "a.txt") == TEXTS


# ---- Quotes -------------------------------------------------------------------------------------------------------
ROWS = [("what a lovely day", "joy"), ("we won", "joy"), ("my cat is gone", "sadness"), ("the choir sang", "joy")]


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
@pytest.mark.parametrize(
    "quoted",
    [
        ['"he said he would call', 'and that was all"'],
        ['"he said he would call', 'the sign read "closed"', 'and that was all"'],
        ['"closed" is what it said'],
        ['"closed"', '"never closed'],
        ['"" is empty'],
    ],
)
def test_quotes_that_are_only_characters_swallow_no_row(suffix, quoted, tmp_path):
    rows = [*ROWS[:2], *((text, "sadness") for text in quoted), *ROWS[2:]]
    rows[3:3] = [ROWS[0]] * 2
    delimiter = "," if suffix == "csv" else "\t"
    path = tmp_path / f"a.{suffix}"
    path.write_text("\n".join(map(delimiter.join, [("text", "label"), *rows])))
    texts = [text for text, _ in rows]
    assert as_training(path) == as_scoring(path) == texts
    assert as_training(path, quoting="none") == as_scoring(path, quoting="none") == texts


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
def test_quotes_that_are_syntax_are_taken_off(suffix, quoting, tmp_path):
    texts = ['He said, "no"', "two\nlines, and\ta tab", '"whole"', "a,b\nc,d\ne", "plain", 'x ""y"" z\n\n1\t2']
    rows = [["text", "label"], *zip(texts, ["joy", "fear"] * 3, strict=True)]
    path = tmp_path / f"a.{suffix}"
    path.write_text(csv_of(rows, "," if suffix == "csv" else "\t", quoting=quoting), newline="")
    assert as_training(path) == as_scoring(path) == texts


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.tuples(st.text(st.sampled_from('ab",;\t\n\r x'), min_size=1), st.sampled_from("xyz")), min_size=1),
    st.sampled_from([",", "\t", ";"]),
)
@example([('"a', "x"), ('b"', "y")], ",")
def test_what_a_csv_writer_wrote_is_read_as_written(tmp_path_factory, rows, delimiter):
    path = tmp_path_factory.mktemp("any") / ("a.tsv" if delimiter == "\t" else "a.csv")
    path.write_text(csv_of([["text", "label"], *rows], delimiter, "\r\n"), newline="")
    assert [list(record.values.values()) for record in read_rows(path, quoting="minimal")] == [list(r) for r in rows]


@settings(deadline=None, max_examples=150)
@given(st.lists(st.text(st.sampled_from('ab",\n \r\0é'))), st.sampled_from(delimited.QUOTING))
def test_no_line_is_lost_and_none_is_made_up(tmp_path_factory, lines, quoting):
    """Each line of anything is in a row, in one with an error, blank, or inside an open quote of one that was read."""
    path = tmp_path_factory.mktemp("any") / "a.csv"
    path.write_text("\n".join(["a,b", *lines]), newline="")
    records = list(read_rows(path, quoting=quoting))
    content = path.read_text().split("\n")[1:]
    if quoting == "none":
        while content and not content[-1].strip(","):
            content.pop()
        assert len(records) == sum(line != "" for line in content)
    told = sum(1 + (record.values is not None and "".join(record.values.values()).count("\n")) for record in records)
    assert told <= len(content)


def test_a_row_that_a_stray_quote_would_swallow_is_an_error_and_those_after_it_are_read(tmp_path):
    """Quotes are syntax in this file, so a stray one is wrong: training says so, scoring goes on."""
    good = [(f'He said, "no {i}"', "joy") for i in range(20)]
    lines = csv_of([["text", "label"], *good], "\t").splitlines()
    lines[5:5] = ['"he said he would call\tsadness', "my cat is gone\tsadness", 'and that was all"\tsadness']
    path = tmp_path / "a.tsv"
    path.write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"a\.tsv, row 6: a quote that is closed 2 lines later.*--quoting"):
        as_training(path)
    assert [text is None for text in as_scoring(path)].count(True) == 1
    assert len(as_scoring(path)) == 23


def test_stray_quotes_are_read_in_linear_time(tmp_path):
    for line in ('"a\n', 'a","x\n', '"a" b\n', '"\n', 'x,"\n', '"a""\n'):
        (tmp_path / "a.csv").write_text("text,label\n" + line * 10_000)
        for quoting in delimited.QUOTING:
            start = time.process_time()
            rows = as_scoring(tmp_path / "a.csv", quoting=quoting)
            assert time.process_time() - start < 2
            assert len(rows) >= (1 if quoting == "minimal" else 5_000)


# ---- One long row -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.jsonl", "a.txt.gz"])
def test_a_row_without_end_costs_its_row_and_little_memory(name, tmp_path, monkeypatch):
    monkeypatch.setattr(delimited, "LONGEST_ROW", 2**20)
    long = b"x" * 40_000_000
    content = {
        "a.txt": b"first\n" + long + b"\nlast",
        "a.csv": b"text,n\nfirst,1\n" + long + b",2\nlast,3\n",
        "a.jsonl": b'{"text": "first"}\n{"text": "' + long + b'"}\n{"text": "last"}',
        "a.txt.gz": gzip.compress(b"first\n" + long + b"\nlast"),
    }[name]
    (tmp_path / name).write_bytes(content)
    tracemalloc.start()
    rows = list(open_source(str(tmp_path / name)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [row.text for row in rows] == ["first", None, "last"]
    assert "2: a row of more than 1,048,576 characters" in rows[1].error or "row 3: a row of more" in rows[1].error
    assert peak < 20_000_000


def test_a_long_text_is_cut_as_it_is_read(tmp_path):
    (tmp_path / "a.txt").write_text("word " * 100_000 + "\nshort")
    long, short = open_source(str(tmp_path / "a.txt"))
    assert (len(long.text), long.cut) == (READ_CHARACTERS, True)
    assert (short.text, short.cut) == ("short", False)


# ---- What is not text ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("row", [{"text": "\ud83d", "label": "a"}, {"text": "x", "label": "\udc00"}, {"t\udfff": 1}])
def test_half_a_character_is_named_by_training(row, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "x", "label": "a"}) + "\n" + json.dumps({"text": "y", "label": "b"} | row))
    with pytest.raises(InputError, match=r"a\.jsonl, row 2: not UTF-8: half of a character"):
        as_training(path)


def test_odd_names_and_deep_nesting_are_no_traceback(tmp_path):
    folder = tmp_path / "in\udcff"
    folder.mkdir()
    (folder / "b\udcfe.csv").write_text("text,label\nx,a\ny,b\n")
    source = open_source(str(folder), text_column="text")
    assert [row.text for row in source] == ["x", "y"]
    json.dumps(source.files, ensure_ascii=False).encode()
    load_corpus(files={"train": str(folder / "b\udcfe.csv")}).source.encode()
    for name, content in (
        ("a.json", b"[" * 100_000),
        ("b.json", b'{"text": ' * 100_000),
        ("c.json", b'[{"a": ' * 100_000),
    ):
        (tmp_path / name).write_bytes(content)
        for read in (as_training, as_scoring):
            with pytest.raises(InputError, match="not JSON"):
                read(tmp_path / name)
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(b'{"text": "caf\xe9"}\n{"text": "x"}\n'))
    assert as_scoring(tmp_path / "d.jsonl.gz") == [None, "x"]
    with pytest.raises(InputError, match=r"row 1: not UTF-8 \(byte 0xe9\)"):
        read_texts(tmp_path / "d.jsonl.gz")


def test_a_parquet_file_may_hold_anything(tmp_path):
    path = tmp_path / "a.parquet"
    bad = pyarrow.array([b"x", b"\xff"], pyarrow.binary()).view(pyarrow.string())
    cells = {
        "text": pyarrow.array(["a", "b"]),
        "label": pyarrow.array(["l", "m"]),
        "nested": pyarrow.StructArray.from_arrays([bad], ["of"]),
        "when": pyarrow.array([0, 2**60], pyarrow.timestamp("ms")),
    }
    pyarrow.parquet.write_table(pyarrow.table(cells), path)
    assert as_scoring(path) == ["a", "b"]
    with pytest.raises(InputError, match=r"a\.parquet, row 2: (nested is not UTF-8|when cannot be read)"):
        as_training(path)
    twice = pyarrow.Table.from_arrays([cells["text"], cells["text"], cells["label"]], ["text", "text", "label"])
    pyarrow.parquet.write_table(twice, path)
    for read in (as_training, as_scoring):
        with pytest.raises(InputError, match="names 'text' twice"):
            read(path)


# ---- Labels -------------------------------------------------------------------------------------------------------
def labels_of(rows, tmp_path, **options):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": f"text {i}", "label": label}) + "\n" for i, label in enumerate(rows)))
    corpus = load_corpus(files={"train": str(path)}, **options)
    return corpus.problem_type.partition("_")[0], corpus.label_names, corpus.splits["train"]["labels"][:]


@given(st.permutations([[2, 5], [0], [1, 2], [0, 1, 2], []]))
@settings(deadline=None, max_examples=20)
def test_lists_of_label_numbers_mean_the_same_in_any_order(tmp_path_factory, rows):
    kind, names, labels = labels_of(rows, tmp_path_factory.mktemp("any"))
    assert (kind, names) == ("multi", ["0", "1", "2", "5"])
    assert [[int(name) for name, value in zip(names, row, strict=True) if value] for row in labels] == rows


def test_lists_as_long_as_one_another_may_be_numbers_too(tmp_path):
    assert labels_of([[2, 5], [0, 1]], tmp_path)[1:] == (["0", "1", "2", "5"], [[0, 0, 1, 1], [1, 1, 0, 0]])
    assert labels_of([[0, 2], [1, 2]], tmp_path, label_names=["a", "b", "c"])[2] == [[1, 0, 1], [0, 1, 1]]
    assert labels_of([[1, 0, 0], [0, 0, 1]], tmp_path)[::2] == ("single", [0, 2])
    with pytest.raises(InputError, match=r"row 2: label is \[1, 0\]; want 3 numbers"):
        labels_of([[1, 0, 0], [1, 0], [0, 0, 1]], tmp_path)


def test_whole_floats_are_integers_and_other_floats_no_labels(tmp_path):
    for name, content in (("a.csv", "text,label\nx,1\ny,0\n"), ("b.csv", "text,label\nx,1.0\ny,0.0\n")):
        (tmp_path / name).write_text(content)
    corpus = load_corpus(files={"train": str(tmp_path / "a.csv"), "validation": str(tmp_path / "b.csv")})
    assert corpus.label_names == ["0", "1"]
    assert corpus.splits["validation"]["labels"][:] == [1, 0]
    for label in ("0.73", "-1.5", "1e-3"):
        (tmp_path / "a.csv").write_text(f"text,label\nx,1\ny,{label}\n")
        with pytest.raises(InputError, match=f"row 3: label is {label}; want a name or an integer"):
            as_training(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"x,s{i}\n" for i in range(120)))
    with pytest.raises(InputError, match="120 different labels in 120 rows"):
        as_training(tmp_path / "a.csv")
    with pytest.raises(InputError, match="row 1: label is a text of 601 characters"):
        labels_of(["word " * 120 + "."], tmp_path)


def test_the_label_names_of_a_parquet_file_are_used(tmp_path):
    for split, names in (("train", ["joy", "sad"]), ("validation", ["sad", "joy"])):
        features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
        rows = Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]}, features=features)
        rows.to_parquet(tmp_path / f"{split}.parquet")
    corpus = load_corpus(files={split: str(tmp_path / f"{split}.parquet") for split in ("train", "validation")})
    assert corpus.label_names == ["joy", "sad"]
    assert [corpus.splits[split]["labels"][:] for split in ("train", "validation")] == [[0, 1], [1, 0]]
    features = Features({"text": Value("string"), "label": List(ClassLabel(names=["x", "y", "z"]))})
    Dataset.from_dict({"text": ["a", "b"], "label": [[0, 2], []]}, features=features).to_parquet(tmp_path / "c.parquet")
    corpus = load_corpus(files={"train": str(tmp_path / "c.parquet")})
    assert (corpus.label_names, corpus.splits["train"]["labels"][:]) == (["x", "y", "z"], [[1, 0, 1], [0, 0, 0]])
