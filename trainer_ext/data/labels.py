"""Labels as a column gives them: classes, several classes, or a distribution per row."""

import difflib
import re
from collections.abc import Sequence

import numpy as np
from datasets import ClassLabel

from ..errors import InputError
from .tables import Table, check_column

_PROBABILITY_TOLERANCE = 1e-3
_INTEGER = re.compile(r"-?[0-9]+")


# ---- Labels -------------------------------------------------------------------------------------------------------
def read_labels(
    tables: dict[str, Table], label_columns: list[str], label_names: Sequence[str] | None
) -> tuple[dict[str, list], list[str], str]:
    """Labels by split, the label set over all splits, and the problem type."""
    labelled: dict[str, list] = {}
    for split, table in tables.items():
        if split == "test" and not all(column in table.rows[0] for column in label_columns):
            continue
        for column in label_columns:
            check_column(table, column)
        raw = [
            row.get(label_columns[0]) if len(label_columns) == 1 else [row.get(column) for column in label_columns]
            for row in table.rows
        ]
        if split == "test" and all(value in (None, "", [], -1) for value in raw):  # -1: how the Hub hides them
            continue
        labelled[split] = raw
    if not labelled:
        raise InputError(f"no split has the label column {','.join(label_columns)!r}")

    if len(label_columns) > 1:
        if label_names and list(label_names) != label_columns:
            raise InputError(f"the label columns are {', '.join(label_columns)}; the label set names others")
        label_names = label_columns
        vectors = {
            split: [[_number(value, tables[split], i) for value in row] for i, row in enumerate(rows)]
            for split, rows in labelled.items()
        }
        return _from_vectors(tables, vectors, list(label_names))

    feature_names, id_lists = _class_label_names(tables, label_columns[0])
    first = next(iter(labelled.values()))[0]
    if isinstance(first, list) and not feature_names and all(_is_number(value) for value in first) and len(first) > 1:
        width = len(label_names) if label_names else len(first)
        vectors = {}
        for split, rows in labelled.items():
            vectors[split] = []
            for index, row in enumerate(rows):
                if not isinstance(row, list) or len(row) != width:
                    raise InputError(
                        f"{tables[split].where(index)}: label is {row!r}; want {width} numbers, one per label"
                    )
                vectors[split].append([_number(value, tables[split], index) for value in row])
        return _from_vectors(tables, vectors, list(label_names or map(str, range(width))))

    names = list(label_names) if label_names else feature_names
    if isinstance(first, list) or id_lists:
        values = {
            split: [
                [_label(v, tables[split], i, feature_names or label_names) for v in _as_list(row, tables[split], i)]
                for i, row in enumerate(rows)
            ]
            for split, rows in labelled.items()
        }
        names = names or _sorted_labels({name for rows in values.values() for row in rows for name in row})
        index = {name: position for position, name in enumerate(names)}
        hot = {}
        for split, rows in values.items():
            hot[split] = []
            for i, row in enumerate(rows):
                vector = [0.0] * len(names)
                for name in row:
                    vector[_index_of(name, index, tables[split], i)] = 1.0
                hot[split].append(vector)
        return hot, names, "multi_label_classification"

    values = {
        split: [_label(value, tables[split], i, feature_names or label_names) for i, value in enumerate(rows)]
        for split, rows in labelled.items()
    }
    names = names or _sorted_labels({name for rows in values.values() for name in rows})
    index = {name: position for position, name in enumerate(names)}
    ids = {
        split: [_index_of(name, index, tables[split], i) for i, name in enumerate(rows)]
        for split, rows in values.items()
    }
    return ids, names, "single_label_classification"


def _from_vectors(
    tables: dict[str, Table], vectors: dict[str, list[list[float]]], names: list[str]
) -> tuple[dict[str, list], list[str], str]:
    """One-hot rows become classes; distributions stay; other 0/1 rows are several classes."""
    every = [row for rows in vectors.values() for row in rows]
    hot = all(value in (0.0, 1.0) for row in every for value in row)
    if hot and all(sum(row) == 1 for row in every):
        return (
            {s: [row.index(1.0) for row in rows] for s, rows in vectors.items()},
            names,
            "single_label_classification",
        )
    if hot:
        return vectors, names, "multi_label_classification"
    for split, rows in vectors.items():
        for index, row in enumerate(rows):
            if min(row) < 0 or abs(sum(row) - 1) > _PROBABILITY_TOLERANCE:
                raise InputError(
                    f"{tables[split].where(index)}: the label's numbers add up to {sum(row):.4g}; want a distribution "
                    "(none below 0, sum 1), or 0 and 1 only"
                )
    normalised = {s: [[value / sum(row) for value in row] for row in rows] for s, rows in vectors.items()}
    return normalised, names, "single_label_classification"


def _class_label_names(tables: dict[str, Table], column: str) -> tuple[list[str] | None, bool]:
    """Names of a Hub dataset's ClassLabel column, and whether a row holds a list of them."""
    for table in tables.values():
        feature = (table.features or {}).get(column)
        inner = getattr(feature, "feature", None)
        if isinstance(feature, ClassLabel):
            return list(feature.names), False
        if isinstance(inner, ClassLabel):
            return list(inner.names), True
    return None, False


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: object, table: Table, index: int) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not np.isfinite(number):
        raise InputError(f"{table.where(index)}: label is {value!r}; want a number")
    return number


def _as_list(value: object, table: Table, index: int) -> list:
    if not isinstance(value, list):
        raise InputError(f"{table.where(index)}: label is {value!r}; want a list, as in the rows before")
    return value


def _label(value: object, table: Table, index: int, names: Sequence[str] | None) -> str:
    """The label's name; an integer stands for the name at that position, if names are known."""
    if value is None or value == "" or (isinstance(value, float) and np.isnan(value)):
        raise InputError(f"{table.where(index)}: no label")
    if isinstance(value, list):
        raise InputError(f"{table.where(index)}: label is {value!r}; want one label, as in the rows before")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise InputError(f"{table.where(index)}: label is {value!r}; want a name or an integer")
    text = str(value).strip()
    if not text:
        raise InputError(f"{table.where(index)}: no label")
    if names is not None and text not in names and _INTEGER.fullmatch(text):
        if not 0 <= int(text) < len(names):
            raise InputError(f"{table.where(index)}: label is {text}; want 0 to {len(names) - 1} ({', '.join(names)})")
        return names[int(text)]
    return text


def _sorted_labels(names: set[str]) -> list[str]:
    numeric = all(_INTEGER.fullmatch(name) for name in names)
    return sorted(names, key=int) if numeric else sorted(names)


def _index_of(name: str, index: dict[str, int], table: Table, row: int) -> int:
    if name not in index:
        close = difflib.get_close_matches(name, index, n=1)
        raise InputError(
            f"{table.where(row)}: label {name!r} is not one of {', '.join(index)}"
            + (f"; did you mean {close[0]!r}?" if close else "")
        )
    return index[name]
