"""A `Trainer` whose resumed run gives the same weights, logs and final metrics as an uninterrupted one."""

import json
import os
import time
from typing import Any

import torch
from torch import nn
from transformers import Trainer
from transformers.trainer_utils import SaveStrategy, TrainOutput


class ResumableTrainer(Trainer):
    """A `Trainer` that closes four gaps in how the library resumes.

    - Each checkpoint saves the loss sums and the time so far. In the library, the next log, the mean loss and the
      runtime cover only the steps after resuming.
    - The checkpoint at an epoch's last step is saved before that epoch's evaluation, so the evaluation runs on
      resuming.
    - A run resumed from its last step ends at once. The library takes one more step, unless the epoch ended.
    - The trainer state marks a checkpoint as complete. It is written after every process has saved its random state.
    """

    _latest: tuple[float | None, float | None] = (None, None)  # gradient norm and learning rate of the latest step
    _begun = 0.0  # time.time() at the start, minus the seconds that earlier starts took
    _is_at_end = _is_at_epoch_end = False

    def _init_training_state(
        self, max_steps: int, steps_an_epoch: int, epochs: int, resume_from_checkpoint: str | None, trial: Any
    ) -> tuple[int, int]:
        begun, steps = super()._init_training_state(max_steps, steps_an_epoch, epochs, resume_from_checkpoint, trial)
        step = self.state.global_step  # 0 where nothing is resumed
        self._is_at_end = step >= max_steps
        self._is_at_epoch_end = self._is_at_end or (step > 0 and step % steps_an_epoch == 0)
        return (epochs - 1, 0) if self._is_at_end else (begun, steps)

    def _run_epoch(self, **kwargs: Any) -> None:
        checkpoint = kwargs["resume_from_checkpoint"]
        if kwargs["epoch"] == kwargs["epochs_trained"]:
            self._begun = kwargs["start_time"]
        if checkpoint is None or kwargs["epoch"] != kwargs["epochs_trained"]:
            super()._run_epoch(**kwargs)
            return
        self._load_progress(checkpoint)
        if self._is_at_epoch_end and self.args.save_strategy == SaveStrategy.STEPS:
            self._end_epoch(**kwargs)
            kwargs["resume_from_checkpoint"] = None  # else the random state from before the evaluation would be loaded
        if self._is_at_end:
            self.control.should_training_stop = True
        if not self.control.should_training_stop:  # a callback may set it too: the training had stopped early
            super()._run_epoch(**kwargs)

    def _finalize_training(self, trial: Any, num_train_samples: int, start_time: float) -> TrainOutput:
        return super()._finalize_training(trial, num_train_samples, self._begun or start_time)

    def _end_epoch(self, model: nn.Module, epoch: int, trial: Any, start_time: float, **kwargs: Any) -> None:
        """Log and evaluate at the end of an epoch, as the library does after the epoch's last step."""
        self._load_rng_state(kwargs["resume_from_checkpoint"])
        self.control.should_log = self.control.should_evaluate = self.control.should_save = False
        self.control = self.callback_handler.on_epoch_end(self.args, self.state, self.control)
        norm, rate = self._latest
        self._maybe_log_save_evaluate(
            self._tr_loss, norm, model, trial, epoch, kwargs["ignore_keys_for_eval"], start_time, learning_rate=rate
        )

    def _maybe_log_save_evaluate(
        self, tr_loss: torch.Tensor, grad_norm: Any, *args: Any, learning_rate: float | None = None
    ) -> None:
        self._latest = (grad_norm, learning_rate)
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, *args, learning_rate=learning_rate)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        path = self._progress_path(os.path.join(self._get_output_dir(trial), f"checkpoint-{self.state.global_step}"))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        progress = {
            "loss_since_log": self._tr_loss.item(),
            "logged_step": self._globalstep_last_logged,
            "logged_loss": self._total_loss_scalar,
            "seconds": time.time() - self._begun,
            "latest": [None if value is None else float(value) for value in self._latest],
        }
        with open(path, "w", encoding="utf-8") as file:
            json.dump(progress, file)
        super()._save_checkpoint(model, trial)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()

    def _load_progress(self, checkpoint: str) -> None:
        path = self._progress_path(checkpoint)
        if not os.path.exists(path):  # the checkpoint is from an earlier version or another number of processes
            return
        with open(path, encoding="utf-8") as file:
            progress = json.load(file)
        self._tr_loss += progress["loss_since_log"]
        self._total_loss_scalar, self._globalstep_last_logged = progress["logged_loss"], progress["logged_step"]
        self._initial_global_step = 0
        self._begun -= progress["seconds"]
        self._latest = tuple(progress["latest"])

    def _progress_path(self, checkpoint: str) -> str:
        return os.path.join(checkpoint, f"progress_{self.args.process_index}.json")
