"""Choose the weights to keep after training: the last ones, an average over epochs, or a mix with the old ones."""

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import PreTrainedModel, Trainer

from ..training.lora import merge_lora
from ..training.sharding import is_sharded, join_shards
from .checkpoints import average_weights, checkpoints, mix_weights
from .run import RunArguments

logger = logging.getLogger(__name__)


def encoder_weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return a copy of the encoder's weights by name, on CPU, to mix in after training."""
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
