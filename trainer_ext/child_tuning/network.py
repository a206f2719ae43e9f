"""The child network of an optimizer: which entries of each gradient a step uses (paper, section 2.3.2)."""

import os
from collections.abc import Callable, Iterable

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from .masks import MANY_ROWS, Draws, highest_share, keep, kept_levels, local_part, mask_seed, put_back, shard_number

VARIANTS, TARGETS, SCOPES = ("none", "F", "D"), ("gradient", "update"), ("encoder", "all")
MASKS = "child_network.safetensors"


class ChildNetwork:
    """The child network of an optimizer's parameters, by hooks around every step.

    The variant says what belongs to the child. `F` (task-free): at every step each entry anew, with probability p.
    `D` (task-driven): the share p of the entries with the highest Fisher information, found once by [`find`].

    The target says what happens to the rest. `gradient`, as published: its gradient is zeroed before the step (that of
    an F child divided by p), so the moments see the masked gradient, and momentum and decay still move weights outside
    the child. `update`, equation 2 of the LingJing paper: the step is taken with the whole gradient, then every weight
    outside the child is put back; only the child moves.

    F's masks are keyed by seed, step, parameter and shard, never by the global random state: replicas draw the same
    ones, each shard of a `DTensor` (FSDP2) its own, and a resumed run those of the uninterrupted one.

    Args:
        optimizer: Any `torch.optim.Optimizer`. Its parameters are numbered in the order of its groups.
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
        ValueError: for a setting that is none of these.
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
        self.optimizer, self.variant, self.p, self.target, self.scope = optimizer, variant, p, target, scope
        self.seed, self.step, self._given_step = seed, 0, step
        self.masks: list[torch.Tensor | None] | None = None
        self.measure, self.kept = False, (0, 0)
        self._before: list[tuple[int, torch.Tensor]] = []
        self.active = variant != "none" and (kept_levels(p) < 2**16 if variant == "F" else p < 1)
        self._hooks = []
        if self.active:
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
    def _before_step(self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        if self._given_step is not None:
            self.step = self._given_step()
        if self.variant == "D" and self.masks is None:
            raise RuntimeError("Child-Tuning D has no child network yet: call find() before the first step")
        self.kept = (0, 0)
        for index, parameter in enumerate(self.parameters()):
            if parameter.grad is None or (self.masks is not None and self.masks[index] is None):
                continue
            if self.target == "update":
                self._before.append((index, local_part(parameter).clone(memory_format=torch.preserve_format)))
                continue
            gradient = local_part(parameter.grad)
            if self.masks is not None:
                keep(gradient, self.masks[index])
                self._count(self.masks[index])
            else:
                self._mask_gradient(gradient, self._draws(index, parameter))

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

    def _mask_gradient(self, gradient: torch.Tensor, draws: "Draws") -> None:
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
            ValueError: if no parameter is in scope, or there are no losses.
        """
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        scoped = [
            (index, parameter)
            for index, parameter in enumerate(self.parameters())
            if self.scope == "all" or "layer" in names.get(id(parameter), "")
        ]
        if not scoped:
            raise ValueError("child_tuning_scope encoder: no parameter has 'layer' in its name; use scope all")
        information = {
            index: torch.zeros_like(local_part(parameter).detach(), dtype=torch.float32) for index, parameter in scoped
        }
        batches = 0
        for loss in losses:
            loss.backward()
            for index, parameter in scoped:
                if parameter.grad is not None:
                    gradient = local_part(parameter.grad).float()
                    information[index].addcmul_(gradient, gradient)
            model.zero_grad()
            batches += 1
        if not batches:
            raise ValueError("Child-Tuning D: no batches to find the child network on")
        sharded = any(shard_number(parameter) is not None for _, parameter in scoped)
        threshold = highest_share(list(information.values()), self.p, sharded)
        self.masks = [None] * len(self.parameters())
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
            ValueError: if they are of other parameters, another p or another scope.
        """
        parameters = self.parameters()
        masks: list[torch.Tensor | None] = [None] * len(parameters)
        with safe_open(path, framework="pt") as file:
            if file.metadata() != {"p": str(self.p), "scope": self.scope}:
                raise ValueError(f"{path}: the child network of {file.metadata()}, not of p {self.p}, {self.scope}")
            for key in file.keys():  # noqa: SIM118
                mask = file.get_tensor(key)
                if int(key) >= len(parameters) or mask.shape != local_part(parameters[int(key)]).shape:
                    raise ValueError(f"{path}: the child network of another model (parameter {key})")
                masks[int(key)] = mask.to(local_part(parameters[int(key)]).device)
        self.masks = masks


def check_settings(variant: str, p: float, target: str, scope: str) -> None:
    """Raises ValueError for a setting of Child-Tuning that is none."""
    for name, value, known in (
        ("child_tuning", variant, VARIANTS),
        ("child_tuning_target", target, TARGETS),
        ("child_tuning_scope", scope, SCOPES),
    ):
        if value not in known:
            raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(known)}")
    if not 0 < p <= 1:
        raise ValueError(f"child_tuning_p is {p}; it must lie in (0, 1]")
