"""What this project adds to `Trainer`: exact resuming, a budget of tokens per batch, learning rates by depth.

Learning rates by depth are discriminative fine-tuning (Howard and Ruder 2018, https://aclanthology.org/P18-1031,
section 3.2): each layer's rate is that of the layer above it, times a constant.
"""

import json
import os
import re
import time
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_pt_utils import BatchRebalanceSampler
from transformers.trainer_utils import SaveStrategy, TrainOutput

from ..errors import InputError


# ---- Resuming --------------------------------------------------------------------------------------------------------
class ResumableTrainer(Trainer):
    """A `Trainer` that closes four gaps in how the library resumes, and one in what it evaluates.

    - Each checkpoint saves the loss sums and the time so far. In the library, the next log, the mean loss and the
      runtime cover only the steps after resuming.
    - The checkpoint at an epoch's last step is saved before that epoch's evaluation, so the evaluation runs on
      resuming.
    - A run resumed from its last step ends at once. The library takes one more step, unless the epoch ended.
    - The trainer state marks a checkpoint as complete. It is written after every process has saved its random state.
    - `dataloader_drop_last` leaves out training rows only. In the library, evaluations lose their last batch, too.
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

    def _get_dataloader(self, *args: Any, is_training: bool = False, **kwargs: Any) -> DataLoader:
        drop_last = self.args.dataloader_drop_last
        self.args.dataloader_drop_last = drop_last and is_training
        try:
            return super()._get_dataloader(*args, is_training=is_training, **kwargs)
        finally:
            self.args.dataloader_drop_last = drop_last


# ---- Batches of texts of similar length ------------------------------------------------------------------------------
# Size of a sorting window, in budgets. A smaller one leaves more padding, a larger one repeats the same batches.
WINDOW = 16


class TokenBudgetSampler(BatchRebalanceSampler):
    """A sampler of batches that hold at most `tokens` tokens each, padding included.

    Texts are shuffled, and sorted by length within windows. Every text comes once per epoch. The order depends only on
    the seed and the epoch, so all processes agree on it and a resumed run sees the same batches. `Trainer` needs the
    same number of batches in all epochs. So all epochs have as many as the one that needs most; the
    others split their largest batches.

    It has this base class because `Trainer` accepts no other kind of batch sampler.

    Args:
        lengths: Number of tokens of each text.
        tokens: Budget of a batch. A text longer than this is a batch of its own.
        epochs: Number of epochs of the run; later epochs repeat the order from the first on.
        seed: Seed of the run.
        rank: Number of this process.
        processes: Number of processes.
        multiple: The number of batches is a multiple of this: gradient accumulation steps times processes.

    Raises:
        InputError: if there are fewer texts than `multiple`.
    """

    def __init__(
        self,
        lengths: list[int],
        tokens: int,
        epochs: int,
        seed: int,
        rank: int = 0,
        processes: int = 1,
        multiple: int = 1,
    ):
        if len(lengths) < multiple:
            raise InputError(f"{len(lengths)} training texts do not make {multiple} batches, one for each process")
        self.lengths = torch.tensor(lengths)
        self.tokens, self.epochs, self.seed = tokens, epochs, seed
        self.rank, self.processes = rank, processes
        self.epoch = 0
        most = max(len(self._cut(self._order(epoch))) for epoch in range(epochs))
        self.count = min(-(-most // multiple) * multiple, len(lengths) // multiple * multiple)

    def __len__(self) -> int:
        """Return the number of batches of this process per epoch."""
        return self.count // self.processes

    def __iter__(self):
        """Yield the batches of this process, each a list of text positions."""
        epoch = self.epoch % self.epochs
        batches = self._cut(self._order(epoch))
        self._make_count(batches)
        order = torch.randperm(len(batches), generator=self._generator(epoch, 1)).tolist()
        for position in order[self.rank :: self.processes]:
            yield batches[position]

    def _generator(self, epoch: int, stream: int) -> torch.Generator:
        return torch.Generator().manual_seed(((self.seed * 1_000_003 + epoch) * 2 + stream) % 2**63)

    def _order(self, epoch: int) -> list[int]:
        """Return a random order of the texts, longest first within windows of about `WINDOW` budgets."""
        order = torch.randperm(len(self.lengths), generator=self._generator(epoch, 0))
        window = self.lengths[order].cumsum(0) // (WINDOW * self.tokens)
        falling = self.lengths[order].argsort(descending=True, stable=True)
        return order[falling[window[falling].argsort(stable=True)]].tolist()

    def _cut(self, order: list[int]) -> list[list[int]]:
        batches, longest = [], 0
        for position in order:
            length = int(self.lengths[position])
            if not batches or max(longest, length) * (len(batches[-1]) + 1) > self.tokens:
                batches.append([])
                longest = 0
            batches[-1].append(position)
            longest = max(longest, length)
        return batches

    def _make_count(self, batches: list[list[int]]) -> None:
        """Split the largest batch, or join the two smallest, until there are `count` batches."""
        while len(batches) < self.count:
            largest = max(range(len(batches)), key=lambda position: len(batches[position]))
            batch = batches[largest]
            batches[largest : largest + 1] = [batch[: len(batch) // 2], batch[len(batch) // 2 :]]
        while len(batches) > self.count:
            batches.sort(key=len, reverse=True)
            batches.append(batches.pop() + batches.pop())


class TokenBudgetMixin:
    """A mixin for `Trainer` that uses a [`TokenBudgetSampler`] for training if `tokens_per_batch` is given."""

    def __init__(self, *args, tokens_per_batch: int | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.tokens_per_batch = tokens_per_batch

    def _get_train_sampler(self, train_dataset=None):
        if self.tokens_per_batch is None:
            return super()._get_train_sampler(train_dataset)
        rows = self.train_dataset if train_dataset is None else train_dataset
        args = self.args
        return TokenBudgetSampler(
            [len(ids) for ids in rows["input_ids"]],
            self.tokens_per_batch,
            epochs=max(1, int(-(-args.num_train_epochs // 1))),
            seed=args.seed if args.data_seed is None else args.data_seed,
            rank=args.process_index,
            processes=args.world_size,
            multiple=args.world_size * args.gradient_accumulation_steps,
        )


# ---- Learning rates by depth -----------------------------------------------------------------------------------------
_LAYER = re.compile(r"(?:^|\.)encoder\.layer\.(\d+)\.")


def depth_of(name: str, base_model_prefix: str, layers: int) -> int | None:
    """Return how deep in the encoder a parameter is.

    Args:
        name: Name of the parameter in the whole model.
        base_model_prefix: Prefix of the encoder's parameters, for example `deberta`.
        layers: Number of encoder layers.

    Returns:
        0 for the embeddings and for parameters that all layers share, 1 for the lowest layer, `layers` for the highest,
        and `None` for the head.
    """
    if not name.startswith(f"{base_model_prefix}."):
        return None
    found = _LAYER.search(name)
    return min(int(found.group(1)) + 1, layers) if found else 0


class LearningRatesMixin:
    """A mixin for `Trainer` that gives each depth of the model its own learning rate.

    Args:
        head_learning_rate: Rate of the parameters outside the encoder; `None` for `args.learning_rate`.
        layerwise_decay: Factor from a layer's rate to the rate of the layer below it. The highest layer has
            `args.learning_rate`. With 1, all layers have the same rate.
    """

    def __init__(self, *args, head_learning_rate: float | None = None, layerwise_decay: float = 1.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.head_learning_rate, self.layerwise_decay = head_learning_rate, layerwise_decay

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """Return the library's optimizer with its parameter groups split by learning rate."""
        existed = self.optimizer is not None
        optimizer = super().create_optimizer(model)
        if existed or (self.head_learning_rate is None and self.layerwise_decay == 1):
            return optimizer
        rates = {id(weight): self._rate(name) for name, weight in self.model.named_parameters()}
        groups = []
        for group in optimizer.param_groups:
            by_rate: dict[float, list[torch.nn.Parameter]] = {}
            for weight in group["params"]:
                by_rate.setdefault(rates[id(weight)], []).append(weight)
            groups += [group | {"params": weights, "lr": rate} for rate, weights in by_rate.items()]
        optimizer.param_groups[:] = groups
        return optimizer

    def _rate(self, name: str) -> float:
        layers = self.model.config.num_hidden_layers
        depth = depth_of(name, self.model.base_model_prefix, layers)
        if depth is None:
            return self.args.learning_rate if self.head_learning_rate is None else self.head_learning_rate
        return self.args.learning_rate * self.layerwise_decay ** (layers - depth)
