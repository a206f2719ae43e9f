"""Supervised transfer: mappings, Random and Balanced Augmentation, joined texts, and what a run makes of them."""

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from support import ESSAY_FLAGS, ESSAYS, ROOT, check_card
from transformers import AutoTokenizer

from trainer_ext.data.augmentation import (
    balanced_augmentation,
    choose_rows,
    random_augmentation,
    with_rows,
)
from trainer_ext.data.emotion_corpora import MASKS, WASSA_LABELS, normalised
from trainer_ext.data.folds import hold_out_folds
from trainer_ext.data.label_maps import (
    LABEL_MAPS,
    TransferArguments,
    TransferRows,
    join_texts,
    load_transfer_rows,
    read_label_map,
)
from trainer_ext.data.leakage import LeakageGuard
from trainer_ext.data.load import load_corpus
from trainer_ext.errors import InputError
from trainer_ext.release.licence import licence_of
from trainer_ext.training.checkpoint_source import resolve_checkpoint

BOTH = ["go_emotions", "xed"]
# Label ids as the two corpora number them, for small files in their form.
GO_EMOTIONS = {"anger": 2, "disgust": 11, "fear": 14, "joy": 17, "neutral": 27, "sadness": 25, "surprise": 26}
XED = {"anger": 1, "disgust": 3, "fear": 4, "joy": 5, "sadness": 6, "surprise": 7}
# fmt: off
GO_EMOTIONS_LABELS = [
    "admiration", "amusement", "anger", "annoyance", "approval", "caring", "confusion", "curiosity", "desire",
    "disappointment", "disapproval", "disgust", "embarrassment", "excitement", "fear", "gratitude", "grief", "joy",
    "love", "nervousness", "optimism", "pride", "realization", "relief", "remorse", "sadness", "surprise", "neutral",
]
# fmt: on


@pytest.fixture(scope="module")
def small_data(tmp_path_factory):
    """Both corpora in the form of their files: 12 rows of each class in GoEmotions and 6 in XED, and rows with two
    labels, with a label that has no counterpart, and one that copies a validation essay."""
    folder = tmp_path_factory.mktemp("data")
    essay = load_essays().splits["validation"]["text"][3]
    (folder / "goemotions" / "original").mkdir(parents=True)
    (folder / "goemotions" / "original" / "labels.txt").write_text("\n".join(GO_EMOTIONS_LABELS) + "\n")
    rows = [
        f"[NAME] said {label} number {i} to us\t{number}\tx" for i in range(12) for label, number in GO_EMOTIONS.items()
    ]
    rows += ["both at once\t2,17\tx", "the same twice\t2,3\tx", f"{essay.upper()}\t2\tx"]
    (folder / "goemotions" / "original" / "train.tsv").write_text("\n".join(rows) + "\n")
    (folder / "xed").mkdir()
    lines = [f"[PERSON] in {label} {i}\t{number}" for i in range(6) for label, number in XED.items()]
    lines += ["hoping\t2, 8", "hoping gladly\t2, 5"]
    (folder / "xed" / "en-annotated.tsv").write_bytes(("\r\n".join(lines) + "\r\n").encode())
    (folder / "xed" / "neu_en.txt").write_text("".join(f"9\tA plain line {i}.\n" for i in range(6)))
    return str(folder)


def load_essays():
    return load_corpus(
        files={"train": str(ESSAYS)}, split_column="split", group_column="writer", id_column="id", text_column="text"
    )


def load(names, data_dir, guard=None, labels=WASSA_LABELS, **flags):
    args = TransferArguments(transfer_datasets=names, **flags)
    return load_transfer_rows(args, label_names=labels, guard=guard or LeakageGuard(""), seed=1, data_dir=data_dir)


# ---- Mappings -----------------------------------------------------------------------------------------------------


@pytest.mark.realdata
def test_the_mapping_of_go_emotions_is_the_published_one(data_dir):
    published = json.loads(Path(data_dir, "goemotions", "ekman_mapping.json").read_text()) | {"neutral": ["neutral"]}
    ours = yaml.safe_load(LABEL_MAPS.read_text())["go_emotions"]["labels"]
    assert {label: set(names) for label, names in ours.items()} == {k: set(v) for k, v in published.items()}


@pytest.mark.realdata
def test_mapped_rows_are_as_many_as_the_corpora_have(data_dir):
    counts = load(BOTH, data_dir).counts()
    assert counts["go_emotions"] == {
        **{"anger": 4293, "disgust": 498, "fear": 541, "joy": 15216, "neutral": 12823, "sadness": 2326},
        "surprise": 3858,
    }
    assert counts["xed"] == {
        **{"anger": 2443, "disgust": 1381, "fear": 1604, "joy": 2299, "neutral": 7266, "sadness": 1518},
        "surprise": 1404,
    }


def test_rows_with_one_label_are_kept_and_the_others_counted(small_data):
    rows = load(BOTH, small_data)
    assert rows.counts()["go_emotions"] == dict.fromkeys(WASSA_LABELS, 12) | {"anger": 14}
    assert rows.counts()["xed"] == dict.fromkeys(WASSA_LABELS, 6) | {"joy": 7}
    assert rows.left_out == {
        "go_emotions: several labels of the target": 1,
        "xed: no label of the target": 1,
    }
    assert len(set(rows.ids)) == len(rows)


def test_masks_are_words(small_data):
    rows = load(BOTH, small_data)
    assert not any("[" in text for text in rows.texts)
    assert rows.texts[0] == "someone said anger number 0 to us"
    assert any(text == "someone in fear 0" for text in rows.texts)


def test_masks_are_one_token_of_minilms():
    minilm = AutoTokenizer.from_pretrained(resolve_checkpoint("sentence-transformers/all-MiniLM-L6-v2"))
    assert all(len(minilm.tokenize(word)) == 1 for word in MASKS.values())


def test_a_corpus_of_ones_own_joins_by_a_mapping(tmp_path):
    (tmp_path / "posts.csv").write_text("post,feeling\nwell,glad\nugh,cross\nhm,bored\nyes,glad\n")
    path = tmp_path / "posts.yaml"
    content = {
        **{"train_file": "posts.csv", "text_column_name": "post", "label_column_name": "feeling"},
        **{"labels": {"joy": "glad", "anger": ["cross"]}, "left_out": ["bored"], "licence": "mine"},
    }
    path.write_text(yaml.safe_dump(content))
    rows = load([str(path)], None)
    assert list(zip(rows.ids, rows.texts, rows.labels, strict=True)) == [
        ("posts.csv, row 2", "well", "joy"),
        ("posts.csv, row 3", "ugh", "anger"),
        ("posts.csv, row 5", "yes", "joy"),
    ]
    assert rows.licences == {"posts.csv": "mine"}
    assert rows.left_out == {"posts.csv: no label of the target": 1}
    assert load([str(path)], None, labels=None).label_names == ["anger", "joy"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"labels": {"joy": ["glad", "happy"], "anger": "cross"}},
            "'happy' is not a label of posts.csv; those are bored,",
        ),
        (
            {"labels": {"joy": ["glad"], "rage": "cross"}},
            "maps to 'rage', which is not a label of the target; those are",
        ),
        ({"labels": {"joy": ["glad"]}}, "does not map cross; map these labels, or list them in left_out"),
        ({"labels": {"joy": ["glad", "cross"], "anger": "cross"}}, "'cross' is listed twice"),
        ({"labels": ["glad"]}, "labels: ['glad']; want lines of `name: value`"),
        ({"lables": {}}, "unknown key 'lables'"),
        ({"dataset_name": "x"}, "want either dataset_name or train_file"),
        ({"train_file": "nowhere.csv"}, "nowhere.csv: no such file"),
    ],
)
def test_a_wrong_mapping_is_named(change, says, tmp_path):
    (tmp_path / "posts.csv").write_text("text,label\nwell,glad\nugh,cross\nhm,bored\n")
    content = {"train_file": "posts.csv", "labels": {"joy": "glad", "anger": "cross"}, "left_out": ["bored"]}
    (tmp_path / "posts.yaml").write_text(yaml.safe_dump(content | change))
    with pytest.raises(InputError) as error:
        load([str(tmp_path / "posts.yaml")], None)
    assert says in str(error.value)
    assert "posts.yaml" in str(error.value) or "nowhere.csv" in str(error.value)


def test_a_corpus_that_is_neither_built_in_nor_a_mapping():
    with pytest.raises(InputError, match=r"go_emotion: want go_emotions, xed, or a \.yaml file"):
        read_label_map("go_emotion")


# ---- Random and Balanced Augmentation -----------------------------------------------------------------------------


def corpora(labels=("a", "b", "c")):
    """Rows of up to two corpora with these labels in any order and number."""
    row = st.tuples(st.sampled_from(labels), st.sampled_from(["one", "two"]))
    return st.lists(row, min_size=3, max_size=60).map(lambda drawn: make_rows(drawn, labels))


def make_rows(drawn, labels) -> TransferRows:
    rows = TransferRows(list(labels), licences={"one": "", "two": ""})
    for number, (label, corpus) in enumerate(drawn):
        rows.add(f"{corpus}, {number}", f"text {number} of it", label, corpus)
    return rows


@given(corpora(), st.integers(0, 2**32 - 1), st.integers(1, 12))
@settings(max_examples=200, deadline=None)
def test_balanced_augmentation_is_balanced_or_says_what_is_missing(rows, seed, count):
    smallest = min(Counter(dict.fromkeys(rows.label_names, 0) | Counter(rows.labels)).values())
    if smallest < count:
        with pytest.raises(InputError, match="usable rows of"):
            balanced_augmentation(rows, count, seed)
        return
    chosen = balanced_augmentation(rows, count, seed)
    assert Counter(chosen.labels) == dict.fromkeys(rows.label_names, count)
    assert len(set(chosen.ids)) == len(chosen)
    assert chosen.ids == balanced_augmentation(rows, count, seed).ids


@given(corpora(), st.integers(0, 2**32 - 1), st.dictionaries(st.sampled_from("abc"), st.integers(0, 9)))
@settings(max_examples=200, deadline=None)
def test_topped_up_classes_reach_the_number(rows, seed, present):
    have = Counter(rows.labels)
    count = min((have[label] + present.get(label, 0) for label in rows.label_names), default=0)
    chosen = Counter(balanced_augmentation(rows, max(count, 1), seed, present).labels) if count else Counter()
    for label in rows.label_names:
        assert present.get(label, 0) + chosen[label] == max(present.get(label, 0), count) or not count


@given(corpora(), st.integers(0, 2**32 - 1), st.integers(1, 70))
@settings(max_examples=100, deadline=None)
def test_random_augmentation_takes_that_many_different_rows(rows, seed, count):
    if count > len(rows):
        with pytest.raises(InputError, match=f"have {len(rows)} usable rows"):
            random_augmentation(rows, count, seed)
        return
    chosen = random_augmentation(rows, count, seed)
    assert len(chosen) == len(set(chosen.ids)) == count
    assert set(zip(chosen.ids, chosen.labels, strict=True)) <= set(zip(rows.ids, rows.labels, strict=True))


def test_random_augmentation_draws_every_row_alike():
    rows = make_rows([("a", "one")] * 15 + [("b", "two")] * 5, "ab")
    drawn = Counter(row for seed in range(2000) for row in random_augmentation(rows, 5, seed).ids)
    assert len(drawn) == 20
    assert np.abs(np.array(list(drawn.values())) - 500).max() < 4.5 * np.sqrt(2000 * 0.25 * 0.75)


def test_another_seed_draws_other_rows(small_data):
    rows = load(BOTH, small_data)
    for flags in ({"augmentation": "RA", "augmentation_rows": 20}, {"augmentation": "BA", "augmentation_rows": 5}):
        args = TransferArguments(transfer_datasets=BOTH, **flags)
        assert choose_rows(rows, args, 1).ids == choose_rows(rows, args, 1).ids
        assert choose_rows(rows, args, 1).ids != choose_rows(rows, args, 2).ids


@given(corpora(), st.integers(1, 40), st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_joined_texts_use_every_text_once_and_mix_no_labels(rows, words, seed):
    joined = join_texts(rows, words, seed)
    of_kind = {kind: Counter() for kind in zip(rows.corpora, rows.labels, strict=True)}
    for text, *kind in zip(rows.texts, rows.corpora, rows.labels, strict=True):
        of_kind[tuple(kind)].update(text.split())
    for text, *kind in zip(joined.texts, joined.corpora, joined.labels, strict=True):
        of_kind[tuple(kind)].subtract(text.split())
        assert len(text.split()) < 1.5 * words + 4  # the last text may go beyond
    assert not any(count for counter in of_kind.values() for count in counter.values())
    assert sum(len(text.split()) < words / 2 for text in joined.texts) <= len(of_kind)
    assert len(set(joined.ids)) == len(joined)


# ---- Added to a target --------------------------------------------------------------------------------------------


@given(st.integers(0, 2**16), st.sampled_from(["RA", "BA"]), st.integers(0, 4))
@settings(max_examples=6, deadline=None)
def test_the_targets_rows_stay_and_no_evaluation_text_comes_in(small_data, seed, augmentation, fold):
    corpus = load_essays()
    guard = LeakageGuard("essays")
    guard.protect_splits(corpus)
    held_out = set(map(normalised, corpus.splits["validation"]["text"][:] + corpus.splits["test"]["text"][:]))
    corpus = hold_out_folds(corpus, 5, [fold])
    guard.protect_splits(corpus)
    held_out |= set(map(normalised, corpus.splits["test"]["text"][:]))
    before = corpus.splits["train"]
    rows = load(BOTH, small_data, guard)
    assert [row for row, _ in guard.found] == ["go_emotions, train.tsv, row 87"]
    args = TransferArguments(transfer_datasets=BOTH, augmentation=augmentation, augmentation_rows=10)
    corpus = with_rows(corpus, choose_rows(rows, args, seed, corpus.class_counts("train")))
    after = corpus.splits["train"]
    assert after[: len(before)] == before[:]
    assert len(after) == len(before) + (10 if augmentation == "RA" else 70)
    assert not held_out & set(map(normalised, after["text"][len(before) :]))


def test_rows_join_targets_with_distributions_and_extra_columns(tmp_path, small_data):
    path = tmp_path / "rows.csv"
    path.write_text("text,joy,fear,age\n" + "".join(f"gate {i},0.9,0.1,3{i}\n" for i in range(4)))
    corpus = load_corpus(
        files={"train": str(path)}, label_column="joy,fear", label_names=["joy", "fear"], extra_columns=["age"]
    )
    rows = make_rows([("fear", "one"), ("joy", "two")], ["joy", "fear"])
    corpus = with_rows(corpus, rows)
    assert corpus.splits["train"][4:]["labels"] == [[0.0, 1.0], [1.0, 0.0]]
    assert corpus.splits["train"]["column_age"][3:] == ["33", "", ""]
    assert corpus.class_counts("train") == {"joy": 5, "fear": 1}


# ---- A run --------------------------------------------------------------------------------------------------------


def card_counts(folder) -> dict[str, list[int]]:
    """Rows by class as the card has them."""
    lines = (folder / "README.md").read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| source | licence |"))
    assert lines[start].split(" | ")[2:] == [*WASSA_LABELS[:-1], f"{WASSA_LABELS[-1]} |"]
    table = {}
    for line in lines[start + 2 :]:
        if line.startswith("| "):
            name, _, *counts = line.strip("| ").split(" | ")
            table[name] = [int(count) for count in counts]
        elif line:
            break
    return table


COMBINATIONS = {
    "RA": (["RA", "--augmentation_rows", 30], BOTH, 30),
    "RA of one corpus": (["RA", "--augmentation_rows", 20], ["xed"], 20),
    "BA": (["BA", "--augmentation_rows", 9], BOTH, 63),
    "BA of one corpus": (["BA", "--augmentation_rows", 6, "--ba_mode", "added"], ["go_emotions"], 42),
    "BA, topped up": (["BA", "--augmentation_rows", 97, "--ba_mode", "topped_up"], BOTH, None),
    "BA, joined": (["BA", "--augmentation_rows", 2, "--join_to_words", 12], BOTH, 14),
}


@pytest.mark.parametrize("name", COMBINATIONS)
def test_two_steps_with_every_augmentation(name, in_process, small_data, tmp_path):
    flags, corpora, expected = COMBINATIONS[name]
    results = in_process(
        *ESSAY_FLAGS, "--max_steps", 2, "--transfer_datasets", *corpora, "--augmentation", *flags,
        "--data_dir", small_data, "--max_eval_samples", 8, "--max_predict_samples", 8,
    )  # fmt: skip
    own = Counter(load_essays().classes("train").tolist())
    if expected is None:
        expected = sum(max(0, 97 - count) for count in own.values())
        assert expected
    added = card_counts(tmp_path / "out")
    assert list(added) == corpora
    assert results["transfer_rows"] == sum(map(sum, added.values())) == expected
    assert results["train_rows"] == sum(own.values()) + expected
    if flags[0] == "BA" and "topped_up" not in flags:
        assert len(set(np.sum(list(added.values()), axis=0))) == 1
    card = (tmp_path / "out" / "README.md").read_text()
    assert {"RA": "Random", "BA": "Balanced"}[flags[0]] + " Augmentation" in card
    left_out = json.loads((tmp_path / "out" / "left_out.json").read_text())
    if "go_emotions" in corpora:
        assert left_out["copies_of_target_texts"][0]["row"] == "go_emotions, train.tsv, row 87"
        assert "Left out: 1 that copy" in card


def test_a_stage_leaves_a_folder_whose_head_the_next_stage_keeps(in_process, small_data, tmp_path):
    stage = ["--transfer_datasets", *BOTH, "--data_dir", small_data, "--classifier_hidden_size", 32]
    results = in_process(*stage, "--target_file", ESSAYS, "--max_steps", 2, "--validation_split_percentage", 10)
    assert results["train_rows"] + results["validation_rows"] == results["transfer_rows"] == 7 * 18 + 2
    assert 0 <= results["eval_macro_f1"] <= 1
    assert sum(map(sum, card_counts(tmp_path / "out").values())) == results["transfer_rows"]
    card = check_card(tmp_path / "out" / "README.md")
    assert card.data.language == "en"
    assert card.data.datasets == ["google-research-datasets/go_emotions", "Helsinki-NLP/xed_en_fi"]
    assert {"go_emotions", "xed"} <= set(re.findall(r"@\w+\{(.*),", card.code[-1][1]))
    found = json.loads((tmp_path / "out" / "left_out.json").read_text())["copies_of_target_texts"]
    assert [entry["row"] for entry in found] == ["go_emotions, train.tsv, row 87"]
    flags = [flag for flag in ESSAY_FLAGS if flag not in ("--classifier_hidden_size", 32)]
    in_process(
        *("--model_name_or_path", tmp_path / "out", *flags, "--max_steps", 1, "--learning_rate", 0),
        *("--output_dir", tmp_path / "next", "--max_eval_samples", 8, "--max_predict_samples", 8),
    )
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "next"))
    assert before["classifier.out_proj.weight"].shape == (7, 32)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_balanced_stage(in_process, small_data, tmp_path):
    stage = ["--transfer_datasets", *BOTH, "--data_dir", small_data, "--classifier_hidden_size", 32]
    results = in_process(*stage, "--augmentation", "BA", "--augmentation_rows", 10, "--max_steps", 2)
    assert results["train_rows"] == 70
    assert set(np.sum(list(card_counts(tmp_path / "out").values()), axis=0)) == {10}


def test_a_stage_on_the_corpus_own_labels(in_process, small_data, tmp_path):
    results = in_process(
        *("--dataset_name", "go_emotions", "--data_dir", small_data, "--target_file", ESSAYS, "--max_steps", 2),
        *("--validation_split_percentage", 10),
    )
    assert results["train_rows"] + results["validation_rows"] == 86
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert list(config["id2label"].values()) == GO_EMOTIONS_LABELS
    assert config["problem_type"] == "multi_label_classification"
    found = json.loads((tmp_path / "out" / "left_out.json").read_text())["copies_of_target_texts"]
    assert [entry["row"] for entry in found] == ["train.tsv, row 87"]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--augmentation", "BA"], "--augmentation needs --transfer_datasets"),
        (["--join_to_words", 80], "--join_to_words needs --transfer_datasets"),
        (["--transfer_datasets", "xed"], "Give --augmentation RA or BA; or leave out"),
        (["--transfer_datasets", "xed", "--augmentation", "BA"], "have 6 usable rows of anger; 400 are wanted"),
        (["--transfer_datasets", "xed", "--augmentation", "RA"], "--augmentation_rows 1000: xed have 43 usable rows"),
        (["--transfer_datasets", "xed", "xed", "--augmentation", "RA"], "xed is listed twice"),
        (
            ["--transfer_datasets", "xed", "--augmentation", "RA", "--ba_mode", "topped_up"],
            "it needs a target and --augmentation BA",
        ),
        (
            ["--transfer_datasets", "xed", "--augmentation", "RA", "--augmentation_rows", 0],
            "--augmentation_rows is 0; want at least 1",
        ),
    ],
)
def test_flags_that_do_not_go_together(flags, says, in_process, small_data, tmp_path):
    with pytest.raises(InputError) as error:
        in_process(*ESSAY_FLAGS, "--data_dir", small_data, *flags)
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_stage_takes_no_flags_of_a_file(in_process, small_data):
    with pytest.raises(InputError, match="text_column is for --train_file"):
        in_process("--transfer_datasets", "xed", "--data_dir", small_data, "--text_column_name", "essay")


# ---- Real data ----------------------------------------------------------------------------------------------------


@pytest.mark.realdata
def test_the_recipe_with_balanced_augmentation(in_process, data_dir, tmp_path):
    results = in_process(
        *(ROOT / "recipes" / "plain.yaml", "--augmentation", "BA", "--transfer_datasets", *BOTH, "--max_steps", 2),
        *("--data_dir", data_dir, "--max_eval_samples", 8, "--max_predict_samples", 8),
    )
    assert results["train_rows"] == 1860 + 2800
    assert np.sum(list(card_counts(tmp_path / "out").values()), axis=0).tolist() == [400] * 7


@pytest.mark.realdata
def test_the_transfer_recipe(in_process, data_dir, tmp_path):
    results = in_process(
        *(ROOT / "recipes" / "transfer.yaml", "--data_dir", data_dir, "--max_steps", 2, "--max_eval_samples", 8),
        *("--max_train_samples", 200),
    )
    assert results["transfer_rows"] == 57_451  # nineteen of the mapped rows copy an essay
    assert card_counts(tmp_path / "out")["go_emotions"][1:3] == [498, 541]


@pytest.mark.realdata
def test_the_open_recipe_gives_a_model_that_may_be_published(in_process, data_dir, tmp_path):
    in_process(
        *(ROOT / "recipes" / "open.yaml", "--train_file", ESSAYS, "--data_dir", data_dir, "--max_steps", 2),
        *("--max_eval_samples", 8, "--max_predict_samples", 8, "--tfidf_baseline", "false"),
    )
    counts = card_counts(tmp_path / "out")
    assert np.sum([counts.pop("go_emotions"), counts.pop("xed")], axis=0).tolist() == [400] * 7
    assert not counts
    assert licence_of(tmp_path / "out") is None  # no restriction
