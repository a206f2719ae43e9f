"""Describe one training of a comparison or fusion: its record, the sets that cover all folds, how long it takes.

A finished trial leaves a record and probabilities in a folder that is named by the record's identity. The record has a
check sum of itself and the probabilities; older records have none.
"""

import functools
import hashlib
import itertools
import json
import os
import platform
import re
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from transformers import PreTrainedConfig

from ..errors import InputError
from ..evaluation.decisions import ROUNDING
from ..evaluation.predictions import read_predictions
from ..files import RESULTS, digest, open_to_readers, write_json
from ..recipe_file import Schema, check_recipe
from ..training.checkpoint_source import resolve_checkpoint
from ..training.saved_model import reading

# ---- The record ------------------------------------------------------------------------------------------------------
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


# ---- Trainings -------------------------------------------------------------------------------------------------------
RUN = "run"  # in a trial's folder, what its program leaves


@dataclass
class Trial:
    """One training of a comparison or fusion.

    Attributes:
        overrides: Flags by name, which override those of the recipe. `program` is among them if it is not
            `run_classify`.
        fold: `(folds, fold, ...)`: the number of folds, then the folds to hold out. `None` trains on all rows.
        seed: Seed of the training.
        variant: Name of the variant in the comparison or fusion.
    """

    overrides: dict[str, Any]
    fold: tuple[int, ...] | None
    seed: int
    variant: str

    @property
    def name(self) -> str:
        """Return the name of the training for messages."""
        which = "all rows"
        if self.fold is not None:
            which = f"fold{'s' * (len(self.fold) > 2)} {' and '.join(map(str, self.fold[1:]))}"
        return f"{self.variant}, seed {self.seed}, {which}"

    def flags(self, recipe: dict[str, Any]) -> dict[str, Any]:
        """Return all flags by name: those of the recipe, the overrides, folds and seed."""
        split = {} if self.fold is None else {"cv_folds": self.fold[0], "cv_fold": list(self.fold[1:])}
        return {**recipe, **self.overrides, **split, "seed": self.seed}


def one_a_fold(overrides: dict[str, Any], folds: int, seed: int, variant: str) -> list[Trial]:
    """Return one training per fold, each of which holds out that fold; without folds, one training on all rows."""
    return [Trial(overrides, (folds, fold) if folds else None, seed, variant) for fold in range(folds or 1)]


def one_each_two_folds(overrides: dict[str, Any], folds: int, seed: int, variant: str) -> dict[frozenset[int], Trial]:
    """Return one training per pair of folds, keyed by the pair it holds out.

    They are for the teachers of a student, which must see neither the fold they label nor the fold the student is
    scored on.
    """
    return {
        frozenset(pair): Trial(overrides, (folds, *pair), seed, variant)
        for pair in itertools.combinations(range(folds), 2)
    }


def last_loss(run: Path) -> float | None:
    """Return the training loss that was logged last, or `None` if none was logged."""
    history = json.loads((run / "learning_curve.json").read_text(encoding="utf-8"))
    return next((entry["loss"] for entry in reversed(history) if "loss" in entry), None)


def last_words(log: Path, before: int) -> str:
    """Return the last error in a training's log, else its last line.

    A progress bar that is closed when the program ends may come before or after the error.

    Args:
        before: Bytes at the start of the log to skip, which an earlier start wrote.
    """
    said = log.read_bytes()[before:].decode("utf-8", errors="replace").strip()
    errors = re.findall(r"error: (.*)", said)
    return errors[-1] if errors else said.splitlines()[-1] if said else ""


def convert_run(path: Path) -> dict[str, Any]:
    """Take over the predictions of a trial's finished run, and return the entries for its record.

    Raises:
        InputError: if a file of the run is damaged.
    """
    run = path / RUN
    with reading(run, "is damaged"):
        results = json.loads((run / RESULTS).read_text(encoding="utf-8"))
        # A driver killed right after a training leaves no time; that of the process alone is used instead.
        left = {"seconds": round(results["train_runtime"], 1), "resumed": True, "last_loss": last_loss(run)}
        left["rows"] = {k.removesuffix("_rows"): v for k, v in results.items() if k.endswith("_rows")}
        (path / RECORD).unlink(missing_ok=True)  # what it says is not of what comes now
        convert_predictions(run, path / PROBABILITIES)
        check_trial(path.name, left, read_probabilities(path / PROBABILITIES), run)
    return left


def convert_predictions(run: Path, target: Path) -> None:
    """Write a run's predictions.tsv as safetensors: probabilities by split, with row ids and labels as metadata."""
    table = read_predictions(run, one_label=False)
    splits = np.array([row.split for row in table.rows])
    ids: dict[str, list[str]] = {}
    for row in table.rows:
        ids.setdefault(row.split, []).append(row.id)
    tensors = {split: table.probabilities[splits == split].astype(np.float32) for split in ids}
    write_probabilities(target, ids, tensors, table.label_names)


# ---- How long a training takes on this machine -----------------------------------------------------------------------
def machine(jobs: int = 1) -> str:
    """Return the name of the hardware, and how many trainings share it."""
    name = f"{os.cpu_count()} CPU cores ({platform.machine()})"
    if torch.cuda.is_available():
        name, jobs = torch.cuda.get_device_name(), -(-jobs // torch.cuda.device_count())
    return name if jobs == 1 else f"{name}, {jobs} trainings at a time"


def precision(settings: Mapping[str, Any]) -> torch.dtype:
    """Return the type of a training's matrix products, from its flags."""
    return torch.bfloat16 if settings.get("bf16") else torch.float16 if settings.get("fp16") else torch.float32


@functools.cache
def matrix_gflops(dtype: torch.dtype) -> float:
    """Return the measured speed of a matrix product of a typical layer's size, in billion operations per second."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    a, b = torch.ones(1024, 768, device=device, dtype=dtype), torch.ones(768, 768, device=device, dtype=dtype)
    spent = []
    for _ in range(7):
        start = time.perf_counter()
        (a @ b)[0, 0].item()
        spent.append(time.perf_counter() - start)
    return 2e-9 * 1024 * 768 * 768 / min(spent)


def duration(seconds: float) -> str:
    """Return a time as people say it: 45 s, 20 min or 4.5 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def measured_rate(folder: Path, jobs: int, dtype: torch.dtype, gflop: float = 0.0) -> float | None:
    """Return the median seconds per billion operations of earlier trials, or `None` if there are none.

    Only trials count that ran on this machine, in this precision, without a break and with as many at a time. Much
    smaller ones than the training in question do not count: their time is mostly that of the start.

    Args:
        folder: Folder of the trials.
        jobs: Trainings at a time.
        dtype: Its [`precision`].
        gflop: Billion operations of the training in question.
    """
    rates = []
    for path in folder.glob(f"*/{RECORD}"):
        with suppress(InputError):  # perhaps of another comparison, which will say so
            record = read_record(path.parent)
            here = record["machine"] == machine(jobs) and not record["resumed"]
            here = here and precision(record["settings"]) == dtype
            if here and record["gflop"] and record["gflop"] >= gflop / 10:
                rates.append(record["seconds"] / record["gflop"])
    return statistics.median(rates) if rates else None


def expected_seconds(work: Sequence[tuple[torch.dtype, float]], folder: Path, jobs: int) -> float:
    """Return about how long trainings take.

    Args:
        work: Precision and billion operations of each training.
        folder: Folder of earlier trials, see [`measured_rate`]. Without one, the speed of a matrix product decides.
        jobs: Trainings at a time.
    """
    seconds = 0.0
    for dtype in {dtype for dtype, _ in work}:
        gflops = [gflop for other, gflop in work if other == dtype]
        if rate := measured_rate(folder, jobs, dtype, statistics.mean(gflops)):
            seconds += rate * sum(gflops) / jobs
        else:
            at_once = max(1, min(torch.cuda.device_count(), jobs))
            seconds += sum(gflops) / (0.4 * matrix_gflops(dtype) * at_once)
    return seconds


def training_gflop(settings: dict[str, Any], held_out: float, texts: Sequence[str], checkpoint: str) -> float:
    """Estimate how many billion operations a training's matrix products take: 6 for each weight and token.

    Args:
        settings: The training's flags.
        held_out: Share of the texts that it does not see.
        texts: The texts, from which the number of tokens is estimated.
        checkpoint: The checkpoint it starts from.
    """
    tokens = [min(2 + 1.35 * len(text.split()), settings["max_seq_length"]) for text in texts]
    rows = len(tokens) * (1 - held_out) * settings["num_train_epochs"]
    if settings["max_steps"] > 0:
        rows = settings["max_steps"] * settings["per_device_train_batch_size"]
    return 6e-9 * _weights_of(checkpoint) * rows * statistics.mean(tokens)


@functools.cache
def _weights_of(checkpoint: str) -> int:
    try:
        config, _ = PreTrainedConfig.get_config_dict(resolve_checkpoint(checkpoint))
    except OSError as error:
        raise InputError(f"{checkpoint}: no config.json there ({str(error).strip().splitlines()[0]})") from error
    width, inner = config["hidden_size"], config["intermediate_size"]
    return config["num_hidden_layers"] * (4 * width * width + 2 * width * inner)
