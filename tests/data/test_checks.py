"""The data check names what is wrong with a corpus; lists of rows for people to look at come back as corrections."""

import csv
import json
import logging
import random
import time
import xml.etree.ElementTree as ET
from dataclasses import replace
from decimal import Decimal

import argilla
import pandas
import pytest
from argilla.records._io._json import JsonIO
from datasets import ClassLabel, Dataset, Features, List, Value
from support import ESSAYS, ROOT, call

import run_check
import run_classify
from trainer_ext.data.checks import check_data, findings
from trainer_ext.data.corrections import correct, rows_of, the_file, write_corrected
from trainer_ext.data.findings import columns
from trainer_ext.data.leakage import copies
from trainer_ext.data.load import DataArguments, load_corpus
from trainer_ext.data.review_list import Listed, read_list, write_list
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
    found = check(numbers)
    assert not worst(found)
    assert "are numbers (0, 1, 2, 3, 4, 5, 6), and the model will" in found["labels_are_numbers"][0].message
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
        ("surpr1se", "surprise"),
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


@pytest.mark.parametrize("written", [lambda names: str(names), lambda names: str([len(name) for name in names])])
def test_lists_that_became_text_stop_a_training(check, rows, written):
    """As pandas writes them into a csv."""
    labels = rows["label"].tolist()
    lists = [written([name, labels[i - 1]] if i % 3 == 0 else [name]) for i, name in enumerate(labels)]
    (finding,) = check(rows.assign(label=lists))["labels_joined"]
    assert (finding.level, "are lists written as text, as " in finding.message) == ("wrong", True)
    assert "to_json" in finding.message


def test_labels_in_brackets_are_no_lists(check, rows):
    assert "labels_joined" not in check(rows.assign(label=[f"[{name}]" for name in rows["label"]]))


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


def test_a_label_that_no_word_tells_is_probably_another_column(check):
    """Shuffled labels have the same counts. One wrong label in five is poor data, but the right column."""
    table = pandas.read_parquet(EMOTIONS)
    for source, of_source in table[table["split"] == "train"].groupby("source"):
        rows = of_source.sample(500, random_state=1)[["text", "label"]].reset_index(drop=True)
        shuffled = rows["label"].sample(frac=1, random_state=1, ignore_index=True)
        poor = rows["label"].where(rows.index % 5 > 0, shuffled)
        assert "labels_not_in_the_words" not in check(rows) | check(rows.assign(label=poor)), source
        found = check(rows.assign(city=shuffled), label_column_name="city")
        assert "if column 'city' is the wrong one, name another" in found["labels_not_in_the_words"][0].message


def test_words_are_found_where_no_space_is_between_them(check):
    """Japanese words for joy and sadness among other letters."""
    draw = random.Random(0)
    kana = [chr(each) for each in range(0x3042, 0x3080)]

    def text(word: str) -> str:
        return "".join(draw.choices(kana, k=9)) + word + "".join(draw.choices(kana, k=9))

    labels = [draw.choice(["joy", "sadness"]) for _ in range(400)]
    texts = [text("嬉" if label == "joy" else "悲") for label in labels]
    assert "labels_not_in_the_words" not in check(pandas.DataFrame({"text": texts, "label": labels}))
    draw.shuffle(labels)
    assert "labels_not_in_the_words" in check(pandas.DataFrame({"text": texts, "label": labels}))


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
        TEXT.replace("coast", "city").replace("late", "cold"),
        f"@her_friend {TEXT} https://example.com/x1",
        "".join(chr(ord(each) + 0xFEE0) if each.isalpha() else each for each in TEXT),
        f"Monday began badly. {TEXT.capitalize()}. Then it rained all day, and I went home at last.",
    ],
    ids=["case", "punctuation", "a word more", "another word", "two other words", "link", "full width", "contained"],
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


def test_the_record_replaces_nothing_but_an_earlier_record(tmp_path, rows, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows.to_json("mine.json", orient="records")
    (tmp_path / "notes.txt").write_text("mine")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for flags, problem in (
        (["mine.json", "--json", "./mine.json"], r"--json mine\.json: is one of the files to read, .*; give another"),
        (["--json", "mine.json"], r"--json mine\.json: exists, and is not the record of a check; give another"),
        (["mine.json", "--json", "notes.txt"], r"notes\.txt: exists, and is not"),
        (["mine.json", "--json", "no/such.json"], r"no/such\.json: there is no folder no; want one that exists"),
        (["--json", "new.json"], "no data: give"),
    ):
        with pytest.raises(InputError, match=problem):
            call(run_check.main, *flags)
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    for _ in range(2):
        call(run_check.main, "mine.json", "--json", "found.json")


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


# ---- Lists of rows for people to look at -----------------------------------------------------------------------------
LABELS = ["joy", "anger", 'a <b> & "c"']
DATA = DataArguments(text_column_name="body", label_column_name="mood")


def listed(number: int, label: list[str], proposed: list[str], text: str = "") -> Listed:
    return Listed(str(number), "train", text or f"text {number}", label, proposed, 0.9, 1.0, 0.01, True)


ROWS = [listed(2, ["joy"], ["anger"], "=1+1; a formula"), listed(4, ["anger"], [LABELS[2]], 'two\nlines, "quoted"')]


def answer_csv(path, answers: list[str]) -> None:
    """Fill in the column `corrected`, as a person does."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(row | {"corrected": answer} for row, answer in zip(rows, answers, strict=False))


def said_of(path) -> list[tuple]:
    return [(each.row, each.split, each.text, each.label, each.corrected) for each in read_list(path)]


def expected(*answers: list[str]) -> list[tuple]:
    return [(row.row, row.split, row.text, row.label[0], said) for row, said in zip(ROWS, answers, strict=True)]


def test_a_csv_comes_back_and_is_no_formula(tmp_path):
    path = tmp_path / "list.csv"
    write_list(path, "csv", ROWS, LABELS, False)
    assert "'=1+1; a formula" in path.read_text(encoding="utf-8")
    assert said_of(path) == expected([], [])
    answer_csv(path, ["remove", LABELS[2]])
    assert said_of(path) == expected(["remove"], [LABELS[2]])


def test_label_studio_tasks_fit_their_configuration_and_come_back(tmp_path):
    """By https://labelstud.io/guide/predictions; the exports are in the forms that its converter writes."""
    path = tmp_path / "tasks.json"
    write_list(path, "label_studio", ROWS, LABELS, False)
    tasks, view = json.loads(path.read_text()), ET.parse(tmp_path / "tasks.xml").getroot()
    (choices,) = view.findall("Choices")
    assert [choice.get("value") for choice in choices] == [*LABELS, "unsure", "remove"]
    shown = {text.get("name"): text.get("value") for text in view.findall("Text")}
    for task, row in zip(tasks, ROWS, strict=True):
        assert {value.removeprefix("$") for value in shown.values()} <= task["data"].keys()
        assert "id" not in task["data"]  # JSON-MIN puts its own there
        ((result,),) = (prediction["result"] for prediction in task["predictions"])
        assert (result["from_name"], result["to_name"]) == (choices.get("name"), choices.get("toName"))
        assert (result["type"], result["value"]["choices"]) == ("choices", row.proposed)
        assert choices.get("toName") in shown
    with pytest.raises(InputError, match="row 1: has no annotations; want Label Studio's export"):
        read_list(path)

    def annotation(*choices: str, **more):
        result = [{"from_name": "corrected", "to_name": "text", "type": "choices", "value": {"choices": [*choices]}}]
        return {"result": result, "was_cancelled": False} | more

    export = tmp_path / "export.json"
    for annotations, said in (
        ([[annotation("joy")], [annotation("unsure")]], [["joy"], ["unsure"]]),
        ([[annotation("joy", was_cancelled=True)], []], [[], []]),
        ([[annotation("joy"), annotation("anger")], [annotation("joy"), annotation("joy")]], [["unsure"], ["joy"]]),
    ):
        export.write_text(json.dumps([t | {"annotations": a} for t, a in zip(tasks, annotations, strict=True)]))
        assert said_of(export) == expected(*said)
    minimal = [task["data"] | {"id": 77, "annotator": 1} for task in tasks]
    minimal[1]["corrected"] = "anger"
    export.write_text(json.dumps(minimal))
    assert said_of(export) == expected([], ["anger"])
    minimal[1]["corrected"] = {"choices": ["joy", "anger"]}
    export.write_text(json.dumps(minimal))
    assert said_of(export) == expected([], ["joy", "anger"])


@pytest.mark.parametrize("multi_label", [False, True])
def test_argillas_own_code_reads_the_folder_and_writes_it_back(multi_label, tmp_path, monkeypatch):
    monkeypatch.setattr(argilla.Argilla, "_get_default", classmethod(lambda cls: _NoServer()))
    folder = tmp_path / "review"
    write_list(folder, "argilla", ROWS, LABELS, multi_label)
    settings = argilla.Settings.from_json(folder / ".argilla" / "settings.json")
    settings.validate()
    (question,) = settings.questions
    assert question.labels == [*LABELS, "unsure", "remove"]
    assert {field.name for field in settings.fields} == {"text", "models"}
    assert argilla.Dataset._load_dataset_model(folder / ".argilla" / "dataset.json").name == "review"
    records = JsonIO._records_from_json(folder / "records.json")
    for record, row in zip(records, ROWS, strict=True):
        assert (record.fields["text"], record.metadata["row"]) == (row.text, row.row)
        assert record.suggestions["corrected"].value == (row.proposed if multi_label else row.proposed[0])
    assert said_of(folder) == expected([], [])
    chosen = ["joy"] if multi_label else "joy"
    for record, values in zip(records, [[chosen], ["anger", "joy"]], strict=True):
        for user, value in enumerate(values):
            record.responses.add(
                argilla.Response("corrected", value, user_id=f"00000000-0000-0000-0000-00000000000{user}")
            )
    (folder / "records.json").unlink()
    JsonIO.to_json(records, folder / "records.json")
    assert said_of(folder) == expected(["joy"], ["unsure"])


class _NoServer:
    """Where Argilla's settings look for a server they do not ask anything of here."""

    api = type("api", (), {"fields": None, "questions": None, "vectors": None, "metadata": None, "datasets": None})


# ---- Apply --------------------------------------------------------------------------------------------------------
def applied(tmp_path, source, answers: dict[str, str], output="new.csv", data=DATA, labels=LABELS):
    """Correct a file by a list with these answers by row; return the new file and what was done."""
    args = replace(data, train_file=str(source))
    split, path = the_file(args)
    rows = rows_of(split, path, args)
    of = {row_id: index for index, (_, row_id) in enumerate(rows.keys)}
    found = [listed(row, rows.labels[of[row]], ["joy"], rows.texts[of[row]]) for row in answers]
    write_list(tmp_path / "list.csv", "csv", found, labels, rows.multi_label)
    answer_csv(tmp_path / "list.csv", [*answers.values()])
    corrected = correct(rows, read_list(tmp_path / "list.csv"))
    write_corrected(tmp_path / output, corrected, rows, split, path, args)
    return tmp_path / output, corrected


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.csv"
    lines = ["n;body;mood", '1;"=1+1; a formula";joy', "2;plain;anger", '3;"two', 'lines";joy', "4;last;anger"]
    path.write_bytes("\r\n".join([*lines, ""]).encode())
    return path


def test_only_what_was_corrected_changes_in_the_new_file(mine, tmp_path):
    before = mine.read_bytes()
    path, found = applied(tmp_path, mine, {"2": "anger", "3": "", "4": "Unsure", "5": "remove"})
    assert mine.read_bytes() == before
    assert path.read_bytes() == before.replace(b'formula";joy', b'formula";anger').replace(b"4;last;anger\r\n", b"")
    assert found.changed == {("joy", "anger"): ["2"]}
    assert (found.removed, found.unsure, found.unanswered) == (["5"], ["4"], ["3"])


@pytest.mark.parametrize("output", ["new.csv", "new.tsv", "new.json", "new.jsonl", "new.parquet"])
def test_every_type_of_file_holds_the_result(output, mine, tmp_path):
    path, _ = applied(tmp_path, mine, {"4": "anger"}, output)
    rows = rows_of("train", path, replace(DATA, train_file=str(path)))
    assert rows.texts[2] == "two\r\nlines"
    assert rows.labels == [["joy"], ["anger"], ["anger"], ["anger"]]


@pytest.mark.parametrize(
    ("rows", "column", "answer", "label"),
    [
        ([{"mood": 0}, {"mood": 1}], "mood", "1", {"mood": 1}),
        ([{"mood": ["joy"]}, {"mood": ["anger", "joy"]}], "mood", "anger, joy", {"mood": ["anger", "joy"]}),
        ([{"mood": [0, 1]}, {"mood": [1, 1]}], "mood", "0", {"mood": [1, 0]}),
        ([{"mood": [0.5, 0.5]}, {"mood": [0.9, 0.1]}], "mood", "1", {"mood": [0, 1]}),
        ([{"joy": 1, "anger": 0}, {"joy": 0, "anger": 1}], "joy,anger", "anger", {"joy": 0, "anger": 1}),
    ],
    ids=["numbers", "lists", "hot", "distribution", "columns"],
)
def test_labels_are_written_as_the_file_has_them(rows, column, answer, label, tmp_path):
    source = tmp_path / "mine.jsonl"
    source.write_text("".join(json.dumps({"body": f"text {i}"} | row) + "\n" for i, row in enumerate(rows)))
    data = replace(DATA, label_column_name=column)
    path, _ = applied(tmp_path, source, {"1": answer}, "new.jsonl", data)
    first, second = map(json.loads, path.read_text().splitlines())
    assert {name: first[name] for name in label} == label
    assert second == {"body": "text 1"} | rows[1]


def test_a_new_file_of_another_type_has_all_columns_and_values(tmp_path):
    source = tmp_path / "mine.jsonl"
    source.write_text('{"body": "one", "mood": "joy"}\n{"body": "two", "mood": "anger", "writer": "a"}\n')
    for output in ("new.parquet", "new.csv"):
        path, _ = applied(tmp_path, source, {"1": "anger"}, output)
        assert rows_of("train", path, DATA).table.columns.keys() == {"body", "mood", "writer"}
    table = pandas.DataFrame({"body": ["one", "two"], "mood": ["joy", "anger"], "cost": [Decimal("1.50")] * 2})
    table.assign(day=pandas.Timestamp("2024-01-01 10:00")).to_parquet(tmp_path / "mine.parquet")
    for output in ("new.jsonl", "new.json"):
        path, _ = applied(tmp_path, tmp_path / "mine.parquet", {"1": "anger"}, output)
        row = rows_of("train", path, DATA).table.rows[0]
        assert row == {"body": "one", "mood": "anger", "cost": "1.50", "day": "2024-01-01T10:00:00"}
    table.assign(picture=b"x").to_parquet(tmp_path / "mine.parquet")
    with pytest.raises(InputError, match=r"do not fit \.jsonl \(a value is of type bytes\); want \.parquet"):
        applied(tmp_path, tmp_path / "mine.parquet", {"1": "anger"}, "bytes.jsonl")
    assert not (tmp_path / "bytes.jsonl").exists()


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("names", [["joy", "anger", "fear"], ["1", "2", "3"]])
def test_a_class_that_no_row_has_yet_is_written_as_the_others(names, several, tmp_path):
    mood = ClassLabel(names=names)
    rows = {"body": ["one", "two"], "mood": [[0, 1], [0]] if several else [0, 1]}
    features = Features({"body": Value("string"), "mood": List(mood) if several else mood})
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "mine.parquet")
    path, _ = applied(tmp_path, tmp_path / "mine.parquet", {"1": names[2]}, "new.parquet", labels=names)
    labels = Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "cache"))["mood"][:]
    assert labels == ([[2], [0]] if several else [2, 1])
    for output in ("new.jsonl", "new.csv")[: 1 if several else 2]:
        path, _ = applied(tmp_path, tmp_path / "mine.parquet", {"1": names[2]}, output, labels=names)
        labels = [row["mood"] for row in rows_of("train", path, replace(DATA, label_set=names)).table.rows]
        assert labels == ([[names[2]], [names[0]]] if several else [names[2], names[1]])
    source = tmp_path / "mine.jsonl"
    source.write_text('{"body": "one", "mood": 0}\n{"body": "two", "mood": 1}\n')
    if names[0] == "joy":
        path, _ = applied(tmp_path, source, {"1": "fear"}, "new.jsonl", replace(DATA, label_set=names), names)
        assert [json.loads(line)["mood"] for line in path.read_text().splitlines()] == [2, 1]


def test_unlabelled_texts_get_the_labels_of_those_that_were_labelled(tmp_path):
    source = tmp_path / "texts.csv"
    source.write_text("body\none\ntwo\nthree\n")
    with pytest.raises(InputError, match=r"texts\.csv: no label in column 'mood'; name the labels with --label_set"):
        applied(tmp_path, source, {})
    path, _ = applied(tmp_path, source, {"3": "joy"}, data=replace(DATA, label_set=LABELS))
    assert path.read_text() == "body,mood\ntwo,joy\n"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"corrected": "angr"}, r"list\.csv, row 2: corrected is 'angr'; want one of .*; did you mean 'anger'\?"),
        ({"corrected": "joy", "row": "9"}, r"list\.csv, row 2: .*mine\.csv has no row '9'"),
        ({"corrected": "joy", "text": "other"}, r"list\.csv, row 2: row 2 has another text in .*mine\.csv"),
        ({"label": "anger"}, r"list\.csv, row 2: label is 'anger', and 'joy' in .*; want .* in the column 'corrected'"),
        ({"row": ""}, r"list\.csv, row 2: no 'row', which names the row of the data"),
        ({"row": "3"}, r"list\.csv, row 3: row 3 is there twice, see .*list\.csv, row 2"),
    ],
    ids=lambda each: next(iter(each)) if isinstance(each, dict) else "",
)
def test_what_does_not_fit_is_told_with_file_and_row(change, says, mine, tmp_path):
    rows = rows_of("train", mine, DATA)
    found = [listed(row, rows.labels[row - 2], ["joy"], rows.texts[row - 2]) for row in (2, 3)]
    write_list(tmp_path / "list.csv", "csv", found, rows.label_names, False)
    with open(tmp_path / "list.csv", newline="", encoding="utf-8-sig") as file:
        first, second = csv.DictReader(file)
    with open(tmp_path / "list.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, first)
        writer.writeheader()
        writer.writerows([first | change, second])
    with pytest.raises(InputError, match=says) as error:
        correct(rows, read_list(tmp_path / "list.csv"))
    assert "formula" not in str(error.value)


def test_a_file_that_is_no_list_is_refused(mine):
    with pytest.raises(InputError, match=r"mine\.csv: no column 'corrected'; want a list of emodeberta-review"):
        read_list(mine)
