"""GoEmotions and XED as published, every trap counted; and what a copy is."""

from collections import Counter
from pathlib import Path

import pytest

from trainer_ext.data.emotion_corpora import normalised, read_emotion_corpus
from trainer_ext.data.label_maps import TransferArguments
from trainer_ext.data.leakage import LeakageGuard
from trainer_ext.data.load import load_corpus
from trainer_ext.errors import InputError
from trainer_ext.recipes import HubAccess


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
