"""Evaluate a finished classifier on labelled rows and predict unlabelled rows, without training."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data.corpus import Corpus
from ..errors import InputError
from ..evaluation.decisions import decide
from ..evaluation.metrics import EmotionMetric
from ..evaluation.predictions import evaluated, interval, prefix_of
from ..evaluation.validation_fit import tuned_figures
from .scorer import load_pipeline, read_classifier_config, score
from .scores import Scores
from .text_stream import Row


def label_names_of(name: str, revision: str | None = None, token: str | None = None) -> list[str]:
    """Return the labels of a finished classifier, in the order of its logits.

    Args:
        name: Output folder of run_classify.py or run_fuse.py, or a Hub id.
        revision, token: As in the library's `from_pretrained`.

    Raises:
        InputError: if there is no classifier.
    """
    config, _ = read_classifier_config(name, revision, token)
    return [config.id2label[label] for label in range(config.num_labels)]


def evaluate(
    name: str,
    corpus: Corpus,
    device: torch.device,
    *,
    revision: str | None = None,
    token: str | None = None,
) -> tuple[dict[str, Any], dict[str, np.ndarray], list[float] | None]:
    """Return a finished classifier's figures and probabilities on every split but train, computed in float32.

    Args:
        name, revision, token: As in [`label_names_of`].
        corpus: A corpus with the classifier's labels.

    Returns:
        The figures of the labelled splits, as in all_results.json, with the number of rows and of cut texts of each
        split, the probabilities `(rows, labels)` by split, and the thresholds of the labels, if the classifier has any.

    Raises:
        InputError: if the classifier cannot be read, or only one of classifier and corpus has several labels per row.
    """
    config, _ = read_classifier_config(name, revision, token)
    several = config.problem_type == "multi_label_classification"
    labelled = [split for split in evaluated(corpus) if corpus.is_labelled(split)]
    if labelled and several != corpus.multi_label:
        gives, has = ("several classes", "one") if several else ("one class", "several")
        raise InputError(f"{name}: gives a row {gives}, and the rows of {corpus.source} have {has}")
    classify = load_pipeline(name, config, torch.float32, device, revision, token)
    metric = EmotionMetric(corpus.label_names, multi_label=several)
    thresholds = getattr(config, "label_thresholds", None)  # the library's own classifiers have none
    figures: dict[str, Any] = {}
    probabilities = {}
    for split in evaluated(corpus):
        rows = [Row(text, None, None) for text in corpus.splits[split]["text"]]
        scores: Scores = score(classify, rows, None)
        if wrong := next((number for number, row in enumerate(rows, 1) if row.error), None):
            raise InputError(f"{Path(name).name}, {split}, row {wrong}: {rows[wrong - 1].error}")
        probabilities[split] = scores.probabilities.astype(np.float64)
        figures |= {f"{split}_rows": len(rows), f"{split}_truncated_texts": int(scores.truncated.sum())}
        if split in labelled:
            predicted = decide(probabilities[split], several)
            of_split = metric.compute(predictions=predicted, references=corpus.classes(split))
            figures |= {f"{prefix_of(split)}_{figure}": value for figure, value in of_split.items()}
            figures |= interval(corpus, split, predicted)
            if thresholds is not None:
                figures |= tuned_figures(corpus, split, decide(probabilities[split], several, thresholds))
    return figures, probabilities, thresholds
