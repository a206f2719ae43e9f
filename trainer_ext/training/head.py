"""The flags of the classification head (section 2.2 of the paper), and the configuration made from them."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..data.corpus import Corpus
from ..recipes import flag
from .warm_start import CheckpointArguments


@dataclass
class ModelArguments(CheckpointArguments):
    """Flags for the checkpoint to start from and the classification head."""

    pooling: Literal["mean", "cls"] | None = flag(
        None,
        "Text vector: mean of the token states (the paper), or [CLS]. Default: the EmoDeBERTa checkpoint's, else mean.",
    )
    classifier_hidden_size: int | None = flag(
        None,
        "Width of the head's hidden layer; 0 for none. Default: the EmoDeBERTa checkpoint's, else 1024 (the paper's).",
    )
    classifier_dropout: float | None = flag(
        None, "Dropout in the head. Default: the EmoDeBERTa checkpoint's, else 0.1 (the paper's)."
    )
    class_weights: Literal["none", "balanced"] = flag(
        "none", "Class weights in the loss. balanced: by inverse class frequency, 1 on average over the training rows."
    )
    lora_rank: int | None = flag(
        None,
        "Train LoRA updates of this rank in the encoder's linear layers, and the head, instead of all weights; the "
        "updates are merged at the end. Requires PEFT. Use about ten times the usual learning rate.",
    )


def head_settings(model_args: ModelArguments, corpus: Corpus, label_smoothing: float) -> dict[str, Any]:
    """Return the fields of `EmoDebertaConfig` that the flags and the corpus set, as keyword arguments.

    Label smoothing is done in the head, because `Trainer`'s own ignores class weights and soft labels.
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
    """Return one weight per class, inverse to its number of training rows.

    The mean weight over the training rows is 1. A class without training rows gets 0.
    """
    counts = np.array(list(corpus.class_counts("train").values()))
    present = counts > 0
    return np.where(present, counts.sum() / (present.sum() * counts.clip(min=1)), 0.0).tolist()
