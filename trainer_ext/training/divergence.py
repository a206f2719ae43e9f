"""Stop a training that diverges before it saves or publishes a model."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import TrainerCallback

from ..child_tuning import local_part
from ..errors import ProcessError


class StopIfDiverged(TrainerCallback):
    """A callback that stops the training when the loss, the logits or the weights are not finite.

    Weights are checked before each save and at the end of training. Then the last batch is read once more, because its
    loss was that of the weights before the last step.

    Raises:
        ProcessError: if one of them is not finite.
    """

    def __init__(self):
        self._watched: Any = None
        self._when = "before the first step"
        self._last_batch: tuple[tuple, dict] | None = None

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        state.compute_steps(args, state.max_steps)  # from this run's flags, not from those saved in a checkpoint
        if self._watched is None:
            self._watched = model.register_forward_hook(self._check_output, with_kwargs=True)

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
        if self._last_batch is not None:
            (positional, named), self._last_batch = self._last_batch, None
            model.eval()
            with torch.no_grad():
                model(*positional, **named)

    def _check_output(self, module: torch.nn.Module, positional: tuple, named: dict, output: Any) -> None:
        """Check the first entry of a model's output: the loss, or the logits where there is no loss."""
        if module.training:
            self._last_batch = positional, named
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
