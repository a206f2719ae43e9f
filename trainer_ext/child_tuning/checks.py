"""Check the settings of Child-Tuning, and that the optimizer's steps can be masked by hooks."""

import torch

VARIANTS, TARGETS, SCOPES = ("none", "F", "D"), ("gradient", "update"), ("encoder", "all")


class ChildTuningError(ValueError):
    """An error for a setting, optimizer or dataset that Child-Tuning cannot use. The message is one line."""


def hooked_optimizer(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Return the optimizer whose steps call hooks: `optimizer` itself, or the one inside Accelerate's wrapper.

    Raises:
        ChildTuningError: if there is none, or it is DeepSpeed's.
    """
    inner = optimizer
    while not hasattr(inner, "_optimizer_step_pre_hooks") and hasattr(inner, "optimizer"):
        inner = inner.optimizer
        if type(inner).__module__.startswith("deepspeed"):
            break
    if type(inner).__module__.startswith("deepspeed") or not hasattr(inner, "_optimizer_step_pre_hooks"):
        raise ChildTuningError(
            f"Child-Tuning does not work with {type(inner).__module__}.{type(inner).__name__}, whose steps call no "
            "hooks; want a torch.optim.Optimizer"
        )
    return inner


def check_optimizer(optimizer: torch.optim.Optimizer, target: str) -> None:
    """Check that the optimizer changes weights only in `step()`, where hooks can mask the change.

    Raises:
        ChildTuningError: if it also changes weights elsewhere.
    """
    name = type(optimizer).__name__
    if hasattr(optimizer, "fused_backward"):  # LOMO, AdaLOMO
        raise ChildTuningError(
            f"Child-Tuning does not work with {name}, which moves weights in the backward pass; want an optimizer that "
            "moves them in step()"
        )
    if target == "update" and hasattr(optimizer, "train") and hasattr(optimizer, "eval"):
        raise ChildTuningError(
            f"child_tuning_target update does not hold with {name}, whose train() and eval() move all weights; use "
            "target gradient"
        )


def check_settings(variant: str, p: float, target: str, scope: str) -> None:
    """Check the settings of Child-Tuning.

    Raises:
        ChildTuningError: if one has an unknown value, or `p` is out of range.
    """
    for name, value, known in (
        ("child_tuning", variant, VARIANTS),
        ("child_tuning_target", target, TARGETS),
        ("child_tuning_scope", scope, SCOPES),
    ):
        if value not in known:
            raise ChildTuningError(f"{name} is {value!r}; it must be one of {', '.join(known)}")
    if not 0 < p <= 1:
        raise ChildTuningError(f"child_tuning_p is {p}; it must lie in (0, 1]")
