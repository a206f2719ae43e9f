"""The classification head (section 2.2 of the paper): its flags, and the configuration they give it."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..data.corpus import Corpus
from ..recipes import flag
from .warm_start import CheckpointArguments


@dataclass
class ModelArguments(CheckpointArguments):
    """What to start from, and the head."""

    pooling: Literal["mean", "cls"] | None = flag(
        None, "Text vector: mean of the token states (the paper), or [CLS]; as in an EmoDeBERTa checkpoint, else mean."
    )
    classifier_hidden_size: int | None = flag(
        None,
        "Width of the head's hidden layer, 0 to leave it out; as in an EmoDeBERTa checkpoint, else 1024 (the paper's).",
    )
    classifier_dropout: float | None = flag(
        None, "Dropout in the head; as in an EmoDeBERTa checkpoint, else 0.1 (the paper's)."
    )
    class_weights: Literal["none", "balanced"] = flag(
        "none", "Weights of the classes in the loss; balanced: by the inverse of their training counts, mean 1 a row."
    )
    lora_rank: int | None = flag(
        None,
        "Train low-rank updates of this rank in the encoder's linear layers, and the head, in place of all weights "
        "(LoRA, by PEFT); they are merged at the end. Wants a rate some ten times as high.",
    )


def head_settings(model_args: ModelArguments, corpus: Corpus, label_smoothing: float) -> dict[str, Any]:
    """Return the fields of `EmoDebertaConfig` that the flags and the corpus decide.

    The head gets the label smoothing because `Trainer`'s own would leave out class weights and soft labels.
    """
    settings: dict[str, Any] = {
        "id2label": dict(enumerate(corpus.label_names)),
        "label2id": {name: index for index, name in enumerate(corpus.label_names)},
        "problem_type": corpus.problem_type,
        "label_smoothing": label_smoothing,
    }
    if model_args.pooling is not None:
        settings["pooling"] = model_args.pooling
    if model_args.classifier_hidden_size is not None:
        settings["classifier_hidden_size"] = model_args.classifier_hidden_size or None
    if model_args.classifier_dropout is not None:
        settings["classifier_dropout"] = model_args.classifier_dropout
    if model_args.relative_attention:
        settings["relative_attention"] = True
    if model_args.class_weights == "balanced":
        settings["class_weights"] = balanced_class_weights(corpus)
    return settings


def balanced_class_weights(corpus: Corpus) -> list[float]:
    """Return a weight for each class, by the inverse of its training rows, 1 in the mean over rows; 0 without rows."""
    counts = np.array(list(corpus.class_counts("train").values()))
    present = counts > 0
    return np.where(present, counts.sum() / (present.sum() * counts.clip(min=1)), 0.0).tolist()
