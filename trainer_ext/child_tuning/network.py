"""The child network of an optimizer: which entries of each gradient a step uses (paper, section 2.3.2)."""

import logging
import math
import os
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
# A batch with a larger gradient says nothing of the others, and the sum of its squares would soon overflow.
LARGEST_GRADIENT = 2.0**50


class ChildNetwork:
    """The child network of an optimizer's parameters, by hooks around every step.

    The variant says what belongs to the child. `F` (task-free): at every step each entry anew, with probability p.
    `D` (task-driven): the share p of the entries with the highest Fisher information, found once by [`find`].

    The target says what happens to the rest. `gradient`, as published: its gradient is zeroed before the step (that of
    an F child divided by p), so the moments see the masked gradient, and momentum, decay and what mixes entries
    (GaLore, Muon, LBFGS) still move weights outside the child. `update`, equation 2 of the LingJing paper: the step is
    taken with the whole gradient, then every weight outside the child is put back; only the child moves.

    A step with a closure (LBFGS, Lightning) is masked after each call of the closure, with one mask for the whole step.
    Of a sparse gradient the stored rows are masked.

    F's masks are keyed by seed, step, parameter and shard, never by the global random state: replicas draw the same
    ones, each shard of a `DTensor` (FSDP2) its own, and a resumed run those of the uninterrupted one.

    Args:
        optimizer: Any `torch.optim.Optimizer`, or Accelerate's wrapper around one. Its parameters are numbered in the
            order of its groups. Parameters may be added later; D's child is then to be found again.
        variant: `F`, `D`, or `none`, which does nothing.
        p: In (0, 1]; of F it counts in steps of 2**-16. With 1, nothing is done.
        target: `gradient` or `update`.
        scope: Of D: `encoder`, the parameters with "layer" in their names, as published, while the others train as
            ever; or `all`.
        seed: Of F's masks.
        step: Gives the number of the step under way. If not given, `self.step` counts from 0; set it to resume.

    Attributes:
        masks: Of D, a bool tensor for each parameter, or `None` for one that is not in scope.
        measure: Whether to count, at the next steps, what is kept, into `kept`: entries kept, and all.

    Raises:
        ChildTuningError: for a setting that is none of these, or an optimizer that it does not work with: one that
            moves weights outside of `step` (LOMO in the backward pass, schedule-free ones with target `update`), or
            whose `step` cannot be hooked (DeepSpeed's).
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
            self._hooks = [
                optimizer.register_step_pre_hook(self._before_step),
                optimizer.register_step_post_hook(self._after_step),
            ]

    def remove(self) -> None:
        """Take the hooks off: the optimizer's steps are plain again."""
        for hook in self._hooks:
            hook.remove()

    def parameters(self) -> list[nn.Parameter]:
        """The optimizer's, in the order of their numbers."""
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
                # A closure brings the gradients later.
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
        """Choose D's child: one pass over the data, squared gradients summed in place, the highest share p kept.

        The Fisher information of a weight is the mean over batches of its squared gradient (Xu et al. 2021, equation
        6, with batches in place of texts, as they published it). Besides weights and gradients it needs as much again
        as the weights in scope, and for masks a byte each.

        Args:
            model: Names the parameters in scope; its gradients are cleared.
            losses: The loss of each batch, each computed when it is asked for. Under DDP or FSDP2, of the wrapped
                model, with equally many batches on every process.

        Raises:
            ChildTuningError: if no parameter is in scope, there are no losses, or no gradient in scope is finite and
                other than zero. Single batches whose gradients are not finite are left out, with a warning.
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
        threshold = highest_share(list(information.values()), self.p, sharded)
        self.masks = [None] * len(self.parameters())
        self._frozen = [index for index, parameter in scoped if not parameter.requires_grad]
        for index in list(information):
            self.masks[index] = information.pop(index) >= threshold

    def save(self, path: str | os.PathLike) -> None:
        """Write D's masks of this process as safetensors."""
        kept = {str(index): mask for index, mask in enumerate(self.masks or ()) if mask is not None}
        partial = f"{os.fspath(path)}.partial"
        save_file(kept, partial, metadata={"p": str(self.p), "scope": self.scope})
        os.replace(partial, path)

    def load(self, path: str | os.PathLike) -> None:
        """Read D's masks.

        Raises:
            ChildTuningError: if they are cut off, or of other parameters, another p or another scope.
        """
        parameters = self.parameters()
        masks: list[torch.Tensor | None] = [None] * len(parameters)
        try:
            opened = safe_open(path, framework="pt")
        except SafetensorError as error:
            raise ChildTuningError(f"{path}: not whole ({error}); Child-Tuning D does not resume without it") from error
        with opened as file:
            if file.metadata() != {"p": str(self.p), "scope": self.scope}:
                raise ChildTuningError(f"{path}: the child network of {file.metadata()}, not of {self.p}, {self.scope}")
            for key in file.keys():  # noqa: SIM118
                mask = file.get_tensor(key)
                if int(key) >= len(parameters) or mask.shape != local_part(parameters[int(key)]).shape:
                    raise ChildTuningError(f"{path}: the child network of another model (parameter {key})")
                masks[int(key)] = mask.to(local_part(parameters[int(key)]).device)
        self.masks = masks


def _dense(gradient: torch.Tensor) -> torch.Tensor:
    """Return this process's part of a gradient, with all its entries, in float32 at least."""
    gradient = local_part(gradient)
    gradient = gradient.to_dense() if gradient.is_sparse else gradient
    return gradient.to(torch.promote_types(gradient.dtype, torch.float32))


def _largest_entry(gradients: list[torch.Tensor], sharded: bool, device: torch.device) -> float:
    """Return the largest absolute value of all entries, on all processes; infinity if one is not a number."""
    peaks = [part for gradient in gradients if gradient.numel() for part in gradient.aminmax()]
    peaks = torch.stack([peak.to(device, torch.float32) for peak in peaks]) if peaks else torch.zeros(1, device=device)
    peak = peaks.abs().nan_to_num(nan=torch.inf, posinf=torch.inf).max()
    if sharded:
        torch.distributed.all_reduce(peak, torch.distributed.ReduceOp.MAX)
    return peak.item()


def _exponent(largest: float) -> int:
    """Return the power of two to scale gradients with, so that the squares of tiny ones do not vanish: 0 for others."""
    return 0 if largest == 0 or largest >= 2.0**-40 else min(126, -math.frexp(largest)[1])
