"""Rows of people's own files: every part reads the same ones, and finds the same columns, labels and held-out rows."""

import csv
import gzip
import io
import json
import logging
import os
import time
import tracemalloc
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trainer_ext.data import delimited, pretraining_texts
from trainer_ext.data.columns import choose_columns, plain_name
from trainer_ext.data.corpus import Corpus
from trainer_ext.data.findings import class_table, columns
from trainer_ext.data.folds import hold_out_validation
from trainer_ext.data.load import DataArguments, corpus_arguments, load_corpus, load_extra_test, read_texts
from trainer_ext.data.pretraining_texts import PretrainingArguments, load_pretraining_corpus
from trainer_ext.data.rows import read_rows, text_columns
from trainer_ext.errors import InputError
from trainer_ext.runs.run import training_settings
from trainer_ext.runs.variants import resolve
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
PARQUET = io.BytesIO()
pyarrow.parquet.write_table(pyarrow.Table.from_pylist(OBJECTS), PARQUET)
for suffix, content in ((b".csv", TABLE.encode()), (b".jsonl", JSON_LINES.encode()), (b".parquet", PARQUET.getvalue())):
    FILES[f"a {suffix.decode()} whose name is not UTF-8"] = (os.fsdecode(b"caf\xe9" + suffix), content)
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


@pytest.mark.parametrize("names", [["1", "2", "3"], ["-1", "0", "1"], ["2", "1", "0"], ["1.0", " 0 ", "x"]])
@pytest.mark.parametrize("label_set", [None, "reversed"])
def test_an_integer_of_a_column_of_classes_is_a_position_whatever_their_names(names, label_set, tmp_path):
    label_names = names[::-1] if label_set else None
    ids = [names[::-1].index(name) if label_set else i for i, name in enumerate(names)]
    features = {"text": Value("string"), "one": ClassLabel(names=names), "many": List(ClassLabel(names=names))}
    rows = {"text": ["a", "b", "c"], "one": [0, 1, 2], "many": [[0], [1, 2], []]}
    Dataset.from_dict(rows, features=Features(features)).to_parquet(tmp_path / "a.parquet")
    files = {"train": str(tmp_path / "a.parquet")}
    one = load_corpus(files=files, label_column="one", label_names=label_names)
    assert (one.label_names, one.splits["train"]["labels"][:]) == (label_names or names, ids)
    many = load_corpus(files=files, label_column="many", label_names=label_names)
    hot = [[float(i in chosen) for i in range(3)] for chosen in ([ids[0]], ids[1:], [])]
    assert many.splits["train"]["labels"][:] == hot


# ---- Columns: which are chosen ---------------------------------------------------------------------------------------
NEWS = [f"They closed gate number {index} and told us nothing" for index in range(60)]


def chosen(tmp_path, columns: dict[str, list], suffix: str = "csv", **flags) -> DataArguments:
    path = tmp_path / f"mine.{suffix}"
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    if suffix == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    elif suffix == "csv":
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(columns))
            writer.writeheader()
            writer.writerows(rows)
    else:
        names = ClassLabel(names=["joy", "fear"])
        features = Features({name: names if name == "f" else Value("string") for name in columns})
        Dataset.from_dict(columns, features=features).to_parquet(path)
    data_args = DataArguments(data_dir=None, train_file=str(path), **flags)
    choose_columns(data_args)
    return data_args


def test_usual_names_in_any_spelling_are_found(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    labels, numbers = ["joy", "fear"] * 30, list(range(60))
    found = chosen(
        tmp_path,
        {
            "Tweet_ID": numbers, "userName": [f"u{i % 6}" for i in numbers], "Tweet Text": NEWS, "Emotion": labels,
            "confidence": [0.5] * 60, "Split": ["train", "train", "dev"] * 20,
        },
    )  # fmt: skip
    assert (found.text_column_name, found.label_column_name, found.id_column_name) == (
        "Tweet Text", "Emotion", "Tweet_ID",
    )  # fmt: skip
    assert (found.group_column_name, found.split_column_name) == ("userName", "Split")
    (line,) = caplog.messages
    assert "text 'Tweet Text', label 'Emotion', group 'userName', id 'Tweet_ID'" in line


def test_a_flag_wins_and_text_and_label_are_taken_as_before(tmp_path):
    columns = {"text": NEWS, "essay": NEWS, "label": [0, 1] * 30, "emotion": ["joy", "fear"] * 30}
    found = chosen(tmp_path, columns)
    assert (found.text_column_name, found.label_column_name) == ("text", "label")
    found = chosen(tmp_path, columns, text_column_name="essay", label_column_name="emotion")
    assert (found.text_column_name, found.label_column_name) == ("essay", "emotion")


@pytest.mark.parametrize("labels", [["joy", "fear"] * 30, [0, 1] * 30, [["joy"], ["joy", "fear"], []] * 20])
def test_values_decide_where_names_say_nothing(tmp_path, labels):
    found = chosen(tmp_path, {"n": [i * 7 for i in range(60)], "q": NEWS, "f": labels}, "jsonl")
    assert (found.text_column_name, found.label_column_name) == ("q", "f")


def test_a_column_of_classes_is_the_label(tmp_path):
    found = chosen(tmp_path, {"kind": ["a", "b"] * 30, "q": NEWS, "f": [0, 1] * 30}, "parquet")
    assert found.label_column_name == "f"


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"essay": NEWS, "review": NEWS, "mood": ["a", "b"] * 30}, "the text may be essay or review; name it"),
        ({"essay": NEWS, "mood": ["a", "b"] * 30, "emotion": ["c", "d"] * 30}, "the label may be mood or emotion"),
        ({"essay": NEWS, "joy": [0, 1] * 30, "fear": [1, 0] * 30}, "or one per label: --label_column_name joy,fear"),
        ({"a": list(range(60)), "mood": ["a", "b"] * 30}, "no column is surely the text; it has a and mood; name it"),
        ({"essay": NEWS, "score": [0.5, 0.25] * 30}, "no column is surely the label; it has essay and score; name it"),
        ({"essay": NEWS, "target": NEWS}, "no column is surely the label"),  # as many labels as rows
    ],
)  # fmt: skip
def test_what_cannot_be_decided_is_asked(tmp_path, columns, says):
    with pytest.raises(InputError, match=says) as error:
        chosen(tmp_path, columns)
    assert "\n" not in str(error.value)


def test_an_id_that_repeats_and_a_group_of_two_are_left(tmp_path):
    columns = {"text": NEWS, "label": ["a", "b"] * 30, "id": [1] * 60, "user": ["m", "f"] * 30}
    found = chosen(tmp_path, columns)
    assert (found.id_column_name, found.group_column_name) == (None, None)


@pytest.mark.parametrize("names", [["Train", "TRAIN", "Dev"], ["training", "testing", " validation"]])
def test_a_column_that_names_splits_divides_the_rows_whatever_its_name(tmp_path, names):
    found = chosen(tmp_path, {"text": NEWS, "label": ["a", "b"] * 30, "fold": names * 20})
    assert found.split_column_name == "fold"
    corpus = load_corpus(**corpus_arguments(found))
    assert sum(map(len, corpus.splits.values())) == 60
    assert len(corpus.splits["train"]) < 60


def test_a_ticket_and_a_conversation_are_the_id_and_the_group(tmp_path):
    columns = {"ticket_id": range(60), "text": NEWS, "label": ["a", "b"] * 30}
    columns["Conversation No"] = [i % 7 for i in range(60)]
    found = chosen(tmp_path, columns)
    assert (found.id_column_name, found.group_column_name) == ("ticket_id", "Conversation No")


def test_a_file_without_a_header_is_not_read(tmp_path):
    with pytest.raises(InputError, match="its first line is a row and no header, for 'joy' is a value"):
        chosen(tmp_path, {NEWS[0]: NEWS[1:], "joy": ["joy", "fear"] * 29 + ["joy"]})
    chosen(tmp_path, {"text": NEWS, "joy": ["joy", "fear"] * 30})  # a class and the name of its column


def test_an_id_that_repeats_is_named(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    chosen(tmp_path, {"id": [*range(59), 4], "text": NEWS, "label": ["a", "b"] * 30})
    assert "column 'id' does not identify the rows, for rows 6 and 61 have '4'; they go by number" in caplog.text


def test_names_are_compared_by_their_words():
    assert [plain_name(name) for name in ("TweetText", " Tweet text", "tweet-text")] == ["tweet_text"] * 3


# ---- Held-out rows ------------------------------------------------------------------------------------------------
def corpus(labels: list, names: list[str], **columns: list) -> Corpus:
    rows = {"id": [f"r{i}" for i in range(len(labels))], "text": [f"text {i}" for i in range(len(labels))]}
    return Corpus(
        {"train": Dataset.from_dict(rows | {"labels": labels} | columns)}, names, "single_label_classification", "x"
    )


def test_every_class_keeps_training_rows_and_shares_are_kept():
    divided = hold_out_validation(corpus([0] * 60 + [1] * 30 + [2] * 2 + [3], ["a", "b", "c", "d"]), 20, seed=1)
    train, validation = (list(divided.class_counts(split).values()) for split in ("train", "validation"))
    assert all(train)
    assert (validation[0], validation[1], validation[3]) == (12, 6, 0)


def test_groups_and_copies_stay_together():
    groups = [f"g{i // 5}" for i in range(100)]
    divided = hold_out_validation(corpus([i % 2 for i in range(100)], ["a", "b"], group=groups), 20, seed=1)
    assert not set(divided.splits["train"]["group"]) & set(divided.splits["validation"]["group"])
    assert len(divided.splits["validation"]) == 20
    copies = [f"They left {i // 2}{'!' * (i % 2)}" for i in range(40)]
    divided = hold_out_validation(corpus([i // 2 % 2 for i in range(40)], ["a", "b"], text=copies), 20, seed=1)
    held_out = {text.strip("!") for text in divided.splits["validation"]["text"]}
    assert not held_out & {text.strip("!") for text in divided.splits["train"]["text"]}


@pytest.mark.parametrize(
    ("labels", "groups"), [([0, 1, 2], "abc"), ([0, 1] * 4, "aaaabbbb"), ([0] * 4 + [1] * 4, "aaaabbbb")]
)
def test_nothing_is_held_out_where_a_class_would_be_lost(labels, groups):
    assert "validation" not in hold_out_validation(corpus(labels, ["a", "b", "c"], group=list(groups)), 20, 1).splits


# ---- The table ----------------------------------------------------------------------------------------------------
def test_the_table_stays_readable_with_a_thousand_classes():
    names = [f"class {i}\n{'x' * 90}" for i in range(1000)]
    lines = class_table(corpus([min(i, 999) for i in range(1000)] + [3] * 50, names))
    assert len(lines) == 18
    assert lines[1].startswith("class 3 x")
    assert lines[1].endswith("51")
    assert "... 985 more" in lines[11]
    assert lines[-1].split() == ["rows", "1,050"]
    assert max(map(len, lines)) <= 80


def test_the_table_is_narrow_with_wide_characters():
    names = [f"感情{i} " + "感" * i for i in range(60)]
    lines = class_table(corpus(list(range(60)), names))
    assert max(map(columns, lines)) <= 80
    assert len({columns(line) for line in lines[1:-1] if "more" not in line}) == 1


def test_an_unlabelled_split_has_no_counts():
    of = corpus([0, 1, 1], ["a", "b"])
    lines = class_table(of.with_splits(test=of.splits["train"].remove_columns("labels")))
    assert [line.split() for line in lines] == [
        ["class", "train", "test"], ["b", "2", "-"], ["a", "1", "-"], ["rows", "3", "3"],
    ]  # fmt: skip


# ---- Several columns of text are one text ----------------------------------------------------------------------------
IN_PARTS = [
    {"title": "The river", "body": "took the road.", "note": "", "label": "joy"},
    {"title": "", "body": "Nobody told us", "note": " ", "label": "fear"},
    {"title": "Käse", "body": "“quoted”", "note": "so on", "label": "joy"},
]
JOINED = ["The river | took the road.", "Nobody told us", "Käse | “quoted” | so on"]
NAMES = "title,body, note"


def write(path, rows):
    if path.suffix == ".csv":
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        columns = {name: [row.get(name) or None for row in rows] for name in rows[0]}
        pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def ways(path, name=NAMES, delimiter=" | "):
    """The texts of a file, by who reads it."""
    columns = {"text_column": name, "text_delimiter": delimiter}
    corpus = load_corpus(files={"train": str(path)}, **columns)
    other = Corpus(corpus.splits, ["fear", "joy"], corpus.problem_type, "mine")
    flags = {"text_column_name": name, "text_column_delimiter": delimiter, "data_dir": None}
    flags |= {"train_file": [str(path)], "validation_split_percentage": 0}
    return {
        "training": corpus.splits["train"]["text"][:],
        "extra test": load_extra_test(str(path), other, **columns)["text"][:],
        "guarded texts": read_texts(path, name, text_delimiter=delimiter),
        "pre-training": load_pretraining_corpus(PretrainingArguments(**flags), seed=1).train["text"][:],
        "stream": [
            row["text"] for row in load_pretraining_corpus(PretrainingArguments(**flags, streaming=True), seed=1).train
        ],
        "scoring": [row.text for row in open_source(str(path), **columns)],
    }


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl", "x.parquet"])
def test_every_reader_joins_them_alike(name, tmp_path):
    for reader, texts in ways(write(tmp_path / name, IN_PARTS)).items():
        assert sorted(texts) == sorted(JOINED), reader  # a stream is shuffled


def test_a_column_whose_name_holds_commas_is_taken_as_it_is(tmp_path):
    rows = [{"a,b": "whole", "a": "one", "b": "two", "label": label} for label in ("joy", "fear")]
    path = write(tmp_path / "x.csv", [row | {"c": f"{i}"} for i, row in enumerate(rows)])
    assert open_source(str(path), text_column="a,b").__iter__().__next__().text == "whole"
    for texts in ways(path, "c,a,b").values():
        assert sorted(texts) == ["0 | whole", "1 | whole"]
    for texts in ways(path, "b,a,c", "").values():
        assert sorted(texts) == ["twoone0", "twoone1"]
    assert text_columns("x", " a", [" a", "a"]) == [" a"]


@pytest.mark.parametrize("name", ["title,bdy", "title,", ",", "", "title,,body", "x,y"])
def test_a_column_that_is_not_there_is_named(name, tmp_path):
    path = str(write(tmp_path / "x.csv", IN_PARTS))
    with pytest.raises(InputError, match=r"x.csv: no column '\w*'; it has title, body, note, label") as training:
        read_texts(path, name)
    with pytest.raises(InputError) as scoring:
        open_source(path, text_column=name)
    assert str(scoring.value) in str(training.value)


@pytest.mark.parametrize("empty", ["", "  ", None])
def test_where_all_are_empty_the_text_is_empty(empty, tmp_path):
    path = str(write(tmp_path / "x.jsonl", [IN_PARTS[0], {"title": empty, "body": empty, "label": "joy"}]))
    with pytest.raises(InputError, match="row 2: title, body is empty; want a text"):
        read_texts(path, "title,body")
    rows = list(open_source(path, text_column="title,body"))
    assert [(row.text is None, row.error) for row in rows] == [
        (False, None),
        (True, "x.jsonl, row 2: the text is empty"),
    ]


@pytest.mark.parametrize("value", [5, ["a"], {"a": "b"}, True, 0.0, False, []])
def test_a_cell_that_is_no_text_is_named_with_its_column(value, tmp_path):
    path = str(write(tmp_path / "x.jsonl", [IN_PARTS[0], {"title": "a", "body": value, "label": "joy"}]))
    with pytest.raises(InputError, match=r"row 2: body is .*; want a text"):
        read_texts(path, "title,body")
    rows = list(open_source(path, text_column="title,body"))
    assert rows[1].error == f"x.jsonl, row 2: body is a {type(value).__name__}; want a text"


@pytest.mark.parametrize("streaming", [False, True])
def test_columns_of_a_hub_dataset_are_joined_before_pre_training(streaming, monkeypatch):
    """Also where one of them is called text."""
    held = datasets.Dataset.from_list(
        [{"label": row["label"], "text": row["body"], "title": row["title"]} for row in IN_PARTS]
    )
    monkeypatch.setattr(
        pretraining_texts,
        "hub_dataset",
        lambda *_, streaming=False, **__: held.to_iterable_dataset() if streaming else held,
    )
    data = PretrainingArguments(
        dataset_name=["owner/corpus"], text_column_name="title,text", streaming=streaming, data_dir=None,
        validation_split_percentage=0,
    )  # fmt: skip
    train = load_pretraining_corpus(data, seed=1).train
    assert sorted(row["text"] for row in train) == ["Käse “quoted”", "Nobody told us", "The river took the road."]


def test_trainings_from_before_the_delimiter_keep_their_names():
    plain = training_settings(*resolve({"text_column_name": "body"}, "x"))
    assert "text_column_delimiter" not in plain
    assert training_settings(*resolve({"text_column_delimiter": "/"}, "x"))["text_column_delimiter"] == "/"
    assert DataArguments(data_dir=None).text_column_delimiter == " "


def test_a_classifier_is_trained_and_tested_on_joined_columns(in_process, tmp_path):
    rows = [{"title": f"row {i}", "body": "good" if i % 2 else "bad", "label": "ab"[i % 2]} for i in range(12)]
    write(tmp_path / "train.csv", rows)
    write(tmp_path / "more.jsonl", [row | {"title": None} for row in rows])
    results = in_process(
        *("--train_file", "train.csv", "--text_column_names", "title,body", "--text_column_delimiter", ": "),
        *("--extra_tests", "more.jsonl", "--max_steps", 1, "--save_strategy", "no"),
    )
    assert (results["train_rows"], results["validation_rows"], results["more_rows"]) == (10, 2, 12)
    assert "--text_column_delimiter" in (tmp_path / "out" / "README.md").read_text()
