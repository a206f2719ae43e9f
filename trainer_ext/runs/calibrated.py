"""Fit temperature and thresholds after a training, and store them with the model."""

import json
from pathlib import Path

import numpy as np
from transformers import PreTrainedModel

from ..data.corpus import Corpus
from ..evaluation.validation_fit import ValidationFit, fit_on_validation
from ..files import write_json
from .run import RunArguments


def calibrate(
    model: PreTrainedModel, corpus: Corpus, probabilities: dict[str, np.ndarray], run_args: RunArguments
) -> tuple[ValidationFit, dict[str, np.ndarray]]:
    """Do what [`fit_on_validation`] does if `--calibrate` says so, and set it in the model's configuration."""
    if not run_args.calibrate:
        return ValidationFit(), probabilities
    fit, probabilities = fit_on_validation(corpus, probabilities, run_args.target_accuracy)
    for name, value in fit.settings().items():
        setattr(model.config, name, value)
    return fit, probabilities


def add_to_config(saved: Path, folder: Path, fit: ValidationFit) -> None:
    """Write the config.json of a saved model again, into another folder, with what was fitted since it was saved."""
    if fit.settings():
        config = json.loads((saved / "config.json").read_text(encoding="utf-8"))
        write_json(folder / "config.json", config | fit.settings())
