"""Lists of rows for people to look at: written for three tools, read back, and applied to the data."""

import csv
import json
import xml.etree.ElementTree as ET
from dataclasses import replace

import argilla
import pytest
from argilla.records._io._json import JsonIO

from trainer_ext.data.corrections import correct, rows_of, the_file, write_corrected
from trainer_ext.data.load import DataArguments
from trainer_ext.data.review_list import Listed, read_list, write_list
from trainer_ext.errors import InputError

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
