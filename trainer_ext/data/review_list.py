"""Write a list of rows for people to look at, as csv, for Label Studio or for Argilla, and read back what they said.

Formats:

- Label Studio: tasks with `data` and `predictions` (https://labelstud.io/guide/predictions), and the labeling
  configuration that they fit (https://labelstud.io/tags/choices). Read back are its exports JSON, JSON-MIN and CSV
  (https://labelstud.io/guide/export).
- Argilla 2: a folder for `rg.Dataset.from_disk`, with records as `rg.Dataset.records.to_json` writes them
  (https://docs.argilla.io/latest/how_to_guides/import_export). Read back is its records.json.
"""

import csv
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from ..errors import InputError
from ..files import write_json, write_text
from .tables import read_file

CORRECTED = "corrected"
REMOVE, UNSURE = "remove", "unsure"
# File types of each format; Argilla's is a folder.
FORMATS = {"csv": (".csv", ".tsv"), "label_studio": (".json",), "argilla": ("",)}
_COLUMNS = (
    "row",
    "split",
    "label",
    "proposed",
    CORRECTED,
    "confidence",
    "models_against",
    "quality",
    "suspect",
    "text",
)
RECORDS = "records.json"
# What a spreadsheet takes for a formula.
_FORMULA = re.compile(r"[\s]*[=+\-@]")


@dataclass(frozen=True)
class Listed:
    """A row of the list.

    Attributes:
        row: Row id, by default the row number in its file.
        split: Its split; empty if the texts were scored as a file of their own.
        text: Its text.
        label: Names of its given labels; none for unlabelled texts.
        proposed: Names of the labels that the models propose.
        confidence: How probable they are to the models.
        models_against: Share of the models that decide otherwise than the given label.
        quality: cleanlab's score of the given label, 0 to 1, and whether it calls it an error; `None` without label.
        suspect: Whether cleanlab calls the label an error; `None` without label.
    """

    row: str
    split: str
    text: str
    label: list[str]
    proposed: list[str]
    confidence: float
    models_against: float
    quality: float | None
    suspect: bool | None

    def cells(self) -> dict[str, str]:
        """Return the row's values as texts, by column; labels are joined with commas."""
        return {
            "row": self.row,
            "split": self.split,
            "label": ",".join(self.label),
            "proposed": ",".join(self.proposed),
            CORRECTED: "",
            "confidence": f"{self.confidence:.4f}",
            "models_against": f"{self.models_against:.2f}",
            "quality": "" if self.quality is None else f"{self.quality:.4f}",
            "suspect": "" if self.suspect is None else "yes" if self.suspect else "no",
            "text": self.text,
        }


@dataclass(frozen=True)
class Said:
    """What a person said of a row.

    Attributes:
        place: File and row, for messages.
        row, split: As in [`Listed`].
        text: The text that the person saw; `None` if the file does not have it.
        label: The given label that the person saw, joined with commas; `None` if the file does not have it.
        corrected: The right labels, `remove` or `unsure`; empty if nothing was said.
    """

    place: str
    row: str
    split: str
    text: str | None
    label: str | None
    corrected: list[str]


# ---- Write --------------------------------------------------------------------------------------------------------
def write_list(path: Path, form: str, rows: Sequence[Listed], label_names: Sequence[str], multi_label: bool) -> None:
    """Write the list.

    Args:
        path: A file of a type in `FORMATS[form]`; of Label Studio, the labeling configuration goes beside it with the
            suffix .xml. For Argilla, a folder.
        form: One of `FORMATS`.
        label_names: The label set, in order.
        multi_label: Whether a row may have several labels.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if form == "csv":
        file = io.StringIO(newline="")
        writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",", lineterminator="\n")
        writer.writerow(_COLUMNS)
        writer.writerows([_plain(row.cells()[name]) for name in _COLUMNS] for row in rows)
        write_text(path, "\ufeff" + file.getvalue())  # the mark makes spreadsheets read UTF-8
    elif form == "label_studio":
        write_json(path, [_task(row) for row in rows])
        write_text(path.with_suffix(".xml"), labeling_config(label_names, multi_label))
    else:
        (path / ".argilla").mkdir(parents=True, exist_ok=True)
        write_json(path / RECORDS, [_record(row, multi_label) for row in rows])
        write_json(path / ".argilla" / "settings.json", _argilla_settings(label_names, multi_label))
        write_json(path / ".argilla" / "dataset.json", {"name": path.name, "allow_extra_metadata": True})


def _plain(cell: str) -> str:
    """Return the cell with an apostrophe before what a spreadsheet would take for a formula."""
    return f"'{cell}" if _FORMULA.match(cell) else cell


def _bare(cell: object) -> object:
    """Return a cell without the apostrophe of [`_plain`]."""
    return cell[1:] if isinstance(cell, str) and cell[:1] == "'" and _FORMULA.match(cell[1:]) else cell


def _shown(row: Listed) -> str:
    """Return a line that tells the reviewer what the models say."""
    given = f"Given: {', '.join(row.label) or 'none'}. " if row.quality is not None else ""
    return f"{given}The models say: {', '.join(row.proposed) or 'none'} ({row.confidence:.2f})."


def _task(row: Listed) -> dict[str, Any]:
    """Return a task of Label Studio. Its data have no `id`, which the export JSON-MIN would replace by its own."""
    data = {name: cell for name, cell in row.cells().items() if name != CORRECTED} | {"models": _shown(row)}
    result = {"from_name": CORRECTED, "to_name": "text", "type": "choices", "value": {"choices": row.proposed}}
    said = [result] if row.proposed else []
    return {"data": data, "predictions": [{"model_version": "emodeberta", "score": row.confidence, "result": said}]}


def labeling_config(label_names: Sequence[str], multi_label: bool) -> str:
    """Return Label Studio's labeling configuration: one choice per label, and `remove` and `unsure`."""
    choices = "\n".join(f"    <Choice value={quoteattr(name)}/>" for name in _options(label_names))
    return (
        '<View>\n  <Text name="models" value="$models"/>\n  <Text name="text" value="$text"/>\n'
        f'  <Choices name="{CORRECTED}" toName="text" choice="{"multiple" if multi_label else "single"}" '
        f'showInLine="true">\n{choices}\n  </Choices>\n</View>\n'
    )


def _options(label_names: Sequence[str]) -> list[str]:
    return list(dict.fromkeys([*label_names, UNSURE, REMOVE]))


def _record(row: Listed, multi_label: bool) -> dict[str, Any]:
    """Return a record of Argilla, in the form of `Record.to_dict`."""
    cells = row.cells()
    metadata = {name: cells[name] for name in ("row", "split", "label", "proposed", "suspect")}
    metadata |= {"confidence": row.confidence, "models_against": row.models_against}
    value = row.proposed if multi_label else row.proposed[0]
    suggestion = {"value": value, "score": None if multi_label else row.confidence, "agent": "emodeberta"}
    return {
        "id": f"{row.split} {row.row}".strip(),
        "fields": {"text": row.text, "models": _shown(row)},
        "metadata": {name: value for name, value in metadata.items() if value != ""},
        "suggestions": {CORRECTED: suggestion} if row.proposed else {},
        "responses": {},
        "vectors": {},
    }


def _argilla_settings(label_names: Sequence[str], multi_label: bool) -> dict[str, Any]:
    """Return the settings of the dataset, in the form of `rg.Settings.to_json`."""
    kind = "multi_label_selection" if multi_label else "label_selection"
    options = [{"text": name, "value": name} for name in _options(label_names)]
    question = {"type": kind, "options": options, "visible_options": max(3, len(options))}
    plain = {"type": "text", "use_markdown": False}
    fields = [{"name": name, "title": name, "required": True, "settings": plain} for name in ("text", "models")]
    metadata = [
        {"name": name, "title": name, "settings": {"type": kind}, "visible_for_annotators": True}
        for name, kind in (("row", "terms"), ("label", "terms"), ("proposed", "terms"), ("confidence", "float"))
    ]
    return {
        "guidelines": f"Choose the right label. {UNSURE}: it cannot be told. {REMOVE}: the row should go.",
        "questions": [{"name": CORRECTED, "title": "Right label", "required": True, "settings": question}],
        "fields": fields,
        "vectors": [],
        "metadata": metadata,
        "allow_extra_metadata": True,
        "distribution": {"strategy": "overlap", "min_submitted": 1},
        "mapping": None,
    }


# ---- Read back ----------------------------------------------------------------------------------------------------
def read_list(path: Path) -> list[Said]:
    """Return what people said of the rows of a list.

    Where several people answered differently, the answer is `unsure`. Skipped tasks of Label Studio have no answer. Its
    JSON-MIN and CSV have one record per annotation; those of one row are put together.

    Args:
        path: A list of [`write_list`] with its column `corrected` filled in; an export of Label Studio (JSON, JSON-MIN
            or CSV); or Argilla's records.json, or the folder that has it.

    Raises:
        InputError: if the file cannot be read, has no such column, or names a row twice.
    """
    table = read_file(path / RECORDS if path.is_dir() else path)
    columns = {name for row in table.rows for name in row}
    said: dict[tuple[str, str], Said] = {}
    answered: dict[tuple[str, str], list[list[str]]] = {}
    for index, row in enumerate(table.rows):
        place = table.where(index)
        if isinstance(row.get("data"), dict):
            data, answers = row["data"], _of_label_studio(row, place)
        elif isinstance(row.get("fields"), dict):
            given = row.get("responses") or {}
            answers = [_labels(each.get("value")) for each in given.get(CORRECTED, [])]
            data = {"label": None} | (row.get("metadata") or {}) | {"text": row["fields"].get("text")}
        elif CORRECTED in columns:
            data = {name: _bare(cell) for name, cell in row.items()}
            answers = [_labels(data.get(CORRECTED))]
        else:
            raise InputError(f"{table.name}: no column {CORRECTED!r}; want a list of emodeberta-review, corrected")
        if data.get("row") in (None, ""):
            raise InputError(f"{place}: no 'row', which names the row of the data; want a list of emodeberta-review")
        text, label = (None if data.get(name) is None else str(data[name]) for name in ("text", "label"))
        found = Said(place, str(data["row"]), str(data.get("split") or ""), text, label, [])
        before = said.setdefault((found.split, found.row), found)
        of_a_person = any(row.get(name) not in (None, "") for name in ("annotation_id", "annotator"))
        if before is not found and not (of_a_person and (before.text, before.label) == (text, label)):
            raise InputError(f"{place}: row {found.row} is there twice, see {before.place}; want it once")
        answered.setdefault((found.split, found.row), []).extend(answer for answer in answers if answer)
    return [replace(each, corrected=_agreed(answered[row])) for row, each in said.items()]


def _agreed(answers: list[list[str]]) -> list[str]:
    """Return the answer of all; none if nobody answered, `unsure` if the answers differ."""
    different = len({tuple(sorted(answer)) for answer in answers}) > 1
    return [UNSURE] if different else answers[0] if answers else []


def _of_label_studio(task: dict[str, Any], place: str) -> list[list[str]]:
    """Return the answers of each person who did not skip the task."""
    answers = []
    for annotation in task.get("annotations") or []:
        if not annotation.get("was_cancelled"):
            chosen = [part["value"] for part in annotation["result"] if part.get("from_name") == CORRECTED]
            answers += [_labels(value) for value in chosen]
    if "annotations" not in task:
        raise InputError(f"{place}: has no annotations; want Label Studio's export, not the tasks that it imported")
    return answers


def _labels(value: Any) -> list[str]:
    """Return the labels in an answer: a name, a list of names, or `{"choices": [...]}`, also as JSON."""
    if isinstance(value, str) and value.startswith('{"choices"'):
        value = json.loads(value)
    if isinstance(value, dict):
        value = value.get("choices")
    values = value if isinstance(value, list) else [value]
    return [name for each in values if each is not None and (name := str(each).strip())]
