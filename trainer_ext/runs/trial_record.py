"""Write and read what a finished trial leaves in its folder, a record and probabilities, and check them for changes.

The folder is named by the record's identity, and the record has a check sum of itself and the probabilities; older
records have none.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from ..errors import InputError
from ..evaluation.decisions import ROUNDING
from ..files import digest, open_to_readers, write_json
from ..recipe_file import Schema, check_recipe
from ..training.saved_model import reading

RECORD = "trial.json"  # written last: a trial's folder that has it is finished
PROBABILITIES = "probabilities.safetensors"
METADATA = "emodeberta"
_SUM = "sha256"
_MOST = 1 + ROUNDING
# Of a record: what names the trial's folder.
_IDENTITY = ("settings", "data", "computation", "transfer_data", "program", "columns")


class Probabilities(NamedTuple):
    """The predictions of a trial for rows it did not train on.

    Attributes:
        ids: By split, the ids of the rows.
        values: By split, `(rows, labels)` in float32.
        label_names: In the order of the columns.
    """

    ids: dict[str, list[str]]
    values: dict[str, np.ndarray]
    label_names: list[str]


class _Trial(Schema, extra="ignore"):
    overrides: dict[str, Any]
    fold: list[int] | None
    seed: int


class _Record(Schema, extra="ignore"):
    """The parts of a record that are read."""

    trial: _Trial
    settings: dict[str, Any]
    seconds: float
    resumed: bool
    machine: str
    libraries: dict[str, str]
    gflop: float
    last_loss: float | None = None
    rows: dict[str, int]


def trial_name(identity: dict[str, Any]) -> str:
    """Return the name of a trial's folder, by what decides the trial's result, whatever the order of its flags."""
    return digest(json.loads(json.dumps({key: identity[key] for key in _IDENTITY if key in identity}, sort_keys=True)))


def write_probabilities(
    path: Path, ids: dict[str, list[str]], values: dict[str, np.ndarray], label_names: list[str]
) -> None:
    """Write a trial's probabilities by split, with row ids and labels in the file's metadata."""
    described = json.dumps({"ids": ids, "labels": label_names}, ensure_ascii=False)
    partial = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        save_file(values, partial, metadata={METADATA: described})
        open_to_readers(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_probabilities(path: Path) -> Probabilities:
    """Return what [`write_probabilities`] was given.

    Raises:
        InputError: if the file is damaged.
    """
    with reading(path, "is missing or damaged"):
        with safe_open(path, framework="numpy") as file:
            described = json.loads(file.metadata()[METADATA])
            saved = Probabilities(described["ids"], {}, described["labels"])
            for split, ids in saved.ids.items():
                values = saved.values[split] = file.get_tensor(split)
                if values.shape != (len(ids), len(saved.label_names)) or not np.all((values >= 0) & (values <= _MOST)):
                    raise InputError(f"{path}: is damaged ({split} has no probability for each row and label)")
        return saved


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write the record of the probabilities that are in the folder, with the check sum of both."""
    said = {key: value for key, value in record.items() if key != _SUM}
    write_json(
        folder / RECORD, said | {_SUM: _check_sum(folder.name, said, read_probabilities(folder / PROBABILITIES))}
    )


def read_record(folder: Path) -> dict[str, Any]:
    """Return the record of a finished trial.

    Raises:
        InputError: if it is missing or damaged, or another trial's.
    """
    path = folder / RECORD
    with reading(path, "is missing or damaged"):
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record, dict):
            raise InputError(f"{path}: is damaged (holds a {type(record).__name__})")
        check_recipe(record, _Record, path)
        if (name := trial_name(record)) != folder.name:
            raise InputError(f"{path}: is damaged, or another trial's ({name})")
    return record


def read_trial(folder: Path) -> tuple[dict[str, Any], Probabilities]:
    """Return the record and probabilities of a finished trial.

    Raises:
        InputError: if one of them is missing or damaged, or they do not belong together.
    """
    record, saved = read_record(folder), read_probabilities(folder / PROBABILITIES)
    check_trial(folder.name, record, saved, folder)
    return record, saved


def check_trial(name: str, record: dict[str, Any], saved: Probabilities, place: Path) -> None:
    """Check that record and probabilities of the trial of this name are what was left, as far as they tell.

    Raises:
        InputError: if not; begins with `place`.
    """
    if _SUM in record and record[_SUM] != _check_sum(name, record, saved):
        raise InputError(f"{place}: trial {name} is damaged (another check sum)")
    rows = record.get("rows", {})
    if short := [split for split, ids in saved.ids.items() if rows.get(split, len(ids)) != len(ids)]:
        have, want = len(saved.ids[short[0]]), rows[short[0]]
        raise InputError(f"{place}: trial {name} is damaged ({short[0]} has {have} rows; its record says {want})")


def _check_sum(name: str, record: dict[str, Any], saved: Probabilities) -> str:
    said = {key: value for key, value in record.items() if key != _SUM}
    made = hashlib.sha256(json.dumps([name, said, saved.ids, saved.label_names], sort_keys=True).encode())
    for split in sorted(saved.values):
        made.update(np.ascontiguousarray(saved.values[split], "<f4"))
    return made.hexdigest()
