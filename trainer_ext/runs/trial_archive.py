"""Store the trials of one comparison or fusion in one parquet file, so that a table can be rebuilt without training.

Each row is one text in one trial: the trial's name (a hash of what decides its result), the variant's name, seed,
held-out
folds, split, row id, and a float32 `probability_<label>` per label (`<label>` in older files). The trials' records are
in
the file's metadata. The file contains no texts.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from safetensors import safe_open
from safetensors.numpy import save_file

from ..errors import InputError
from ..escape import probability_column
from ..files import write_json

ARCHIVE = "predictions.parquet"
RECORD = "trial.json"  # written last: a trial's folder that has it is finished
PROBABILITIES = "probabilities.safetensors"
_METADATA = "emodeberta"
_COLUMNS = ("trial", "variant", "seed", "fold", "split", "row")


def write_probabilities(
    path: Path, ids: dict[str, list[str]], values: dict[str, np.ndarray], label_names: list[str]
) -> None:
    """Write a trial's probabilities by split to a safetensors file, with row ids and labels as metadata."""
    described = json.dumps({"ids": ids, "labels": label_names}, ensure_ascii=False)
    partial = path.with_suffix(".partial")
    save_file(values, partial, metadata={_METADATA: described})
    partial.replace(path)


def read_probabilities(path: Path) -> tuple[dict[str, list[str]], dict[str, np.ndarray], list[str]]:
    """Return the row ids, the probabilities (both by split) and the label names of a [`write_probabilities`] file."""
    with safe_open(path, framework="numpy") as file:
        described = json.loads(file.metadata()[_METADATA])
        values = {split: file.get_tensor(split) for split in described["ids"]}
    return described["ids"], values, described["labels"]


def write_archive(path: Path, trials: Iterable[tuple[Path, str]]) -> None:
    """Write finished trials, given as pairs of folder and variant name, to one parquet file."""
    columns: dict[str, list] = {name: [] for name in _COLUMNS}
    numbers, records, label_names = [], {}, []
    for folder, variant in trials:
        if folder.name in records:
            continue  # two variants with the same flags are one trial
        records[folder.name] = record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        ids, values, label_names = read_probabilities(folder / PROBABILITIES)
        held_out = "+".join(map(str, (record["trial"]["fold"] or [])[1:]))
        for split, row_ids in ids.items():
            row = (folder.name, variant, record["trial"]["seed"], held_out, split)
            for name, value in zip(_COLUMNS, row, strict=False):
                columns[name] += [value] * len(row_ids)
            columns["row"] += row_ids
            numbers.append(values[split])
    probabilities = np.concatenate(numbers)
    table = pa.table(
        {name: pa.array(values, pa.int32() if name == "seed" else pa.string()) for name, values in columns.items()}
        | {probability_column(name): probabilities[:, index] for index, name in enumerate(label_names)}
    )
    described = json.dumps({"labels": label_names, "trials": records}, ensure_ascii=False)
    partial = path.with_suffix(".partial")
    pq.write_table(
        table.replace_schema_metadata({_METADATA: described}),
        partial,
        compression="zstd",
        use_dictionary=[*_COLUMNS],
        use_byte_stream_split=table.column_names[len(_COLUMNS) :],  # a fifth smaller
    )
    partial.replace(path)


class TrialArchive:
    """A file that [`write_archive`] wrote, opened for reading.

    Attributes:
        stages: By the path of a starting checkpoint, its digest, so that trials are still found after its folder is
            gone.

    Raises:
        InputError: if the file is not such an archive.
    """

    def __init__(self, path: Path):
        self._path = path
        try:
            described = json.loads(pq.read_schema(path).metadata[_METADATA.encode()])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: is not an archive of trials ({str(error).splitlines()[0]})") from error
        self._label_names: list[str] = described["labels"]
        self._records: dict[str, dict[str, Any]] = described["trials"]
        self._table: pa.Table | None = None
        self.stages = {
            start: record["settings"]["model_name_or_path"]
            for record in self._records.values()
            if (start := record["trial"]["overrides"].get("model_name_or_path"))
        }

    def __contains__(self, name: str) -> bool:
        return name in self._records

    def restore(self, folder: Path) -> None:
        """Write the trial with the folder's name into the folder, as if it had been trained there."""
        if self._table is None:
            self._table = pq.read_table(self._path)
        rows = self._table.filter(pc.equal(self._table["trial"], folder.name))
        splits, row_ids = rows["split"].to_pylist(), rows["row"].to_pylist()
        # By position, since files of before have bare labels for columns.
        probabilities = np.stack([values.to_numpy() for values in rows.columns[len(_COLUMNS) :]], axis=1)
        ids: dict[str, list[str]] = {split: [] for split in splits}
        for split, row_id in zip(splits, row_ids, strict=True):
            ids[split].append(row_id)
        values = {split: probabilities[[of == split for of in splits]] for split in ids}
        folder.mkdir(parents=True, exist_ok=True)
        write_probabilities(folder / PROBABILITIES, ids, values, self._label_names)
        write_json(folder / RECORD, self._records[folder.name])
