"""A training that diverges ends there, and leaves no model."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import Trainer, TrainerCallback

from ..child_tuning import local_part
from ..errors import ProcessError


class StopIfDiverged(TrainerCallback):
    """Ends a training whose loss or weights are not finite, before they are saved or published."""

    def __init__(self):
        self._watched: Any = None
        self._when = "before the first step"

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        state.compute_steps(args, state.max_steps)  # of this start's flags; a checkpoint brings those of the earlier
        if self._watched is None:
            self._watched = model.register_forward_hook(self._check_output)

    def on_step_begin(self, args, state, control, **kwargs):
        self._when = f"step {state.global_step + 1}, --learning_rate {args.learning_rate:g}"

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if control.should_save:
            self._check_weights(model)

    def on_epoch_end(self, args, state, control, model=None, **kwargs):
        if control.should_save:
            self._check_weights(model)

    def on_train_end(self, args, state, control, model=None, **kwargs):
        self._check_weights(model)

    def _check_output(self, module: torch.nn.Module, inputs: tuple, output: Any) -> None:
        """Check the loss or, where there is none, the logits: what comes first in an output."""
        first = next(iter(output.values() if isinstance(output, Mapping) else output), None)
        if isinstance(first, torch.Tensor) and not torch.isfinite(first).all():
            self._stop("its loss is" if first.dim() == 0 else "logits are")

    def _check_weights(self, model: torch.nn.Module) -> None:
        if not all(bool(torch.isfinite(local_part(weight.detach())).all()) for weight in model.parameters()):
            self._stop("weights are")

    def _stop(self, what: str) -> None:
        raise ProcessError(
            f"the training diverged: {what} not finite ({self._when}); nothing is published; want a lower rate (with "
            "--overwrite_output_dir, where there are checkpoints), or finite weights to start from"
        )


@torch.no_grad()
def check_last_step(trainer: Trainer) -> None:
    """Read one batch with the trained weights: the last step's loss was that of the weights before it.

    Raises:
        ProcessError: by [`StopIfDiverged`], if the loss or the logits are not finite.
    """
    batch = next(iter(trainer.callback_handler.train_dataloader), None)
    if batch is not None:
        trainer.model.eval()
        trainer.compute_loss(trainer.model, trainer._prepare_inputs(batch))
