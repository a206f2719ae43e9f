"""Fit logistic regression, the baseline to beat: on TF-IDF, and on a checkpoint's frozen text vectors.

    python -m trainer_ext.baselines.probe --dataset_name wassa2022 --data_dir FOLDER --output results/probe.json \\
        --models sentence-transformers/all-MiniLM-L6-v2 outputs/mlm outputs/transfer

The encoder reads each training text once and is not trained. Its text vectors (masked mean of the token states, or
[CLS] with --pooling cls) are standardised and classified in the folds of run_compare.py. This takes a minute per
checkpoint, where fine-tuning takes an hour. It is a hint, not a measurement of what fine-tuning gives.

Prints and writes each checkpoint's macro F1 with 95% interval, and its difference to the first checkpoint.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm.auto import tqdm

from modeling_emodeberta import EmoDebertaModel, masked_mean

from ..data.corpus import Corpus
from ..data.folds import check_trainable, cross_validation_folds, limit_rows
from ..data.load import DataArguments, corpus_arguments, load_corpus
from ..errors import InputError, run_command
from ..evaluation.comparison import compare
from ..evaluation.metrics import EmotionMetric
from ..evaluation.pages import score_cells
from ..evaluation.predictions import evaluated, prefix_of
from ..files import shown, write_json
from ..precision import choose
from ..recipes import DEFAULT_ACCESS, HubAccess, RecipeParser
from ..runs.provenance import command_line
from ..training.saved_model import load_tokenizer
from ..training.warm_start import warm_start


# ---- TF-IDF ----------------------------------------------------------------------------------------------------------
def fit_tfidf(texts: Sequence[str], classes: np.ndarray, groups: Sequence[str] | None, seed: int) -> Pipeline:
    """Return a fitted classifier on word 1- and 2-grams, with sublinear counts and balanced classes.

    The regularisation is chosen by macro F1 in 4-fold cross-validation.

    Args:
        texts: Training texts.
        classes: Class ids `(rows,)`.
        groups: Writers, kept together in a fold. `None` if all rows are independent.

    Returns:
        A scikit-learn pipeline from texts to class ids.

    Raises:
        InputError: if a class has fewer rows than there are folds.
    """
    return fit_logistic(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2),
        [0.3, 1, 3, 10, 30],
        texts,
        classes,
        groups,
        seed,
    )


def fit_logistic(
    features: BaseEstimator,
    regularisations: Sequence[float],
    inputs: Sequence[Any],
    classes: np.ndarray,
    groups: Sequence[str] | None,
    seed: int,
) -> Pipeline:
    """Return a fitted logistic regression with balanced classes on the features of the inputs; see [`fit_tfidf`].

    Args:
        features: A scikit-learn transformer from the inputs to features.
        regularisations: Values of scikit-learn's `C` to choose from.
    """
    model = make_pipeline(features, LogisticRegression(class_weight="balanced", max_iter=2000))
    if (fewest := np.bincount(classes)[np.unique(classes)].min()) < 4:
        raise InputError(f"the regularisation is chosen in 4 folds; a class has {fewest} training rows only")
    folds = StratifiedGroupKFold(4, shuffle=True, random_state=seed)
    search = GridSearchCV(model, {"logisticregression__C": regularisations}, scoring="f1_macro", cv=folds)
    return search.fit(inputs, classes, groups=np.arange(len(inputs)) if groups is None else groups).best_estimator_


def held_out_probabilities(
    inputs: np.ndarray,
    classes: np.ndarray,
    groups: Sequence[str] | None,
    folds: np.ndarray,
    labels: int,
    seed: int,
    fit: Callable[..., Pipeline] = fit_tfidf,
) -> np.ndarray:
    """Return probabilities `(rows, labels)`, each row's from a model fitted on the other folds.

    Args:
        inputs: Texts, as an array of `object`, or other inputs that `fit` takes, one per row.
        classes, groups, seed: As in [`fit_tfidf`].
        folds: `(rows,)`, the fold of each row.
        labels: Number of labels. A label without training rows in the other folds gets probability 0.
        fit: [`fit_tfidf`], or a function with the same arguments.

    Raises:
        InputError: as [`fit_tfidf`].
    """
    groups = None if groups is None else np.asarray(groups)
    found = np.zeros((len(inputs), labels))
    for fold in tqdm(np.unique(folds), desc="logistic regression", unit="fold"):
        held_out = folds == fold
        of_train = None if groups is None else groups[~held_out]
        model = fit(inputs[~held_out], classes[~held_out], of_train, seed)
        found[np.ix_(held_out, model.classes_)] = model.predict_proba(inputs[held_out])
    return found


def tfidf_figures(corpus: Corpus, seed: int) -> dict[str, float]:
    """Train on the training rows, and return the figures (`eval_tfidf_macro_f1`, ...) of each labelled split."""
    train = corpus.splits["train"]
    groups = train["group"] if "group" in train.column_names else None
    model = fit_tfidf(train["text"], corpus.classes("train"), groups, seed)
    metric, figures = EmotionMetric(corpus.label_names), {}
    for split in filter(corpus.is_labelled, evaluated(corpus)):
        predicted = model.predict(corpus.splits[split]["text"])
        scores = metric.compute(predictions=predicted, references=corpus.classes(split))
        figures |= {f"{prefix_of(split)}_tfidf_{name}": value for name, value in scores.items()}
    return figures


# ---- Frozen text vectors ---------------------------------------------------------------------------------------------
TEXTS_AT_A_TIME = 64


@dataclass
class ProbeArguments:
    """Flags of the probe."""

    _argument_group_name = "Probe"

    models: list[str] = field(
        default_factory=list,
        metadata={"help": "Checkpoints to probe, folders or Hub ids; the others are compared with the first."},
    )
    output: str | None = field(default=None, metadata={"help": "JSON file to write the figures to."})
    pooling: Literal["mean", "cls"] = field(
        default="mean", metadata={"help": "Text vector: mean of the token states, or cls ([CLS])."}
    )
    cache_dir: str | None = field(
        default=None, metadata={"help": "Folder for downloads from the Hub. Default: the Hub client's cache."}
    )
    token: str | None = field(default=None, metadata={"help": "Hub token, if not the one of `hf auth login`."})


def main() -> None:
    probe_args, data_args = RecipeParser((ProbeArguments, DataArguments), description=__doc__).parse()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if not probe_args.models:
        raise InputError("give --models, one or more checkpoints")
    access = HubAccess(cache_dir=probe_args.cache_dir, token=probe_args.token)
    corpus = load_corpus(**corpus_arguments(data_args, access))
    corpus = limit_rows(corpus, data_args.max_train_samples, None, None)
    check_trainable(corpus)
    gold, rows = corpus.classes("train"), corpus.splits["train"]
    if gold.ndim == 2:
        raise InputError(f"{corpus.source}: gives several classes a row; the probe is of one")
    groups = rows["group"][:] if "group" in rows.column_names else None
    folds = cross_validation_folds(corpus, data_args.cv_folds or 5)
    systems = {}
    for name in probe_args.models:
        vectors = text_vectors(name, rows["text"][:], data_args.max_seq_length, probe_args.pooling, access)
        labels = len(corpus.label_names)
        systems[shown(name)] = held_out_probabilities(vectors, gold, groups, folds, labels, 1, fit_probe)[None]
    table = compare(systems, gold, groups, corpus.label_names)
    for row in table:
        print("  ".join(cell for cell in score_cells(row) if cell))
    if probe_args.output is not None:
        figures = {"command": command_line(), "source": corpus.source, "rows": len(rows), "folds": int(folds.max()) + 1}
        write_json(Path(probe_args.output), figures | {"pooling": probe_args.pooling, "models": table})


@torch.inference_mode()
def text_vectors(
    name: str,
    texts: list[str],
    max_seq_length: int,
    pooling: str = "mean",
    access: HubAccess = DEFAULT_ACCESS,
    layers: bool = False,
    fast: bool = False,
) -> np.ndarray:
    """Return the text vectors of a checkpoint, `(texts, hidden)`, in the order of the texts.

    With `layers`, they are the mean token states of the embeddings, of the middle layer, and of the last two, side by
    side: `(texts, layers * hidden)`. With `fast`, the encoder computes in float32 or bf16, whichever is faster here.
    """
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    dtype = choose(device).dtype if fast else torch.float32
    model = warm_start(name, EmoDebertaModel, access=access, pooling=pooling).eval().to(device)
    tokenizer = load_tokenizer(name, max_seq_length, model.config, access=access)
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    depth = model.config.num_hidden_layers
    chosen = sorted({0, depth // 2, depth - 1, depth}) if layers else [depth]
    found = np.empty((len(texts), len(chosen) * model.config.hidden_size), dtype=np.float32)
    for start in tqdm(range(0, len(order), TEXTS_AT_A_TIME), desc=shown(name), unit="batch", disable=None):
        part = order[start : start + TEXTS_AT_A_TIME]
        batch = tokenizer([texts[index] for index in part], truncation=True, padding=True, return_tensors="pt")
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            output = model(**batch.to(device), output_hidden_states=layers)
        vectors = output.pooler_output
        if layers:
            states = (output.hidden_states[layer] for layer in chosen)
            vectors = torch.cat([masked_mean(each.float(), batch["attention_mask"]) for each in states], dim=-1)
        found[part] = vectors.float().cpu().numpy()
    return found


def fit_probe(vectors: np.ndarray, classes: np.ndarray, groups: np.ndarray | None, seed: int) -> Pipeline:
    """Return [`fit_logistic`] on standardised vectors `(rows, hidden)`."""
    return fit_logistic(StandardScaler(), [0.001, 0.003, 0.01, 0.03, 0.1, 0.3], vectors, classes, groups, seed)


if __name__ == "__main__":
    run_command(main)
