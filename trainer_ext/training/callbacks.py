"""Watch a training: log one line per evaluation, stop early or when it diverges, and return freed memory."""

import ctypes
import logging
import math
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow
import torch
from datasets import disable_progress_bars
from tqdm import tqdm
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.utils import logging as transformers_logging

from ..child_tuning import local_part
from ..errors import ProcessError

# ---- Lines for people, and stopping early -------------------------------------------------------------------------
logger = logging.getLogger(__name__)
_UNTIL_KNOWN = 20.0  # seconds of training after which its speed is known well enough
_FIRST_WIDTH = 10  # of a line's first column


@dataclass(frozen=True)
class Score:
    """The figure that a line shows next to the losses: its name, its key among the metrics, and its digits."""

    name: str = "macro F1"
    key: str = "eval_macro_f1"
    digits: int = 4


MACRO_F1 = Score()
PERPLEXITY = Score("perplexity", "eval_perplexity", 2)


def bars_on_a_terminal_only(args: TrainingArguments | None = None) -> None:
    """Turn progress bars off where standard error is not a terminal, such as a log file.

    Args:
        args: Those of a training, which may turn them off, too.
    """
    hidden = not sys.stderr.isatty()
    if args is not None:
        hidden = args.disable_tqdm = args.disable_tqdm or hidden
    if hidden:
        disable_progress_bars()
        transformers_logging.disable_progress_bar()


def watch_epochs(trainer: Trainer, patience: int | None = None, score: Score = MACRO_F1) -> None:
    """Replace the library's printing of all figures by one line per epoch, and stop early if `patience` says so."""
    for kind in (PrinterCallback, DEFAULT_PROGRESS_CALLBACK):
        trainer.remove_callback(kind)
    if not trainer.args.disable_tqdm:
        trainer.add_callback(_Bar())
    if patience:
        trainer.add_callback(StopEarly(patience))
    trainer.add_callback(EpochLines(score))


class StopEarly(TrainerCallback):
    """A callback that stops a training when validation has not improved.

    Macro F1 or the loss must improve. With few rows, or where a row may have several classes, macro F1 may stay the
    same in the first epochs while the loss falls. Everything is read from the trainer's log, which checkpoints have.
    So a resumed training stops where an uninterrupted one does. The library's `EarlyStoppingCallback` watches one
    figure, and starts counting again when a training resumes.

    Args:
        patience: Number of evaluations without improvement.
    """

    def __init__(self, patience: int):
        self.patience = patience

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        """Stop a resumed training if its last evaluation was the last one."""
        self.on_evaluate(args, state, control)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        evaluations = [entry for entry in state.log_history if "eval_loss" in entry]
        best = [
            max(range(len(evaluations)), key=lambda index: score(evaluations[index]), default=0)  # the first of equals
            for score in (lambda entry: entry.get("eval_macro_f1", 0.0), lambda entry: -entry["eval_loss"])
        ]
        if len(evaluations) - 1 - max(best) >= self.patience:
            control.should_training_stop = True


class EpochLines(TrainerCallback):
    """A callback that logs a line of at most 80 columns for each evaluation, or each epoch without one.

    Before the first of them it logs the number of steps. Without a progress bar, it also says how long the training
    will take, once that is known. Steps are counted instead of epochs where the training ends in its first epoch, or
    where the rows are a stream. An evaluation outside a training gets no line. If nothing was logged since the last
    line, the training loss is logged for the next.
    """

    def __init__(self, score: Score = MACRO_F1):
        self._score, self._training = score, False

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        self._begun, self._first_step = time.monotonic(), state.global_step
        self._shown, self._pending, self._headed = state.global_step, False, False
        self._estimated = not args.disable_tqdm  # the bar shows it
        self._by_step = args.max_steps > 0 and state.num_train_epochs in (1, sys.maxsize)
        self._training = True
        done = f"; {state.global_step:,} of them are done" if state.global_step else ""
        epochs = "" if self._by_step else f" (epochs: {state.num_train_epochs})"
        _log(f"steps: {state.max_steps:,}{epochs}{done}")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        if control.should_evaluate:
            self._want_loss(state, control)
        if self._estimated or time.monotonic() - self._begun < _UNTIL_KNOWN:
            return
        self._estimated = True
        if not self._headed and (seconds := self._left(state)):
            _log(f"step {state.global_step:,} of {state.max_steps:,}; about {seconds / 60:.1f} minutes left")

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        if self._pending:
            self._show(state, {})

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        self._want_loss(state, control)
        self._pending = state.global_step > self._shown  # until an evaluation follows

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics, **kwargs):
        if self._training:
            self._show(state, metrics)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        if self._pending:
            self._show(state, {})
        self._training = False
        if control.should_training_stop and state.global_step < state.max_steps:
            _log("stopped early, because validation did not improve")
        if args.load_best_model_at_end and state.best_global_step:
            epoch = _figure(state.epoch * state.best_global_step / state.global_step, 2).rstrip("0").rstrip(".")
            when = f"step {state.best_global_step:,}" if self._by_step else f"epoch {epoch}"
            name, digits = args.metric_for_best_model, 4
            if name == self._score.key:
                name, digits = self._score.name, self._score.digits
            _log(f"kept: {when}, with {name} {state.best_metric:.{digits}f} on validation")

    def _want_loss(self, state: TrainerState, control: TrainerControl) -> None:
        """Request a log of the training loss, unless this epoch logged one after its last evaluation.

        It reads the saved log, so a resumed run logs at the same steps.
        """
        before = math.ceil(state.epoch) - 1
        for entry in reversed(state.log_history):
            if entry["epoch"] <= before or "eval_loss" in entry:
                break
            if "loss" in entry:
                return
        control.should_log = True

    def _show(self, state: TrainerState, metrics: dict[str, float]) -> None:
        """Log the line; the training loss is the mean since the last one."""
        logged = [(entry["step"], entry["loss"]) for entry in state.log_history if "loss" in entry]
        steps = [step - before for (step, _), (before, _) in zip(logged, [(0, 0.0), *logged], strict=False)]
        recent = [
            (count, loss) for count, (step, loss) in zip(steps, logged, strict=True) if step > self._shown and count
        ]
        loss = sum(count * loss for count, loss in recent) / sum(count for count, _ in recent) if recent else None
        seconds = self._left(state)
        epoch = _figure(state.epoch or 0, 2).rstrip("0").rstrip(".")
        cells = {
            "step" if self._by_step else "epoch": (
                f"{state.global_step:,}/{state.max_steps:,}" if self._by_step else f"{epoch}/{state.num_train_epochs}"
            ),
            "training loss": _figure(loss, 4),
            "validation loss": _figure(metrics.get("eval_loss"), 4),
            self._score.name: _figure(metrics.get(self._score.key), self._score.digits),
            "minutes left": _figure(None if seconds is None else seconds / 60, 1),
        }
        first = max(_FIRST_WIDTH, 2 * len(f"{state.max_steps:,}") + 1) if self._by_step else _FIRST_WIDTH
        widths = [first, *(len(name) + 2 for name in list(cells)[1:])]
        if not self._headed:
            _log("".join(map(str.rjust, cells, widths)))
        _log("".join(map(str.rjust, cells.values(), widths)))
        self._shown, self._pending, self._headed = state.global_step, False, True

    def _left(self, state: TrainerState) -> float | None:
        """Return how many seconds the training still takes at its speed so far, or `None` before the first step."""
        done = state.global_step - self._first_step
        return (time.monotonic() - self._begun) * (state.max_steps - state.global_step) / done if done else None


class _Bar(ProgressCallback):
    """The library's progress bars, which show the last loss instead of printing all figures."""

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs=None, **kwargs: Any):
        if self.training_bar is not None and "loss" in (logs or {}):
            self.training_bar.set_postfix(loss=f"{float(logs['loss']):.4f}")


def _figure(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _log(line: str) -> None:
    with tqdm.external_write_mode(file=sys.stderr):  # clears the bars meanwhile
        logger.info(line)


# ---- Divergence ---------------------------------------------------------------------------------------------------
class StopIfDiverged(TrainerCallback):
    """A callback that stops the training when the loss, the logits or the weights are not finite.

    Weights are checked before each save and at the end of training. Then the last batch is read once more, because its
    loss was that of the weights before the last step.

    Raises:
        ProcessError: if one of them is not finite.
    """

    def __init__(self):
        self._watched: Any = None
        self._when = "before the first step"
        self._last_batch: tuple[tuple, dict] | None = None

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        state.compute_steps(args, state.max_steps)  # from this run's flags, not from those saved in a checkpoint
        if self._watched is None:
            self._watched = model.register_forward_hook(self._check_output, with_kwargs=True)

    def on_step_begin(self, args, state, control, **kwargs):
        self._when = f"step {state.global_step + 1}, --learning_rate {args.learning_rate:g}"

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if control.should_save:
            self._check_weights(model)

    def on_epoch_end(self, args, state, control, model=None, **kwargs):
        if control.should_save:
            self._check_weights(model)

    def on_train_end(self, args, state, control, model=None, **kwargs):
        self._check_weights(model)
        if self._last_batch is not None:
            (positional, named), self._last_batch = self._last_batch, None
            model.eval()
            with torch.no_grad():
                model(*positional, **named)

    def _check_output(self, module: torch.nn.Module, positional: tuple, named: dict, output: Any) -> None:
        """Check the first entry of a model's output: the loss, or the logits where there is no loss."""
        if module.training:
            self._last_batch = positional, named
        first = next(iter(output.values() if isinstance(output, Mapping) else output), None)
        if isinstance(first, torch.Tensor) and not torch.isfinite(first).all():
            self._stop("its loss is" if first.dim() == 0 else "logits are")

    def _check_weights(self, model: torch.nn.Module) -> None:
        if not all(bool(torch.isfinite(local_part(weight.detach())).all()) for weight in model.parameters()):
            self._stop("weights are")

    def _stop(self, what: str) -> None:
        raise ProcessError(
            f"the training diverged: {what} not finite ({self._when}); nothing is published; want a lower rate (with "
            "--overwrite_output_dir, where there are checkpoints), or finite weights to start from"
        )


# ---- Memory of long streams ---------------------------------------------------------------------------------------
_M_ARENA_MAX = -8  # malloc.h


class ReturnMemory(TrainerCallback):
    """A callback that keeps memory use flat over a long stream.

    Without it, the process grows for hours, because freed blocks leave gaps that new rows do not fit. Three things
    help:

    - Every five seconds, unused pages of pyarrow's and glibc's allocators go back to the system.
    - All threads share two arenas of glibc, instead of eight per core, so there are fewer gaps.
    - oneDNN caches code for the last 16 shapes instead of 1,024, since nearly every batch has a new shape.

    oneDNN reads its setting at its first use, so create this callback before any computation. With another C library
    than glibc, only pyarrow's pages go back.
    """

    def __init__(self):
        library = ctypes.CDLL(None) if os.name == "posix" else None
        self._trim = getattr(library, "malloc_trim", None)
        if self._trim is not None:
            library.mallopt(_M_ARENA_MAX, 2)
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16")
        self._last = time.monotonic()

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if time.monotonic() - self._last > 5:
            pyarrow.default_memory_pool().release_unused()
            if self._trim is not None:
                self._trim(0)
            self._last = time.monotonic()
