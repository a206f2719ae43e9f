"""Several columns of text are one text, the same for training, pre-training and scoring."""

import csv
import json

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from trainer_ext.data import pretraining_texts
from trainer_ext.data.corpus import Corpus
from trainer_ext.data.load import DataArguments, load_corpus, load_extra_test, read_texts
from trainer_ext.data.pretraining_texts import PretrainingArguments, load_pretraining_corpus
from trainer_ext.data.rows import text_columns
from trainer_ext.errors import InputError
from trainer_ext.runs.run import training_settings
from trainer_ext.runs.variants import resolve
from trainer_ext.scoring.text_stream import open_source

ROWS = [
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
    for reader, texts in ways(write(tmp_path / name, ROWS)).items():
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
    path = str(write(tmp_path / "x.csv", ROWS))
    with pytest.raises(InputError, match=r"x.csv: no column '\w*'; it has title, body, note, label") as training:
        read_texts(path, name)
    with pytest.raises(InputError) as scoring:
        open_source(path, text_column=name)
    assert str(scoring.value) in str(training.value)


@pytest.mark.parametrize("empty", ["", "  ", None])
def test_where_all_are_empty_the_text_is_empty(empty, tmp_path):
    path = str(write(tmp_path / "x.jsonl", [ROWS[0], {"title": empty, "body": empty, "label": "joy"}]))
    with pytest.raises(InputError, match="row 2: title, body is empty; want a text"):
        read_texts(path, "title,body")
    rows = list(open_source(path, text_column="title,body"))
    assert [(row.text is None, row.error) for row in rows] == [
        (False, None),
        (True, "x.jsonl, row 2: the text is empty"),
    ]


@pytest.mark.parametrize("value", [5, ["a"], {"a": "b"}, True, 0.0, False, []])
def test_a_cell_that_is_no_text_is_named_with_its_column(value, tmp_path):
    path = str(write(tmp_path / "x.jsonl", [ROWS[0], {"title": "a", "body": value, "label": "joy"}]))
    with pytest.raises(InputError, match=r"row 2: body is .*; want a text"):
        read_texts(path, "title,body")
    rows = list(open_source(path, text_column="title,body"))
    assert rows[1].error == f"x.jsonl, row 2: body is a {type(value).__name__}; want a text"


@pytest.mark.parametrize("streaming", [False, True])
def test_columns_of_a_hub_dataset_are_joined_before_pre_training(streaming, monkeypatch):
    """Also where one of them is called text."""
    held = datasets.Dataset.from_list(
        [{"label": row["label"], "text": row["body"], "title": row["title"]} for row in ROWS]
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
