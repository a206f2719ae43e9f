"""Take rows that are in memory (lists, DataFrames, datasets): as texts to classify, or as files to train on."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from datasets import ClassLabel
from pandas.api.extensions import ExtensionDtype
from sklearn.utils.validation import column_or_1d

from texts_emodeberta import in_order

from ..errors import InputError
from .columns import TEXT
from .delimited import broken
from .labels import without_fraction
from .rows import text_columns, text_of
from .tables import brief


class Texts(NamedTuple):
    """Texts to classify.

    Attributes:
        values: What should be texts, one per row.
        index: Names of the rows: those of a Series or DataFrame, else numbers from 0.
        column: Name of the column that they are from, if there is one; several are joined by commas.
        table: The table that they are from, if there is one.
    """

    values: list[Any]
    index: list[Any]
    column: Any
    table: pd.DataFrame | None


def texts_of(data: Any, text_column: Any = None, usual: Any = None, delimiter: str = " ") -> Texts:
    """Return the texts of a list, an array, a Series, a column of a dataset, or of a table.

    Args:
        data: A table is a DataFrame, or what can be turned into one (`to_pandas`).
        text_column: The table's column with the text, or several, whose texts are joined.
        usual: The same, to take if none is named. If the table lacks it, a usual name decides, else the only column
            with texts.
        delimiter: What joins the texts of several columns.

    Raises:
        InputError: if these are not texts, or the table has no such column.
    """
    if hasattr(data, "to_pandas"):
        data = data.to_pandas()
    if isinstance(data, pd.DataFrame):
        columns = _columns_of(data, text_column, usual)
        if twice := [name for name in columns if (data.columns == name).sum() > 1]:
            raise InputError(f"the table has several columns {twice[0]!r}; want one")
        parts = data[columns].astype(object)
        rows = parts.where(parts.notna(), None).to_dict("records")
        name = columns[0] if len(columns) == 1 else column_name(columns)
        return Texts([text_of(row, columns, delimiter)[0] for row in rows], data.index.tolist(), name, data)
    kind = type(data).__name__
    if text_column is not None:
        raise InputError(f"text_column {text_column!r}: is for a table; this is of type {kind}")
    if isinstance(data, str | bytes | type) or not hasattr(data, "__iter__"):
        raise InputError(f"{brief(data)}; want texts (a list, an array, a Series, a column of a dataset) or a table")
    try:
        texts = in_order(data)
    except ValueError as error:
        raise InputError(f"these are not texts but {error}") from error
    values = texts.tolist() if hasattr(texts, "tolist") else list(texts)
    if isinstance(data, pd.Series):
        return Texts(values, data.index.tolist(), data.name if isinstance(data.name, str) else None, None)
    return Texts(values, list(range(len(values))), None, None)


def column_name(columns: Any) -> Any:
    """Return a column's name as flags have it: several names are joined by commas."""
    columns = columns.tolist() if isinstance(columns, np.ndarray | pd.Index) else columns
    return ",".join(map(str, columns)) if isinstance(columns, list | tuple) else columns


def _columns_of(table: pd.DataFrame, text_column: Any, usual: Any) -> list[Any]:
    """Return the columns with the text; a name need not be a string, and several may be joined by commas."""
    by_name = {str(name): name for name in reversed(table.columns)}
    if text_column is None and usual is not None:
        with contextlib.suppress(InputError):
            return _columns_of(table, usual, None)
    if text_column is None:
        return [_usual_column(table)]
    if pd.api.types.is_hashable(text_column) and text_column in table.columns:
        return [text_column]
    if not isinstance(name := column_name(text_column), str):
        raise InputError(f"the table: no column {name!r}; it has {', '.join(map(repr, table.columns[:20]))}")
    return [by_name[part] for part in text_columns("the table", name, [*map(str, table.columns)])]


def _usual_column(table: pd.DataFrame) -> Any:
    by_name = {str(name).lower(): name for name in reversed(table.columns)}
    if usual := next((by_name[name] for name in TEXT if name in by_name), None):
        return usual
    columns = [name for name, values in table.items() if values.map(lambda value: isinstance(value, str)).any()]
    if len(columns) == 1:
        return columns[0]
    has = ", ".join(map(str, table.columns[:20])) or "no columns"
    raise InputError(f"name the text_column; the table has {has}")


def file_of(rows: Any, split: str, folder: Path) -> str | None:
    """Return the path of a file with the rows: their own, or one that is written into a folder.

    Args:
        rows: A path, a DataFrame, a dataset (whose features may name the labels), or `None`.
        split: What the rows are, for the file's name and for messages.

    Raises:
        InputError: if the rows are something else, or cannot be written.
    """
    if rows is None or isinstance(rows, str | os.PathLike):
        return None if rows is None else os.path.expanduser(rows)
    if isinstance(rows, dict):
        raise InputError(f"{split}: holds {', '.join(map(str, rows))}; give one of them")
    path = folder / f"{split}.parquet"
    if hasattr(rows, "to_parquet") and hasattr(rows, "features"):
        rows.to_parquet(path)
        return str(path)
    rows, path = rows.to_pandas() if hasattr(rows, "to_pandas") else rows, path.with_suffix(".jsonl")
    if not isinstance(rows, pd.DataFrame):
        raise InputError(f"{split}: is of type {type(rows).__name__}; want a DataFrame, a dataset or a file")
    if rows.columns.nlevels > 1:
        raise InputError(f"{split}: its columns have {rows.columns.nlevels} levels; want names of one level")
    if (twice := rows.columns[rows.columns.duplicated()]).size:
        raise InputError(f"{split}: has several columns {twice[0]!r}; want one")
    try:  # values that JSON has not, such as a period, are written as text
        rows.to_json(path, orient="records", lines=True, double_precision=15, date_format="iso", default_handler=str)
    except (ValueError, TypeError, OverflowError) as error:  # values that no file has
        raise InputError(f"{split}: cannot be written ({str(error) or type(error).__name__})") from error
    return str(path)


def integer_labels(rows: Any, label_column: str | None, names: Sequence[str]) -> list[int | str]:
    """Return the labels as a table has them: as integers if its label column holds integers, else by their names.

    Args:
        rows: What [`file_of`] takes.
        label_column: Name of the label column, or several joined by commas.
        names: Names of the labels.
    """
    is_table = isinstance(rows, pd.DataFrame) or hasattr(rows, "features")
    if is_table and all(name.removeprefix("-").isdecimal() for name in names):
        table = rows.to_pandas() if hasattr(rows, "to_pandas") else rows
        for column in [name for name in table.columns if str(name) == str(label_column)]:
            values = table[column].dropna()
            feature = (getattr(rows, "features", None) or {}).get(column)
            if isinstance(feature, ClassLabel) and feature.names != [str(i) for i in range(feature.num_classes)]:
                continue  # its integers are positions among other numbers
            integers = pd.api.types.infer_dtype(values.astype(object)) == "integer"  # whatever the column's type
            if integers and set(map(str, values.unique())) <= set(names):
                return [int(name) for name in names]
    return list(names)


def label_name(label: Any) -> str:
    """Return a label as run_classify.py reads it: `1.0` is the integer 1, and blanks around a name do not count."""
    return without_fraction(str(label).strip())


def texts_and_labels(X: Any, y: Any, what: str, usual: Any = None, delimiter: str = " ") -> tuple[Texts, np.ndarray]:
    """Return texts and their labels, `(rows,)` each.

    Args:
        X, usual, delimiter: See [`texts_of`].
        y: See [`labels_of`].
        what: What they are for, for messages.

    Raises:
        InputError: as those two, or if there are not as many labels as texts, or none.
    """
    texts, labels = texts_of(X, usual=usual, delimiter=delimiter), labels_of(y)
    if len(texts.values) != len(labels):
        raise InputError(f"{what}: {len(texts.values)} texts and {len(labels)} labels; want one label per text")
    if not len(labels):
        raise InputError(f"{what}: no texts; want at least one")
    return texts, labels


def labels_of(y: Any) -> np.ndarray:
    """Return labels, one per text, as an array `(rows,)`. Integers of pandas stay integers.

    Raises:
        InputError: if they are not one label per text, or one is missing.
    """
    y = y.to_pandas() if hasattr(y, "to_pandas") else y
    if isinstance(getattr(y, "dtype", None), ExtensionDtype):
        y = y.astype(object)
    y = list(y) if isinstance(y, Iterator) else y
    if isinstance(y, list | tuple) and {str} < {
        str if isinstance(label, str) else type(label) for label in y if label is not None
    }:
        y = pd.Series(y, dtype=object).to_numpy()  # numpy would write numbers as strings
    try:
        labels = column_or_1d(y)
    except (ValueError, TypeError):
        labels = None
    if labels is None or any(isinstance(label, list | tuple | set | dict) for label in labels.tolist()):
        several = "for several, EmotionClassifier.train takes a table whose label column holds lists"
        raise InputError(f"y: {y!r:.60}; want one label per text ({several})")
    if (missing := np.flatnonzero(pd.isna(labels))).size:
        raise InputError(f"y, row {missing[0]}: no label")
    for row, label in enumerate(labels.tolist()):
        if wrong := broken(label):
            raise InputError(f"y, row {row}: the label is {wrong}")
    return labels


def classes_of(y: np.ndarray) -> np.ndarray:
    """Return the different labels, sorted.

    Raises:
        InputError: if labels are of several kinds, or two read as the same.
    """
    try:
        classes = np.unique(y)
    except TypeError as error:
        raise InputError(f"y: labels of several kinds ({error}); want strings or integers") from error
    names = list(map(label_name, classes.tolist()))
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"y: label {twice!r} is written in two ways; want one")
    return classes
