"""The corpus: rows by split under common columns."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
from datasets import Dataset

SPLITS = ("train", "validation", "test")
# The key in a parquet file's metadata under which it says whom to credit.
ATTRIBUTION = b"attribution"


@dataclass(frozen=True)
class Corpus:
    """Texts with labels, in up to three splits. A value: each step of preparation returns a new corpus.

    Attributes:
        splits: By `train`, `validation`, `test`, and by its name each extra test set ([`load_extra_test`]). Columns:
            `id` and `text` (strings), `group` (string, if a group column was named), `column_<name>` (string) for each
            extra column, empty where a split lacks it, and, where the split is labelled, `labels`: an integer, or a
            list of one float per label.
        label_names: In the order of the label ids.
        problem_type: `single_label_classification` (one class, or a distribution, per row) or
            `multi_label_classification`.
        source: What was read, for the model card.
        licence: Terms of a built-in corpus.
        attribution: Whom a parquet file credits, if it says so in its metadata.
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
        """Whether a row may have several classes."""
        return self.problem_type == "multi_label_classification"

    def with_splits(self, **splits: Dataset) -> "Corpus":
        """Return the corpus with these splits added, or in place of its own of these names."""
        return replace(self, splits={**self.splits, **splits})

    def only_splits(self, names: Iterable[str]) -> "Corpus":
        """Return the corpus with these of its splits."""
        return replace(self, splits={name: self.splits[name] for name in names})

    def is_labelled(self, split: str) -> bool:
        """Return whether there is such a split and its classes are known."""
        return split in self.splits and "labels" in self.splits[split].column_names

    def classes(self, split: str) -> np.ndarray:
        """Class ids `(rows,)`, the most probable one of a distribution; 0/1 `(rows, labels)` for several classes."""
        labels = np.asarray(self.splits[split]["labels"])
        if labels.ndim == 1 or self.multi_label:
            return labels.astype(int)
        return labels.argmax(axis=1)

    def class_counts(self, split: str) -> dict[str, int]:
        """How many rows of a split have each label; of a distribution the most probable one."""
        classes = self.classes(split)
        counts = classes.sum(axis=0) if classes.ndim == 2 else np.bincount(classes, minlength=len(self.label_names))
        return dict(zip(self.label_names, counts.tolist(), strict=True))
