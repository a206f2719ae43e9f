"""Child-Tuning (Xu et al. 2021, "Raise a Child in Large Language Model", https://aclanthology.org/2021.emnlp-main.749)
as a `transformers.Trainer`; section 2.3.2 of the LingJing paper. Works on any `transformers` model and imports
nothing else of this project.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import IntervalStrategy


@dataclass
class ChildTuningArguments(TrainingArguments):
    """`transformers.TrainingArguments`, none of its defaults changed, and the settings of Child-Tuning."""

    child_tuning: Literal["none", "F"] = field(
        default="none",
        metadata={
            "help": "Child-Tuning variant. `none`: plain training. `F` (task-free, the paper's): at every optimizer "
            "step each gradient entry is kept with probability p, divided by p, and zeroed otherwise. The optimizer's "
            "moments see the masked gradient, and momentum still moves weights whose gradient was zeroed."
        },
    )
    child_tuning_p: float = field(
        default=0.3,
        metadata={"help": "Probability p in (0, 1] that a gradient entry is kept. With 1, training is the plain one."},
    )
    child_tuning_seed: int | None = field(
        default=None, metadata={"help": "Seed of the masks; the training seed when not given."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.child_tuning not in ("none", "F"):
            raise ValueError(f"child_tuning is {self.child_tuning!r}; it must be one of none, F")
        if not 0 < self.child_tuning_p <= 1:
            raise ValueError(f"child_tuning_p is {self.child_tuning_p}; it must lie in (0, 1]")


class ChildTuningTrainer(Trainer):
    """A `Trainer` that masks gradients right before each optimizer step, as Child-Tuning F does.

    For every parameter with a gradient `g`, `g <- g * m / p` with `m ~ Bernoulli(p)` elementwise (LingJing paper,
    equation 2; the published algorithm's rescaling by 1/p). The hook runs after accumulation, all-reduce, unscaling
    and clipping, for every `torch` optimizer. A mask is drawn from a generator keyed by (seed, optimizer step,
    parameter), never from the global one: replicas agree, a resumed run draws what the uninterrupted one would, and
    a step that mixed precision skips moves no other mask. With `p = 1` the run is bit-identical to `Trainer`'s.

    At each logging step the log gains `child_tuning_kept_fraction` (of the gradient entries) and the gradient's
    2-norm before and after the mask (`child_tuning_grad_norm`, `child_tuning_masked_grad_norm`).

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
        self._hooked_optimizer: torch.optim.Optimizer | None = None
        self._child_tuning_log: dict[str, float] = {}

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """The library's optimizer, with the mask as its step pre-hook."""
        optimizer = super().create_optimizer(model)
        # On a second `train()` the library hands back the optimizer wrapped by Accelerate.
        inner = getattr(optimizer, "optimizer", optimizer)
        masks = self.args.child_tuning == "F" and _levels(self.args.child_tuning_p) < 2**16
        if masks and inner is not self._hooked_optimizer:
            inner.register_step_pre_hook(self._mask_gradients)
            self._hooked_optimizer = inner
        return optimizer

    @torch.no_grad()
    def _mask_gradients(self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        p, step = self.args.child_tuning_p, self.state.global_step
        seed = self.args.seed if self.args.child_tuning_seed is None else self.args.child_tuning_seed
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        gradients = [
            (index, parameter.grad) for index, parameter in enumerate(parameters) if parameter.grad is not None
        ]
        measured = self._logs_after_this_step()
        norm_before = _norm(gradients) if measured else None
        kept = 0
        for index, gradient in gradients:
            dropped = draw_dropped(gradient, p, mask_seed(seed, step, index))
            gradient.masked_fill_(dropped, 0).div_(_levels(p) / 2**16)
            if measured:
                kept += gradient.numel() - int(dropped.count_nonzero())
        if measured:
            self._child_tuning_log = {
                "child_tuning_kept_fraction": kept / sum(gradient.numel() for _, gradient in gradients),
                "child_tuning_grad_norm": norm_before,
                "child_tuning_masked_grad_norm": _norm(gradients),
            }

    def _logs_after_this_step(self) -> bool:
        """Whether the step under way will be logged; counting and norms cost a pass over the gradients."""
        if self.args.logging_strategy == IntervalStrategy.STEPS:
            step = self.state.global_step + 1
            return step % self.state.logging_steps == 0 or (step == 1 and self.args.logging_first_step)
        return self.args.logging_strategy == IntervalStrategy.EPOCH

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The library's log; training steps carry the figures of their mask."""
        if "loss" in logs:
            logs.update(self._child_tuning_log)
        super().log(logs, start_time)


def draw_dropped(gradient: torch.Tensor, p: float, seed: int) -> torch.Tensor:
    """Where the child network ends: a boolean tensor of the gradient's shape, true with probability 1 - p.

    Four 16-bit numbers come from each 64-bit draw, so p is rounded to the next of 1/65,536 to 65,535/65,536; drawing
    one float an entry takes several times as long.
    """
    generator = torch.Generator(device=gradient.device).manual_seed(seed)
    draws = torch.empty((gradient.numel() + 3) // 4, dtype=torch.int64, device=gradient.device)
    draws.random_(torch.iinfo(torch.int64).min, None, generator=generator)
    return (draws.view(torch.int16)[: gradient.numel()] >= _levels(p) - 2**15).view(gradient.shape)


def _levels(p: float) -> int:
    """How many of the 65,536 values of a 16-bit number are kept."""
    return max(1, round(p * 2**16))


def mask_seed(seed: int, step: int, parameter: int) -> int:
    """63-bit seed of one parameter's mask at one optimizer step: three rounds of the splitmix64 finalizer
    (https://prng.di.unimi.it/splitmix64.c), so that neighbouring steps and parameters share no stream."""
    key = 0
    for part in (seed, step, parameter):
        key = (key + part + 0x9E3779B97F4A7C15) % 2**64
        key = (key ^ key >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        key = (key ^ key >> 27) * 0x94D049BB133111EB % 2**64
        key ^= key >> 31
    return key >> 1


def _norm(gradients: list[tuple[int, torch.Tensor]]) -> float:
    norms = torch._foreach_norm([gradient for _, gradient in gradients])
    return torch.stack([norm.float().to("cpu") for norm in norms]).norm().item()
