"""One training of a comparison, and how trainings cover the folds."""

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..evaluation.predictions import read_predictions
from .trial_record import write_probabilities


@dataclass
class Trial:
    """One training.

    Attributes:
        overrides: Flags of the program by name, over those of the recipe; `program` among them if it is not
            `run_classify`.
        fold: `(folds, which)`, or several after the first, to hold out of the training rows; `None` trains on all.
        seed: Of the training.
        variant: What the flags are called in the comparison or fusion.
    """

    overrides: dict[str, Any]
    fold: tuple[int, ...] | None
    seed: int
    variant: str

    @property
    def name(self) -> str:
        """What to call it in messages."""
        which = "all rows"
        if self.fold is not None:
            which = f"fold{'s' * (len(self.fold) > 2)} {' and '.join(map(str, self.fold[1:]))}"
        return f"{self.variant}, seed {self.seed}, {which}"

    def flags(self, recipe: dict[str, Any]) -> dict[str, Any]:
        """All flags: the recipe's, the overrides, fold and seed."""
        split = {} if self.fold is None else {"cv_folds": self.fold[0], "cv_fold": list(self.fold[1:])}
        return {**recipe, **self.overrides, **split, "seed": self.seed}


def one_a_fold(overrides: dict[str, Any], folds: int, seed: int, variant: str) -> list[Trial]:
    """The trainings by which each row is scored by one that did not see it; with no folds, one on all rows."""
    return [Trial(overrides, (folds, fold) if folds else None, seed, variant) for fold in range(folds or 1)]


def one_each_two_folds(overrides: dict[str, Any], folds: int, seed: int, variant: str) -> dict[frozenset[int], Trial]:
    """The trainings by which each row is scored, for each other fold, by one that saw neither, by what is held out."""
    return {
        frozenset(pair): Trial(overrides, (folds, *pair), seed, variant)
        for pair in itertools.combinations(range(folds), 2)
    }


def last_loss(run: Path) -> float | None:
    """The training loss that was logged last, of the steps since the one before; `None` if none was logged."""
    history = json.loads((run / "learning_curve.json").read_text(encoding="utf-8"))
    return next((entry["loss"] for entry in reversed(history) if "loss" in entry), None)


def convert_predictions(run: Path, target: Path) -> None:
    """predictions.tsv of a run as tensors by split, their row ids and labels in the file's metadata."""
    table = read_predictions(run, one_label=False)
    splits = np.array([row.split for row in table.rows])
    ids: dict[str, list[str]] = {}
    for row in table.rows:
        ids.setdefault(row.split, []).append(row.id)
    tensors = {split: table.probabilities[splits == split].astype(np.float32) for split in ids}
    write_probabilities(target, ids, tensors, table.label_names)
