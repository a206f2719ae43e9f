"""Record how a run was made: command line without secrets, recipe, hardware, versions and precision.

Python code that calls a script's `main` sets the command line that is recorded.
"""

import contextlib
import io
import json
import logging
import os
import platform
import shlex
import sys
from collections.abc import Iterator
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import digest, shown
from ..recipe_file import found, read_recipe

if TYPE_CHECKING:  # the driver of a cluster needs the command line, and not torch
    from transformers import TrainingArguments

    from ..precision import Choice


# ---- What a run was ----------------------------------------------------------------------------------------------
def provenance(args: "TrainingArguments", chosen: "Choice") -> dict:
    """Return what is needed to repeat the run, including how its precision was chosen, as JSON values; no secrets."""
    return {
        "command": command_line(),
        "seed": args.seed,
        "precision": precision(args),
        "precision_choice": chosen.record(),
        "hardware": hardware(args),
        "versions": {name: version(name) for name in ("torch", "transformers", "datasets", "accelerate")},
    }


def command_line() -> str:
    """Return the command line without tokens, keys and absolute paths, so that it can be published in a card.

    Absolute paths become relative. Outside the working directory, only their last part is kept.
    """
    program = Path(sys.argv[0]).name
    start = ["python", program] if program.endswith(".py") else [program]
    module = getattr(sys.modules["__main__"], "__spec__", None)
    if module is not None and module.origin == sys.argv[0] and "." in module.name:  # started with `python -m`
        start = ["python", "-m", module.name]
    return shlex.join([*start, *map(shown, without_secrets(sys.argv[1:]))])


def recipe_digest(arguments: list[str]) -> str | None:
    """Return a hash of the content of the recipe, or `None` without one.

    Args:
        arguments: A script's arguments. A recipe is the first of them.
    """
    if not arguments or arguments[0].startswith("-") or not (path := found(Path(arguments[0]))).is_file():
        return None
    return digest(json.dumps(read_recipe(path), default=str, sort_keys=True))


def flags_of(command: str, ignored: set[str]) -> tuple[str, dict[str, list[str]]]:
    """Split a command line into its script with recipe, and the values of each flag that is not in `ignored`."""
    script, flags, values = [], {}, []
    for token in shlex.split(command):
        if token.startswith("--"):
            name, equals, value = token[2:].partition("=")
            values = flags[name.replace("-", "_")] = [value] if equals else []
        else:
            (values if flags else script).append(token)
    return shlex.join(script).removeprefix("python "), {k: v for k, v in flags.items() if k not in ignored}


def training_arguments(args: "TrainingArguments") -> dict:
    """Return the training arguments that affect training and differ from their defaults, as JSON values."""
    defaults = {field.name: field.default for field in fields(args)}
    return {
        name: value
        for name, value in args.to_dict().items()
        if name in defaults
        and value != defaults[name]
        and not name.startswith(("hub_", "push_", "log", "report_"))
        and name not in ("output_dir", "run_name", "resume_from_checkpoint", "disable_tqdm")
    }


def without_secrets(argv: list[str]) -> list[str]:
    """Return the command line with tokens replaced by asterisks."""
    shown = list(argv)
    for index, argument in enumerate(shown):
        flag = argument.partition("=")[0].replace("-", "_")
        if flag in ("__token", "__hub_token"):
            if "=" in argument:
                shown[index] = argument.partition("=")[0] + "=***"
            elif index + 1 < len(shown):
                shown[index + 1] = "***"
    return shown


def hardware(args: "TrainingArguments") -> str:
    import torch

    if args.device.type == "cuda":
        return f"{args.world_size} x {torch.cuda.get_device_name()}"
    shared = f", {args.world_size} processes" if args.world_size > 1 else ""
    return f"{os.cpu_count()} CPU cores ({platform.machine()}){shared}"


def precision(args: "TrainingArguments") -> str:
    """Return the precision of training: float32, bf16 or fp16."""
    return "float32" if args.mixed_precision == "no" else args.mixed_precision


# ---- A script's `main` that Python code calls ----
@contextlib.contextmanager
def as_command(script: str, flags: dict[str, Any]) -> Iterator[None]:
    """Set the command line of a script, which its records name. Afterwards it and the logging are as before."""
    arguments = []
    for name, value in flags.items():
        if isinstance(value, list | tuple | set):
            arguments += [f"--{name}", *map(str, value)]
        elif value is not None:
            arguments.append(f"--{name}={json.dumps(value) if isinstance(value, dict) else value}")
    root, before = logging.getLogger(), sys.argv
    level, handlers = root.level, list(root.handlers)
    sys.argv = [script, *arguments]
    try:
        yield
    finally:
        sys.argv, root.handlers = before, handlers
        root.setLevel(level)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep back what a run prints, its log up to warnings, and the progress bars of its libraries."""
    import datasets
    from transformers.utils import logging as transformers_logging

    level = logging.root.manager.disable
    bars, more_bars = datasets.is_progress_bar_enabled(), transformers_logging.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()
    logging.disable(logging.INFO)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(level)
        if bars:
            datasets.enable_progress_bars()
        if more_bars:
            transformers_logging.enable_progress_bar()
