"""The part of a model card about what was fitted on validation: temperature, thresholds, accuracy against coverage."""

from typing import Any

from ..evaluation.validation_fit import ValidationFit, in_words


def confidence(fit: ValidationFit, labels: list[str]) -> dict[str, Any]:
    """Return what the card's section prints: the temperature, and the rows of its tables, header first.

    Args:
        fit: What was fitted; the section is left out if that is nothing.
        labels: The label set, in the order of the thresholds.
    """
    thresholds = [[name, f"{value:.3f}"] for name, value in zip(labels, fit.thresholds or [], strict=False)]
    splits = list(dict.fromkeys(split for row in fit.coverage.get("accuracies", ()) for split in row["measured"]))
    rows = [
        [
            f"{row['accuracy']:.0%}",
            "cannot be reached" if row["abstain_below"] is None else f"{row['abstain_below']:.2f}",
            *(in_words(row["measured"][split]) if row["measured"] else "" for split in splits),
        ]
        for row in fit.coverage.get("accuracies", ())
    ]
    return {
        "temperature": fit.temperature,
        "abstain_below": fit.abstain_below,
        "thresholds": [["label", "threshold"], *thresholds] if thresholds else [],
        "coverage": [["wanted accuracy", "not sure below", *splits], *rows] if rows else [],
    }
