"""Choose the weights to keep after a training, fit temperature and thresholds, and store them with the model."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel, Trainer

from ..data.corpus import Corpus
from ..evaluation.validation_fit import ValidationFit, fit_on_validation
from ..files import write_json
from ..training.large_models import is_sharded, join_shards, merge_lora
from .checkpoints import average_weights, checkpoints, mix_weights
from .run import RunArguments

# ---- Weights: the last ones, an average over epochs, or a mix with the old ones -----------------------------------
logger = logging.getLogger(__name__)


def weights_to_mix_in(model: PreTrainedModel, run_args: RunArguments) -> dict[str, torch.Tensor]:
    """Return a copy of the encoder's weights by name, from before training; none without `--pretrained_share`."""
    if not run_args.pretrained_share:
        return {}
    return {name: weight.detach().cpu().clone() for name, weight in model.base_model.named_parameters()}


def keep_weights(
    trainer: Trainer,
    output_dir: Path,
    run_args: RunArguments,
    lora: bool,
    pretrained: Mapping[str, torch.Tensor],
) -> None:
    """Set the weights of the trainer's model as the flags ask, in place; afterwards the model is neither sharded nor
    LoRA.

    Args:
        lora: Whether the model was trained with LoRA.
        pretrained: The encoder's starting weights by name, to mix in; empty for none.
    """
    if is_sharded(trainer.args):
        join_shards(trainer)
    if run_args.select == "average":
        trainer.accelerator.wait_for_everyone()  # the last checkpoint may still be written
        paths = checkpoints(output_dir)[-run_args.average_epochs :]
        logger.info(f"weights: mean of {', '.join(path.name for path in paths)}")
        trainer.model.load_state_dict(average_weights(paths))
    if lora:
        merge_lora(trainer.model)
    if pretrained:
        logger.info(f"weights: {run_args.pretrained_share:.0%} of the encoder's are the checkpoint's")
        mix_weights(trainer.model.base_model, pretrained, run_args.pretrained_share)


# ---- Temperature and thresholds -----------------------------------------------------------------------------------
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
