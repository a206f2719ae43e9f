"""Read a label column: one class, several classes, or a distribution per row."""

import difflib
import logging
import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from datasets import ClassLabel

from ..errors import InputError
from .findings import shown_name
from .tables import Table, check_column

logger = logging.getLogger(__name__)
_ONE_CLASS, _MULTI_LABEL = "single_label_classification", "multi_label_classification"  # problem types
_PROBABILITY_TOLERANCE = 1e-3
_INTEGER = re.compile(r"-?[0-9]+")
_FLOAT = re.compile(r"[-+]?[0-9]*\.[0-9]+(e[-+]?[0-9]+)?|[-+]?[0-9]+(\.|e[-+]?[0-9]+)", re.IGNORECASE)
_LONGEST_LABEL = 200  # characters
_MANY_ROWS = 10  # from this many rows on, a column in which over half of the values differ holds no labels


# ---- Labels -------------------------------------------------------------------------------------------------------
def read_labels(
    tables: dict[str, Table],
    label_columns: list[str],
    label_names: Sequence[str] | None,
    multi_label: bool = False,
) -> tuple[dict[str, list], list[str], str]:
    """Return the labels by split, the label names over all splits, and the problem type.

    Args:
        tables: Rows by split.
        label_columns: One column, or several numeric columns with one label each.
        label_names: The label set in order, or `None` for all labels that occur.
        multi_label: Whether rows may have several classes even if each of these has one, or their labels are not given.

    Raises:
        InputError: if a label is missing or malformed, is not in the label set, or is named twice.
    """
    for names in (label_columns, label_names or ()):
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise InputError(f"label {shown_name(twice[0])!r} is named twice; want each once")
    labelled: dict[str, list] = {}
    for split, table in tables.items():
        if split == "test" and (missing := [column for column in label_columns if column not in table.columns]):
            logger.info(f"{table.name}: no column {missing[0]!r}, so its rows are predicted only")
            continue
        for column in label_columns:
            check_column(table, column)
        raw = [
            row.get(label_columns[0]) if len(label_columns) == 1 else [row.get(column) for column in label_columns]
            for row in table.rows
        ]
        if split == "test" and _are_hidden(raw, [value for rows in labelled.values() for value in rows]):
            continue
        labelled[split] = raw
    if not labelled and label_names and tables.keys() == {"test"}:  # unlabelled rows to predict
        return {}, list(label_names), _MULTI_LABEL if multi_label else _ONE_CLASS
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
        return _from_vectors(tables, vectors, list(label_names), multi_label)

    by_table = {split: class_names(tables[split], label_columns[0]) for split in labelled}
    features = list(dict.fromkeys(name for names in by_table.values() for name in names))
    every = [(split, i, value) for split, rows in labelled.items() for i, value in enumerate(rows)]

    def name_of(value: object, split: str, i: int) -> str:
        known = by_table[split] or features or label_names
        return _label(value, tables[split], i, known, positions=bool(by_table[split]))

    if _mostly_lists(value for _, _, value in every):
        for split, i, value in every:
            if not isinstance(value, list):
                raise InputError(f"{tables[split].where(i)}: label is {value!r:.60}; want a list, as in other rows")
        width = None if features else _width([value for _, _, value in every], label_names)
        if width is not None:
            vectors = {split: [] for split in labelled}
            for split, i, value in every:
                if len(value) != width:
                    raise InputError(
                        f"{tables[split].where(i)}: label is {value!r:.60}; want {width} numbers, one per label, or "
                        "the numbers of its labels, each once"
                    )
                vectors[split].append([_number(number, tables[split], i) for number in value])
            return _from_vectors(tables, vectors, list(label_names or map(str, range(width))), multi_label)
        values = {
            split: [[name_of(label, split, i) for label in row] for i, row in enumerate(rows)]
            for split, rows in labelled.items()
        }
        names = list(label_names or features) or _sorted_labels(
            {n for rows in values.values() for r in rows for n in r}
        )
        index = {name: position for position, name in enumerate(names)}
        hot = {}
        for split, rows in values.items():
            hot[split] = []
            for i, row in enumerate(rows):
                vector = [0.0] * len(names)
                for name in row:
                    vector[_index_of(name, index, tables[split], i)] = 1.0
                hot[split].append(vector)
        return hot, names, _MULTI_LABEL

    _report_spaces(tables, every)
    values = {split: [name_of(value, split, i) for i, value in enumerate(rows)] for split, rows in labelled.items()}
    names = list(label_names or features) or _sorted_labels({name for rows in values.values() for name in rows})
    if not label_names and not features and len(every) >= _MANY_ROWS and len(names) > len(every) / 2:
        raise InputError(
            f"{tables[every[0][0]].name}: {len(names)} different labels in {len(every)} rows of column "
            f"{label_columns[0]!r}, as of an id or a text; name another with --label_column_name (or list the labels "
            "with --label_set)"
        )
    index = {name: position for position, name in enumerate(names)}
    ids = {
        split: [_index_of(name, index, tables[split], i) for i, name in enumerate(rows)]
        for split, rows in values.items()
    }
    return ids, names, _ONE_CLASS


def _are_hidden(values: list, others: list) -> bool:
    """Return whether no label of a test split is given: each is empty, or -1 as on the Hub and no label elsewhere."""
    if not all(value in (None, "", [], -1, "-1") for value in values):
        return False
    return not any(value in (-1, "-1") for value in values) or not any(value in (-1, "-1") for value in others)


def _report_spaces(tables: dict[str, Table], every: list[tuple[str, int, object]]) -> None:
    """Log which labels have spaces around them, because those are not part of the label."""
    spaced = [tables[split].where(i) for split, i, value in every if isinstance(value, str) and value != value.strip()]
    if spaced:
        more = f" and {len(spaced) - 1:,} more" if len(spaced) > 1 else ""
        logger.info(f"{spaced[0]}{more}: spaces around the label do not count; it is read without them")


def _mostly_lists(values: Iterable[object]) -> bool:
    """Return whether most labels are lists; in a tie, whether the first is."""
    lists = [isinstance(value, list) for value in values]
    return lists[0] if sum(lists) * 2 == len(lists) else sum(lists) * 2 > len(lists)


def _width(rows: list[list], label_names: Sequence[str] | None) -> int | None:
    """Return how many numbers each row has, one per label; `None` if rows list their labels by name or number."""
    if not all(_is_number(value) for row in rows for value in row):
        return None
    widths = Counter(len(row) for row in rows if row)
    common = max(widths, key=widths.get, default=0)
    if common < 2 and set(widths) <= {1}:
        return None
    whole = all(float(value).is_integer() for row in rows for value in row)
    zeros_and_ones = all(value in (0, 1) for row in rows for value in row)
    each_once = all(len(set(row)) == len(row) for row in rows)
    if whole and each_once and not (len(widths) == 1 and all(rows) and zeros_and_ones):
        return None
    return len(label_names) if label_names else common


def _from_vectors(
    tables: dict[str, Table], vectors: dict[str, list[list[float]]], names: list[str], multi_label: bool
) -> tuple[dict[str, list], list[str], str]:
    """Turn one-hot rows into classes unless `multi_label`, keep distributions, and treat other 0/1 rows as several
    classes per row."""
    every = [row for rows in vectors.values() for row in rows]
    hot = all(value in (0.0, 1.0) for row in every for value in row)
    if hot and not multi_label and all(sum(row) == 1 for row in every):
        return {s: [row.index(1.0) for row in rows] for s, rows in vectors.items()}, names, _ONE_CLASS
    if hot:
        return vectors, names, _MULTI_LABEL
    for split, rows in vectors.items():
        for index, row in enumerate(rows):
            if min(row) < 0 or abs(sum(row) - 1) > _PROBABILITY_TOLERANCE:
                raise InputError(
                    f"{tables[split].where(index)}: the label's numbers add up to {sum(row):.4g}; want a distribution "
                    "(none below 0, sum 1), or 0 and 1 only"
                )
    normalised = {s: [[value / sum(row) for value in row] for row in rows] for s, rows in vectors.items()}
    return normalised, names, _ONE_CLASS


def class_names(table: Table, column: str) -> list[str]:
    """Return the label names of a `ClassLabel` column, or of a column of lists of them; else an empty list."""
    feature = (table.features or {}).get(column)
    feature = getattr(feature, "feature", feature)
    return list(feature.names) if isinstance(feature, ClassLabel) else []


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: object, table: Table, index: int) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not np.isfinite(number):
        raise InputError(f"{table.where(index)}: label is {value!r:.60}; want a number")
    return number


def _label(value: object, table: Table, index: int, names: Sequence[str] | None, positions: bool = False) -> str:
    """Return the name of a label; if names are known and none is an integer, an integer is a position among them.

    Args:
        positions: Whether every integer is a position, as in a `ClassLabel` column, even if a name is written like it.
    """
    if value is None or value == "" or (isinstance(value, float) and np.isnan(value)):
        raise InputError(f"{table.where(index)}: no label; want one, or remove the row")
    if isinstance(value, list):
        raise InputError(f"{table.where(index)}: label is {value!r:.60}; want one label, as in other rows")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise InputError(f"{table.where(index)}: label is {value!r:.60}; want a name or an integer")
    text = str(value).strip()
    if not text:
        raise InputError(f"{table.where(index)}: no label; want one, or remove the row")
    is_position = positions and isinstance(value, int)
    if names and text in names and not is_position:
        return text
    if len(text) > _LONGEST_LABEL or len(text.splitlines()) > 1:
        raise InputError(
            f"{table.where(index)}: label is a text of {len(text)} characters; want a name or an integer (name another "
            "column with --label_column_name)"
        )
    text = without_fraction(text)
    if (isinstance(value, float) or _FLOAT.fullmatch(text)) and not _INTEGER.fullmatch(text):
        raise InputError(
            f"{table.where(index)}: label is {text}; want a name or an integer (if the column is a score, name "
            "another with --label_column_name)"
        )
    if names and _INTEGER.fullmatch(text) and (is_position or not any(map(_INTEGER.fullmatch, names))):
        if not 0 <= int(text) < len(names):
            raise InputError(f"{table.where(index)}: label is {text}; want 0 to {len(names) - 1} ({', '.join(names)})")
        return names[int(text)]
    return text


def without_fraction(text: str) -> str:
    """Return `1` for `1.0` or `1e0`, and other texts as they are."""
    return str(int(float(text))) if _FLOAT.fullmatch(text) and float(text).is_integer() else text


def _sorted_labels(names: set[str]) -> list[str]:
    numeric = all(_INTEGER.fullmatch(name) for name in names)
    return sorted(names, key=lambda name: (int(name), name)) if numeric else sorted(names)


def _index_of(name: str, index: dict[str, int], table: Table, row: int) -> int:
    if name not in index:
        close = difflib.get_close_matches(name, index, n=1)
        raise InputError(
            f"{table.where(row)}: label {shown_name(name)!r} is not one of {', '.join(index)}"
            + (f"; did you mean {close[0]!r}?" if close else "")
        )
    return index[name]
