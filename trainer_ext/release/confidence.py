"""The sections of a model card about how sure the model is: calibration, when it does not answer, thresholds."""

import json
from pathlib import Path

from ..evaluation.validation_fit import ValidationFit, in_words
from .model_card import Section


def confidence_sections(folder: Path, fit: ValidationFit, labels: list[str]) -> list[Section]:
    """Return the sections for what was measured and fitted; none for what was not.

    Args:
        folder: The run's folder, with reliability.json if calibration was measured.
        fit: What was fitted on the validation rows.
        labels: The label set, in the order of the thresholds.
    """
    sections = [_calibration(folder, fit), _coverage(fit), _thresholds(fit, labels)]
    return [section for section in sections if section is not None]


def _calibration(folder: Path, fit: ValidationFit) -> Section | None:
    tempered = "" if fit.temperature is None else (
        f"The logits are divided by a temperature of {fit.temperature:.2f}, fitted on validation. "
    )  # fmt: skip
    if not (folder / "reliability.json").exists():
        return Section("Calibration", tempered.strip()) if tempered else None
    measured = json.loads((folder / "reliability.json").read_text(encoding="utf-8"))
    rows = [
        [
            name if name == measured["split"] else f"{measured['split']}, {name} the temperature",
            f"{figures['expected_calibration_error']:.3f}",
            f"{figures['brier_score']:.3f}",
        ]
        for name, figures in measured["calibration"].items()
    ]
    explained = "The table shows how far the scores are from the share of right answers. 0 is best for both figures."
    header = ("split", "expected calibration error", "Brier score (0 to 2)")
    return Section("Calibration", tempered + explained, header, rows, "reliability.png")


def _coverage(fit: ValidationFit) -> Section | None:
    accuracies = fit.coverage.get("accuracies", ())
    if not accuracies:
        return None
    splits = list(dict.fromkeys(split for row in accuracies for split in row["measured"]))
    rows = [
        [
            f"{row['accuracy']:.0%}",
            "cannot be reached" if row["abstain_below"] is None else f"{row['abstain_below']:.3f}",
            *(in_words(row["measured"][split]) if row["measured"] else "" for split in splits),
        ]
        for row in accuracies
    ]
    own = "" if fit.abstain_below is None else f" It is {fit.abstain_below:.3f} unless you set another."
    explained = (
        "The model can leave texts unanswered. The pipeline's abstain_below is the probability below which it is "
        f"not sure.{own} What the table says of validation comes from rows that the probability was not chosen on."
    )
    return Section("Not sure", explained, ["wanted accuracy", "not sure below", *splits], rows, "coverage.png")


def _thresholds(fit: ValidationFit, labels: list[str]) -> Section | None:
    if not fit.thresholds:
        return None
    rows = [[name, f"{value:.3f}"] for name, value in zip(labels, fit.thresholds, strict=True)]
    explained = (
        "A text has every label that reaches its threshold, chosen on validation for the highest F1. Rare labels share "
        "one."
    )
    return Section("Thresholds", explained, ["label", "threshold"], rows)
