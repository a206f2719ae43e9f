"""The data check names what is wrong with a corpus, and is quiet about one that is fine."""

import json
import logging
import random
import time

import pandas
import pytest
from support import ESSAYS, ROOT, call

import run_check
import run_classify
from trainer_ext.data.checks import check_data, findings
from trainer_ext.data.copies import copies
from trainer_ext.data.findings import columns
from trainer_ext.data.load import DataArguments, load_corpus
from trainer_ext.errors import InputError

EMOTIONS = ROOT / "examples" / "emotions.parquet"
TEXT = "the train to the coast was late again and nobody told us why"


@pytest.fixture(scope="module")
def rows() -> pandas.DataFrame:
    """280 rows of seven emotions, without copies."""
    table = pandas.read_parquet(EMOTIONS)
    table = table[table["split"] == "train"].groupby("label").sample(40, random_state=1)
    return table.sample(frac=1, random_state=2)[["text", "label"]].reset_index(drop=True)


@pytest.fixture
def check(tmp_path):
    """Writes rows (and test rows), and returns the findings by the name of their check."""

    def found(train: pandas.DataFrame, test: pandas.DataFrame | None = None, **flags) -> dict[str, list]:
        args = DataArguments(train_file=str(tmp_path / "train.csv"), **flags)
        train.to_csv(args.train_file, index=False)
        files = {"train": args.train_file}
        if test is not None:
            files["test"] = str(tmp_path / "test.csv")
            test.to_csv(files["test"], index=False)
        corpus = load_corpus(
            files=files, label_column=args.label_column_name, group_column=args.group_column_name,
            label_names=args.label_set or None, text_column=args.text_column_name,
        )  # fmt: skip
        by_check: dict[str, list] = {}
        for finding in findings(corpus, args):
            by_check.setdefault(finding.check, []).append(finding)
        return by_check

    return found


def worst(found: dict[str, list]) -> set[str]:
    return {check for check, of_check in found.items() if of_check[0].level in ("wrong", "warning")}


# ---- Clean data ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("path", [EMOTIONS, ESSAYS], ids=lambda path: path.name)
def test_the_examples_raise_no_warning(path):
    corpus = load_corpus(files={"train": str(path)}, split_column="split")
    assert not [each for each in findings(corpus, DataArguments()) if each.level in ("wrong", "warning")]


def test_integers_and_many_labels_of_few_rows_apart_are_fine(check, rows):
    numbers = rows.assign(label=rows["label"].astype("category").cat.codes)
    assert not worst(check(numbers))
    assert not worst(check(rows.assign(label=[str(i % 28) for i in range(len(rows))])))


@pytest.mark.realdata
def test_published_labels_raise_no_warning_but_of_copies(data_dir):
    for name in ("go_emotions", "xed"):
        found = findings(load_corpus(dataset_name=name, data_dir=data_dir), DataArguments(dataset_name=name))
        warned = {each.check for each in found if each.level in ("wrong", "warning")}
        assert warned <= {"copies_within_split", "copies_across_splits", "groups_across_splits", "contradictions"}, name


# ---- Labels -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("angerr", "anger"), ("agner", "anger"), ("Anger", "anger"), ("an ger", "anger"), ("ángér", "anger"),
        ("jyo", "joy"), ("suprise", "surprise"), ("fear\u200b", "fear"), ("digsut", "disgust"), ("SADNESS", "sadness"),
    ],
)  # fmt: skip
def test_a_misspelt_label_is_named_with_its_row(check, rows, typo, meant):
    rows = rows.copy()
    rows.loc[7, "label"] = typo
    found = check(rows)
    (finding,) = found["label_spelling"]
    assert finding.rows == ["train row 9"]
    assert repr(meant) in finding.message
    assert worst(found) == {"label_spelling"}  # and not that it has few rows


def test_all_spellings_of_a_label_are_in_one_finding(check, rows):
    spelt = rows.assign(label=[name.upper() if i % 3 else name.title() if i % 2 else name for i, name in
                               enumerate(rows["label"])])  # fmt: skip
    assert len(check(spelt)["label_spelling"]) == rows["label"].nunique()


def test_labels_that_join_other_labels_stop_a_training(check, rows):
    labels = rows["label"].tolist()
    joined = [
        f"{name}|{labels[i - 1]}" if i % 9 == 0 and name != labels[i - 1] else name for i, name in enumerate(labels)
    ]
    (finding,) = check(rows.assign(label=joined))["labels_joined"]
    assert (finding.level, "get_dummies('|')" in finding.message) == ("wrong", True)
    labels[3] = f"{labels[0]} / {labels[1]}"
    assert [each.level for each in check(rows.assign(label=labels))["labels_joined"]] == ["warning"]


@pytest.mark.parametrize(
    "names", [("joy", "boy"), ("level 1", "level 2"), ("class a", "class b"), ("-1", "1"), ("😀", "😡")]
)
def test_classes_with_similar_names_are_two(check, rows, names):
    assert not worst(check(rows.assign(label=[names[i % 20 > 6] for i in range(len(rows))])))
    many = [names[i > 2] for i in range(len(rows))]
    assert names[0] == "joy" or "label_spelling" not in check(rows.assign(label=many))


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (lambda i: f"2023-{i % 12 + 1:02}-{i % 9 + 1:02}", "labels_are_dates"),
        (lambda i: f"{i % 30 + 1}/3/24", "labels_are_dates"),
        (lambda i: f"March {i % 30 + 1}, 2024", "labels_are_dates"),
        (lambda i: f"this is what the {i % 9} people of the village said", "labels_are_texts"),
        (lambda i: 7 * (i % 90), "labels_are_scores"),
        (lambda i: f"0,{i % 40}", "labels_are_scores"),
        (lambda i: f"{i % 40}.5%", "labels_are_scores"),
    ],
)
def test_dates_scores_and_texts_are_wrong_unless_they_are_listed(check, rows, values, problem):
    labels = [values(i) for i in range(len(rows))]
    found = check(rows.assign(label=labels))
    assert found[problem][0].level == "wrong"
    assert problem not in check(rows.assign(label=labels), label_set=sorted(set(map(str, labels))))


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("number", "40 different labels in 40 rows of column 'number', as of an id or a text; name another"),
        ("score", "row 2: label is 0.01; want a name or an integer"),
        ("text", "column 'text' is the label and --text_column_name, too"),
        ("body", "label"),
    ],
)
def test_another_column_than_the_label_stops_a_small_training_too(check, rows, column, message):
    forty = rows[:40].assign(number=[f"n{i}" for i in range(40)], score=[i / 100 + 0.01 for i in range(40)])
    with pytest.raises(InputError, match=message):
        check(forty.assign(body=forty["text"]), label_column_name=column)


def test_classes_with_few_rows_or_in_one_split_are_named(check, rows):
    train, test = rows[:200].copy(), rows[200:].copy()
    train.loc[train["label"] == "joy", "label"] = "sadness"
    train.loc[:2, "label"] = "awe"
    found = check(train, test)
    assert "'awe' 3" in found["few_rows"][0].message
    assert found["few_rows"][0].rows == ["train row 2", "train row 3", "train row 4"]
    assert "'awe'" in found["split_lacks_class"][0].message
    assert "'joy'" in found["train_lacks_class"][0].message


def test_a_class_with_nearly_all_rows_is_a_warning_and_class_weights_a_flag(check, rows):
    found = check(rows.assign(label=["sad" if i % 25 == 0 else "glad" for i in range(len(rows))]))
    assert "96% of train are 'glad'" in found["one_class_dominates"][0].message
    assert found["class_weights"][0].message.startswith("--class_weights balanced: ")


# ---- Texts --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "copy",
    [
        TEXT.upper(),
        TEXT.replace(" ", ", ", 3) + "!!!",
        TEXT.replace("late", "very late"),
        TEXT.replace("coast", "city"),
        f"Monday began badly. {TEXT.capitalize()}. Then it rained all day, and I went home at last.",
    ],
    ids=["case", "punctuation", "a word more", "another word", "contained"],
)
def test_a_near_copy_across_splits_is_named_with_both_rows(check, rows, copy):
    train, test = rows[:200].copy(), rows[200:].reset_index(drop=True)
    train.loc[5, "text"], test.loc[3, "text"] = TEXT, copy
    train.loc[5, "label"] = test.loc[3, "label"] = "anger"
    found = check(train, test)
    assert found["copies_across_splits"][0].rows == ["test row 5 = train row 7"]
    assert worst(found) == {"copies_across_splits"}


def test_people_say_the_same_short_things():
    assert copies(["I don't know.", "You don't know.", "I know that.", "That's what I like about it"]) == []


def test_copies_are_found_in_time_that_grows_with_the_rows():
    words = [f"w{i}" for i in range(2000)]
    draw = random.Random(0)
    texts = ["i feel like i am " + " ".join(draw.choices(words, k=12)) for _ in range(20_000)]
    texts[19_000] = texts[400].replace("feel", "felt")
    begun = time.process_time()
    assert copies(texts) == [(19_000, 400)]
    assert time.process_time() - begun < 10


def test_equal_texts_with_different_labels_are_named(check, rows):
    found = check(pandas.concat([rows, rows.iloc[[4]].assign(label="joy" if rows["label"][4] != "joy" else "fear")]))
    assert found["contradictions"][0].rows == ["train row 6 = train row 282"]


def test_other_scripts_and_languages_are_named(check, rows):
    rows = rows.copy()
    rows.loc[3, "text"] = "Ich bin heute wirklich sehr traurig, weil mein Hund krank ist"
    rows.loc[8, "text"] = "Я очень рад"
    found = check(rows)
    assert found["other_language"][0].rows == ["train row 5"]
    assert "de 1" in found["other_language"][0].message
    assert found["other_script"][0].rows == ["train row 10"]
    assert worst(found) == {"other_language", "other_script"}


def test_what_the_flags_cut_share_or_mistake_is_named(check, rows):
    who = [f"w{i % 60}" for i in range(len(rows))]
    found = check(rows.assign(writer=who), max_seq_length=24)
    assert found["lengths"][0].level == "warning"
    assert found["max_seq_length"][0].message.startswith("--max_seq_length 64: ")
    assert found["group_column"][0].message.startswith("--group_column writer: it has 60 values in 280 rows")
    grouped = rows.assign(writer=who)
    found = check(grouped[:200], grouped[200:], group_column_name="writer")
    assert "60 groups of test also in train" in found["groups_across_splits"][0].message
    assert "texts_of_one_word" in check(rows.assign(code=[f"t{i}" for i in range(len(rows))]), text_column_name="code")


def test_markup_and_texts_far_longer_than_others_are_named(check, rows):
    rows = rows.copy()
    rows.loc[3:5, "text"] = [f"<p>Back home {i} times &amp; so <b>happy</b><br/></p>" for i in range(3)]
    rows.loc[9, "text"] = "word " * 10_000
    found = check(rows)
    assert found["markup"][0].rows == ["train row 5", "train row 6", "train row 7"]
    assert found["far_longer"][0].rows == ["train row 11"]
    assert worst(found) == {"markup", "far_longer"}


# ---- Commands -----------------------------------------------------------------------------------------------------
def test_the_page_is_narrow_has_no_text_and_the_record_is_whole(tmp_path, rows, bert_folder):
    train, test = rows[:200].copy(), rows[200:].reset_index(drop=True)
    train.loc[0, "label"] = "angerr"
    train.loc[1, "label"] = " joy"
    train.loc[5, "text"], test.loc[3, "text"] = TEXT, TEXT.upper()
    train.to_csv(tmp_path / "train.csv", index=False)
    test.to_csv(tmp_path / "test.csv", index=False)
    files = [tmp_path / "train.csv", "--test_file", tmp_path / "test.csv"]
    assert "tokens, estimated" in call(run_check.main, *files)
    page = call(run_check.main, *files, "--json", tmp_path / "found.json", "--model_name_or_path", bert_folder)
    assert "estimated" not in page
    assert max(map(columns, page.splitlines())) <= 80
    assert "label 'angerr' (1 row: train row 2)" in " ".join(page.split())
    assert "spaces around the label" in " ".join(page.split())
    assert "nobody told" not in page.lower()
    record = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert record["rows"] == {"train": 200, "test": 80}
    assert record["classes"]["train"]["angerr"] == 1
    assert {"label_spelling", "copies_across_splits", "lengths"} <= {each["check"] for each in record["findings"]}


def test_what_is_wrong_ends_the_check_and_is_in_the_record(tmp_path, rows):
    rows.assign(day=[f"2023-01-{i % 28 + 1:02}" for i in range(len(rows))]).to_csv(tmp_path / "a.csv", index=False)
    for column, problem in (("day", "holds dates"), ("text", "'text' is named as the label, and holds texts")):
        with pytest.raises(InputError, match=problem):
            call(run_check.main, "--label_column_name", column, tmp_path / "a.csv", "--json", tmp_path / "found.json")
        found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))["findings"]
        assert [finding["level"] for finding in found].count("wrong") == 1
    with pytest.raises(InputError, match="is the train file, and --train_file names another"):
        call(run_check.main, tmp_path / "a.csv", "--train_file", tmp_path / "b.csv")


def test_a_training_makes_the_same_checks_before_it_begins(tmp_path, rows, bert_folder, caplog):
    rows = rows.assign(day=[f"2023-01-{i % 28 + 1:02}" for i in range(len(rows))])
    rows.loc[7, "label"] = "angerr"
    rows.to_csv(tmp_path / "a.csv", index=False)
    flags = ["--model_name_or_path", bert_folder, "--train_file", tmp_path / "a.csv", "--output_dir", tmp_path / "out"]
    with pytest.raises(InputError, match=r"a\.csv: column 'day' holds dates"):
        call(run_classify.main, *flags, "--use_cpu", "--label_column_name", "day")
    assert not (tmp_path / "out").exists()
    data_args = DataArguments(train_file=str(tmp_path / "a.csv"))
    with caplog.at_level(logging.INFO):
        check_data(load_corpus(files={"train": data_args.train_file}), data_args)
    assert "data: label 'angerr' (1 row: train row 9) is spelt almost like 'anger'" in caplog.text
