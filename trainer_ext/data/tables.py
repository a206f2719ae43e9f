"""Files and Hub datasets as tables of rows: csv, tsv, JSON, JSON lines, parquet."""

import csv
import difflib
import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet
from datasets import load_dataset

from ..errors import InputError
from .corpus import ATTRIBUTION, SPLITS

_SPLIT_ALIASES = {"dev": "validation", "valid": "validation", "val": "validation", "eval": "validation"}


@dataclass
class Table:
    """Rows of one split as they were read, with where each stood; a Hub dataset's column types."""

    name: str
    rows: list[dict]
    first_row: int = 1
    features: dict | None = field(default=None, repr=False)
    attribution: str | None = None

    def where(self, index: int) -> str:
        return f"{self.name}, row {index + self.first_row}"


# ---- Files and Hub datasets ---------------------------------------------------------------------------------------
def read_file(path: str | Path) -> Table:
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    match path.suffix.lower():
        case ".csv":
            return read_delimited(path, ",")
        case ".tsv":
            return read_delimited(path, "\t")
        case ".jsonl" | ".json":
            return _read_json(path)
        case ".parquet":
            try:
                read = pyarrow.parquet.read_table(path)
                credited = (read.schema.metadata or {}).get(ATTRIBUTION, b"").decode("utf-8", "replace")
                return Table(str(path), read.to_pylist(), attribution=credited or None)
            except pyarrow.ArrowException as error:
                raise InputError(f"{path}: not a parquet file ({str(error).splitlines()[0]})") from error
    raise InputError(f"{path}: unknown file type {path.suffix!r}; want .csv, .tsv, .json, .jsonl or .parquet")


def _read_text(path: Path) -> str:
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = content[: error.start].count(b"\n") + 1
        raise InputError(
            f"{path}, line {row}: not UTF-8 (byte 0x{content[error.start]:02x}); save the file with encoding UTF-8"
        ) from error


def read_delimited(path: Path, delimiter: str, header: bool = True) -> Table:
    """Ordinary CSV quoting; every value a string. Without a header the columns are `column_1`, `column_2`, ..."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    reader = csv.reader(io.StringIO(_read_text(path), newline=""), delimiter=delimiter, strict=True)
    rows: list[list[str]] = []
    try:
        rows.extend(reader)
    except csv.Error as error:
        raise InputError(
            f"{path}, row {len(rows) + 1} (line {reader.line_num}): {error}; a quote inside a quoted field is doubled"
        ) from error
    while rows and not rows[-1]:  # blank lines at the end
        rows.pop()
    if not rows:
        raise InputError(f"{path}: empty; want {'a header and ' if header else ''}rows")
    names = rows.pop(0) if header else [f"column_{number}" for number in range(1, len(rows[0]) + 1)]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise InputError(f"{path}: the header names {twice[0]!r} twice")
    for index, row in enumerate(rows):
        if len(row) != len(names):
            raise InputError(f"{path}, row {index + 1 + header}: {len(row)} fields; want {len(names)}")
    return Table(str(path), [dict(zip(names, row, strict=True)) for row in rows], first_row=1 + header)


def _read_json(path: Path) -> Table:
    text = _read_text(path)
    try:
        if path.suffix.lower() == ".json":
            rows = json.loads(text)
            if not isinstance(rows, list):
                raise InputError(f"{path}: holds a {type(rows).__name__}; want a list of objects, one per row")
        else:
            rows = []
            for line in text.rstrip().split("\n") if text.strip() else ():
                rows.append(json.loads(line))
    except json.JSONDecodeError as error:
        row = error.lineno if path.suffix.lower() == ".json" else len(rows) + 1
        raise InputError(f"{path}, line {row}: not JSON ({error.msg})") from error
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise InputError(f"{path}, row {index + 1}: a {type(row).__name__}; want an object with named fields")
    return Table(str(path), rows)


def read_hub_dataset(
    name: str, config: str | None, split_names: dict[str, str], cache_dir: str | None, token: str | None
) -> dict[str, Table]:
    try:
        loaded = load_dataset(name, config, cache_dir=cache_dir, token=token)
    except Exception as error:  # datasets raises many kinds; all mean that it cannot be had
        raise InputError(f"dataset {name}: {str(error).strip().splitlines()[0]}") from error
    tables = {}
    for split in SPLITS:
        wanted = split_names.get(split, split)
        if wanted in loaded:
            dataset = loaded[wanted]
            tables[split] = Table(f"{name} ({wanted})", dataset.to_list(), features=dataset.features)
        elif split in split_names:
            raise InputError(f"dataset {name}: no split {wanted!r}; it has {', '.join(loaded)}")
    if not tables:
        raise InputError(f"dataset {name}: its splits are {', '.join(loaded)}; say which is which, for example with "
                         "--train_split_name")  # fmt: skip
    return tables


def divide_by_split(tables: dict[str, Table], column: str) -> dict[str, Table]:
    if set(tables) != {"train"}:
        raise InputError("a split column divides the train file; leave out the validation and test files")
    table = tables["train"]
    check_column(table, column)
    divided: dict[str, list[tuple[int, dict]]] = {}
    for index, row in enumerate(table.rows):
        split = _SPLIT_ALIASES.get(str(row.get(column)), str(row.get(column)))
        if split not in SPLITS:
            raise InputError(
                f"{table.where(index)}: {column} is {row.get(column)!r}; want train, validation (or dev) or test"
            )
        divided.setdefault(split, []).append((index, row))
    return {
        split: _Part(
            table.name,
            [row for _, row in rows],
            table.first_row,
            attribution=table.attribution,
            positions=[index for index, _ in rows],
        )
        for split, rows in divided.items()
    }


@dataclass
class _Part(Table):
    """A split of a file that holds several; rows keep the numbers they have in the file."""

    positions: list[int] = field(default_factory=list)

    def where(self, index: int) -> str:
        return super().where(self.positions[index])


def check_column(table: Table, column: str) -> None:
    present = list(table.rows[0]) if table.rows else []
    if column not in present:
        raise no_column(table.name, column, present)


def no_column(name: str, column: str, present: list[str]) -> InputError:
    """What to say of a table that lacks a column."""
    close = difflib.get_close_matches(column, present, n=1)
    return InputError(
        f"{name}: no column {column!r}; it has {', '.join(map(str, present))}"
        + (f"; did you mean {close[0]!r}?" if close else "")
    )


def check_extra_columns(tables: dict[str, Table], columns: Sequence[str]) -> None:
    """Each stands in one split at least."""
    for column in columns:
        if not any(table.rows and column in table.rows[0] for table in tables.values()):
            check_column(next(iter(tables.values())), column)


def read_common_columns(
    table: Table, text_column: str, group_column: str | None, id_column: str | None, extra_columns: Sequence[str]
) -> dict[str, list]:
    columns: dict[str, list] = {"id": [], "text": []}
    if group_column:
        columns["group"] = []
    seen: dict[str, int] = {}
    for index, row in enumerate(table.rows):
        text = row.get(text_column)
        if not isinstance(text, str):
            raise InputError(f"{table.where(index)}: {text_column} is {text!r}; want a text")
        if not text.strip():
            raise InputError(f"{table.where(index)}: {text_column} is empty; want a text")
        if id_column and row.get(id_column) in (None, ""):
            raise InputError(f"{table.where(index)}: no {id_column}; want something that identifies the row")
        row_id = str(row[id_column]) if id_column else str(index + table.first_row)
        if row_id in seen:
            raise InputError(f"{table.where(index)}: {id_column} {row_id!r} stands in row {seen[row_id]} too")
        seen[row_id] = index + table.first_row
        columns["id"].append(row_id)
        columns["text"].append(text)
        if group_column:
            if row.get(group_column) in (None, ""):
                raise InputError(f"{table.where(index)}: no {group_column}; want the writer (or group) of the row")
            columns["group"].append(str(row[group_column]))
    for name in extra_columns:
        values = [row.get(name) for row in table.rows]
        columns[f"column_{name}"] = ["" if value is None else str(value) for value in values]
    return columns
