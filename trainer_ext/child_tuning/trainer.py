"""Child-Tuning under the library's `Trainer`: its arguments, and a `Trainer` that masks every step."""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import IntervalStrategy

from .masks import local_part, shard_number
from .network import MASKS, ChildNetwork, check_settings


# ---- Trainer ------------------------------------------------------------------------------------------------------
@dataclass
class ChildTuningArguments(TrainingArguments):
    """`transformers.TrainingArguments`, none of its defaults changed, and the settings of Child-Tuning."""

    child_tuning: Literal["none", "F", "D"] = field(
        default="none",
        metadata={
            "help": "Child-Tuning variant. none: plain training. F (task-free, the paper's): at every optimizer step a "
            "fresh child network, each entry in it with probability p. D (task-driven): a fixed one, the share p of "
            "the weights with the highest Fisher information, found in a pass over the training data beforehand."
        },
    )
    child_tuning_p: float = field(
        default=0.3,
        metadata={"help": "Share p in (0, 1] of the child network. With 1, training is the plain one."},
    )
    child_tuning_target: Literal["gradient", "update"] = field(
        default="gradient",
        metadata={
            "help": "What is masked. gradient (as published): gradients outside the child are zeroed, those of an F "
            "child divided by p; the moments see that, and momentum and decay still move weights outside. update (the "
            "paper's equation 2): only weights of the child move at all; costs a copy of the weights."
        },
    )
    child_tuning_scope: Literal["encoder", "all"] = field(
        default="encoder",
        metadata={
            "help": "Where D's child is: encoder, the parameters with 'layer' in their names (as published; the others "
            "train as ever), or all."
        },
    )
    child_tuning_seed: int | None = field(
        default=None, metadata={"help": "Seed of F's masks; the training seed when not given."}
    )

    def __post_init__(self):
        super().__post_init__()
        check_settings(self.child_tuning, self.child_tuning_p, self.child_tuning_target, self.child_tuning_scope)


class ChildTuningTrainer(Trainer):
    """A `Trainer` of a [`ChildNetwork`]: one device, DDP, FSDP2, bf16 and fp16, accumulation, clipping, any optimizer.

    The hooks run after accumulation, all-reduce, unscaling and clipping. A step that mixed precision skips moves no
    other mask. With `p = 1` the run is bit-identical to `Trainer`'s. D's masks are found before the first step, with
    the random state left as it was, and saved in each checkpoint as `child_network.safetensors`.

    At each logging step the log gains `child_tuning_kept_fraction` (of the entries that are masked) and, for target
    `gradient`, the gradient's 2-norm before and after the mask (`child_tuning_grad_norm`,
    `child_tuning_masked_grad_norm`).

    Raises:
        ValueError: if `args` is not a [`ChildTuningArguments`], or under DeepSpeed, whose inner optimizer no hook
            reaches.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if not isinstance(self.args, ChildTuningArguments):
            raise ValueError(
                f"ChildTuningTrainer needs args of type ChildTuningArguments, not {type(self.args).__name__}"
            )
        if self.args.child_tuning != "none" and self.is_deepspeed_enabled:
            raise ValueError("Child-Tuning does not work under DeepSpeed, whose optimizer cannot be hooked; use DDP")
        self._child: ChildNetwork | None = None
        self._child_tuning_log: dict[str, float] = {}

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """The library's optimizer, with a child network around its steps."""
        optimizer = super().create_optimizer(model)
        # On a second `train()` the library hands back the optimizer wrapped by Accelerate.
        inner = getattr(optimizer, "optimizer", optimizer)
        if self._child is None or inner is not self._child.optimizer:
            args = self.args
            inner.register_step_pre_hook(self._before_masking)  # before the child's own
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
        return optimizer

    def _prepare_for_training(self, max_steps, train_dataloader, resume_from_checkpoint):
        prepared = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        if self._child.active and self._child.variant == "D" and self._child.masks is None:
            with _random_states_kept():
                self._child.find(self.model, self._losses(prepared[0]))
        return prepared

    def _losses(self, model: nn.Module) -> Iterator[torch.Tensor]:
        """Of one pass over the training data, with dropout, as published."""
        model.train()
        scale = 2**10 if self.accelerator.mixed_precision == "fp16" else 1  # small gradients stay above fp16's zero
        loader = self.get_train_dataloader()
        quiet = self.args.disable_tqdm or not self.is_local_process_zero()
        for inputs in tqdm(loader, desc="Fisher information", disable=quiet):
            inputs = self._prepare_inputs(inputs)
            with self.compute_loss_context_manager():
                yield self.compute_loss(model, inputs).mean() * scale

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self._child.masks is not None and (self.args.should_save or self._masks_name() != MASKS):
            self._child.save(os.path.join(output_dir, self._masks_name()))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        # Its masks first: to make room for a sharded optimizer's state, torch takes an empty step.
        if checkpoint is not None and self._child.active and self._child.variant == "D":
            path = os.path.join(checkpoint, self._masks_name())
            if not os.path.exists(path):
                raise ValueError(f"{path}: missing; Child-Tuning D cannot go on from a checkpoint without its child")
            self._child.load(path)
        super()._load_optimizer_and_scheduler(checkpoint)

    def _masks_name(self) -> str:
        """One file for all processes; where they hold shards, one each."""
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
        """Of this process's gradients."""
        gradients = [local_part(p.grad) for p in self._child.parameters() if p.grad is not None]
        return torch.stack([norm.float().to("cpu") for norm in torch._foreach_norm(gradients)]).norm().item()

    def _logs_after_this_step(self) -> bool:
        """Whether the step under way will be logged; counting and norms cost a pass over the gradients."""
        if self.args.logging_strategy == IntervalStrategy.STEPS:
            step = self.state.global_step + 1
            return step % self.state.logging_steps == 0 or (step == 1 and self.args.logging_first_step)
        return self.args.logging_strategy == IntervalStrategy.EPOCH

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The library's log; training steps carry the figures of their mask."""
        if "loss" in logs and self._child is not None:
            kept, seen = self._child.kept
            logs.update(self._child_tuning_log | ({"child_tuning_kept_fraction": kept / seen} if seen else {}))
        super().log(logs, start_time)


@contextmanager
def _random_states_kept() -> Iterator[None]:
    """Leave Python's, numpy's and torch's global random states as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = [torch.accelerator.current_device_index()] if torch.accelerator.is_available() else []
    device_type = torch.accelerator.current_accelerator().type if devices else "cuda"
    with torch.random.fork_rng(devices, device_type=device_type):
        yield
    random.setstate(python)
    np.random.set_state(numpy)
