"""One training of a comparison or fusion, and the sets of trainings that cover all folds."""

import itertools
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..evaluation.predictions import read_predictions
from ..files import RESULTS
from ..training.saved_model import reading
from .trial_record import PROBABILITIES, RECORD, check_trial, read_probabilities, write_probabilities

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
