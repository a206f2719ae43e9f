"""Write what every trained classifier leaves: predictions, intervals, plots and a table of results."""

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset
from transformers import Trainer

from ..data.corpus import Corpus
from ..errors import InputError
from ..escape import labels_of_columns, one_line, probability_column
from ..files import write_json
from .comparison import bootstrap_macro_f1
from .decisions import ROUNDING, calibration, decide, to_probabilities
from .metrics import SEVEN_FIGURES, confusion_counts
from .plots import plot_confusion_matrix, plot_coverage, plot_learning_curve, plot_reliability

PREDICTIONS = "predictions.tsv"
# The systems in all_results.json of run_classify.py: the prefix of their figures after that of the split.
SYSTEMS = {"EmoDeBERTa": "", "at tuned thresholds": "tuned_", "TF-IDF + logistic regression": "tfidf_"}
_SUM_TOLERANCE = 1e-3  # for the sum of a row's probabilities, which are written with nine digits


class Row(NamedTuple):
    """The first columns of a line of predictions.tsv, all text. A value that is not known is empty."""

    split: str
    id: str
    group: str
    gold: str
    predicted: str


@dataclass
class PredictionTable:
    """The content of a predictions.tsv.

    Attributes:
        label_names: Names of the labels, in the order of the columns.
        rows: One per line, in file order.
        probabilities: `(rows, labels)`, each from 0 to 1.
    """

    label_names: list[str]
    rows: list[Row]
    probabilities: np.ndarray


def prefix_of(split: str) -> str:
    """Return the prefix of a split's figures: `eval` for validation, as in the library, else the split's name."""
    return "eval" if split == "validation" else split


def evaluated(corpus: Corpus) -> list[str]:
    """Return the splits that a trained model predicts: validation, test, then the extra test sets."""
    return sorted((split for split in corpus.splits if split != "train"), key=_position)


def _position(split: str) -> int:
    return ("validation", "test", split).index(split)


def interval(corpus: Corpus, split: str, predicted: np.ndarray) -> dict[str, float]:
    """Return a split's 95% interval of macro F1 from a bootstrap over writers, as `eval_macro_f1_low` and
    `eval_macro_f1_high`.

    For other splits than validation, the split's name replaces `eval`.

    Args:
        predicted: Class ids `(rows,)`, or 0/1 `(rows, labels)`.
    """
    groups = corpus.splits[split]["group"] if "group" in corpus.splits[split].column_names else None
    low, high = bootstrap_macro_f1(corpus.classes(split), predicted, groups)
    return {f"{prefix_of(split)}_macro_f1_low": low, f"{prefix_of(split)}_macro_f1_high": high}


def predict_splits(
    trainer: Trainer,
    encoded: Mapping[str, Dataset],
    corpus: Corpus,
    probabilities_of: Callable[[Any], np.ndarray] | None = None,
) -> tuple[dict[str, float], dict[str, np.ndarray], dict[str, Any]]:
    """Return a trained model's figures, probabilities and raw predictions on every split but train.

    Args:
        encoded: The encoded rows of each split.
        probabilities_of: Function from a split's raw predictions to probabilities `(rows, labels)`. By default, the
            predictions are logits.

    Returns:
        The figures of the labelled splits, as in all_results.json, the probabilities by split, and the raw predictions
        by split.
    """
    figures: dict[str, float] = {}
    probabilities, predictions = {}, {}
    for split in evaluated(corpus):
        output = trainer.predict(encoded[split], metric_key_prefix=prefix_of(split))
        predictions[split] = output.predictions
        if probabilities_of is None:
            probabilities[split] = to_probabilities(output.predictions, corpus.multi_label)
        else:
            probabilities[split] = probabilities_of(output.predictions)
        if corpus.is_labelled(split):
            predicted = decide(probabilities[split], corpus.multi_label)
            figures |= output.metrics | interval(corpus, split, predicted)
    return figures, probabilities, predictions


def write_predictions(
    folder: Path,
    corpus: Corpus,
    probabilities: dict[str, np.ndarray],
    thresholds: Sequence[float] | None = None,
) -> None:
    """Write the predictions for a corpus with [`write_rows`].

    Args:
        probabilities: By split, `(rows, labels)`.
        thresholds: Of each label, if a row may have several labels; see [`decide`].
    """
    multi_label = corpus.multi_label

    def name(classes: np.ndarray) -> str:
        if multi_label:
            return ",".join(corpus.label_names[i] for i in np.flatnonzero(classes))
        return corpus.label_names[int(classes)]

    rows: list[tuple[str, ...]] = []
    for split, values in probabilities.items():
        columns = corpus.splits[split].column_names
        gold = map(name, corpus.classes(split)) if corpus.is_labelled(split) else [""] * len(values)
        predicted = map(name, decide(values, multi_label, thresholds))
        ids = corpus.splits[split]["id"]
        groups = corpus.splits[split]["group"] if "group" in columns else [""] * len(ids)
        rows += [(split, *row) for row in zip(ids, groups, gold, predicted, strict=True)]
    values = np.concatenate([np.empty((0, len(corpus.label_names))), *probabilities.values()])
    write_rows(folder, corpus.label_names, rows, values, not multi_label)


def write_rows(
    folder: Path,
    label_names: Sequence[str],
    rows: Sequence[tuple[str, ...]],
    probabilities: np.ndarray,
    one_label: bool,
) -> None:
    """Write predictions.tsv: the columns of [`Row`], then `probability_<label>` for each label.

    If `one_label` is true and there are test rows, also write predictions_EMO.tsv in the shared task's form: one
    predicted label per line.
    """
    with open(folder / PREDICTIONS, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow([*Row._fields, *map(probability_column, label_names)])
        for row, values in zip(rows, probabilities, strict=True):
            writer.writerow([*row, *(f"{value:.9g}" for value in values)])
    lines = [one_line(predicted) for split, *_, predicted in rows if split == "test"]
    if lines and one_label:
        (folder / "predictions_EMO.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_predictions(folder: Path, one_label: bool) -> PredictionTable:
    """Return the content of a folder's predictions.tsv, also of older files without groups or with bare label columns.

    Args:
        one_label: Also check that each row's probabilities sum to 1 and that its labels are known.

    Raises:
        InputError: if the file is not a table of predictions, or a number is not a probability.
    """
    path = folder / PREDICTIONS
    try:
        with open(path, newline="", encoding="utf-8") as file:
            header, *lines = csv.reader(file, delimiter="\t", strict=True)
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path}: not a table of predictions ({error})") from error
    ours = [name for name in Row._fields if name != "group" or header[2:3] == ["group"]]
    if header[: len(ours)] != ours or len(header) == len(ours):
        raise InputError(f"{path}: its columns are {', '.join(header)}; want {', '.join(ours)} and one for each label")
    names = labels_of_columns(header[len(ours) :])
    if len(set(names)) < len(names):
        raise InputError(f"{path}: two columns have one label's probabilities ({', '.join(names)})")
    rows, values = [], np.empty((len(lines), len(names)))
    for index, line in enumerate(lines):
        if len(line) != len(header):
            raise InputError(f"{path}, row {index + 1}: {len(line)} fields; want {len(header)}")
        row = Row(**({"group": ""} | dict(zip(ours, line, strict=False))))
        for label, number in enumerate(line[len(ours) :]):
            values[index, label] = _probability(number, f"{path}, row {index + 1}, {names[label]}")
        if one_label:
            if abs((total := values[index].sum()) - 1) > _SUM_TOLERANCE:
                raise InputError(f"{path}, row {index + 1}: its probabilities add up to {total:.6g}; want 1")
            if unknown := {row.gold or row.predicted, row.predicted} - set(names):
                raise InputError(f"{path}, row {index + 1}: {unknown.pop()!r}; want one of {', '.join(names)}")
        rows.append(row)
    return PredictionTable(names, rows, values)


def _probability(number: str, place: str) -> float:
    try:
        value = float(number)
    except ValueError:
        value = np.nan
    if not 0 <= value <= 1 + ROUNDING:
        raise InputError(f"{place}: {number!r}; want a probability, 0 to 1")
    return value


def write_plots(
    folder: Path,
    corpus: Corpus,
    probabilities: dict[str, np.ndarray],
    history: list[dict],
    reliability: dict[str, dict] | None = None,
    coverage: dict[str, Any] | None = None,
) -> None:
    """Write the learning curve, and plots of validation (or of test, if there is no validation split).

    The confusion matrix and the reliability plot are written only if each row has one label.

    Args:
        reliability: [`calibration`] of validation `before` and `after` a temperature that was fitted on it.
        coverage: Accuracy against coverage on validation, the content of coverage.json.
    """
    if history:
        write_json(folder / "learning_curve.json", history)
        plot_learning_curve(folder / "learning_curve.json", folder / "learning_curve.png")
    labelled = [split for split in probabilities if corpus.is_labelled(split)]
    if labelled and not corpus.multi_label:
        split = labelled[0]
        counts = confusion_counts(corpus.classes(split), probabilities[split].argmax(axis=1), len(corpus.label_names))
        content = {"split": split, "labels": corpus.label_names, "counts": counts}
        write_json(folder / "confusion_matrix.json", content)
        plot_confusion_matrix(folder / "confusion_matrix.json", folder / "confusion_matrix.png")
        found = reliability or {split: calibration(probabilities[split], corpus.classes(split))}
        content = {"split": split, "calibration": found}
        write_json(folder / "reliability.json", content)
        plot_reliability(folder / "reliability.json", folder / "reliability.png")
    if coverage:
        write_json(folder / "coverage.json", coverage)
        plot_coverage(folder / "coverage.json", folder / "coverage.png")


def print_results(results: dict[str, float], splits: Sequence[str], systems: dict[str, str] = SYSTEMS) -> None:
    """Print the seven figures on validation and test, a column per system, and one line for each test set.

    Args:
        results: Figures by name, as in all_results.json.
        splits: The predicted splits.
        systems: By a system's name, the prefix of its figures after the split's prefix.
    """
    for split in splits:
        prefix = prefix_of(split)
        if split not in ("validation", "test") or f"{prefix}_macro_f1" not in results:
            continue
        print(f"\n{split}, {results[f'{split}_rows']:,} rows")
        measured = {name: infix for name, infix in systems.items() if f"{prefix}_{infix}macro_f1" in results}
        print("  ".join([f"{'':15}", *measured]))
        for figure in SEVEN_FIGURES:
            cells = [f"{results[f'{prefix}_{infix}{figure}']:>{len(name)}.4f}" for name, infix in measured.items()]
            print("  ".join([f"{figure:15}", *cells]))
        low, high = results[f"{prefix}_macro_f1_low"], results[f"{prefix}_macro_f1_high"]
        print(f"95% interval of macro F1: {low:.3f} to {high:.3f}")
    if any(split not in ("validation", "test") for split in splits):
        rows = side_by_side(results, splits)
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        print()
        for first, *others in rows:
            cells = [f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True)]
            print(f"{first:{widths[0]}}  " + "  ".join(cells))


def side_by_side(results: dict[str, float], splits: Sequence[str]) -> list[list[str]]:
    """Return a table with one line per labelled test set, header first.

    The columns are the number of rows, accuracy, macro F1, its interval and, if it was computed, the macro F1 of
    TF-IDF. Validation is included only if the corpus has no test set of its own.
    """
    with_tfidf = any(name.endswith("_tfidf_macro_f1") for name in results)
    lines = [["test set", "rows", "right", "macro F1", "95% interval", *["macro F1 of TF-IDF"] * with_tfidf]]
    for split in splits:
        prefix = prefix_of(split)
        if f"{prefix}_macro_f1" not in results or (split == "validation" and "test_macro_f1" in results):
            continue
        low, high = results[f"{prefix}_macro_f1_low"], results[f"{prefix}_macro_f1_high"]
        cells = [split.replace("_", " "), f"{results[f'{split}_rows']:,}", f"{results[f'{prefix}_accuracy']:.1%}"]
        cells += [f"{results[f'{prefix}_macro_f1']:.3f}", f"{low:.3f} to {high:.3f}"]
        lines.append(cells + ([f"{results[f'{prefix}_tfidf_macro_f1']:.3f}"] if with_tfidf else []))
    return lines
