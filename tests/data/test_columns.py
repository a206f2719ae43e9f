"""Columns of people's own files: which are chosen, several texts as one, held-out rows, the table of classes."""

import csv
import json
import logging

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from trainer_ext.data import pretraining_texts
from trainer_ext.data.columns import choose_columns, plain_name
from trainer_ext.data.corpus import Corpus
from trainer_ext.data.findings import class_table, columns
from trainer_ext.data.folds import hold_out_validation
from trainer_ext.data.load import DataArguments, corpus_arguments, load_corpus, load_extra_test, read_texts
from trainer_ext.data.pretraining_texts import PretrainingArguments, load_pretraining_corpus
from trainer_ext.data.rows import text_columns
from trainer_ext.errors import InputError
from trainer_ext.runs.run import training_settings
from trainer_ext.runs.variants import resolve
from trainer_ext.scoring.text_stream import open_source

TEXTS = [f"They closed gate number {index} and told us nothing" for index in range(60)]


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
            "Tweet_ID": numbers, "userName": [f"u{i % 6}" for i in numbers], "Tweet Text": TEXTS, "Emotion": labels,
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
    columns = {"text": TEXTS, "essay": TEXTS, "label": [0, 1] * 30, "emotion": ["joy", "fear"] * 30}
    found = chosen(tmp_path, columns)
    assert (found.text_column_name, found.label_column_name) == ("text", "label")
    found = chosen(tmp_path, columns, text_column_name="essay", label_column_name="emotion")
    assert (found.text_column_name, found.label_column_name) == ("essay", "emotion")


@pytest.mark.parametrize("labels", [["joy", "fear"] * 30, [0, 1] * 30, [["joy"], ["joy", "fear"], []] * 20])
def test_values_decide_where_names_say_nothing(tmp_path, labels):
    found = chosen(tmp_path, {"n": [i * 7 for i in range(60)], "q": TEXTS, "f": labels}, "jsonl")
    assert (found.text_column_name, found.label_column_name) == ("q", "f")


def test_a_column_of_classes_is_the_label(tmp_path):
    found = chosen(tmp_path, {"kind": ["a", "b"] * 30, "q": TEXTS, "f": [0, 1] * 30}, "parquet")
    assert found.label_column_name == "f"


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"essay": TEXTS, "review": TEXTS, "mood": ["a", "b"] * 30}, "the text may be essay or review; name it"),
        ({"essay": TEXTS, "mood": ["a", "b"] * 30, "emotion": ["c", "d"] * 30}, "the label may be mood or emotion"),
        ({"essay": TEXTS, "joy": [0, 1] * 30, "fear": [1, 0] * 30}, "or one per label: --label_column_name joy,fear"),
        ({"a": list(range(60)), "mood": ["a", "b"] * 30}, "no column is surely the text; it has a and mood; name it"),
        ({"essay": TEXTS, "score": [0.5, 0.25] * 30}, "no column is surely the label; it has essay and score; name it"),
        ({"essay": TEXTS, "target": TEXTS}, "no column is surely the label"),  # as many labels as rows
    ],
)  # fmt: skip
def test_what_cannot_be_decided_is_asked(tmp_path, columns, says):
    with pytest.raises(InputError, match=says) as error:
        chosen(tmp_path, columns)
    assert "\n" not in str(error.value)


def test_an_id_that_repeats_and_a_group_of_two_are_left(tmp_path):
    columns = {"text": TEXTS, "label": ["a", "b"] * 30, "id": [1] * 60, "user": ["m", "f"] * 30}
    found = chosen(tmp_path, columns)
    assert (found.id_column_name, found.group_column_name) == (None, None)


@pytest.mark.parametrize("names", [["Train", "TRAIN", "Dev"], ["training", "testing", " validation"]])
def test_a_column_that_names_splits_divides_the_rows_whatever_its_name(tmp_path, names):
    found = chosen(tmp_path, {"text": TEXTS, "label": ["a", "b"] * 30, "fold": names * 20})
    assert found.split_column_name == "fold"
    corpus = load_corpus(**corpus_arguments(found))
    assert sum(map(len, corpus.splits.values())) == 60
    assert len(corpus.splits["train"]) < 60


def test_a_ticket_and_a_conversation_are_the_id_and_the_group(tmp_path):
    columns = {"ticket_id": range(60), "text": TEXTS, "label": ["a", "b"] * 30}
    columns["Conversation No"] = [i % 7 for i in range(60)]
    found = chosen(tmp_path, columns)
    assert (found.id_column_name, found.group_column_name) == ("ticket_id", "Conversation No")


def test_a_file_without_a_header_is_not_read(tmp_path):
    with pytest.raises(InputError, match="its first line is a row and no header, for 'joy' is a value"):
        chosen(tmp_path, {TEXTS[0]: TEXTS[1:], "joy": ["joy", "fear"] * 29 + ["joy"]})
    chosen(tmp_path, {"text": TEXTS, "joy": ["joy", "fear"] * 30})  # a class and the name of its column


def test_an_id_that_repeats_is_named(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    chosen(tmp_path, {"id": [*range(59), 4], "text": TEXTS, "label": ["a", "b"] * 30})
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
