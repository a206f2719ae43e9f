"""A file of many texts: its columns, and the same file with an answer in every row."""

import csv
import itertools
import os
import re
import statistics
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import gradio as gr
from classifier import Classifier
from delimited import UnreadableTable, broken, delimited_rows

MAX_ROWS = 5_000
MAX_COLUMNS = 200
# What people call their texts, most likely first.
TEXTS = ("text", "texts", "essay", "tweet", "comment", "message", "review", "sentence", "post", "body", "content")
# What a spreadsheet takes for a formula, in any width, unless it is a number.
FORMULA, NUMBER = tuple("=+-@＝＋－＠"), re.compile(r"\s*[-+]?[0-9]+([.,][0-9]+)*(e[-+]?[0-9]+)?\s*", re.IGNORECASE)


class Table(NamedTuple):
    """A file as it was read.

    Attributes:
        header: Names of the columns.
        rows: By column, every cell as it is written; of a row that cannot be read, empty cells.
        problems: Of each row, what is wrong with it, or an empty string.
    """

    header: list[str]
    rows: list[list[str]]
    problems: list[str]


def wrong(message: str) -> gr.Error:
    """Return an error for the visitor alone, without a traceback in the log."""
    return gr.Error(message, print_exception=False)


def read_table(path: Path) -> Table:
    """Read a csv or tsv. A row that cannot be read has its problem; the others are read all the same.

    Raises:
        gr.Error: in words, if the file as a whole cannot be read.
    """
    kind = path.suffix.lower()
    if kind not in (".csv", ".tsv"):
        raise wrong(f"Please upload a .csv or .tsv file; this one is {kind or 'without an ending'}.")
    header: list[str] = []

    def check(names: list[str]) -> None:
        if len(names) > MAX_COLUMNS:
            raise wrong(f"The file has {len(names):,} columns; at most {MAX_COLUMNS} are read.")
        if bad := broken(names):
            raise wrong(f"The file cannot be read: its header is {bad}.")
        header.extend(names)

    table = Table(header, [], [])
    try:
        with open(path, "rb") as file:
            for record in delimited_rows(file, kind, check=check):
                bad = record.problem or broken(record.values)
                table.problems.append(f"{record.place.capitalize()}: {bad}." if bad else "")
                table.rows.append([""] * len(header) if bad else [record.values[name] or "" for name in header])
                if len(table.rows) > MAX_ROWS:
                    raise wrong(f"The file has more than {MAX_ROWS:,} rows. run_score.py takes any number.")
    except UnreadableTable as error:
        raise wrong(f"The file cannot be read: {error}.") from None
    if not table.rows:
        raise wrong("The file has no rows below its header.")
    return table


def describe(path: Path) -> dict:
    """Return what the page shows of a file before it is classified.

    Returns:
        `columns`: names of the columns.
        `likely`: the column that most likely has the texts, found by its name or else by the length of its values.
        `rows`: number of rows.
    """
    table = read_table(path)
    named = {name.strip().lower(): name for name in reversed(table.header)}
    likely = next((named[name] for name in TEXTS if name in named), None)
    if likely is None:
        lengths = [statistics.fmean(map(len, column)) for column in zip(*table.rows, strict=True)]
        likely = table.header[lengths.index(max(lengths))]
    return {"columns": table.header, "likely": likely, "rows": len(table.rows)}


def classify_table(classifier: Classifier, path: Path, column: str) -> Path:
    """Classify every row of a file, by its texts in `column`: by default "text", or the only one.

    Returns:
        Path of a csv with the file's columns and after them `predicted_label`, `predicted_score`, `sure`, a
        `probability_<label>` each, `note` and `error`. Where the file has such a name itself, that of the result gets a
        number, as in `note_2`. Cells that a spreadsheet would take for a formula begin with an apostrophe.
    """
    table = read_table(path)
    header = table.header
    if column not in header:  # where a name may have blanks around it
        wanted = column.strip() or ("text" if len(header) > 1 else header[0])
        column = next((name for name in header if name.strip() == wanted.strip()), None)
        if column is None:
            raise wrong(f"The file has no column {_names([wanted])}; its columns are {_names(header)}.")
    probabilities = [f"probability_{name}" for name in classifier.labels]
    added = ["predicted_label", "predicted_score", "sure", *probabilities, "note", "error"]
    added = [free(name, {*header, *added}) if name in header else name for name in added]
    texts = [row[header.index(column)] for row in table.rows]
    target = Path(tempfile.mkdtemp(dir=os.environ["GRADIO_TEMP_DIR"])) / "emotions.csv"
    with open(target, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(map(plain, [*header, *added]))
        for row, bad, answer in zip(table.rows, table.problems, classifier(texts), strict=True):
            answer = {"error": bad} if bad else answer
            scores = answer.get("scores", {})
            notes = " ".join(filter(None, (answer.get("warning"), answer.get("note"))))
            values = [answer.get("label"), answer.get("score"), {True: "yes", False: "no"}.get(answer.get("sure"))]
            values += [*(scores.get(name) for name in classifier.labels), notes, answer.get("error")]
            values = [round(value, 6) if isinstance(value, float) else value for value in values]
            writer.writerow(map(plain, [*row, *values]))
    return target


def plain(cell: object) -> object:
    """Return a cell that no spreadsheet takes for a formula: with an apostrophe before what begins like one."""
    formula = isinstance(cell, str) and cell.lstrip()[:1] in FORMULA and not NUMBER.fullmatch(cell)
    return f"'{cell}" if formula else cell


def free(name: str, taken: Collection[str]) -> str:
    """Return a name that is not taken yet: with the first number from 2 on that makes it so."""
    return next(numbered for number in itertools.count(2) if (numbered := f"{name}_{number}") not in taken)


def _names(columns: list[str]) -> str:
    shown = [repr(name if len(name) <= 40 else f"{name[:40]}…") for name in columns[:20]]
    return ", ".join(shown) + (" and more" if len(columns) > 20 else "")
