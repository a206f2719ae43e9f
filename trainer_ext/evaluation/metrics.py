"""The shared task's seven figures and per-class scores, computed by scikit-learn inside an `evaluate.Metric`."""

from collections.abc import Callable, Sequence

import datasets
import evaluate
import numpy as np
from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support
from transformers import EvalPrediction

from ..data.corpus import Corpus
from .decisions import as_classes, decide, to_probabilities

# Order of the paper's Table 1.
SEVEN_FIGURES = (
    "macro_f1",
    "micro_f1",
    "accuracy",
    "macro_precision",
    "macro_recall",
    "micro_precision",
    "micro_recall",
)


class EmotionMetric(evaluate.Metric):
    """A metric to use directly, without a download: `EmotionMetric(label_names).compute(predictions=…, references=…)`.

    `compute` returns fractions by name:

    - the seven figures of the paper's Table 1, as scikit-learn computes them over the labels in gold or predictions
    - `official_macro_precision`, as in the shared task's scorer: a class that is never predicted counts 1.0, not 0
    - `precision_<label>`, `recall_<label>` and `f1_<label>` for every label that occurs

    Args:
        label_names: In the order of the label ids.
        multi_label: If true, predictions and references are 0/1 `(rows, labels)`, and `accuracy` is the share of rows
            with every label right. If false, they are class ids `(rows,)`.
    """

    def __init__(self, label_names: Sequence[str], *, multi_label: bool = False, **kwargs):
        self.label_names = list(label_names)
        self.multi_label = multi_label
        super().__init__(keep_in_memory=True, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        value = datasets.Value("int32")
        feature = datasets.List(value) if self.multi_label else value
        return evaluate.MetricInfo(
            description=type(self).__doc__,
            citation="",
            inputs_description="predictions and references: class ids, or 0/1 per label",
            features=datasets.Features({"predictions": feature, "references": feature}),
        )

    def _compute(self, predictions: Sequence, references: Sequence) -> dict[str, float]:
        gold, predicted = np.asarray(references), np.asarray(predictions)
        if self.multi_label:
            labels = [i for i in range(len(self.label_names)) if gold[:, i].any() or predicted[:, i].any()]
        else:
            labels = sorted(set(gold.tolist()) | set(predicted.tolist()))
        scores = {}
        if labels:
            precision, recall, f1, _ = precision_recall_fscore_support(gold, predicted, labels=labels, zero_division=0)
            never_predicted = [not (predicted[:, i] if self.multi_label else predicted == i).any() for i in labels]
            macro = {"macro_f1": f1.mean(), "macro_precision": precision.mean(), "macro_recall": recall.mean()}
            official = {"official_macro_precision": np.where(never_predicted, 1.0, precision).mean()}
            micro_precision, micro_recall, micro_f1, _ = precision_recall_fscore_support(
                gold, predicted, labels=labels, average="micro", zero_division=0
            )
            micro = {"micro_f1": micro_f1, "micro_precision": micro_precision, "micro_recall": micro_recall}
            scores = macro | micro | {"accuracy": accuracy_score(gold, predicted)}
            scores = {name: scores[name] for name in SEVEN_FIGURES} | official
            for position, label in enumerate(labels):
                name = self.label_names[label]
                scores[f"precision_{name}"] = precision[position]
                scores[f"recall_{name}"] = recall[position]
                scores[f"f1_{name}"] = f1[position]
        return {name: float(value) for name, value in scores.items()}


def metrics_of_logits(corpus: Corpus) -> Callable[[EvalPrediction], dict[str, float]]:
    """Return the `compute_metrics` function for `Trainer`: it maps logits and labels to the figures of
    [`EmotionMetric`].
    """
    metric = EmotionMetric(corpus.label_names, multi_label=corpus.multi_label)

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        predicted = decide(to_probabilities(prediction.predictions, corpus.multi_label), corpus.multi_label)
        return metric.compute(predictions=predicted, references=as_classes(prediction.label_ids, corpus.multi_label))

    return compute


def confusion_counts(references: np.ndarray, predictions: np.ndarray, number_of_labels: int) -> list[list[int]]:
    """Return the confusion matrix as nested lists: one row per gold class, one column per predicted class."""
    return confusion_matrix(references, predictions, labels=range(number_of_labels)).tolist()
