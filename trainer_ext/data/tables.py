"""Read whole files and Hub datasets as tables of rows, strictly: the first bad row is an error."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
from datasets import Features, load_dataset

from texts_emodeberta import is_text

from ..errors import InputError, first_line
from ..recipes import HubAccess, hub_answers
from .corpus import ATTRIBUTION, SPLITS
from .delimited import UnreadableTable, broken
from .rows import cells, format_of, no_column, parquet_file, read_rows, readable, text_columns, text_lines, text_of

_SPLIT_NAMES = {
    "train": "train", "training": "train",
    "validation": "validation", "dev": "validation", "valid": "validation", "val": "validation", "eval": "validation",
    "development": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip

_WORDS, _CHARACTERS = 4, 60  # in a message, of a name


def split_named(value: object) -> str | None:
    """Return the split that a value names, in any case, or `None` if it names none."""
    return _SPLIT_NAMES.get(str(value).strip().lower())


@dataclass
class Table:
    """The rows of one split, with the position of each row, and the column types of a dataset.

    Attributes:
        columns: Names of the columns, which a row of JSON may lack, in a dictionary that keeps their order.
        numbers, places: Row number and position of each row, as in [`trainer_ext.data.delimited.Record`].
    """

    name: str
    rows: list[dict] = field(default_factory=list)
    columns: dict[str, None] = field(default_factory=dict)
    numbers: list[int] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    features: dict | None = field(default=None, repr=False)
    attribution: str | None = None

    def add(self, values: dict, number: int, place: str, problem: str | None) -> None:
        if wrong := problem or broken(values):
            raise InputError(f"{self.name}, {place}: {wrong}")
        self.rows.append(values)
        if not values.keys() <= self.columns.keys():
            self.columns |= dict.fromkeys(values)
        self.numbers.append(number)
        self.places.append(place)

    def where(self, index: int) -> str:
        return f"{self.name}, {self.places[index]}"


# ---- Files and Hub datasets ---------------------------------------------------------------------------------------
def read_file(path: str | Path, quoting: str = "auto", header: bool = True) -> Table:
    """Return the content of a file as a table; see [`trainer_ext.data.rows.read_rows`].

    Raises:
        InputError: if the file or one of its rows cannot be read.
    """
    path = Path(path)
    table = Table(readable(path))
    if not path.is_file():
        raise InputError(f"{table.name}: no such file")
    try:
        for record in read_rows(path, quoting=quoting, header=header):
            table.add(record.values, record.number, record.place, record.problem)
    except UnreadableTable as error:
        raise InputError(f"{table.name}: {error}") from error
    values = [*table.rows[0].values()] if len(table.rows) == 1 else []
    objects, lists = (values and all(isinstance(value, kind) for value in values) for kind in (dict, list))
    if objects or (lists and len(values) > 1):
        raise InputError(
            f"{table.name}: has {'an object' if objects else 'a list'} per column; want an object per row (in pandas: "
            "to_json(..., orient='records'))"
        )
    if format_of(path) == ".parquet":
        with parquet_file(path) as file:
            schema = file.schema_arrow
        about = schema.metadata or {}
        table.attribution = about.get(ATTRIBUTION, b"").decode("utf-8", "replace") or None
        if b"huggingface" in about:
            try:
                table.features = Features.from_arrow_schema(schema)
            except Exception as error:  # datasets raises many kinds
                raise InputError(f"{table.name}: its features cannot be read ({first_line(error)})") from error
    return table


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file with any suffix, without their line ends.

    Raises:
        InputError: if the file cannot be read.
    """
    table = Table(readable(path))
    try:
        with open(path, "rb") as file:
            for record in text_lines(file):
                table.add(record.values, record.number, record.place, record.problem)
    except OSError as error:
        raise InputError(f"{table.name}: {error.strerror}; want a file") from error
    return [row["text"] for row in table.rows]


def hub_dataset(path: str, access: HubAccess, **options: Any) -> Any:
    """Return a dataset on the Hub, as `load_dataset` does; from its cache, and at once, if the Hub does not answer.

    Args:
        path: Hub id, or the name of a reader for `data_files` on the Hub.
        access: How to reach the Hub.
        options: More arguments of `load_dataset`.

    Raises:
        InputError: if it cannot be had.
    """
    what = options.get("data_files", path)
    answers, before = hub_answers(), datasets.config.HF_HUB_OFFLINE
    if not answers and "data_files" in options:  # these are never read from the cache alone
        raise InputError(f"dataset {what}: the Hub does not answer")
    try:
        datasets.config.HF_HUB_OFFLINE = not answers  # else its client asks for half a minute
        return load_dataset(path, **access.arguments(), **options)
    except Exception as error:  # datasets raises many kinds; all mean that it cannot be had
        reason = first_line(error) if answers else "the Hub does not answer, and it was not downloaded before"
        raise InputError(f"dataset {what}: {reason}") from error
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def read_hub_dataset(name: str, config: str | None, split_names: dict[str, str], access: HubAccess) -> dict[str, Table]:
    loaded = hub_dataset(name, access, name=config)
    tables = {}
    for split in SPLITS:
        wanted = split_names.get(split, split)
        if wanted in loaded:
            tables[split] = Table(f"{name} ({wanted})", features=loaded[wanted].features)
            for batch in loaded[wanted].with_format("arrow").iter(1000):
                for number, (values, problem) in enumerate(cells(batch), len(tables[split].rows) + 1):
                    tables[split].add(values, number, f"row {number}", problem)
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
    divided: dict[str, Table] = {}
    for index, row in enumerate(table.rows):
        split = split_named(row.get(column))
        if split is None:
            raise InputError(
                f"{table.where(index)}: {column} is {brief(row.get(column))}; want train, validation (or dev) or test"
            )
        part = divided.setdefault(split, Table(table.name, features=table.features, attribution=table.attribution))
        part.add(row, table.numbers[index], table.places[index], None)
    return divided


def brief(value: object) -> str:
    """Return a value for a message. Of what may be somebody's text, only the type or the length is told."""
    if isinstance(value, str):
        long = len(value.split()) > _WORDS or len(value) > _CHARACTERS
        return f"a text of {len(value):,} characters" if long else repr(value)
    return repr(value) if value is None or isinstance(value, int | float) else f"a {type(value).__name__}"


def check_column(table: Table, column: str) -> None:
    if column not in table.columns:
        raise no_column(table.name, column, list(table.columns))


def _as_others(table: Table, indices: Sequence[int]) -> str:
    """Return a remark on how many rows have the same problem, and which, if it is more than one."""
    if len(indices) < 2:
        return ""
    shown = ", ".join(str(table.numbers[index]) for index in indices[:10])
    return f" ({len(indices):,} such rows: {shown}{', …' if len(indices) > 10 else ''})"


def check_extra_columns(tables: dict[str, Table], columns: Sequence[str]) -> None:
    """Check that each column is in at least one split."""
    for column in columns:
        if not any(column in table.columns for table in tables.values()):
            check_column(next(iter(tables.values())), column)


def read_common_columns(
    table: Table,
    text_column: str,
    group_column: str | None = None,
    id_column: str | None = None,
    extra_columns: Sequence[str] = (),
    delimiter: str = " ",
) -> dict[str, list]:
    """Return ids and texts, of several columns joined, and what else is asked for.

    Raises:
        InputError: if there is no such column, or a row without text, or one that is not identified.
    """
    if not table.rows:
        raise InputError(f"{table.name}: no rows; want at least one")
    of_text = text_columns(table.name, text_column, list(table.columns))
    for column in (group_column, id_column):
        if column:
            check_column(table, column)
    columns: dict[str, list] = {"id": [], "text": []}
    if group_column:
        columns["group"] = []
    seen: dict[str, int] = {}
    for index, row in enumerate(table.rows):
        text, named = text_of(row, of_text, delimiter)
        if not isinstance(text, str):
            raise InputError(f"{table.where(index)}: {named} is {brief(text)}; want a text")
        if not is_text(text):
            texts = [text_of(each, of_text, delimiter)[0] for each in table.rows]
            empty = [i for i, each in enumerate(texts) if isinstance(each, str) and not is_text(each)]
            raise InputError(f"{table.where(index)}: {named} is empty; want a text{_as_others(table, empty)}")
        if id_column and row.get(id_column) in (None, ""):
            raise InputError(f"{table.where(index)}: no {id_column}; want something that identifies the row")
        row_id = str(row[id_column] if id_column else table.numbers[index])
        if row_id in seen:
            raise InputError(f"{table.where(index)}: {id_column} {brief(row_id)} is also in row {seen[row_id]}")
        seen[row_id] = table.numbers[index]
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
