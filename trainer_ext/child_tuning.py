"""Child-Tuning (Xu et al. 2021, "Raise a Child in Large Language Model", https://aclanthology.org/2021.emnlp-main.749;
section 2.3.2 of the LingJing paper) for any `transformers` model and any PyTorch loop. Imports nothing else of this
project.

With `Trainer`:

    args = ChildTuningArguments(output_dir="out", child_tuning="F", child_tuning_p=0.3)
    ChildTuningTrainer(model=model, args=args, train_dataset=rows).train()

In a loop of one's own:

    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5)
    child = ChildNetwork(optimizer, variant="F", p=0.3, seed=1)
    for batch in loader:
        model(**batch).loss.backward()
        optimizer.step()  # masked
        optimizer.zero_grad()

For variant D, before the first step: `child.find(model, (model(**batch).loss for batch in loader))`.
"""

import os
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.distributed.tensor import DTensor, Shard
from tqdm.auto import tqdm
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import IntervalStrategy

VARIANTS, TARGETS, SCOPES = ("none", "F", "D"), ("gradient", "update"), ("encoder", "all")
MASKS = "child_network.safetensors"
# Entries masked at a time on CPU: from the first pass over them to the last they stay in the cache.
CHUNK = 2**17
# In a matrix with so many rows, those that are all zero are passed over: an embedding's, of tokens not in the batch.
MANY_ROWS = 2**14
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


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
        self.active = variant != "none" and (_levels(p) < 2**16 if variant == "F" else p < 1)
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
                self._before.append((index, _local(parameter).clone(memory_format=torch.preserve_format)))
                continue
            gradient = _local(parameter.grad)
            if self.masks is not None:
                keep(gradient, self.masks[index])
                self._count(self.masks[index])
            else:
                self._mask_gradient(gradient, self._draws(index, parameter))

    @torch.no_grad()
    def _after_step(self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        parameters = self.parameters() if self._before else []
        for index, before in self._before:
            weights = _local(parameters[index])
            if self.masks is not None:
                put_back(weights, before, self.masks[index])
                self._count(self.masks[index])
            else:
                put_back(weights, before, self._counted(self._draws(index, parameters[index])))
        self._before = []
        self.step += 1

    def _mask_gradient(self, gradient: torch.Tensor, draws: "Draws") -> None:
        if gradient.dim() != 2 or len(gradient) < MANY_ROWS:
            keep(gradient, self._counted(draws), _levels(self.p) / 2**16)
            return
        rows = ((gradient.amax(1) != 0) | (gradient.amin(1) != 0)).nonzero().squeeze(1)
        masked = gradient.index_select(0, rows)
        keep(masked, self._counted(draws), _levels(self.p) / 2**16)
        gradient.index_copy_(0, rows, masked)

    def _draws(self, index: int, parameter: nn.Parameter) -> "Draws":
        return Draws(self.p, mask_seed(self.seed, self.step, index, _shard(parameter)), _local(parameter).device)

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
            index: torch.zeros_like(_local(parameter).detach(), dtype=torch.float32) for index, parameter in scoped
        }
        batches = 0
        for loss in losses:
            loss.backward()
            for index, parameter in scoped:
                if parameter.grad is not None:
                    gradient = _local(parameter.grad).float()
                    information[index].addcmul_(gradient, gradient)
            model.zero_grad()
            batches += 1
        if not batches:
            raise ValueError("Child-Tuning D: no batches to find the child network on")
        sharded = any(_shard(parameter) is not None for _, parameter in scoped)
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
                if int(key) >= len(parameters) or mask.shape != _local(parameters[int(key)]).shape:
                    raise ValueError(f"{path}: the child network of another model (parameter {key})")
                masks[int(key)] = mask.to(_local(parameters[int(key)]).device)
        self.masks = masks


class Draws:
    """Where one parameter's child begins and ends at one step: bool tensors, true with probability p.

    16-bit numbers are cut from 64-bit draws: of numpy's SFC64 on CPU, five times as fast as torch's generator there,
    of torch's own elsewhere.

    Args:
        p: Rounded to the next of 1/65,536 to 65,536/65,536.
        seed: See [`mask_seed`].
        device: Of the masks.
    """

    def __init__(self, p: float, seed: int, device: torch.device | str):
        self.device = torch.device(device)
        self._levels = _levels(p)
        on_cpu = self.device.type == "cpu"
        self._numpy = np.random.SFC64(seed) if on_cpu else None
        self._torch = None if on_cpu else torch.Generator(self.device).manual_seed(seed)

    def next(self, count: int) -> torch.Tensor:
        """The next `(count,)`; a new 64-bit draw begins it."""
        number = -(-count // 4)
        if self._numpy is not None:
            draws = torch.from_numpy(self._numpy.random_raw(number).view(np.int16))
        else:
            draws = torch.empty(number, dtype=torch.int64, device=self.device)
            draws = draws.random_(-(2**63), None, generator=self._torch).view(torch.int16)
        if self._levels == 2**16:
            return torch.ones(count, dtype=torch.bool, device=self.device)
        return draws[:count] < self._levels - 2**15


Mask = torch.Tensor | Callable[[int], torch.Tensor]  # bools of a tensor's size, or what gives the next so many


def keep(values: torch.Tensor, kept: Mask, divisor: float | None = None) -> None:
    """Zero, in place, what is not kept, and divide the rest.

    As integers, whose product with a bit is several times as fast as a masked fill.
    """
    for (part,), bits in _masked_parts(kept, values):
        _integers(part).mul_(bits)
        if divisor is not None:
            part.div_(divisor)


def put_back(values: torch.Tensor, before: torch.Tensor, kept: Mask) -> None:
    """`before` in place of `values`, in place and to the bit, where they are not kept; uses `before` up."""
    for (part, old), bits in _masked_parts(kept, values, before):
        part, old = _integers(part), _integers(old)
        bits.mul_(torch.bitwise_xor(part, old, out=part))  # what changed, where it is kept
        torch.bitwise_xor(old, bits, out=part)


def _integers(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor's bits."""
    return tensor.view(_INTEGERS[tensor.element_size()])


def _masked_parts(kept: Mask, *tensors: torch.Tensor) -> Iterator[tuple[tuple[torch.Tensor, ...], torch.Tensor]]:
    """Views of equally large tensors, in order, and 0 or 1 for each entry, as an integer of its size.

    On CPU they are short enough for the cache, and the integers lie in one buffer; elsewhere, and where a tensor is
    not in one piece, they are the whole, in the first one's shape.
    """
    fits = all(tensor.device.type == "cpu" and tensor.is_contiguous() for tensor in tensors)
    parts = zip(*(tensor.view(-1).split(CHUNK) for tensor in tensors), strict=True) if fits else [tensors]
    dtype, done, buffer = _INTEGERS[tensors[0].element_size()], 0, None
    for part in parts:
        count = part[0].numel()
        mask = kept(count) if callable(kept) else kept.reshape(-1)[done : done + count]
        if buffer is None:
            buffer = torch.empty(count, dtype=dtype, device=part[0].device)
        done += count
        yield part, buffer[:count].copy_(mask).view(part[0].shape)


def highest_share(values: list[torch.Tensor], p: float, sharded: bool = False) -> float:
    """The threshold that the share p of all entries reach, found by halving, without joining or sorting them.

    Never 0: an entry without information is not in a child.

    Args:
        values: Float32 tensors, nowhere negative.
        p: In (0, 1].
        sharded: Whether each process of the default group holds a part.
    """
    bits = [value.view(torch.int32) for value in values]  # in the order of the floats, where none is negative

    def total(count: int) -> int:
        if sharded:
            counted = torch.tensor(count, device=values[0].device)
            torch.distributed.all_reduce(counted)
            return int(counted)
        return count

    wanted = max(1, round(p * total(sum(value.numel() for value in values))))
    low, high = 1, torch.tensor(float("inf")).view(torch.int32).item()
    while low < high:  # the largest threshold that enough entries reach
        middle = (low + high + 1) // 2
        if total(sum(int((value >= middle).sum()) for value in bits)) >= wanted:
            low = middle
        else:
            high = middle - 1
    return torch.tensor(low, dtype=torch.int32).view(torch.float32).item()


def mask_seed(seed: int, step: int, parameter: int, shard: int | None = None) -> int:
    """63-bit seed of one parameter's (or shard's) mask at one optimizer step: rounds of the splitmix64 finalizer
    (https://prng.di.unimi.it/splitmix64.c), so that neighbours share no stream."""
    key = 0
    for part in (seed, step, parameter) if shard is None else (seed, step, parameter, shard):
        key = (key + part + 0x9E3779B97F4A7C15) % 2**64
        key = (key ^ key >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        key = (key ^ key >> 27) * 0x94D049BB133111EB % 2**64
        key ^= key >> 31
    return key >> 1


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


def _levels(p: float) -> int:
    """How many of the 65,536 values of a 16-bit number are kept."""
    return max(1, round(p * 2**16))


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """This process's part of a `DTensor`, a view; any other tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _shard(parameter: torch.Tensor) -> int | None:
    """Which part of a sharded `DTensor` this process holds; `None` where all hold the same."""
    if not isinstance(parameter, DTensor):
        return None
    number = None
    for dimension, placement in enumerate(parameter.placements):
        if isinstance(placement, Shard):
            coordinate = parameter.device_mesh.get_local_rank(dimension)
            number = (number or 0) * parameter.device_mesh.size(dimension) + coordinate
    return number


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
        sharded = any(_shard(parameter) is not None for parameter in self._child.parameters())
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
        gradients = [_local(p.grad) for p in self._child.parameters() if p.grad is not None]
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
