"""Child-Tuning with the library's `Trainer`: its arguments, and a `Trainer` that masks every step."""

import os
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, has_length

from .checks import ChildTuningError, check_settings, hooked_optimizer
from .masks import shard_number, stored_gradient
from .network import MASKS, ChildNetwork


# ---- Trainer ------------------------------------------------------------------------------------------------------
@dataclass
class ChildTuningArguments(TrainingArguments):
    """`transformers.TrainingArguments` with unchanged defaults, plus the settings of Child-Tuning.

    Attributes:
        child_tuning: The variant: `none`, `F` (a new random child at every step) or `D` (one fixed child).
        child_tuning_p: Share of the weights in the child network, in (0, 1]. With 1, training is plain.
        child_tuning_target: What is masked: `gradient` (as published), or `update` (the paper's equation 2).
        child_tuning_scope: Which parameters D masks: `encoder` (as published) or `all`.
        child_tuning_seed: Seed of F's masks. `None` takes the training seed.

    Raises:
        ChildTuningError: if a setting is not valid.
    """

    child_tuning: Literal["none", "F", "D"] = field(
        default="none",
        metadata={
            "help": "Child-Tuning variant. none: plain training. F (task-free, the paper's): each optimizer step "
            "updates a new random subset of the weights, each with probability p. D (task-driven): a fixed subset, the "
            "share p of weights with the highest Fisher information, found in a pass over the training data first."
        },
    )
    child_tuning_p: float = field(
        default=0.3,
        metadata={"help": "Share p of the weights in the child network, in (0, 1]. With 1, training is plain."},
    )
    child_tuning_target: Literal["gradient", "update"] = field(
        default="gradient",
        metadata={
            "help": "What to mask. gradient (as published): gradients outside the child network are zeroed, and F's "
            "others are divided by p; momentum and decay still move weights outside. update (the paper's equation 2): "
            "only weights in the child network move; costs a copy of the weights."
        },
    )
    child_tuning_scope: Literal["encoder", "all"] = field(
        default="encoder",
        metadata={
            "help": "Which parameters D masks: encoder, those with 'layer' in their names (as published; the others "
            "train as usual), or all."
        },
    )
    child_tuning_seed: int | None = field(
        default=None, metadata={"help": "Seed of F's masks. Default: the training seed."}
    )

    def __post_init__(self):
        super().__post_init__()
        check_settings(self.child_tuning, self.child_tuning_p, self.child_tuning_target, self.child_tuning_scope)


class ChildTuningTrainer(Trainer):
    """A `Trainer` with a `ChildNetwork`, for one device, DDP, FSDP2, bf16, fp16, accumulation, clipping and any
    optimizer.

    The hooks run after accumulation, all-reduce, unscaling and clipping. If mixed precision skips a step, the masks of
    later steps do not change. With `p = 1`, the run is bit-identical to `Trainer`'s.

    D's masks are found before the first step, in one pass over the training data, without changing the random state.
    For a stream, the pass takes as many batches as the training. Each checkpoint contains the masks, as
    `child_network.safetensors`.

    Each logging step also logs `child_tuning_kept_fraction`, the share of maskable entries that were kept. For target
    `gradient`, it also logs the 2-norm of the gradient before and after masking (`child_tuning_grad_norm`,
    `child_tuning_masked_grad_norm`).

    Raises:
        ChildTuningError: if `args` is not a `ChildTuningArguments`, or under DeepSpeed, whose optimizer has no hooks.
            When training begins: if the optimizer changes weights outside its steps (LOMO, layer-wise GaLore and
            APOLLO), or for D if the training data can be read only once.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if not isinstance(self.args, ChildTuningArguments):
            raise ChildTuningError(
                f"ChildTuningTrainer needs args of type ChildTuningArguments, not {type(self.args).__name__}"
            )
        if self.args.child_tuning != "none" and self.is_deepspeed_enabled:
            raise ChildTuningError("Child-Tuning does not work under DeepSpeed, whose optimizer has no hooks; use DDP")
        self._child: ChildNetwork | None = None
        self._child_tuning_log: dict[str, float] = {}

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """Return the library's optimizer, with a child network around its steps."""
        optimizer = super().create_optimizer(model)
        if self.args.child_tuning == "none":
            return optimizer
        inner = hooked_optimizer(optimizer)  # a second `train()` gets Accelerate's wrapper from the library
        if self._child is None or inner is not self._child.optimizer:
            args = self.args
            inner.register_step_pre_hook(self._before_masking)  # runs before the child network's own hook
            self._child = ChildNetwork(
                inner,
                args.child_tuning,
                args.child_tuning_p,
                args.child_tuning_target,
                args.child_tuning_scope,
                args.seed if args.child_tuning_seed is None else args.child_tuning_seed,
                step=lambda: self.state.global_step,
            )
            inner.register_step_pre_hook(self._after_masking)
            weights = {id(weight) for weight in (model or self.model).parameters() if weight.requires_grad}
            if self._child.active and weights.isdisjoint(map(id, self._child.parameters())):
                raise ChildTuningError(
                    f"Child-Tuning does not work with {type(inner).__name__}, which holds no weight of the model: "
                    "layer-wise optimizers move them in the backward pass"
                )
        return optimizer

    def _prepare_for_training(self, max_steps, train_dataloader, resume_from_checkpoint):
        prepared = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        if self._finds_child() and self._child.masks is None:
            batches = None
            if not has_length(self.train_dataset):
                self._check_read_twice()
                batches = max_steps * self.args.gradient_accumulation_steps
            with _random_states_kept():
                self._child.find(self.model, self._losses(prepared[0], batches))
        return prepared

    def _finds_child(self) -> bool:
        return self._child is not None and self._child.active and self._child.variant == "D"

    def _check_read_twice(self) -> None:
        """Check that a stream restarts at each iteration, since D's pass would otherwise use up the training data."""
        firsts = []
        for _ in range(2):
            with _random_states_kept():
                firsts.append(next(iter(self.train_dataset), None))
        if not _same(*firsts):
            raise ChildTuningError(
                "Child-Tuning D reads the training data twice, but this dataset does not start over with the same "
                "rows; want one that restarts at each iteration, or --child_tuning F"
            )

    def _losses(self, model: nn.Module, batches: int | None) -> Iterator[torch.Tensor]:
        """Yield each batch's loss over the training data, or its first `batches`, with dropout (as published)."""
        model.train()
        scale = (
            2**10 if self.accelerator.mixed_precision == "fp16" else 1
        )  # so that small gradients do not underflow in fp16
        loader = self.get_train_dataloader()
        quiet = self.args.disable_tqdm or not self.is_local_process_zero()
        total = batches if batches is not None or not has_length(loader) else len(loader)
        for inputs in tqdm(islice(loader, batches), desc="Fisher information", disable=quiet, total=total):
            inputs = self._prepare_inputs(inputs)
            with self.compute_loss_context_manager():
                yield self.compute_loss(model, inputs).mean() * scale
        if batches is not None and hasattr(loader, "end"):
            loader.end()  # else Accelerate believes that it is still being read

    def _save_checkpoint(self, model: nn.Module, trial) -> None:
        # Save the masks first: the library writes the trainer state last, which marks a checkpoint as complete.
        has_masks = self._child is not None and self._child.masks is not None
        if has_masks and (self.args.should_save or self._masks_name() != MASKS):
            folder = os.path.join(self._get_output_dir(trial), f"checkpoint-{self.state.global_step}")
            os.makedirs(folder, exist_ok=True)
            self._child.save(os.path.join(folder, self._masks_name()))
        super()._save_checkpoint(model, trial)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        # Load the masks first: torch takes an empty step to allocate a sharded optimizer's state.
        if checkpoint is not None and self._finds_child():
            path = os.path.join(checkpoint, self._masks_name())
            if not os.path.exists(path):
                raise ChildTuningError(f"{path}: missing; Child-Tuning D does not resume without its child network")
            self._child.load(path)
        super()._load_optimizer_and_scheduler(checkpoint)

    def _masks_name(self) -> str:
        """Return the file name for the masks: one for all processes, or one per process if parameters are sharded."""
        sharded = any(shard_number(parameter) is not None for parameter in self._child.parameters())
        return f"rank{self.args.process_index}-{MASKS}" if sharded else MASKS

    @torch.no_grad()
    def _before_masking(self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        self._child.measure = self._child.active and self._logs_after_this_step()
        self._child_tuning_log = {}
        if self._child.measure and self._child.target == "gradient":
            self._child_tuning_log["child_tuning_grad_norm"] = self._gradient_norm()

    @torch.no_grad()
    def _after_masking(self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        if self._child.measure and self._child.target == "gradient":
            self._child_tuning_log["child_tuning_masked_grad_norm"] = self._gradient_norm()

    def _gradient_norm(self) -> float:
        """Return the 2-norm of this process's gradients."""
        gradients = [stored_gradient(p)[0] for p in self._child.parameters() if p.grad is not None]
        if not gradients:
            return 0.0
        return torch.stack([norm.float().to("cpu") for norm in torch._foreach_norm(gradients)]).norm().item()

    def _logs_after_this_step(self) -> bool:
        """Return whether the current step will be logged. Only then are entries counted and norms computed."""
        if self.args.logging_strategy == IntervalStrategy.STEPS:
            step = self.state.global_step + 1
            return step % self.state.logging_steps == 0 or (step == 1 and self.args.logging_first_step)
        return self.args.logging_strategy == IntervalStrategy.EPOCH

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as the library does, and add the figures of the last step's mask to training logs."""
        if "loss" in logs and self._child is not None:
            kept, seen = self._child.kept
            logs.update(self._child_tuning_log | ({"child_tuning_kept_fraction": kept / seen} if seen else {}))
        super().log(logs, start_time)


@contextmanager
def _random_states_kept() -> Iterator[None]:
    """Restore Python's, numpy's and torch's global random states at the end of a `with` block."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = [torch.accelerator.current_device_index()] if torch.accelerator.is_available() else []
    device_type = torch.accelerator.current_accelerator().type if devices else "cuda"
    with torch.random.fork_rng(devices, device_type=device_type):
        yield
    random.setstate(python)
    np.random.set_state(numpy)


def _same(one: object, other: object) -> bool:
    """Return whether two rows are equal."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, torch.Tensor | np.ndarray) and isinstance(other, torch.Tensor | np.ndarray):
        return np.array_equal(np.asarray(one), np.asarray(other))
    return one == other
