"""The corpus: rows by split under common columns."""

from dataclasses import dataclass

import numpy as np
from datasets import Dataset

SPLITS = ("train", "validation", "test")
# The key in a parquet file's metadata under which it says whom to credit.
ATTRIBUTION = b"attribution"


@dataclass
class Corpus:
    """Texts with labels, in up to three splits.

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

    splits: dict[str, Dataset]
    label_names: list[str]
    problem_type: str
    source: str
    licence: str | None = None
    attribution: str | None = None

    def classes(self, split: str) -> np.ndarray:
        """Class ids `(rows,)`, the most probable one of a distribution; 0/1 `(rows, labels)` for several classes."""
        labels = np.asarray(self.splits[split]["labels"])
        if labels.ndim == 1 or self.problem_type == "multi_label_classification":
            return labels.astype(int)
        return labels.argmax(axis=1)
