"""What lies in examples/: the embedded corpus, the plain sentences, and whom they credit."""

import csv
import re
import runpy
import subprocess
from collections import Counter
from pathlib import Path

import pyarrow.parquet
import pytest
from support import ESSAYS, ROOT, call

from trainer_ext.data.emotion_corpora import LICENCE, normalised
from trainer_ext.data.leakage import LeakageGuard
from trainer_ext.data.load import load_corpus
from trainer_ext.data.wassa2022 import WASSA_LABELS
from trainer_ext.errors import InputError

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
