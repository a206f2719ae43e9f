"""The predictions of a model for rows, and the table that is written from them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from ..escape import probability_column
from ..evaluation.decisions import decide
from .text_stream import Row

FORMATS = ("parquet", "csv", "jsonl")


@dataclass
class Scores:
    """The predictions of a model for rows.

    Attributes:
        probabilities: `(rows, labels)`, float32; NaN for rows with an error.
        several: Whether a row may have several labels.
        truncated: `(rows,)`, whether the text was longer than the model reads.
        disagreement: `(rows,)`, for an ensemble the share of members with another label; else `None`.
        thresholds: If a row may have several labels: the probability from which each counts; see [`decide`].
        abstain_below: If a row has one label: below this probability the row gets none.
    """

    probabilities: np.ndarray
    several: bool
    truncated: np.ndarray
    disagreement: np.ndarray | None
    thresholds: list[float] | None = None
    abstain_below: float | None = None

    def labels(self, names: list[str]) -> list[Any]:
        """Return each row's label, or the list of its labels; `None` for an error, or if none is probable enough."""
        missing = np.isnan(self.probabilities).any(axis=1)
        values = np.nan_to_num(self.probabilities, nan=-1.0)
        decided = decide(values, self.several, self.thresholds)
        if self.several:
            named = [[name for name, counts in zip(names, row, strict=True) if counts] for row in decided.tolist()]
        else:
            named = [names[label] for label in decided.tolist()]
            if self.abstain_below is not None:
                missing |= values.max(axis=1) < self.abstain_below
        return [None if gone else label for label, gone in zip(named, missing.tolist(), strict=True)]


def table_of(rows: list[Row], scores: Scores, names: list[str], first: int, ids: bool, kind: str) -> pa.Table:
    """Return the table of a shard.

    Args:
        names: Of the labels, in the model's order.
        first: Number of the first row.
        ids: Whether the rows have ids.
        kind: One of `FORMATS`. In csv, several labels are one text with commas.
    """
    labels = scores.labels(names)
    columns: dict[str, pa.Array] = {"row": pa.array(range(first, first + len(rows)), pa.int64())}
    if ids:
        columns["id"] = pa.array([row.id for row in rows], pa.string())
    listed = scores.several and kind != "csv"
    columns["label"] = (
        pa.array(labels, pa.list_(pa.string()))
        if listed
        else pa.array([",".join(label) if isinstance(label, list) else label for label in labels], pa.string())
    )
    missing = np.isnan(scores.probabilities).any(axis=1)
    for name, values in zip(names, scores.probabilities.T, strict=True):
        columns[probability_column(name)] = pa.array(values, pa.float32(), mask=missing)
    if scores.disagreement is not None:
        columns["disagreement"] = pa.array(scores.disagreement, pa.float32(), mask=missing)
    columns["truncated"] = pa.array(scores.truncated, pa.bool_(), mask=missing)
    columns["error"] = pa.array([row.error for row in rows], pa.string())
    return pa.table(columns)


def write_table(table: pa.Table, path: Path, kind: str) -> None:
    """Write a table to a file in one of `FORMATS`."""
    if kind == "parquet":
        pyarrow.parquet.write_table(table, path, compression="zstd")
    elif kind == "csv":
        pyarrow.csv.write_csv(table, path)
    else:
        with open(path, "w", encoding="utf-8") as file:
            for row in table.to_pylist():
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
