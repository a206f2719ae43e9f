"""Store the trials of one comparison or fusion in one parquet file, so that a table can be rebuilt without training.

Each row is one text in one trial: the trial's name (a hash of what decides its result), the variant's name, seed,
held-out folds, split, row id, and a float32 `probability_<label>` per label (`<label>` in older files). The trials'
records are in the file's metadata. The file contains no texts.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import InputError
from ..escape import probability_column
from ..files import write_json
from ..training.saved_model import reading
from .trial import (
    METADATA,
    PROBABILITIES,
    RECORD,
    Probabilities,
    check_trial,
    read_probabilities,
    write_probabilities,
)

ARCHIVE = "predictions.parquet"
_COLUMNS = ("trial", "variant", "seed", "fold", "split", "row")


def archives_for(output_dir: Path) -> list[Path]:
    """Return the files of finished trials: that of this folder first, then all that results/ holds."""
    found = [output_dir / ARCHIVE, *sorted(Path("results").glob(f"*/*/{ARCHIVE}"))]
    return [path for path in dict.fromkeys(found) if path.is_file()]


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
    partial = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        pq.write_table(
            table.replace_schema_metadata({METADATA: described}),
            partial,
            compression="zstd",
            use_dictionary=[*_COLUMNS],
            use_byte_stream_split=table.column_names[len(_COLUMNS) :],  # a fifth smaller
        )
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


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
        with reading(path, "is not an archive of trials"):
            described = json.loads(pq.read_schema(path).metadata[METADATA.encode()])
            self._label_names: list[str] = described["labels"]
            self._records: dict[str, dict[str, Any]] = described["trials"]
            self.stages = {
                start: record["settings"]["model_name_or_path"]
                for record in self._records.values()
                if (start := record["trial"]["overrides"].get("model_name_or_path"))
            }
        self._table: pa.Table | None = None

    def __contains__(self, name: str) -> bool:
        return name in self._records

    def restore(self, folder: Path) -> None:
        """Write the trial of the folder's name into the folder, as its training left it.

        Raises:
            InputError: if the archive is damaged there; the folder is as before.
        """
        record = self._records[folder.name]
        with reading(self._path, f"trial {folder.name} is damaged"):
            saved = self._read(folder.name)
        check_trial(folder.name, record, saved, self._path)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RECORD).unlink(missing_ok=True)  # what it says is not of these
        write_probabilities(folder / PROBABILITIES, *saved)
        write_json(folder / RECORD, record)

    def _read(self, name: str) -> Probabilities:
        if self._table is None:
            self._table = pq.read_table(self._path)
        rows = self._table.filter(pc.equal(self._table["trial"], name))
        if (width := rows.num_columns - len(_COLUMNS)) != len(self._label_names) or not len(rows):
            raise InputError(f"{self._path}: trial {name} is damaged ({len(rows)} rows of {width} probabilities)")
        splits, row_ids = rows["split"].to_pylist(), rows["row"].to_pylist()
        # By position, since older files have bare labels as column names.
        probabilities = np.stack([values.to_numpy() for values in rows.columns[len(_COLUMNS) :]], axis=1)
        ids: dict[str, list[str]] = {split: [] for split in splits}
        for split, row_id in zip(splits, row_ids, strict=True):
            ids[split].append(row_id)
        return Probabilities(
            ids, {split: probabilities[[of == split for of in splits]] for split in ids}, self._label_names
        )


def open_archives(paths: Sequence[Path], folder: Path) -> list[TrialArchive]:
    """Open archives for the trials in a folder. Of one that is damaged, say so."""
    opened = []
    for path in paths:
        try:
            opened.append(TrialArchive(path))
        except InputError as error:
            print(f"{error}; its trials are trained again, where they are not in {folder}/", flush=True)
    return opened
