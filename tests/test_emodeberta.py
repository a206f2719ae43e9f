"""EmotionClassifier: training, predicting and scikit-learn, with tiny checkpoints and real trainings."""

import logging
import os
import pickle
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from datasets import ClassLabel, Dataset
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import cross_validate
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.validation import has_fit_parameter
from support import ESSAYS, ROOT
from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

import emodeberta
import run_classify
from emodeberta import EmotionClassifier
from trainer_ext.data.in_memory import classes_of, file_of, integer_labels, labels_of
from trainer_ext.errors import InputError

LIGHT = ("joy", "neutral", "surprise")
BAD = [None, float("nan"), "", "  ", 3, pd.NA]


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    """Thirty essays with an index of their own, and columns whose names say nothing."""
    essays = pd.read_csv(ESSAYS, sep="\t").head(30)
    mood = np.where(essays["label"].isin(LIGHT), "light", "dark")
    return pd.DataFrame(
        {"number": range(30), "words": essays["text"].str[:200].to_list(), "mood": mood}, range(70, 40, -1)
    )


@pytest.fixture(scope="module")
def flags(v3_folder) -> dict:
    shape = {"max_seq_length": 32, "classifier_hidden_size": 16, "per_device_train_batch_size": 8}
    return {"model": str(v3_folder), "device": "cpu", **shape, "num_train_epochs": 1, "bf16": False}


@pytest.fixture(scope="module")
def trained(table, flags, tmp_path_factory):
    """A classifier and its folder, trained where no folder is named, with validation rows in a dataset."""
    before, folder = os.getcwd(), tmp_path_factory.mktemp("api")
    os.chdir(folder)
    try:
        rows = Dataset.from_pandas(table.head(8), preserve_index=False)
        classifier = EmotionClassifier.train(table, rows, text_column="words", label_column="mood", **flags)
    finally:
        os.chdir(before)
    return classifier, folder / "outputs" / "classifier"


@pytest.fixture
def classifier(trained) -> EmotionClassifier:
    return trained[0]


def temporary() -> set[str]:
    return {name for name in os.listdir(tempfile.gettempdir()) if name.startswith("emodeberta-")}


# ---- Training -----------------------------------------------------------------------------------------------------
def test_importing_takes_no_torch():
    code = "import sys, emodeberta; sys.exit(bool({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_train_leaves_the_folder_that_run_classify_leaves(trained, finished):
    classifier, folder = trained
    optional = {
        "confusion_matrix.json",
        "confusion_matrix.png",
        "coverage.json",
        "coverage.png",
        "predictions_EMO.tsv",
        "reliability.json",
        "checkpoints",
    }
    optional |= {"reliability.png", ".lock"}  # with a test split, or the labels of WASSA 2022
    names = {path.name for path in folder.iterdir()}
    assert {path.name for path in finished[0].iterdir()} - optional <= names
    record = (folder / "run.json").read_text()
    assert "python run_classify.py --model_name_or_path" in record
    assert "--label_column_name=mood" in record
    assert str(tempfile.gettempdir()) not in record
    again = EmotionClassifier.from_pretrained(folder, device="cpu")
    assert again.predict_proba(["the river"]).tolist() == classifier.predict_proba(["the river"]).tolist()


def test_train_leaves_the_process_as_it_was(table, flags, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    argv, handlers = list(sys.argv), list(logging.getLogger().handlers)
    with pytest.raises(InputError, match=r"train.jsonl, row 2: words is None; want a text"):
        EmotionClassifier.train(
            table.assign(words=["a text", None, *["another"] * 28]),
            text_column="words",
            label_column="mood",
            output_dir=tmp_path / "model",
            **flags,
        )
    assert (temporary(), sys.argv, logging.getLogger().handlers) == (set(), argv, handlers)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"learning_rat": 1e-3}, "unknown argument 'learning_rat=0.001'; did you mean learning_rate"),
        ({"device": "gpu9"}, r"device is 'gpu9' \(.*\); want cpu, or an accelerator's name"),
        ({"dtype": "int8"}, "dtype is 'int8'; want float32"),
        ({"output_dir": ROOT / "tests"}, "in use .*; give another output_dir"),
        ({"num_train_epochs": "many"}, "invalid float value: 'many'"),
        ({"train_file": "a.csv"}, "train_file: is called train here"),
        ({"text_column": "word"}, "no column 'word'; it has number, words, mood; did you mean 'words'"),
        ({"train": 3}, "train: is of type int; want a DataFrame, a dataset or a file"),
        ({"train": {"train": None}}, "train: holds train; give one of them"),
        ({"train": "nowhere.csv"}, "nowhere.csv: no such file"),
        ({"train": pd.DataFrame([[1, 2]], columns=["a", "a"])}, "train: has several columns 'a'; want one"),
        ({"train": pd.DataFrame([[1, 2]], columns=pd.MultiIndex.from_product([["a"], ["b", "c"]]))}, "have 2 levels"),
        ({"label_column": "words"}, "'words' is the label and text_column, too; name another with label_column"),
    ],
)
def test_a_mistake_in_a_call_is_one_line(table, flags, tmp_path, wrong, says):
    call = {"train": table, "text_column": "words", "label_column": "mood", "output_dir": tmp_path / "model"}
    with pytest.raises(InputError, match=says) as error:
        EmotionClassifier.train(**(call | flags | wrong))
    assert "\n" not in str(error.value)


def test_labels_of_a_table_keep_their_type():
    integers = pd.DataFrame({"number": [7, 8, 9], "label": [0, 1, 0]})
    assert integer_labels(integers, "label", ["0", "1"]) == [0, 1]
    assert integer_labels(integers, None, ["0", "1"]) == ["0", "1"]
    assert integer_labels(integers, "number", ["0", "1"]) == ["0", "1"]
    assert integer_labels(Dataset.from_pandas(integers), "label", ["0", "1"]) == [0, 1]
    for dtype in ("category", "Int8", "object"):
        assert integer_labels(integers.astype({"label": dtype}), "label", ["0", "1"]) == [0, 1]
    named = Dataset.from_pandas(integers).cast_column("label", ClassLabel(names=["dark", "light"]))
    assert integer_labels(named, "label", ["dark", "light"]) == ["dark", "light"]
    stars = Dataset.from_pandas(integers).cast_column("label", ClassLabel(names=["1", "0"]))
    assert integer_labels(stars, "label", ["1", "0"]) == ["1", "0"]
    assert integer_labels("file.csv", "label", ["0", "1"]) == ["0", "1"]


def test_the_columns_that_training_chose_are_those_of_predictions(table, flags, tmp_path):
    """The label is a column of texts like integers, and another one holds the same integers."""
    numbers = np.where(table["mood"] == "dark", 1, 2)
    rows = pd.DataFrame({"answer": table["mood"], "document": table["words"], "stars": numbers})
    rows = rows.assign(sentiment=rows["stars"].map(str), answer="no text is in here")
    flags = {**flags, "max_steps": 1, "text_column_delimiter": " / "}
    classifier = EmotionClassifier.train(rows.drop(columns="answer"), output_dir=tmp_path / "a", **flags)
    expected = classifier.predict_proba(rows["document"])
    assert (classifier.predict_proba(rows) == expected).all()
    assert classifier.classes_.tolist() == ["1", "2"]
    joined = rows["document"] + " / " + rows["answer"]
    both = classifier.predict_proba(rows, text_column=["document", "answer"])
    assert (both == classifier.predict_proba(joined)).all()
    numbered = rows[["document", "answer"]].set_axis([0, 1], axis=1)
    for names in ([0, 1], np.array([0, 1]), pd.Index([0, 1]), (0, 1), "0,1"):
        assert (classifier.predict_proba(numbered, text_column=names) == both).all()
    for names in ([0, 2], {0, 1}, []):
        with pytest.raises(InputError, match="the table: no column"):
            classifier.predict(numbered, text_column=names)
    classifier._text_column = "document,answer"
    labels = classifier.predict(joined)
    assert classifier.score(rows, labels) == 1


@pytest.mark.parametrize("y", ["joy", {"a": 1}, {1, 2}, [("a", 1)], [["a"], ["b", "c"]], np.eye(2), None])
def test_labels_that_are_not_one_per_text_are_refused(y):
    with pytest.raises(InputError, match="want one label per text"):
        labels_of(y)


def test_labels_of_pandas_stay_what_they_are():
    for dtype, kind in (("Int64", "i"), ("int8", "i"), ("boolean", "b"), ("category", "i")):
        labels = classes_of(labels_of(pd.Series([1, 0], dtype=dtype)))
        assert np.array(labels.tolist()).dtype.kind == kind
    assert labels_of(label for label in "ab").tolist() == ["a", "b"]
    with pytest.raises(InputError, match="y, row 1: no label"):
        labels_of(pd.Series([1, None], dtype="Int64"))


def test_a_text_may_have_several_labels(table, flags, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = table.assign(mood=[["dark", "long"], ["light"], []] * 10).rename(columns={"words": "text"})
    classifier = EmotionClassifier.train(rows, label_column="mood", output_dir="model", **flags)
    labels = classifier.predict(rows["text"])
    probabilities = classifier.predict_proba(rows["text"])
    assert labels.shape == (30,)
    for row, given in zip(probabilities, labels, strict=True):
        assert given == [name for name, value in zip(classifier.classes_, row, strict=True) if value > 0.5]
    assert classifier.predict(rows["text"].iloc[0]) == labels[0]
    assert classifier.predict(rows)["emotion"].tolist() == labels.tolist()
    for y in (["dark"] * 30, table["mood"]):
        with pytest.raises(InputError, match="score: is for one label per text"):
            classifier.score(rows, y)


def test_another_classifiers_labels_keep_their_names(tokenizer, table, tmp_path):
    """Also names that a training would read as others."""
    names = ["0.0", "1.0", "joy "]
    config = DebertaV2Config(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        id2label=dict(enumerate(names)), initializer_range=1.0,
    )  # fmt: skip
    DebertaV2ForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    classifier = EmotionClassifier.from_pretrained(tmp_path, device="cpu")
    assert classifier.classes_.tolist() == names
    texts = table["words"].to_list()
    labels = classifier.predict(texts)
    assert labels.tolist() == [names[best] for best in classifier.predict_proba(texts).argmax(axis=1)]
    assert classifier.score(texts, labels) == 1


# ---- Predicting ---------------------------------------------------------------------------------------------------
def test_one_text_gives_its_label_and_several_give_an_array(classifier, table):
    texts = table["words"].to_list()
    labels, probabilities = classifier.predict(texts), classifier.predict_proba(texts)
    assert classifier.classes_.tolist() == ["dark", "light"]
    assert labels.tolist() == classifier.classes_[probabilities.argmax(axis=1)].tolist()
    assert probabilities.sum(axis=1) == pytest.approx(1)
    column = Dataset.from_pandas(table)["words"]
    for same in (tuple(texts), np.array(texts), np.array(texts)[:, None], table["words"], column, (t for t in texts)):
        assert classifier.predict(same).tolist() == labels.tolist()
    assert classifier.predict(texts[0]) == labels[0]
    assert isinstance(classifier.predict(texts[0]), str)
    assert classifier.predict_proba(texts[0]) == pytest.approx(probabilities[0], abs=1e-5)
    assert classifier.predict([]).tolist() == []


def test_a_table_comes_back_with_its_index_and_the_answers(classifier, table):
    texts = table["words"].to_list()
    for given in (table, table.rename(columns={"words": "Text"}), Dataset.from_pandas(table)):
        result = classifier.predict(given)
        assert result.columns.tolist()[-5:] == ["emotion", "confidence", "dark", "light", "error"]
        assert result["emotion"].tolist() == classifier.predict(texts).tolist()
        assert result[["dark", "light"]].to_numpy() == pytest.approx(classifier.predict_proba(texts), abs=1e-6)
        assert (result["confidence"] == result[["dark", "light"]].max(axis=1)).all()
        assert result["error"].isna().all()
    assert classifier.predict(table).index.equals(table.index)
    assert classifier.predict(table)[table.columns.to_list()].equals(table)
    numbered = pd.DataFrame(dict(enumerate([texts, range(30)])))  # names of columns that are no strings
    for result in (classifier.predict(numbered), classifier.predict(numbered, text_column=0)):
        assert result["emotion"].tolist() == classifier.predict(texts).tolist()
    joined = classifier.predict(table.assign(title="Why"), text_column=["title", "words"])
    assert joined["dark"].to_numpy() == pytest.approx(
        classifier.predict_proba([f"Why {text}" for text in texts])[:, 0], abs=1e-6
    )


def test_a_row_without_a_text_costs_only_itself(classifier):
    texts = ["the river took the road", *BAD, "nobody told us"]
    with pytest.warns(UserWarning, match=r"6 of 8 texts have no label \(row 1, 2, 3, 4, 5 and 1 more\).* want a text"):
        labels = classifier.predict(texts)
    assert labels.tolist()[1:-1] == [None] * 6
    assert labels.tolist()[::7] == classifier.predict(texts[::7]).tolist()
    with pytest.warns(UserWarning, match="row b"):
        probabilities = classifier.predict_proba(pd.Series([texts[0], None], index=["a", "b"]))
    assert np.isnan(probabilities).tolist() == [[False, False], [True, True]]
    with pytest.warns(UserWarning, match="6 of 8"):
        result = classifier.predict(pd.DataFrame({"text": texts}))
    assert result["error"].notna().tolist() == [False, *[True] * 6, False]
    assert result["dark"].isna().tolist() == result["error"].notna().tolist()
    with pytest.warns(UserWarning, match="1 of 1"):
        assert classifier.predict("") is None
    with pytest.warns(UserWarning, match="1 of 2"):
        assert classifier.score(texts[:2], [labels[0]] * 2) == 0.5


def test_a_column_of_the_table_is_not_replaced_without_a_word(classifier, table):
    given = table.assign(emotion="own", dark=1)
    with pytest.warns(UserWarning, match="the result has its own emotion, dark instead of the table's"):
        result = classifier.predict(given, text_column="words")
    assert result.columns.is_unique
    assert set(result["emotion"]) <= {"dark", "light"}
    assert set(given["emotion"]) == {"own"}


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda c, t: c.predict(t, text_column="word"), "the table: no column 'word'; .* did you mean 'words'"),
        (lambda c, t: c.predict(t["words"], text_column="words"), "text_column 'words': is for a table"),
        (lambda c, t: c.predict(3), "3; want texts"),
        (lambda c, t: c.predict({"text": "a"}), "not texts but a dict with text; give one of them"),
        (lambda c, t: c.predict({"a", "b"}), "not texts but a set, which has no order; give a list"),
        (lambda c, t: c.predict(np.array("a text")), r"an array of shape \(\); give the texts in one dimension"),
        (lambda c, t: c.predict(np.array([["a", "b"]])), r"an array of shape \(1, 2\)"),
        (lambda c, t: c.predict(str), "a type; want texts"),
        (lambda c, t: c.predict(pd.DataFrame()), "name the text_column; the table has no columns"),
        (lambda c, t: c.predict(pd.concat([t, t], axis=1)), "the table has several columns 'words'; want one"),
        (lambda c, t: c.predict(t, text_column=0), "the table: no column 0; it has 'number', 'words', 'mood'"),
        (lambda c, t: c.explain("why " * 10_000), "explain: 10,000 words; want at most 32"),
        (lambda c, t: c.explain(""), "explain: ''; want one text"),
        (lambda c, t: c.explain("a text", label="joy"), "explain: 'joy' is not a label; want one of dark, light"),
        (lambda c, t: c.score(["a"], ["joy"]), "score: label 'joy' is not one of dark, light"),
        (lambda c, t: c.score(t["words"], ["dark"]), "score: 30 texts and 1 labels; want one label per text"),
        (lambda c, t: c.score(["a"], ["1.0"]), "score: label '1' is not one of dark, light"),
        (lambda c, t: c.score([], []), "score: no texts; want at least one"),
        (lambda c, t: c.save_pretrained(__file__), "test_emodeberta.py: File exists; want a folder to write to"),
        (lambda c, t: EmotionClassifier.from_pretrained("./nowhere"), "./nowhere: no such folder"),
        (lambda c, t: EmotionClassifier.from_pretrained(c.model, dtype="int8"), "dtype is 'int8'; want float32"),
    ],
)
def test_a_mistake_in_a_question_is_one_line(classifier, table, call, says):
    with pytest.raises(InputError, match=says):
        call(classifier, table)
    untouched = classifier.predict(
        table.assign(more="a second text")[["words", "more"]].set_axis(["text", "b"], axis=1)
    )
    assert len(untouched) == 30
    with pytest.raises(InputError, match="name the text_column; the table has a, b"):
        classifier.predict(pd.DataFrame({"a": ["x"], "b": ["y"]}))


def test_explain_says_what_leaving_a_word_out_does(classifier):
    text = "  The river, again: nobody told us. "
    shown = classifier.explain(text, label="light")
    assert shown.columns.tolist() == ["word", "light"]
    assert shown["word"].tolist() == ["The", "river,", "again:", "nobody", "told", "us."]
    whole, without = classifier.predict_proba([text, "  The river, nobody told us. "])[:, 1]
    assert shown["light"][2] == pytest.approx(whole - without, abs=1e-6)
    assert classifier.explain(text).columns[1] == classifier.predict(text)
    assert classifier.explain("why")["word"].tolist() == ["why"]
    assert classifier.explain("... why ...")["word"].tolist() == ["...", "why", "..."]


@pytest.mark.parametrize(("progress", "texts", "shown"), [(True, 2, True), (None, 2, False), (False, 600, False)])
def test_the_progress_bar_is_for_long_input(classifier, capsys, progress, texts, shown):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        classifier.predict([""] * texts, progress=progress)
    assert ("text/s" in capsys.readouterr().err) == shown


def test_an_ensemble_is_a_classifier_too(fused):
    ensemble = EmotionClassifier.from_pretrained(fused[0] / "all", device="cpu")
    probabilities = ensemble.predict_proba(["the river took the road", "why"])
    assert probabilities.shape == (2, len(ensemble.classes_))
    assert ensemble.predict("why") == ensemble.classes_[probabilities[1].argmax()]


# ---- scikit-learn -------------------------------------------------------------------------------------------------
def test_it_runs_in_a_pipeline_under_cross_validation(table, flags, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # other processes use the usual one
    monkeypatch.setattr(run_classify, "write_plots", lambda *content: drawn.append(content))
    steps = [("strip", FunctionTransformer(lambda texts: [text.strip() for text in texts]))]
    pipeline = Pipeline([*steps, ("classify", EmotionClassifier(**flags))])
    y = (table["mood"] == "dark").astype(int) + 9  # 9 and 10, whose names sort the other way round
    result = cross_validate(pipeline, table["words"], y, cv=2, scoring=["accuracy", "roc_auc"], return_estimator=True)
    assert not temporary()
    assert not drawn  # they would be thrown away
    assert np.isfinite([result["test_accuracy"], result["test_roc_auc"]]).all()
    classifier = result["estimator"][0]["classify"]
    assert classifier.classes_.tolist() == [9, 10]
    predicted = classifier.predict(table["words"])
    assert predicted.dtype == y.dtype
    assert predicted.tolist() == classifier.classes_[classifier.predict_proba(table["words"]).argmax(axis=1)].tolist()
    table = table.rename(columns={"words": "text"})
    assert classifier.predict(table)["emotion"].tolist() == predicted.tolist()
    assert classifier.score(table, y) == np.mean(predicted == y)
    weights = np.arange(30)
    assert classifier.score(table, y, weights) == pytest.approx(np.average(predicted == y, weights=weights))
    again = pickle.loads(pickle.dumps(classifier))
    assert again.predict(table["text"]).tolist() == predicted.tolist()
    classifier.save_pretrained(tmp_path / "kept")
    kept = EmotionClassifier.from_pretrained(tmp_path / "kept", device="cpu")
    assert kept.score(table, y) == classifier.score(table, y)
    modes = {path.suffix: path.stat().st_mode for path in (tmp_path / "kept").iterdir()}
    assert modes[".safetensors"] == modes[".py"]  # not for the owner alone


def test_parameters_are_those_of_the_constructor_and_flags(classifier, trained):
    assert EmotionClassifier().get_params() == {
        "model": emodeberta.MINILM, "device": None, "dtype": "float32", "verbose": False,
    }  # fmt: skip
    made = EmotionClassifier(model="here", num_train_epochs=2).set_params(device="cpu", learning_rate=1e-3)
    assert (made.device, made.flags) == ("cpu", {"num_train_epochs": 2, "learning_rate": 1e-3})
    assert clone(made).get_params() == made.get_params()
    assert "num_train_epochs=2" in repr(made)
    with pytest.raises(NotFittedError):
        made.predict("why")
    with pytest.raises(NotFittedError):
        clone(classifier).predict("why")


@pytest.mark.parametrize(
    ("X", "y", "more", "says"),
    [
        (["a", "b"], ["x"], {}, "fit: 2 texts and 1 labels"),
        (["a", "b"], ["x", None], {}, "y, row 1: no label"),
        (["a", "b"], [["x"], ["x", "y"]], {}, r"y: array.*; want one label per text \(for several, Emo.*train takes"),
        ({"a", "b"}, ["x", "y"], {}, "a set, which has no order"),
        (["a", "b"], ["x", 3], {}, "labels of several kinds"),
        (["a", "b"], np.array(["x", 3], dtype=object), {}, "labels of several kinds"),
        (["a", "b"], ["x", "\ud83d"], {}, "y, row 1: the label is not UTF-8: half of a character"),
        (["a", "b"], ["x", " x"], {}, "label 'x' is written in two ways"),
        (["a", None], ["x", "y"], {}, "X.jsonl, row 2: text is None; want a text"),
        (["a", "b"], ["x", "y"], {"output_dir": "here"}, "output_dir: fit leaves no folder"),
    ],
)
def test_a_mistake_in_fit_is_one_line(flags, X, y, more, says):
    with pytest.raises(InputError, match=says):
        EmotionClassifier(**flags, **more).fit(X, np.array(y, dtype=object))
    assert Path(flags["model"]).is_dir()


def test_weights_of_rows_are_refused_where_they_would_be_ignored(flags):
    classifier = EmotionClassifier(**flags)
    with pytest.raises(InputError, match="fit: sample_weight is not supported; class_weights='balanced' weights"):
        classifier.fit(["a", "b"], ["x", "y"], sample_weight=[1, 2])
    assert not has_fit_parameter(classifier, "sample_weight")  # so that BaggingClassifier draws rows instead


def test_a_column_of_any_type_can_be_next_to_the_text(table, tmp_path):
    rows = table.assign(when=pd.Period("2020"), between=pd.Interval(0, 1), day=pd.Timestamp("2020-01-01"))
    written = pd.read_json(file_of(rows, "train", tmp_path), lines=True)
    assert written["words"].tolist() == rows["words"].tolist()
    assert set(written["between"]) == {"(0, 1]"}
