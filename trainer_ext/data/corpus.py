"""The corpus: rows by split, with the same columns everywhere."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
from datasets import Dataset

from ..files import digest

SPLITS = ("train", "validation", "test")
# Key in a parquet file's metadata for whom to credit.
ATTRIBUTION = b"attribution"


@dataclass(frozen=True)
class Corpus:
    """Labelled texts by split, immutable: each preparation step returns a new corpus.

    Attributes:
        splits: Rows by `train`, `validation`, `test`, and the name of each extra test set (`load_extra_test`).
            Columns: `id` and `text` (strings), `group` (string, if a group column was named), `column_<name>` (string,
            empty if the split lacks it) for each extra column. A labelled split has `labels`: an integer, or a list of
            one float per label.
        label_names: Names of the labels, in the order of the label ids.
        problem_type: `single_label_classification` (one class, or a distribution, per row) or
            `multi_label_classification`.
        source: Where the rows come from, for the model card.
        licence: Licence of a built-in corpus.
        attribution: Whom to credit, from the metadata of a parquet file.
    """

    splits: Mapping[str, Dataset]
    label_names: list[str]
    problem_type: str
    source: str
    licence: str | None = None
    attribution: str | None = None

    def __post_init__(self):
        object.__setattr__(self, "splits", MappingProxyType(dict(self.splits)))

    @property
    def multi_label(self) -> bool:
        """Return whether a row may have several classes."""
        return self.problem_type == "multi_label_classification"

    def with_splits(self, **splits: Dataset) -> "Corpus":
        """Return the corpus with these splits added; a split of the same name is replaced."""
        return replace(self, splits={**self.splits, **splits})

    def only_splits(self, names: Iterable[str]) -> "Corpus":
        """Return the corpus with only these splits."""
        return replace(self, splits={name: self.splits[name] for name in names})

    def is_labelled(self, split: str) -> bool:
        """Return whether the split exists and has labels."""
        return split in self.splits and "labels" in self.splits[split].column_names

    def classes(self, split: str) -> np.ndarray:
        """Return class ids `(rows,)`, or 0/1 `(rows, labels)` if a row may have several classes.

        For a distribution, the class is the most probable one.
        """
        labels = np.asarray(self.splits[split]["labels"][:])
        if labels.ndim == 1 or self.multi_label:
            return labels.astype(int)
        return labels.argmax(axis=1)

    def class_counts(self, split: str) -> dict[str, int]:
        """Return the number of rows per label name. A distribution counts for its most probable label."""
        classes = self.classes(split)
        counts = classes.sum(axis=0) if classes.ndim == 2 else np.bincount(classes, minlength=len(self.label_names))
        return dict(zip(self.label_names, counts.tolist(), strict=True))

    def digest(self, columns: Sequence[str]) -> str:
        """Return a hash of these columns of all splits that have them."""
        return digest(
            {
                split: {name: rows[name][:] for name in columns if name in rows.column_names}
                for split, rows in self.splits.items()
            }
        )
