"""The child network of an optimizer: the entries of each gradient that a step uses (paper, section 2.3.2)."""

import logging
import math
import os
import weakref
from collections.abc import Callable, Iterable

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from .checks import ChildTuningError, check_optimizer, check_settings, hooked_optimizer
from .masks import (
    MANY_ROWS,
    Draws,
    highest_share,
    keep,
    kept_levels,
    local_part,
    mask_seed,
    put_back,
    shard_number,
    stored_gradient,
)

logger = logging.getLogger(__name__)

MASKS = "child_network.safetensors"
# A batch with a larger gradient would swamp all others, and the sum of its squares would soon overflow.
LARGEST_GRADIENT = 2.0**50
_masked: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()  # those that have an active child network


class ChildNetwork:
    """The child network of an optimizer's parameters, applied by hooks around every step.

    The variant chooses the entries of the child network. With `F` (task-free), each entry is in it with probability p,
    drawn anew at every step. With `D` (task-driven), it is the share p of entries with the highest Fisher information,
    fixed once by `find`.

    The target chooses what happens to the other entries:

    - `gradient` (as published): their gradients are zeroed before the step. For F, the kept gradients are divided by p.
      The optimizer's moments see the masked gradients. Momentum, weight decay and optimizers that mix entries (GaLore,
      Muon, LBFGS) still change weights outside the child.
    - `update` (equation 2 of the LingJing paper): the step uses the whole gradient, then every weight outside the child
      gets its old value back.

    A step with a closure (LBFGS, Lightning) is masked after each call of the closure, with one mask for the whole step.
    For a sparse gradient, the stored rows are masked.

    F's masks depend only on seed, step, parameter and shard. So replicas draw the same masks, each shard of a `DTensor`
    (FSDP2) draws its own, and a resumed run draws those of an uninterrupted one.

    Args:
        optimizer: A `torch.optim.Optimizer`, or Accelerate's wrapper around one. After adding parameters to it, call
            `find` again for D.
        variant: `F`, `D`, or `none`, which does nothing.
        p: Share in (0, 1], for F in steps of 2**-16. With 1, nothing is masked.
        target: `gradient` or `update`.
        scope: For D: `encoder` (as published) masks only parameters with "layer" in their names, `all` masks all.
        seed: Seed of F's masks.
        step: Function that returns the number of the current step. By default `self.step` counts from 0. Set it to
            resume.

    Attributes:
        masks: For D, a bool tensor per parameter, or `None` for a parameter out of scope.
        measure: If true, the next steps set `kept`.
        kept: Number of kept entries and of all maskable entries in the last step.

    Raises:
        ChildTuningError: for an invalid setting, or an optimizer that changes weights outside of `step` (LOMO in the
            backward pass, schedule-free ones with target `update`), has no hooks (DeepSpeed) or has a child network.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        variant: str = "F",
        p: float = 0.3,
        target: str = "gradient",
        scope: str = "encoder",
        seed: int = 0,
        step: Callable[[], int] | None = None,
    ):
        check_settings(variant, p, target, scope)
        self.variant, self.p, self.target, self.scope = variant, p, target, scope
        self.optimizer = optimizer = hooked_optimizer(optimizer)
        self.seed, self.step, self._given_step = seed, 0, step
        self.masks: list[torch.Tensor | None] | None = None
        self._frozen: list[int] = []  # parameters that had no gradient when D's child was found
        self.measure, self.kept = False, (0, 0)
        self._before: list[tuple[int, torch.Tensor]] = []
        self.active = variant != "none" and (kept_levels(p) < 2**16 if variant == "F" else p < 1)
        self._hooks = []
        if self.active:
            check_optimizer(optimizer, target)
            if optimizer in _masked:
                raise ChildTuningError("this optimizer has a child network, and two would both mask; remove() that one")
            _masked.add(optimizer)
            self._hooks = [
                optimizer.register_step_pre_hook(self._before_step),
                optimizer.register_step_post_hook(self._after_step),
            ]

    def remove(self) -> None:
        """Remove the hooks, so that the optimizer's steps are no longer masked."""
        while self._hooks:
            self._hooks.pop().remove()
            _masked.discard(self.optimizer)

    def parameters(self) -> list[nn.Parameter]:
        """Return the optimizer's parameters, in the order of its groups."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    # ---- Around a step --------------------------------------------------------------------------------------------
    @torch.no_grad()
    def _before_step(self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        if self._given_step is not None:
            self.step = self._given_step()
        if self.variant == "D":
            self._check_masks()
        self.kept, self._before = (0, 0), []
        closure = args[1] if len(args) > 1 else kwargs.get("closure")  # args[0] is the optimizer
        if self.target == "update":
            for index, parameter in enumerate(self.parameters()):
                # With a closure, the gradients are computed later.
                if self._is_in_scope(index) and (parameter.grad is not None or (closure and parameter.requires_grad)):
                    self._before.append((index, local_part(parameter).clone(memory_format=torch.preserve_format)))
        elif closure is None:
            self._mask_gradients()
        else:

            def masked_closure() -> object:
                loss = closure()
                self._mask_gradients()
                return loss

            if len(args) > 1:
                return (args[0], masked_closure, *args[2:]), kwargs
            return args, kwargs | {"closure": masked_closure}
        return None

    def _is_in_scope(self, index: int) -> bool:
        return self.masks is None or self.masks[index] is not None

    def _check_masks(self) -> None:
        """Check that D has a mask for each of the optimizer's parameters, which may have changed."""
        if self.masks is None:
            raise RuntimeError("Child-Tuning D has no child network yet: call find() before the first step")
        parameters = self.parameters()
        fits = len(self.masks) == len(parameters) and all(
            mask is None or mask.shape == local_part(parameter).shape
            for mask, parameter in zip(self.masks, parameters, strict=True)
        )
        if not fits:
            raise ChildTuningError(
                f"Child-Tuning D: the child network is of {len(self.masks)} parameters, the optimizer now has "
                f"{len(parameters)}, or others; call find() again after add_param_group()"
            )
        if any(parameters[index].requires_grad for index in self._frozen):
            raise ChildTuningError(
                "Child-Tuning D: a parameter that was frozen when the child network was found is no longer; call "
                "find() again after requires_grad_()"
            )

    @torch.no_grad()
    def _mask_gradients(self) -> None:
        self.kept = (0, 0)
        for index, parameter in enumerate(self.parameters()):
            if parameter.grad is None or not self._is_in_scope(index):
                continue
            gradient, indices = stored_gradient(parameter)
            if self.masks is not None:
                mask = self.masks[index][indices] if indices else self.masks[index]
                keep(gradient, mask)
                self._count(mask)
            else:
                self._mask_drawn(gradient, self._draws(index, parameter))

    @torch.no_grad()
    def _after_step(self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        parameters = self.parameters() if self._before else []
        for index, before in self._before:
            weights = local_part(parameters[index])
            if self.masks is not None:
                put_back(weights, before, self.masks[index])
                self._count(self.masks[index])
            else:
                put_back(weights, before, self._counted(self._draws(index, parameters[index])))
        self._before = []
        self.step += 1

    def _mask_drawn(self, gradient: torch.Tensor, draws: "Draws") -> None:
        """Mask a gradient with drawn masks. Of a tall matrix (an embedding's), only rows with a gradient draw."""
        if gradient.dim() != 2 or len(gradient) < MANY_ROWS:
            keep(gradient, self._counted(draws), kept_levels(self.p) / 2**16)
            return
        rows = ((gradient.amax(1) != 0) | (gradient.amin(1) != 0)).nonzero().squeeze(1)
        masked = gradient.index_select(0, rows)
        keep(masked, self._counted(draws), kept_levels(self.p) / 2**16)
        gradient.index_copy_(0, rows, masked)

    def _draws(self, index: int, parameter: nn.Parameter) -> "Draws":
        return Draws(
            self.p, mask_seed(self.seed, self.step, index, shard_number(parameter)), local_part(parameter).device
        )

    def _counted(self, draws: "Draws") -> Callable[[int], torch.Tensor]:
        def next_counted(count: int) -> torch.Tensor:
            kept = draws.next(count)
            self._count(kept)
            return kept

        return next_counted

    def _count(self, kept: torch.Tensor) -> None:
        if self.measure:
            self.kept = (self.kept[0] + int(kept.count_nonzero()), self.kept[1] + kept.numel())

    # ---- The child of D -------------------------------------------------------------------------------------------
    def find(self, model: nn.Module, losses: Iterable[torch.Tensor]) -> None:
        """Choose D's child network in one pass over the data: the share p of entries with the highest Fisher
        information. Entries of frozen parameters do not count.

        The Fisher information of a weight is the mean over batches of its squared gradient (Xu et al. 2021, equation 6,
        with batches instead of texts as in their code). This needs as much extra memory as the weights in scope, plus
        one byte per weight for the masks. Batches whose gradients are not finite are skipped with a warning.

        Args:
            model: The model, which names the parameters in scope. Its gradients are cleared.
            losses: The loss of each batch, computed lazily. Under DDP or FSDP2, losses of the wrapped model, with the
                same number of batches on every process.

        Raises:
            ChildTuningError: if no parameter is in scope, there are no losses, or no gradient in scope is finite and
                nonzero.
        """
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        scoped = [
            (index, parameter)
            for index, parameter in enumerate(self.parameters())
            if self.scope == "all" or "layer" in names.get(id(parameter), "")
        ]
        if not scoped:
            raise ChildTuningError("child_tuning_scope encoder: no parameter has 'layer' in its name; use scope all")
        sharded = any(shard_number(parameter) is not None for _, parameter in scoped)
        information = {
            index: torch.zeros_like(local_part(parameter).detach(), dtype=torch.float32) for index, parameter in scoped
        }
        batches = left_out = exponent = 0
        largest = 0.0
        for loss in losses:
            loss.backward()
            gradients = {index: _dense(parameter.grad) for index, parameter in scoped if parameter.grad is not None}
            peak = _largest_entry(list(gradients.values()), sharded, loss.device)
            if peak <= LARGEST_GRADIENT:
                largest = max(largest, peak)
                before, exponent = exponent, _exponent(largest)
                if exponent < before:
                    for squares in information.values():
                        squares.mul_(4.0 ** (exponent - before))
                for index, gradient in gradients.items():
                    gradient = (gradient * 2.0**exponent if exponent else gradient).float()
                    information[index].addcmul_(gradient, gradient)
            else:
                left_out += 1
            model.zero_grad()
            batches += 1
        if not batches:
            raise ChildTuningError("Child-Tuning D: no batches to find the child network on")
        if left_out:
            said = f"the gradients of {left_out} of {batches} batches are not finite, or over {LARGEST_GRADIENT:.0e}"
            if left_out == batches:
                raise ChildTuningError(f"Child-Tuning D: {said}; no child network can be found on them")
            logger.warning(f"Child-Tuning D: {said}; these batches are left out of the Fisher information")
        if not largest:
            raise ChildTuningError("Child-Tuning D: every gradient in scope is zero; no child network can be found")
        trained = [information[index] for index, parameter in scoped if parameter.requires_grad]
        threshold = highest_share(trained, self.p, sharded)
        self.masks = [None] * len(self.parameters())
        self._frozen = [index for index, parameter in scoped if not parameter.requires_grad]
        for index in list(information):
            self.masks[index] = information.pop(index) >= threshold

    @property
    def _told(self) -> dict[str, str]:
        """What a file of masks says, and must be equal to read it."""
        return {"p": str(self.p), "scope": self.scope}

    def save(self, path: str | os.PathLike) -> None:
        """Write this process's masks of D to a safetensors file."""
        kept = {str(index): mask for index, mask in enumerate(self.masks or ()) if mask is not None}
        partial = f"{os.fspath(path)}.partial"
        save_file(kept, partial, metadata=self._told | {"frozen": " ".join(map(str, self._frozen))})
        os.replace(partial, path)

    def load(self, path: str | os.PathLike) -> None:
        """Read the masks of D from a file that `save` wrote.

        Raises:
            ChildTuningError: if the file is incomplete, or its parameters, p or scope differ.
        """
        parameters = self.parameters()
        masks: list[torch.Tensor | None] = [None] * len(parameters)
        try:
            opened = safe_open(path, framework="pt")
        except SafetensorError as error:
            raise ChildTuningError(f"{path}: not whole ({error}); Child-Tuning D does not resume without it") from error
        with opened as file:
            made = file.metadata() or {}
            if {name: made.get(name) for name in self._told} != self._told:
                raise ChildTuningError(f"{path}: the child network of {made}, not of {self._told}")
            for key in file.keys():  # noqa: SIM118
                mask = file.get_tensor(key)
                if int(key) >= len(parameters) or mask.shape != local_part(parameters[int(key)]).shape:
                    raise ChildTuningError(f"{path}: the child network of another model (parameter {key})")
                masks[int(key)] = mask.to(local_part(parameters[int(key)]).device)
        self.masks, self._frozen = masks, [int(index) for index in made.get("frozen", "").split()]


def _dense(gradient: torch.Tensor) -> torch.Tensor:
    """Return this process's part of a gradient as a dense tensor, in float32 or wider."""
    gradient = local_part(gradient)
    gradient = gradient.to_dense() if gradient.is_sparse else gradient
    return gradient.to(torch.promote_types(gradient.dtype, torch.float32))


def _largest_entry(gradients: list[torch.Tensor], sharded: bool, device: torch.device) -> float:
    """Return the largest absolute value of all entries on all processes; infinity if an entry is not a number."""
    peaks = [part for gradient in gradients if gradient.numel() for part in gradient.aminmax()]
    peaks = torch.stack([peak.to(device, torch.float32) for peak in peaks]) if peaks else torch.zeros(1, device=device)
    peak = peaks.abs().nan_to_num(nan=torch.inf, posinf=torch.inf).max()
    if sharded:
        torch.distributed.all_reduce(peak, torch.distributed.ReduceOp.MAX)
    return peak.item()


def _exponent(largest: float) -> int:
    """Return the power of two that scales tiny gradients, so that their squares do not underflow; else 0."""
    return 0 if largest == 0 or largest >= 2.0**-40 else min(126, -math.frexp(largest)[1])
