"""Apply what people said of rows to the file that the rows are from; the file stays, the result is a new one."""

import csv
import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import InputError
from .corpus import Corpus
from .labels import class_names
from .load import DataArguments, corpus_arguments, load_corpus
from .review_list import REMOVE, UNSURE, Said
from .rows import format_of
from .tables import Table, divide_by_split, read_file

WRITABLE = (".csv", ".tsv", ".json", ".jsonl", ".parquet")


@dataclass(frozen=True)
class Rows:
    """The rows of the file to correct, with their labels and texts in the corpus.

    Attributes:
        table: The file, all its rows and columns.
        keys: Split and id of each row. The split is empty if the file is not divided, so that any split fits.
        texts: Text of each row.
        labels: Names of the given labels of each row; none of an unlabelled file.
        label_columns: The column of the label, or one column per label.
        label_names: The label set, in order.
        multi_label: Whether a row may have several labels.
    """

    table: Table
    keys: list[tuple[str, str]]
    texts: list[str]
    labels: list[list[str]]
    label_columns: list[str]
    label_names: list[str]
    multi_label: bool


@dataclass
class Corrected:
    """The corrected rows.

    Attributes:
        rows: The rows of the new file, by column.
        texts: Text of each of them.
        labels: Names of the labels of each of them.
        changed: By given and new labels, the ids of the rows.
        removed, unsure, unanswered: Ids of the rows that were removed, that nobody could label, and of which nothing
            was said.
    """

    rows: list[dict[str, Any]]
    texts: list[str]
    labels: list[list[str]]
    changed: dict[tuple[str, str], list[str]]
    removed: list[str]
    unsure: list[str]
    unanswered: list[str]


def correct(rows: Rows, said: Sequence[Said]) -> Corrected:
    """Return the rows with corrected labels.

    A row with the answer `remove` is removed. One with the answer `unsure`, or without an answer, keeps its label. Of
    an unlabelled file, only the rows that were given a label are kept.

    Args:
        said: Answers to rows of this file.

    Raises:
        InputError: if an answer names a row or label that does not exist, or a row with another text or label than the
            person saw.
    """
    where = {key: index for index, key in enumerate(rows.keys)}
    answers: dict[int, list[str]] = {}
    found = Corrected([], [], [], {}, [], [], [])
    for each in said:
        index = where.get((each.split, each.row), where.get(("", each.row)))
        if index is None:
            raise InputError(
                f"{each.place}: {rows.table.name} has no row {each.row!r}; want the file that was reviewed"
            )
        _check_seen(rows, index, each)
        answers[index] = _answer(each, rows.label_names, rows.multi_label)
    raw = _raw_labels(rows)
    for index, row in enumerate(rows.table.rows):
        row_id, given, answer = rows.keys[index][1], rows.labels[index], answers.get(index)
        if answer == [REMOVE] and REMOVE not in rows.label_names:
            found.removed.append(row_id)
            continue
        if answer == [UNSURE] and UNSURE not in rows.label_names:
            found.unsure.append(row_id)
        elif answer is not None and not answer:
            found.unanswered.append(row_id)
        elif answer is not None and answer != given:
            found.changed.setdefault((", ".join(given) or "none", ", ".join(answer)), []).append(row_id)
            row, given = {**row, **_as_in_file(rows, answer, raw)}, answer
        if given or any(rows.labels):
            found.rows.append(row)
            found.texts.append(rows.texts[index])
            found.labels.append(given)
    return found


def _check_seen(rows: Rows, index: int, said: Said) -> None:
    """Check that the person saw this row as it is in the file."""
    if said.text is not None and said.text.split() != rows.texts[index].split():
        raise InputError(
            f"{said.place}: row {said.row} has another text in {rows.table.name}; want the file that was reviewed"
        )
    given = ",".join(rows.labels[index])
    if said.label is not None and said.label != given:
        raise InputError(
            f"{said.place}: label is {said.label!r}, and {given!r} in {rows.table.name}; want the file that was "
            "reviewed, and the right label in the column 'corrected'"
        )


def _answer(said: Said, label_names: Sequence[str], multi_label: bool) -> list[str]:
    """Return the labels of an answer in the order of the label set, or `remove` or `unsure`."""
    names = []
    for name in said.corrected:
        several = multi_label and name not in label_names
        names += [part.strip() for part in name.split(",")] if several else [name]
    if len(names) == 1 and names[0].lower() in (REMOVE, UNSURE) and names[0] not in label_names:
        return [names[0].lower()]
    for name in names:
        if name not in label_names:
            close = difflib.get_close_matches(name, label_names, n=1)
            raise InputError(
                f"{said.place}: corrected is {name!r}; want one of {', '.join(label_names)}, or {REMOVE} or {UNSURE}"
                + (f"; did you mean {close[0]!r}?" if close else "")
            )
    if len(names) > 1 and not multi_label:
        raise InputError(f"{said.place}: corrected is {', '.join(names)}; want one label, as in the other rows")
    return [name for name in label_names if name in names]


# ---- The data -----------------------------------------------------------------------------------------------------
def the_file(data_args: DataArguments) -> tuple[str, Path]:
    """Return the only file of the flags, and its split.

    Raises:
        InputError: if there is not just one.
    """
    files = {split: getattr(data_args, f"{split}_file") for split in ("train", "validation", "test")}
    files = {split: Path(path) for split, path in files.items() if path}
    if len(files) != 1:
        raise InputError("give one file of the data: --train_file, --validation_file or --test_file")
    ((split, path),) = files.items()
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    return split, path


def rows_of(split: str, path: Path, data_args: DataArguments) -> Rows:
    """Return the rows of the file to correct."""
    table = read_file(path, data_args.quoting)
    columns = (data_args.label_column_name or "label").split(",")
    unlabelled = not any(row.get(column) not in (None, "", []) for row in table.rows for column in columns)
    if unlabelled:
        if not data_args.label_set:
            raise InputError(f"{path}: no label in column {','.join(columns)!r}; name the labels with --label_set")
        split = "test"
    corpus = load_file(path, split, data_args)
    of_rows: dict[tuple[str, int], tuple[str, str, list[str]]] = {}
    tables = {split: table}
    if data_args.split_column_name:
        tables = divide_by_split({"train": table}, data_args.split_column_name)
    for of, part in tables.items():
        content = corpus.splits[of]
        decisions = corpus.classes(of) if corpus.is_labelled(of) else [[]] * len(content)
        for number, row_id, text, decision in zip(part.numbers, content["id"], content["text"], decisions, strict=True):
            chosen = np.flatnonzero(decision) if np.ndim(decision) else [decision]
            key = of if data_args.split_column_name else ""
            of_rows[number] = ((key, row_id), text, [corpus.label_names[label] for label in chosen])
    keys, texts, labels = (list(each) for each in zip(*(of_rows[number] for number in table.numbers), strict=True))
    return Rows(table, keys, texts, labels, columns, corpus.label_names, corpus.multi_label)


def load_file(path: Path, split: str, data_args: DataArguments) -> Corpus:
    """Return the corpus of one file."""
    return load_corpus(**{**corpus_arguments(data_args), "files": {split: str(path)}})


def write_corrected(path: Path, found: Corrected, rows: Rows, split: str, like: Path, data_args: DataArguments) -> None:
    """Write the corrected rows to a file, once it was found to read back with the right texts and labels.

    Args:
        path: A file of one of the types `WRITABLE`.
        like: The file that was corrected.

    Raises:
        InputError: if labels or texts of this form cannot be written to a file of this type.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{uuid4().hex}{path.suffix}")
    problem = None
    try:
        _write(partial, found.rows if path.suffix == ".parquet" else _by_name(rows, found), like)
        again = rows_of(split, partial, replace(data_args, label_set=rows.label_names, quoting="auto"))
        if (again.texts, again.labels) != (found.texts, found.labels):
            problem = "texts or labels would change"
        else:
            partial.replace(path)
    except (InputError, pa.ArrowException) as error:
        problem = str(error).replace(str(partial), path.name)
    finally:
        partial.unlink(missing_ok=True)
    if problem:
        other = ".parquet" if path.suffix in (".json", ".jsonl") else ".jsonl"
        raise InputError(f"{path}: rows of this form do not fit {path.suffix} ({problem}); want {other}")


# ---- In the form of the file --------------------------------------------------------------------------------------
def _raw_labels(rows: Rows) -> dict[str, Any]:
    """Return how the file writes each label, by name: the label itself, or a number.

    Where it writes positions in the label set, labels that no row has yet are written in the same way.
    """
    column = rows.label_columns[0]
    if classes := class_names(rows.table, column):
        return {name: position for position, name in enumerate(classes)}
    raw: dict[str, Any] = {}
    for row, names in zip(rows.table.rows, rows.labels, strict=True):
        value = row.get(column)
        values = value if isinstance(value, list) else [value]
        if len(values) == len(names) == 1:
            raw.setdefault(names[0], values[0])
        for each in values:
            if str(each) in rows.label_names:
                raw.setdefault(str(each), each)
    positions = {name: position for position, name in enumerate(rows.label_names)}
    if raw and all(str(value) == str(positions[name]) for name, value in raw.items()):
        kind = type(next(iter(raw.values())))
        return {name: kind(position) for name, position in positions.items()}
    return raw


def _by_name(rows: Rows, found: Corrected) -> list[dict[str, Any]]:
    """Return the new rows with the names of their classes, for a file that cannot say what a position stands for."""
    column = rows.label_columns[0]
    if not class_names(rows.table, column):
        return found.rows
    return [
        {**row, column: names if isinstance(row[column], list) else names[0]} if names else row
        for row, names in zip(found.rows, found.labels, strict=True)
    ]


def _as_in_file(rows: Rows, names: list[str], raw: dict[str, Any]) -> dict[str, Any]:
    """Return the cells of the label columns for these labels."""
    hot = [int(name in names) for name in rows.label_names]
    if len(rows.label_columns) > 1:
        return {column: hot[rows.label_names.index(column)] for column in rows.label_columns}
    column = rows.label_columns[0]
    values = [row[column] for row in rows.table.rows if isinstance(row.get(column), list)]
    if values and all(len(value) == len(hot) and not any(isinstance(x, str) for x in value) for value in values):
        return {column: hot}
    written = [raw.get(name, name) for name in names]
    return {column: written if values or rows.multi_label else written[0]}


def _write(path: Path, rows: list[dict[str, Any]], like: Path) -> None:
    """Write the rows. If both files are parquet, the new one has the old one's column types and metadata.

    Raises:
        InputError: if a value cannot be written to such a file.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    if path.suffix == ".parquet":
        schema = pq.read_schema(like) if format_of(like) == ".parquet" else None
        whole = [{name: row.get(name) for name in names} for row in rows]  # pyarrow takes the columns of the first row
        pq.write_table(pa.Table.from_pylist(whole, schema=schema), path, compression="zstd")
    elif path.suffix in (".csv", ".tsv"):
        delimiter, line_end = _style(like, names) if like.suffix == path.suffix else ("", "")
        delimiter = delimiter or ("," if path.suffix == ".csv" else "\t")
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, delimiter=delimiter, lineterminator=line_end or "\n")
            writer.writerow(names)
            writer.writerows(["" if row.get(name) is None else row[name] for name in names] for row in rows)
    else:
        lines = [json.dumps(row, ensure_ascii=False, default=_in_json) for row in rows]
        text = "\n".join(lines) if path.suffix == ".jsonl" else "[\n" + ",\n".join(lines) + "\n]"
        path.write_text(text + "\n", encoding="utf-8")


def _in_json(value: object) -> str:
    """Return a value of parquet that JSON does not have, as text."""
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, Decimal | timedelta):
        return str(value)
    raise InputError(f"a value is of type {type(value).__name__}")


def _style(path: Path, names: Sequence[str]) -> tuple[str, str]:
    """Return the delimiter and line end of a csv or tsv file with these columns, as far as its first line tells."""
    with open(path, newline="", encoding="utf-8-sig", errors="replace") as file:
        first = file.readline()
    header = first.rstrip("\r\n")
    return next((each for each in ",;\t|" if header == each.join(names)), ""), first[len(header) :]
