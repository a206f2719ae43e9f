"""Say how a model was trained, for its card: settings, log and versions of packages."""

import platform
from collections.abc import Iterable, Mapping
from typing import Any

from transformers import SchedulerType, TrainingArguments
from transformers.training_args import OptimizerNames

_LOG_ROWS = 20  # at most, in the table of the training log


def hyperparameters(args: TrainingArguments, further: Mapping[str, Any]) -> list[list[str]]:
    """Return table rows, name and value, of the settings that a training is known by.

    Args:
        args: Arguments of the trainer.
        further: More settings by name. Those that are `None` are left out.
    """
    batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    parts = [f"{args.train_batch_size} per device"]
    parts += [f"{args.gradient_accumulation_steps} steps accumulated"] * (args.gradient_accumulation_steps > 1)
    parts += [f"{args.world_size} processes"] * (args.world_size > 1)
    warmup = "no warm-up"
    if args.warmup_steps:
        first = f"{args.warmup_steps:.0%} of the" if args.warmup_steps < 1 else f"{args.warmup_steps:g}"
        warmup = f"warm-up in the first {first} steps"
    steps = args.max_steps > 0
    values = {
        "learning rate": f"{args.learning_rate:g}",
        "learning rate, schedule": f"{SchedulerType(args.lr_scheduler_type).value}, {warmup}",
        "batch size": f"{batch}" + (f" ({', '.join(parts)})" if len(parts) > 1 else ""),
        "steps" if steps else "epochs": f"{args.max_steps if steps else args.num_train_epochs:g}",
        "optimizer": f"{OptimizerNames(args.optim).value}, betas {args.adam_beta1:g} and {args.adam_beta2:g}, epsilon "
        f"{args.adam_epsilon:g}",
        "weight decay": f"{args.weight_decay:g}",
        "gradient norm, at most": f"{args.max_grad_norm:g}" if args.max_grad_norm else None,
        "seed": args.seed,
    }
    if args.child_tuning != "none":
        values["Child-Tuning"] = (
            f"{args.child_tuning}, p = {args.child_tuning_p:g}, masks the {args.child_tuning_target}"
        )
    return [[name, str(value)] for name, value in {**values, **further}.items() if value is not None]


def versions(provenance: Mapping[str, Any]) -> dict[str, str]:
    """Return the versions of Python and of the packages that a run's provenance names."""
    return {"Python": platform.python_version(), **provenance["versions"]}


def training_log(history: Iterable[dict], columns: dict[str, str]) -> list[list[str]]:
    """Return the table of a training log, header first, with one line per evaluation, or per logged loss without one.

    Args:
        history: `trainer.state.log_history`.
        columns: Heading by name of a figure of an evaluation.
    """
    losses, evaluated, loss = {}, {}, None
    for entry in history:
        if "loss" in entry:
            loss = losses[entry["step"]] = entry | {"training loss": entry["loss"]}
        elif any(name in entry for name in columns):
            of_entry = {heading: entry[name] for name, heading in columns.items() if name in entry}
            evaluated[entry["step"]] = entry | of_entry | {"training loss": loss and loss["loss"]}
    lines = list((evaluated or losses).values())
    if len(lines) > _LOG_ROWS:
        lines = [lines[round(i * (len(lines) - 1) / (_LOG_ROWS - 1))] for i in range(_LOG_ROWS)]
    shown = [name for name in ("training loss", *columns.values()) if any(line.get(name) is not None for line in lines)]
    rows = [[f"{line['epoch']:.3g}", str(line["step"]), *(_figure(line.get(name)) for name in shown)] for line in lines]
    return [["epoch", "step", *shown], *rows] if rows else []


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f}" if value >= 1000 else f"{value:.4g}"
