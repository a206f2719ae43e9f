"""Corpora: people's own and the built-in ones, every trap counted; what a copy is; and what lies in examples/."""

import csv
import json
import logging
import re
import runpy
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value
from hypothesis import given, settings
from hypothesis import strategies as st
from support import ESSAYS, ROOT, call

from trainer_ext.data.columns import choose_columns
from trainer_ext.data.corpus import Corpus
from trainer_ext.data.emotion_corpora import LICENCE, WASSA_LABELS, normalised, read_emotion_corpus
from trainer_ext.data.folds import (
    bootstrap_groups,
    check_trainable,
    cross_validation_folds,
    hold_out_folds,
    join_validation,
    limit_rows,
    split_off_validation,
)
from trainer_ext.data.label_maps import TransferArguments
from trainer_ext.data.leakage import LeakageGuard
from trainer_ext.data.load import DataArguments, corpus_arguments, load_corpus
from trainer_ext.errors import InputError
from trainer_ext.recipes import HubAccess


@pytest.fixture
def write(tmp_path):
    def to_file(name: str, content: str | bytes) -> str:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return to_file


def read(path: str, **options) -> Corpus:
    return load_corpus(files={"train": path}, **options)


def message_of(*args, **options) -> str:
    with pytest.raises(InputError) as error:
        read(*args, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- Formats ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "json", "parquet"])
def test_every_file_type_gives_the_same_corpus(kind, tmp_path, write):
    rows = [{"text": 'Quotes " and\ttabs, and\nlines', "label": "joy"}, {"text": "NA", "label": "fear"}]
    rows += [{"text": "Ünïcode \u2028 – all of it", "label": "joy"}]
    path = tmp_path / f"rows.{kind}"
    if kind in ("csv", "tsv"):
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["text", "label"], delimiter="," if kind == "csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "parquet":
        Dataset.from_list(rows).to_parquet(path)
    elif kind == "json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    else:
        path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n", encoding="utf-8")
    corpus = read(str(path))
    assert corpus.splits["train"]["text"][:] == [row["text"] for row in rows]
    assert corpus.label_names == ["fear", "joy"]
    assert corpus.splits["train"]["labels"][:] == [1, 0, 1]


def test_the_projects_own_essays():
    options = {"split_column": "split", "group_column": "writer", "id_column": "id"}
    corpus = read(str(ESSAYS), **options)
    assert corpus.label_names == WASSA_LABELS
    for split, least in (("train", 60), ("validation", 10), ("test", 20)):
        assert np.bincount(corpus.classes(split)).min() >= least
    writers = [set(rows["group"]) for rows in corpus.splits.values()]
    assert len(set.union(*writers)) == sum(map(len, writers))  # no writer in two splits
    texts = [text for rows in corpus.splits.values() for text in rows["text"]]
    assert len(set(texts)) == len(texts)


def test_a_hub_dataset_with_named_labels(tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["sad", "glad"])})
    split = Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    for name, rows in (("train", split), ("heldout", split)):
        rows.to_parquet(tmp_path / "hub" / "data" / f"{name}-00000-of-00001.parquet")
    corpus = load_corpus(dataset_name=str(tmp_path / "hub"), split_names={"validation": "heldout"})
    assert corpus.label_names == ["sad", "glad"]
    assert corpus.splits["validation"]["labels"][:] == [1, 0]


def test_a_hub_dataset_with_lists_of_named_labels(tmp_path):
    features = Features({"text": Value("string"), "labels": List(ClassLabel(names=["a", "b", "c"]))})
    split = Dataset.from_dict({"text": ["x", "y", "z"], "labels": [[0, 2], [], [1]]}, features=features)
    split.to_parquet(tmp_path / "hub" / "data" / "train-00000-of-00001.parquet")
    corpus = load_corpus(dataset_name=str(tmp_path / "hub"), label_column="labels")
    assert corpus.problem_type == "multi_label_classification"
    assert corpus.splits["train"]["labels"][:] == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]


# ---- Labels -------------------------------------------------------------------------------------------------------


def test_the_label_set_spans_all_splits(write):
    files = {
        "train": write("a.csv", "text,label\nx,joy\ny,fear\n"),
        "validation": write("b.csv", "text,label\nz,anger\n"),
    }
    corpus = load_corpus(files=files)
    assert corpus.label_names == ["anger", "fear", "joy"]
    assert corpus.splits["validation"]["labels"][:] == [0]


def test_integers_sort_as_numbers_and_index_given_names(write):
    path = write("a.csv", "text,label\nx,10\ny,2\nz,2\n")
    assert read(path).label_names == ["2", "10"]
    path = write("b.csv", "text,label\nx,1\ny,0\n")
    assert read(path, label_names=["no", "yes"]).splits["train"]["labels"][:] == [1, 0]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
@pytest.mark.parametrize(("names", "label"), [("12345", 0), (["-1", "0", "1"], 2), (["joy", "3"], 0)])
def test_where_names_are_integers_no_integer_is_a_position(write, name, names, label):
    row = f'{{"text": "x", "label": {label}}}' if name == "a.jsonl" else f"text,label\nx,{label}\n"
    assert f"label '{label}' is not one of {', '.join(names)}" in message_of(write(name, row), label_names=list(names))


def test_integers_with_zeros_before_them_have_one_order(write):
    names = [f"{'0' * zeros}{number}" for number in (1, 2) for zeros in (1, 0)]
    for order in (names, names[::-1]):
        path = write("a.csv", "text,label\n" + "".join(f"x,{name}\n" for name in order))
        assert read(path).label_names == names


@pytest.mark.parametrize(
    ("name", "content", "options"),
    [
        ("a.csv", "text,joy,fear\nx,1,0\ny,0,1\n", {"label_column": "joy,fear"}),
        (
            "a.jsonl",
            '{"text": "x", "label": [1, 0]}\n{"text": "y", "label": [0, 1]}\n',
            {"label_names": ["joy", "fear"]},
        ),
    ],
)
def test_rows_of_one_class_each_may_be_of_a_model_that_gives_several(write, name, content, options):
    corpus = read(write(name, content), multi_label=True, **options)
    assert (corpus.label_names, corpus.multi_label) == (["joy", "fear"], True)
    assert corpus.classes("train").tolist() == [[1, 0], [0, 1]]


def test_one_hot_columns_are_classes(write):
    corpus = read(write("a.csv", "text,joy,fear\nx,1,0\ny,0,1\n"), label_column="joy,fear")
    assert (corpus.label_names, corpus.problem_type) == (["joy", "fear"], "single_label_classification")
    assert corpus.splits["train"]["labels"][:] == [0, 1]


def test_columns_that_add_up_to_one_are_a_distribution(write):
    corpus = read(write("a.csv", "text,joy,fear\nx,0.25,0.75\ny,0.9,0.1\n"), label_column="joy,fear")
    assert corpus.problem_type == "single_label_classification"
    assert corpus.splits["train"]["labels"][:] == [[0.25, 0.75], [0.9, 0.1]]
    assert corpus.classes("train").tolist() == [1, 0]


def test_other_zeros_and_ones_are_several_classes(write):
    corpus = read(write("a.csv", "text,joy,fear\nx,1,1\ny,0,0\n"), label_column="joy,fear")
    assert corpus.problem_type == "multi_label_classification"
    assert corpus.classes("train").tolist() == [[1, 1], [0, 0]]


def test_lists_of_names_are_several_classes_and_lists_of_numbers_a_distribution(write):
    rows = '{"text": "x", "label": ["joy", "fear"]}\n{"text": "y", "label": []}\n'
    corpus = read(write("a.jsonl", rows))
    assert corpus.problem_type == "multi_label_classification"
    assert corpus.splits["train"]["labels"][:] == [[1, 1], [0, 0]]
    rows = '{"text": "x", "label": [0.5, 0.5]}\n{"text": "y", "label": [1, 0]}\n'
    corpus = read(write("b.jsonl", rows), label_names=["joy", "fear"])
    assert corpus.splits["train"]["labels"][:] == [[0.5, 0.5], [1, 0]]


def test_an_unlabelled_test_split_stays_unlabelled(write, caplog):
    caplog.set_level(logging.INFO)
    train = write("a.jsonl", '{"text": "x", "label": "joy"}\n{"text": "y", "label": "fear"}\n')
    for content in ('{"text": "z"}', '{"text": "z", "label": ""}', '{"text": "z", "label": -1}'):
        caplog.clear()
        corpus = load_corpus(files={"train": train, "test": write("t.jsonl", content)})
        assert corpus.splits["test"].column_names == ["id", "text"]
        said = ["no column 'label', so its rows are predicted only"] if "label" not in content else []
        assert [message.partition("t.jsonl: ")[2] for message in caplog.messages] == said
    corpus = load_corpus(files={"train": train, "test": write("t.csv", "text,label\nx,-1\ny,\n")})
    assert corpus.splits["test"].column_names == ["id", "text"]
    assert corpus.label_names == ["fear", "joy"]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_minus_one_in_a_test_split_is_a_label_where_it_is_one_elsewhere(name, write):
    rows = {"train": [-1, 0, 1], "test": [-1, -1]}
    files = {}
    for split, labels in rows.items():
        lines = [f'{{"text": "x", "label": {label}}}' if name == "a.jsonl" else f"x,{label}" for label in labels]
        head = [] if name == "a.jsonl" else ["text,label"]
        files[split] = write(f"{split}-{name}", "\n".join([*head, *lines]))
    corpus = load_corpus(files=files)
    assert corpus.label_names == ["-1", "0", "1"]
    assert corpus.splits["test"]["labels"][:] == [0, 0]


def test_a_column_may_be_missing_in_the_first_row(write):
    """Of a test split, too, which would else count as unlabelled."""
    train = write("a.jsonl", '{"text": "x", "label": "joy"}\n{"text": "y", "label": "fear", "who": "a"}\n')
    test = write("t.jsonl", '{"text": "z"}\n{"text": "y", "label": "joy"}\n')
    with pytest.raises(InputError, match=r"t\.jsonl, row 1: no label; want one, or remove the row"):
        load_corpus(files={"train": train, "test": test})
    with pytest.raises(InputError, match="row 1: no who; want the writer"):
        load_corpus(files={"train": train}, group_column="who")
    args = DataArguments(train_file=write("b.jsonl", '{"text": "x y z"}\n' + '{"text": "a b c", "mood": "joy"}\n' * 3))
    tables = choose_columns(args)
    with pytest.raises(InputError, match="row 1: no label"):
        load_corpus(**corpus_arguments(args), tables=tables)


@pytest.mark.parametrize("options", [{"label_names": ["joy", "joy", "sad"]}, {"label_column": "joy,joy"}])
def test_a_label_named_twice_is_refused(options, write):
    """Nobody could load the model."""
    train = write("a.csv", "text,label,joy\nx,joy,1\ny,sad,0\n")
    with pytest.raises(InputError, match="label 'joy' is named twice; want each once"):
        load_corpus(files={"train": train}, **options)


@pytest.mark.parametrize(
    ("content", "options", "says"),
    [
        ('{"text": "TOLD", "label": "a"}', {"split_column": "text"}, "row 1: text is a text of 53 characters"),
        ('{"text": "TOLD", "label": "a"}\n' * 2, {"id_column": "text"}, "row 2: text a text of 53 characters is also"),
        ('{"text": "x", "label": "TOLD"}', {"label_names": ["a", "b"]}, "row 1: label 'I never told anyone"),
        ('{"text": ["TOLD"], "label": "a"}', {}, "row 1: text is a list; want a text"),
        ('{"text": ["TOLD"], "label": ["a"]}', {}, "has a list per column; want an object per row"),
        ('{"text": {"0": "TOLD"}, "label": {"0": "a"}}', {}, "has an object per column; want an object per row"),
    ],
)
def test_a_message_shows_no_whole_text(content, options, says, write):
    text = "I never told anyone what happened that night in 1998."
    message = message_of(write("a.jsonl", content.replace("TOLD", text)), **options)
    assert says in message
    assert "that night" not in message


# ---- What is wrong, where, and what would be right ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "options", "says"),
    [
        ("a.csv", "text,emotion\nx,joy\n", {}, "a.csv: no column 'label'; it has text, emotion"),
        ("a.csv", "texts,label\nx,joy\n", {}, "did you mean 'texts'?"),
        ("a.csv", "text,label\nx,joy\n,fear\n", {}, "a.csv, row 3: text is empty"),
        ("a.csv", "text,label\nx,joy\n  ,fear\n", {}, "a.csv, row 3: text is empty"),
        ("a.csv", "text,label\nx,joy\n\u200b\x01,fear\n", {}, "a.csv, row 3: text is empty"),
        ("a.csv", "text,label\nx,joy\ny\n", {}, "a.csv, row 3: 1 fields; want 2"),
        ("a.csv", "text,label\nx,joy\n,\ny,fear\n", {}, "a.csv, row 3: text is empty"),
        ("a.tsv", "text\tlabel\nx\tjoy\ta\n", {}, "a.tsv, row 2: 3 fields; want 2"),
        ("a.csv", 'text,label\n"x,joy\n', {"quoting": "minimal"}, "a.csv, row 2: a quote is opened and not closed"),
        ("a.csv", "text,label\n", {}, "a.csv: no rows"),
        ("a.csv", "", {}, "a.csv: empty"),
        ("a.csv", b"text,label\nx,joy\ncaf\xe9,joy\n", {}, "a.csv, row 3: not UTF-8 (byte 0xe9)"),
        ("a.csv", "text,text\nx,joy\n", {}, "the header names 'text' twice"),
        ("a.csv", "text,label\nx,\n", {}, "a.csv, row 2: no label"),
        (
            "a.csv",
            "text,label\nx,joi\n",
            {"label_names": ["joy", "fear"]},
            "a.csv, row 2: label 'joi' is not one of joy",
        ),
        ("a.csv", "text,label\nx,2\n", {"label_names": ["joy", "fear"]}, "row 2: label is 2; want 0 to 1 (joy, fear)"),
        (
            "a.csv",
            "text,joy,fear\nx,1,0\ny,0.4,0.4\n",
            {"label_column": "joy,fear"},
            "row 3: the label's numbers add up",
        ),
        ("a.csv", "text,joy,fear\nx,1,much\n", {"label_column": "joy,fear"}, "row 2: label is 'much'; want a number"),
        ("a.csv", "text,label,w\nx,joy,7\ny,joy,\n", {"group_column": "w"}, "row 3: no w; want the writer"),
        ("a.csv", "text,label,id\nx,joy,7\ny,joy,7\n", {"id_column": "id"}, "row 3: id '7' is also in row 2"),
        ("a.csv", "text,label,split\nx,joy,trian\n", {"split_column": "split"}, "row 2: split is 'trian'; want train"),
        ("a.jsonl", '{"text": "x", "label": "joy"}\n{"text": \n', {}, "a.jsonl, row 2: not JSON"),
        ("a.jsonl", '{"text": "x", "label": "joy"}\n[1]\n', {}, "a.jsonl, row 2: a list"),
        ("a.jsonl", '{"text": "x", "label": "joy"}\n{"text": null, "label": "joy"}\n', {}, "row 2: text is None"),
        ("a.jsonl", '{"text": "x", "label": "joy"}\n{"text": "y", "label": ["joy"]}\n', {}, "row 2: label is ['joy']"),
        ("a.jsonl", '{"text": "x", "label": true}\n', {}, "row 1: label is True; want a name or an integer"),
        ("a.jsonl", '{"text": "x", "label": {"a": 1}}\n', {}, "row 1: label is {'a': 1}; want a name"),
        ("a.csv", 'text,label\nx,"  "\n', {}, "row 2: no label"),
        (
            "a.jsonl",
            '{"text": "x", "label": "a", "id": 1}\n{"text": "y", "label": "a"}\n',
            {"id_column": "id"},
            "row 2: no id",
        ),
        (
            "a.jsonl",
            '{"text": "x", "label": "a", "s": "dev"}\n{"text": "y", "label": "a"}\n',
            {"split_column": "s"},
            "row 2: s is None",
        ),
        ("a.csv", "text,joy,fear\nx,1,0\n", {"label_column": "joy,fear", "label_names": ["a", "b"]}, "names others"),
        ("a.json", '{"data": [{"text": "x"}]}', {}, "a.json: no column 'text'; it has data"),
        ("a.json", '{\n"text": "x"}', {}, "a.json: row 1: not JSON"),
        ("a.json", "7", {}, "a.json: holds a int; want a list"),
        ("a.parquet", "not parquet", {}, "a.parquet: not a parquet file"),
        ("a.xlsx", "", {}, "a.xlsx: unknown file type '.xlsx'; want .csv"),
    ],
)
def test_bad_input_is_named_with_file_and_row(write, name, content, options, says):
    assert says in message_of(write(name, content), **options)


def test_files_that_are_not_there():
    assert "nowhere.csv: no such file" in message_of("nowhere.csv")
    with pytest.raises(InputError, match="dataset nobody/nothing"):
        load_corpus(dataset_name="nobody/nothing")
    with pytest.raises(InputError, match="no data"):
        load_corpus()
    with pytest.raises(InputError, match="needs --data_dir"):
        load_corpus(dataset_name="wassa2022")
    with pytest.raises(InputError, match="wassa2022 has its own files, text_column"):
        load_corpus(dataset_name="wassa2022", data_dir="x", files={"test": "mine.tsv"}, text_column="text")


def test_one_class_or_no_labels_cannot_be_trained_on(write):
    with pytest.raises(InputError, match=r"a\.csv: the train split has one class only \(joy\)"):
        check_trainable(read(write("a.csv", "text,label\nx,joy\ny,joy\n")))
    files = {"test": write("b.csv", "text,label\nx,joy\ny,fear\n")}
    with pytest.raises(InputError, match="no train split"):
        check_trainable(load_corpus(files=files))


# ---- WASSA 2022 ---------------------------------------------------------------------------------------------------


@pytest.mark.realdata
def test_wassa_has_the_published_counts(data_dir):
    corpus = load_corpus(dataset_name="wassa2022", data_dir=data_dir)
    assert corpus.label_names == WASSA_LABELS
    assert np.bincount(corpus.classes("train")).tolist() == [349, 149, 194, 82, 275, 647, 164]
    assert np.bincount(corpus.classes("validation")).tolist() == [76, 12, 31, 14, 25, 98, 14]
    assert corpus.splits["test"].column_names == ["id", "text", "group"]
    assert len(corpus.splits["test"]) == 525
    assert len(set(corpus.splits["train"]["group"])) == 372
    assert all(280 <= len(text) <= 800 for rows in corpus.splits.values() for text in rows["text"])


def fake_wassa(folder, gold_rows: int):
    """The shared task's files in form, with texts written for this test."""
    (folder / "wassa2022").mkdir()
    header = "message_id\tresponse_id\tessay\temotion\n"
    rows = "".join(f"m{i}\tr{i // 2}\tThe {i}th gate was shut.\t{WASSA_LABELS[i % 7]}\n" for i in range(8))
    (folder / "wassa2022" / "messages_train_ready_for_WS.tsv").write_text(header + rows)
    header = "message_id\tresponse_id\tessay\n"
    rows = "".join(f"d{i}\tr{i}\tIt was shut {i} times.\n" for i in range(3))
    for name in ("messages_dev_features_ready_for_WS_2022.tsv", "messages_test_features_ready_for_WS_2022.tsv"):
        (folder / "wassa2022" / name).write_text(header + rows)
    gold = "".join(f"1.0\t2.0\t{WASSA_LABELS[i % 7]}\t3\n" for i in range(gold_rows))
    (folder / "wassa2022" / "goldstandard_dev_2022.tsv").write_text(gold)
    return str(folder)


def test_wassa_dev_labels_join_by_row(tmp_path):
    corpus = load_corpus(dataset_name="wassa2022", data_dir=fake_wassa(tmp_path, gold_rows=3))
    assert corpus.classes("validation").tolist() == [0, 1, 2]


def test_a_gold_file_of_another_length_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"goldstandard_dev_2022.tsv: 4 rows; want 3, one per row of .*dev_features"):
        load_corpus(dataset_name="wassa2022", data_dir=fake_wassa(tmp_path, gold_rows=4))


# ---- Splitting ----------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(writers=st.integers(12, 40), seed=st.integers(0, 5), percentage=st.sampled_from([10, 20, 33]))
def test_a_carved_out_validation_split_shares_no_writer(writers, seed, percentage):
    rows = [{"id": str(i), "text": "x", "group": f"w{i % writers}", "labels": i % 3} for i in range(writers * 4)]
    corpus = Corpus({"train": Dataset.from_list(rows)}, ["a", "b", "c"], "single_label_classification", "made")
    corpus = split_off_validation(corpus, percentage, seed)
    train, validation = corpus.splits["train"], corpus.splits["validation"]
    assert len(train) + len(validation) == len(rows)
    assert not set(train["group"]) & set(validation["group"])
    assert 0.4 < len(validation) / len(rows) / (percentage / 100) < 2.1


@pytest.mark.parametrize("percentage", [10, 20, 50])
def test_few_rows_of_each_class_are_enough_to_carve_from(percentage):
    """Fewer than the folds that the percentage stands for: 8 rows of each of three classes."""
    rows = [{"id": str(i), "text": "x", "labels": i % 3} for i in range(24)]
    corpus = Corpus({"train": Dataset.from_list(rows)}, ["a", "b", "c"], "single_label_classification", "made")
    corpus = split_off_validation(corpus, percentage, 0)
    counts = corpus.class_counts("validation").values()
    assert all(abs(count - 8 * percentage / 100) < 1 for count in counts)
    assert min(counts) > 0
    assert len(corpus.splits["train"]) == 24 - sum(counts)


def test_too_few_groups_to_carve_from(write):
    corpus = read(write("a.csv", "text,label,w\nx,joy,1\ny,fear,2\n"), group_column="w")
    with pytest.raises(InputError, match="2 groups in train cannot give 20%"):
        split_off_validation(corpus, 20, seed=0)


@pytest.mark.parametrize(("rows", "percentage"), [(5, 10), (4, 10), (2, 20)])
def test_too_few_rows_of_every_class_to_carve_from(rows, percentage, write):
    content = "text,label\n" + "".join(f"x{i},{name}\n" for i in range(rows) for name in "abcdef")
    with pytest.raises(InputError, match=rf"no class has enough rows in train to give {percentage}% of them"):
        split_off_validation(read(write("a.csv", content)), percentage, seed=0)


def test_validation_rows_train_when_asked_to(write):
    files = {
        "train": write("a.csv", "text,label\nx,joy\ny,fear\n"),
        "validation": write("b.csv", "text,label\nz,joy\n"),
        "test": write("c.csv", "text\nq\n"),
    }
    corpus = load_corpus(files=files, train_on_validation=True)
    assert {name: rows["text"][:] for name, rows in corpus.splits.items()} == {"train": ["x", "y", "z"], "test": ["q"]}
    assert corpus.class_counts("train") == {"fear": 1, "joy": 2}
    with pytest.raises(InputError, match=r"--train_on_validation: a\.csv, c\.csv has no labelled validation rows"):
        load_corpus(files={"train": files["train"], "test": files["test"]}, train_on_validation=True)
    with pytest.raises(InputError, match="no labelled validation rows"):
        join_validation(corpus)
    with pytest.raises(InputError, match=r"--train_on_validation: b\.csv has no training rows to add to"):
        load_corpus(files={"validation": files["validation"]}, train_on_validation=True)
    for holds_out in ({"cv_folds": 5}, {"validation_split_percentage": 10}):
        with pytest.raises(InputError, match=f"holds nothing out; leave out --{next(iter(holds_out))}"):
            corpus_arguments(DataArguments(train_on_validation=True, **holds_out))


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_folds_keep_groups_whole_and_classes_in_their_shares(seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, 8)
    sizes = rng.integers(1, 7, rng.integers(150, 400))
    groups = np.repeat(np.arange(len(sizes)), sizes)
    shares = rng.dirichlet(np.full(labels, 3.0))
    classes = rng.choice(labels, len(groups), p=shares)
    columns = {"id": [str(i) for i in range(len(groups))], "group": [str(g) for g in groups], "labels": classes}
    corpus = Corpus(
        {"train": Dataset.from_dict(columns)}, [str(i) for i in range(labels)], "single_label_classification", "random"
    )
    folds = cross_validation_folds(corpus, 5)
    assert np.array_equal(folds, cross_validation_folds(corpus, 5))
    for group in set(groups):
        assert len(set(folds[groups == group])) == 1
    whole = np.bincount(classes, minlength=labels) / len(classes)
    for fold in range(5):
        held_out = classes[folds == fold]
        assert np.abs(np.bincount(held_out, minlength=labels) / len(held_out) - whole).max() < 0.03
        assert abs(len(held_out) / len(classes) - 0.2) < 0.03


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=4, max_size=60), st.integers(0, 2**32 - 1))
def test_a_bootstrap_shares_no_writer_with_the_rows_that_it_leaves_out(writers, seed):
    columns = {
        "id": [str(i) for i in range(len(writers))],
        "group": [str(writer) for writer in writers],
        "labels": [0] * len(writers),
    }
    corpus = Corpus({"train": Dataset.from_dict(columns)}, ["a"], "single_label_classification", "random")
    corpus = bootstrap_groups(corpus, seed)
    drawn = corpus.splits["train"]
    out_of_bag = set(columns["id"]) - set(drawn["id"])
    assert not {columns["group"][int(row)] for row in out_of_bag} & set(drawn["group"])
    times = Counter(drawn["id"])
    by_writer = {
        writer: {times[row] for row, of in zip(columns["id"], columns["group"], strict=True) if of == writer}
        for writer in set(columns["group"])
    }
    assert all(len(counts) == 1 for counts in by_writer.values())  # a writer's rows come together
    assert sum(counts.pop() for counts in by_writer.values()) == len(set(writers))


def test_a_fold_is_held_out_as_test_and_the_rest_trains():
    columns = {"id": list("abcdefgh"), "text": list("abcdefgh"), "labels": [0, 1] * 4}
    corpus = Corpus({"train": Dataset.from_dict(columns)}, ["x", "y"], "single_label_classification", "mine")
    corpus = corpus.with_splits(validation=corpus.splits["train"])
    seen = []
    for fold in range(4):
        held = hold_out_folds(corpus, 4, [fold])
        assert set(held.splits) == {"train", "test"}
        assert sorted(held.splits["train"]["id"][:] + held.splits["test"]["id"][:]) == list("abcdefgh")
        seen += held.splits["test"]["id"][:]
    assert sorted(seen) == list("abcdefgh")
    assert set(corpus.splits) == {"train", "validation"}  # a corpus is a value
    with pytest.raises(TypeError):
        corpus.splits["test"] = corpus.splits["train"]
    two = hold_out_folds(corpus, 4, [3, 1])
    assert two.splits["test"]["id"][:] == sorted(seen[2:4] + seen[6:8])
    assert two.splits["train"]["id"][:] == sorted(seen[:2] + seen[4:6])
    for folds, which in ((4, [4]), (4, [0, 4]), (4, [0, 1, 2, 3]), (9, [0]), (1, [0])):
        with pytest.raises(InputError):
            hold_out_folds(corpus, folds, which)
    with pytest.raises(InputError, match="5 folds, but no class has more than 4 rows in train; want 4 or fewer"):
        hold_out_folds(corpus, 5, [0])


@pytest.mark.realdata
def test_wassas_folds(data_dir):
    corpus = load_corpus(dataset_name="wassa2022", data_dir=data_dir, extra_columns=["gender"])
    folds = cross_validation_folds(corpus, 5)
    train = corpus.splits["train"]
    writers, classes = np.array(train["group"]), corpus.classes("train")
    assert all(len(set(folds[writers == writer])) == 1 for writer in set(writers))
    whole = np.bincount(classes) / len(classes)
    for fold in range(5):
        assert np.abs(np.bincount(classes[folds == fold], minlength=7) / (folds == fold).sum() - whole).max() < 0.03
    assert len(set(train["column_gender"])) > 1
    by_article = load_corpus(dataset_name="wassa2022", data_dir=data_dir, group_column="article_id")
    assert not set(by_article.splits["train"]["group"]) & set(writers)


def test_limits_keep_the_first_rows_and_are_at_least_one(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("text,label\n" + "".join(f"road {i},{'ab'[i % 2]}\n" for i in range(9)))
    corpus = load_corpus(files={"train": str(path)}, text_column="text", label_column="label")
    with pytest.raises(InputError, match="the sample limit of test is 0; want at least 1"):
        limit_rows(corpus, 4, None, 0)
    corpus = limit_rows(corpus, 4, 3, None)
    assert corpus.splits["train"]["text"][:] == [f"road {i}" for i in range(4)]
    corpus = limit_rows(corpus, 40, None, None)
    assert len(corpus.splits["train"]) == 4


# ---- GoEmotions and XED ----------------------------------------------------------------------------------------------
@pytest.mark.realdata
def test_go_emotions_counts(data_dir):
    corpus = read_emotion_corpus("go_emotions", data_dir)
    assert len(corpus.texts) == len(set(corpus.ids)) == 43_410
    assert sum(len(labels) == 1 for labels in corpus.labels) == 36_308
    assert len(corpus.label_names) == 28
    published = Path(data_dir, "goemotions", "original", "train.tsv").read_text(encoding="utf-8").split("\n")
    masked = [i for i, line in enumerate(published) if "[NAME]" in line]
    assert len(masked) == 6_059
    assert all("someone" in corpus.texts[i] for i in masked)
    assert not any("[NAME]" in text for text in corpus.texts)
    assert not corpus.left_out
    others = [read_emotion_corpus("go_emotions", data_dir, split=split) for split in ("validation", "test")]
    assert [len(other.texts) for other in others] == [5_426, 5_427]


@pytest.mark.realdata
def test_xed_counts(data_dir):
    corpus = read_emotion_corpus("xed", data_dir)
    kept = [set(labels) - {"anticipation", "trust"} for labels in corpus.labels]
    assert Counter(next(iter(labels)) for labels in kept if len(labels) == 1) == {
        **{"anger": 2443, "joy": 2299, "fear": 1604, "sadness": 1518, "surprise": 1404, "disgust": 1381},
        "neutral": 7266,
    }
    assert corpus.left_out["malformed line of the neutral file"] == 8
    neutral = {
        normalised(text) for text, labels in zip(corpus.texts, corpus.labels, strict=True) if "neutral" in labels
    }
    others = {
        normalised(text) for text, labels in zip(corpus.texts, corpus.labels, strict=True) if "neutral" not in labels
    }
    assert not neutral & others
    assert sum(corpus.left_out.values()) + len(corpus.texts) == 17_528 + 9_675


def small(
    folder,
    annotated="No!\t1\r\nGood dog\t5, 8\r\nIt is late.\t4\r\n",
    neutral="9\tit is late\n9\tA door.\n9\tA door\n9\t\t\t\t\n",
):
    (folder / "xed").mkdir()
    (folder / "xed" / "en-annotated.tsv").write_bytes(annotated.encode())
    (folder / "xed" / "neu_en.txt").write_text(neutral)
    return str(folder)


def test_a_sentence_in_both_files_belongs_to_neither(tmp_path):
    corpus = read_emotion_corpus("xed", small(tmp_path))
    assert list(zip(corpus.texts, corpus.labels, strict=True)) == [
        ("No!", ["anger"]),
        ("Good dog", ["joy", "trust"]),
        ("A door.", ["neutral"]),
    ]
    assert list(corpus.left_out.values()) == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("annotated", "says"),
    [
        ("No!\t1\r\nGood\t9\r\n", r"row 2: label ids '9'; want numbers from 0 to 8"),
        ("No!\t1\r\nGood\r\n", r"row 2: 1 fields; want sentence and label numbers"),
        ("No!\tanger\r\n", r"row 1: label ids 'anger'"),
    ],
)
def test_a_row_that_is_not_as_published_is_named(annotated, says, tmp_path):
    with pytest.raises(InputError, match=says):
        read_emotion_corpus("xed", small(tmp_path, annotated))


def test_without_a_folder_the_hub_is_asked(tmp_path):
    """And where it does not answer, the way out is named."""
    with pytest.raises(InputError, match="give --data_dir, a folder with goemotions/ and xed/"):
        read_emotion_corpus("go_emotions", None, HubAccess(cache_dir=str(tmp_path)))


def test_a_common_phrase_is_no_copy():
    guard = LeakageGuard("target")
    guard.protect(["a"], ["I do not know what to say, but the families deserve to hear the truth about that bridge."])
    assert guard.copied("I do not know what to do with my old car, it broke down again on the way to work") is None
    assert guard.copied("i do not know what to say but the families deserve to hear the truth") == "a"
    assert guard.copied("") is None
    assert len(guard) == 1


def test_a_short_copy_is_found_beside_a_longer_likeness():
    """Most of what the text shares, it shares with a protected text that it is no copy of."""
    short = "The whole street was gone by morning."
    likeness = "the families deserve to hear the truth about that bridge"
    rest = " and nobody at the town hall answers the telephone any more though all of us have tried it many times"
    guard = LeakageGuard("target")
    guard.protect(["short", "long"], [short, likeness + rest])
    text = f"{short} Still, {likeness}, and that is all there is to say about what they did to us."
    assert guard.copied(text) == "short"


def small_go_emotions(folder: Path) -> str:
    original = folder / "goemotions" / "original"
    original.mkdir(parents=True)
    (original / "labels.txt").write_text("anger\njoy\nneutral\n")
    for name, lines in (
        ("train", 'He said "no.\t0\ta\nWell\t1,2\tb\n'),
        ("dev", "Nice\t1\tc\n"),
        ("test", "Hm\t2\td\nOh, [NAME]\t0,1\te\n"),
    ):
        (original / f"{name}.tsv").write_text(lines)
    return str(folder)


def test_go_emotions_has_its_official_splits_and_a_stage_its_training_rows(tmp_path):
    folder = small_go_emotions(tmp_path)
    corpus = load_corpus(dataset_name="go_emotions", data_dir=folder)
    assert {split: rows["labels"][:] for split, rows in corpus.splits.items()} == {
        "train": [[1, 0, 0], [0, 1, 1]],
        "validation": [[0, 1, 0]],
        "test": [[0, 0, 1], [1, 1, 0]],
    }
    assert corpus.splits["test"]["text"][1] == "Oh, someone"
    assert corpus.multi_label
    stage = load_corpus(dataset_name="go_emotions", data_dir=folder, train_only=True)
    assert list(stage.splits) == ["train"]
    assert stage.splits["train"].to_list() == corpus.splits["train"].to_list()
    assert TransferArguments(target_file=["x.csv"]).has_target
    assert not TransferArguments(transfer_datasets=["go_emotions"]).has_target


# ---- examples/: the embedded corpus, the plain sentences, and whom they credit ---------------------------------------
EMOTIONS = ROOT / "examples" / "emotions.parquet"
SENTENCES = ROOT / "examples" / "plain_sentences.tsv"


@pytest.fixture(scope="module")
def corpus():
    return load_corpus(files={"train": str(EMOTIONS)}, split_column="split", id_column="id")


@pytest.fixture(scope="module")
def sentences() -> list[dict[str, str]]:
    with open(SENTENCES, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_the_embedded_corpus_is_small_and_balanced(corpus):
    assert EMOTIONS.stat().st_size <= 2_000_000
    assert pyarrow.parquet.read_schema(EMOTIONS).names == ["id", "split", "source", "label", "text"]
    assert corpus.label_names == WASSA_LABELS
    counts = {split: Counter(corpus.classes(split).tolist()) for split in corpus.splits}
    assert max(counts["train"].values()) == 2000
    assert min(counts["train"].values()) > 1000
    assert set(counts["validation"].values()) == {100}
    assert min(counts["test"].values()) > 190
    first = Counter(corpus.classes("train")[:700].tolist())  # what --max_train_samples takes
    assert min(first.values()) > 50


def test_no_text_of_the_embedded_corpus_copies_one_of_another_split(corpus):
    texts = [normalised(text) for rows in corpus.splits.values() for text in rows["text"]]
    assert len(set(texts)) == len(texts)
    guard = LeakageGuard("held-out rows")
    for split in ("test", "validation", "train"):
        rows = corpus.splits[split]
        assert all(guard.keeps(*row) for row in zip(rows["id"], rows["text"], strict=True))
        guard.protect(rows["id"], rows["text"])


def test_the_embedded_corpus_credits_its_authors(corpus):
    for credited in ("GoEmotions", "Demszky", "XED", "Öhman", LICENCE, "Changed:"):
        assert credited in corpus.attribution
    notice = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    for credited in ("Demszky", "Öhman", LICENCE, "https://creativecommons.org/licenses/by/4.0/", "Changed"):
        assert credited in notice


@pytest.mark.realdata
def test_the_embedded_corpus_is_made_again_byte_for_byte(data_dir, tmp_path):
    make = runpy.run_path(str(ROOT / "examples" / "make_emotions.py"))
    call(make["main"], "--data_dir", data_dir, "--output", tmp_path / "again.parquet")
    assert (tmp_path / "again.parquet").read_bytes() == EMOTIONS.read_bytes()


def test_there_are_twenty_plain_sentences_of_each_emotion(sentences, corpus):
    assert Counter(row["label"] for row in sentences) == dict.fromkeys(WASSA_LABELS, 20)
    assert len({normalised(row["text"]) for row in sentences}) == len({row["id"] for row in sentences}) == 140
    assert len({row["register"] for row in sentences}) > 12
    assert len({row["register"] for row in sentences if row["label"] == "neutral"}) == 7
    assert sum(bool(re.search("[\U0001f300-\U0001faff]", row["text"])) for row in sentences) >= 10
    assert sum(row["register"] == "negation" for row in sentences) == 6
    guard = LeakageGuard("sentences")
    guard.protect((row["id"] for row in sentences), (row["text"] for row in sentences))
    assert all(guard.copied(text) is None for text in corpus.splits["train"]["text"])


@pytest.mark.realdata
def test_no_row_of_wassa_2022_is_in_the_repository(data_dir):
    """The first eight words of each essay, looked for in every tracked file."""
    wassa = load_corpus(dataset_name="wassa2022", data_dir=data_dir)
    starts = {
        " ".join(normalised(text).split()[:8]): row_id
        for rows in wassa.splits.values()
        for row_id, text in zip(rows["id"], rows["text"], strict=True)
    }
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    wanted = [Path(name) for name in listed.split("\0") if name]
    texts = [normalised((ROOT / path).read_text(encoding="utf-8", errors="ignore")).split() for path in wanted]
    texts += [normalised(text).split() for text in pyarrow.parquet.read_table(EMOTIONS)["text"].to_pylist()]
    for words in texts:
        for start in range(len(words) - 7):
            assert " ".join(words[start : start + 8]) not in starts


def test_a_licence_of_the_corpora_is_the_same_wherever_it_is_said():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    said = 0
    for name in filter(None, listed.split("\0")):
        path = ROOT / name
        if path.suffix not in (".md", ".py", ".yaml", ".cfg", ".toml") or name == "tests/runs/test_examples.py":
            continue
        text = path.read_text(encoding="utf-8")
        for found in re.finditer(r"(GoEmotions|XED)\W{0,3}\(([^()]*(?:Apache|CC)[^()]*)\)", text):
            assert LICENCE in found[2], f"{name}: {found[0]}"
            said += 1
        for found in re.finditer(r"\bCC[- ]BY\b.{0,5}", text):
            assert found[0].startswith(LICENCE), f"{name}: {found[0]}"
            said += 1
    assert said > 3


# ---- Extra tests --------------------------------------------------------------------------------------------------


def write_rows(path: Path, rows: list[tuple[str, ...]]) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter="\t").writerows(rows)
    return path


@pytest.fixture
def train(in_process, tmp_path):
    """Train two steps on the essays, with these extra tests."""
    flags = ("--train_file", ESSAYS, "--split_column_name", "split", "--id_column_name", "id", "--max_steps", 2)
    return lambda *extra, more=(): in_process(*flags, "--max_eval_samples", 4, *more, "--extra_tests", *extra)


def test_extra_tests_are_scored_beside_the_test_split(train, tmp_path, capsys):
    odd = write_rows(tmp_path / "my own-texts.tsv", [("text", "label"), ("I won!", "joy"), ("Oh no.", "fear")])
    results = train(SENTENCES, odd, more=["--tfidf_baseline", "--split_column_name", "split"])
    assert results["plain_sentences_rows"] == 140
    assert results["my_own_texts_rows"] == 2
    for prefix in ("test", "plain_sentences", "my_own_texts"):
        for name in ("accuracy", "macro_f1", "macro_f1_low", "macro_f1_high", "tfidf_macro_f1", "recall_joy"):
            assert 0 <= results[f"{prefix}_{name}"] <= 1
    printed = capsys.readouterr().out
    line = next(line for line in printed.splitlines() if line.startswith("plain sentences"))
    assert f"{results['plain_sentences_accuracy']:.1%}" in line
    assert f"{results['plain_sentences_tfidf_macro_f1']:.3f}" in line
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert f"| plain sentences | 140 | {results['plain_sentences_accuracy']:.1%} |" in card
    with open(tmp_path / "out" / "predictions.tsv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    right = [row["gold"] == row["predicted"] for row in rows if row["split"] == "plain_sentences"]
    assert sum(right) / len(right) == pytest.approx(results["plain_sentences_accuracy"])
    assert len((tmp_path / "out" / "predictions_EMO.tsv").read_text().splitlines()) == results["test_rows"]


def test_what_copies_an_extra_test_is_not_trained_on(train, tmp_path):
    with open(ESSAYS, newline="", encoding="utf-8") as file:
        copied = [row for row in csv.DictReader(file, delimiter="\t") if row["split"] == "train"][:3]
    rows = [(row["text"].upper(), row["label"]) for row in copied]
    without = train(SENTENCES)
    copies = write_rows(tmp_path / "copies.tsv", [("text", "label"), *rows])
    results = train(copies, more=["--overwrite_output_dir"])
    assert results["train_rows"] == without["train_rows"] - 3
    left_out = (tmp_path / "out" / "left_out.json").read_text(encoding="utf-8")
    assert all(f'"{row["id"]}"' in left_out for row in copied)


@pytest.mark.parametrize(
    ("name", "rows", "says"),
    [
        ("absent.tsv", None, "no such file"),
        ("bare.tsv", [("text", "emotion"), ("a", "joy")], "no column 'label'; it has text, emotion"),
        ("strange.tsv", [("text", "label"), ("a", "joy"), ("b", "envy")], "row 3: label 'envy' is not one of anger"),
        ("empty.tsv", [("text", "label")], "no rows"),
        ("blank.tsv", [("text", "label"), ("", "joy")], "row 2: text is empty"),
        ("test.tsv", [("text", "label"), ("a", "joy")], "its figures would be called test"),
    ],
)
def test_an_extra_test_that_cannot_be_used_is_refused_before_training(name, rows, says, train, tmp_path):
    if rows is not None:
        write_rows(tmp_path / name, rows)
    with pytest.raises(InputError, match=re.escape(says)):
        train(tmp_path / name)
    assert not (tmp_path / "out").exists()


@pytest.mark.realdata
def test_wassas_essays_are_an_extra_test(train, data_dir):
    results = train("wassa2022", more=["--data_dir", data_dir, "--max_predict_samples", 25])
    assert results["wassa2022_rows"] == 25
    assert 0 <= results["wassa2022_macro_f1"] <= 1
