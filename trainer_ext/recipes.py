"""Parse flags and YAML recipes into the scripts' dataclasses, with `HfArgumentParser`.

A recipe is a YAML file of flag names and values. It is read as if its entries came first on the command line. So every
flag overrides it, and both are checked in the same way.
"""

import difflib
import json
import os
import sys
from argparse import SUPPRESS, ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter
from collections.abc import Sequence, Set
from dataclasses import field, fields
from pathlib import Path
from typing import Any, get_type_hints

import torch
from transformers import HfArgumentParser, TrainingArguments

from .child_tuning import ChildTuningArguments
from .errors import InputError, expand_home
from .files import CHECKPOINTS, begun_settings
from .precision import Choice, choose
from .recipe_file import read_recipe

PUBLISH_RESTRICTED = (
    "With --push_to_hub: also publish a model that saw data with restricted use. Give it only after reading the data's "
    "terms, if they allow it. The card names them."
)


def flag(default: Any, help: str, **metadata: Any) -> Any:
    return field(default=default, metadata={"help": help, **metadata})


class RecipeParser(HfArgumentParser):
    """An `HfArgumentParser` whose first argument may be a YAML recipe, and whose errors are one line.

    Attributes:
        precision: After parsing, the precision of training and why it was chosen; `None` if nothing is trained.
        recipe: After parsing, the recipe, or `None` without one.
        given: After parsing, the names of the flags that the recipe or the command line set.
    """

    precision: Choice | None = None
    recipe: Path | None = None
    given: frozenset[str] = frozenset()

    def __init__(self, dataclass_types: Sequence[type], **kwargs: Any):
        super().__init__(
            dataclass_types,
            formatter_class=_HelpFormatter,
            allow_abbrev=False,
            usage="%(prog)s [RECIPE.yaml] [--flag value ...]",
            **kwargs,
        )

    def _add_dataclass_arguments(self, dtype: type) -> None:
        """Add the flags of a dataclass; a subclass of `TrainingArguments` gets two sections, its own fields first."""
        if not issubclass(dtype, TrainingArguments) or dtype is TrainingArguments:
            super()._add_dataclass_arguments(dtype)
            return
        library, hints = {f.name for f in fields(TrainingArguments)}, get_type_hints(dtype)
        name = "Child-Tuning" if issubclass(dtype, ChildTuningArguments) else "Sequence to sequence"
        for title, own in ((name, True), ("Training", False)):
            section = self.add_argument_group(title)
            for f in fields(dtype):
                if f.init and own == (f.name not in library):
                    f.type = hints[f.name]
                    self._parse_dataclass_field(section, f)

    def _parse_dataclass_field(self, parser, field):
        """Add the flags of a field, and hide the redundant `--no_x` from the help."""
        before = set(map(id, parser._actions))
        HfArgumentParser._parse_dataclass_field(parser, field)
        for action in parser._actions:
            if id(action) not in before and action.nargs == 0:  # --no_x, which --x false says too
                action.help = SUPPRESS

    def parse(self, argv: Sequence[str] | None = None) -> tuple[Any, ...]:
        """Return the dataclasses, filled from a recipe (if the first argument is not a flag) and the flags after it.

        Raises:
            InputError: if the recipe cannot be read, a key or flag is unknown, or a value does not fit.
        """
        argv = list(sys.argv[1:] if argv is None else argv)
        recipe = []
        if argv and not argv[0].startswith("-"):
            self.recipe = path = Path(argv.pop(0))
            recipe = recipe_arguments(self, read_recipe(path), path)
        namespace, unknown = self.parse_known_args([*recipe, *argv])
        if unknown:
            flags = [flag for flag in self._option_string_actions if "_" in flag or "-" not in flag[2:]]
            close = difflib.get_close_matches(unknown[0].partition("=")[0], flags, n=1)
            raise InputError(
                f"unknown argument {unknown[0]!r}" + (f"; did you mean {close[0]}?" if close else "; see --help")
            )
        values = vars(namespace)
        tokens = (token.partition("=")[0] for token in [*recipe, *argv])
        self.given = frozenset(
            self._option_string_actions[token].dest for token in tokens if token in self._option_string_actions
        )
        if "output_dir" in values and values["output_dir"] is None:
            values["output_dir"] = ""  # with `None`, the library chooses a name
        if "bf16" in values:
            self.precision = choose_precision(values, self.given)
        try:
            return tuple(
                kind(
                    **{name: values[name] for name, f in kind.__dataclass_fields__.items() if f.init and name in values}
                )
                for kind in self.dataclass_types
            )
        except (ValueError, ImportError, OSError, ArithmeticError, LookupError, RuntimeError, TypeError) as error:
            raise InputError(" ".join(str(error).split()) or type(error).__name__) from error

    def error(self, message: str) -> None:
        """Raise an `InputError`; argparse calls this for a value that does not fit."""
        raise InputError(message)


def recipe_arguments(parser: RecipeParser, recipe: dict[str, Any], source: object) -> list[str]:
    """Return flags by name as command-line arguments.

    Args:
        source: Where the flags come from, for messages.

    Raises:
        InputError: if a name is unknown, or a value does not fit. The message begins with `source`.
    """
    arguments: list[str] = []
    for key, value in recipe.items():
        known = [flag[2:] for flag in parser._option_string_actions if flag != "--help"]
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            raise InputError(f"{source}: unknown key {key!r}" + (f"; did you mean {close[0]!r}?" if close else ""))
        if value is None:
            continue  # use the flag's default
        if isinstance(value, list):
            if any(isinstance(each, list | dict) for each in value):
                raise InputError(f"{source}, {key}: {value!r}; want a list of plain values")
            arguments += [f"--{key}", *map(str, value)]
        elif isinstance(value, dict):
            arguments.append(f"--{key}={json.dumps(value)}")
        else:
            arguments.append(f"--{key}={value}")
        arguments = expand_home(arguments)
        try:
            _, left = parser.parse_known_args(arguments)
        except InputError as error:
            raise InputError(f"{source}: {error}") from error
        if left:
            raise InputError(f"{source}, {key}: {value!r}; want one value")
    return arguments


def choose_precision(values: dict[str, Any], given: Set[str]) -> Choice:
    """Return the precision of training, and set `bf16` in `values`.

    In order of priority, it is that of the flags, of the launcher, of the run to resume, or the faster one on this
    machine.

    Args:
        values: Values of `TrainingArguments`' fields. `bf16`, `fp16` and `use_cpu` may change.
        given: Names that the recipe or the command line set. `--bf16 false` keeps float32.
    """
    on_cpu = values["use_cpu"] or not torch.accelerator.is_available()
    by_launcher = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if given & {"bf16", "fp16"}:
        name = "bf16" if values["bf16"] else "fp16" if values["fp16"] else "float32"
        choice = Choice(name, "as the flags say")
    elif by_launcher != "no":
        choice = Choice(by_launcher, "as the launcher says")
    elif begun := _begun_precision(values):
        values["bf16"], values["fp16"] = begun == "bf16", begun == "fp16"
        choice = Choice(begun, "as the run that is resumed")
    else:
        choice = choose(torch.device("cpu") if on_cpu else torch.accelerator.current_accelerator())
        values["bf16"] = choice.name == "bf16"
    if values["bf16"] and on_cpu:
        values["use_cpu"] = True  # `TrainingArguments` requires it
    return choice


def _begun_precision(values: dict[str, Any]) -> str | None:
    """Return the precision of the unfinished run that these flags resume, so that it stays the same elsewhere."""
    if checkpoint := values.get("resume_from_checkpoint"):
        settings = begun_settings(Path(checkpoint).parent)
    elif values.get("overwrite_output_dir") or not values["output_dir"]:
        return None
    else:
        settings = begun_settings(Path(values["output_dir"]) / CHECKPOINTS)
    if not settings:
        return None
    return "bf16" if settings.get("bf16") else "fp16" if settings.get("fp16") else "float32"


class _HelpFormatter(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """A help formatter that shows defaults, keeps line breaks of the description, and hides `--max-steps` spellings."""

    def _format_action_invocation(self, action):
        shown = [flag for flag in action.option_strings if "-" not in flag[2:]] or action.option_strings
        metavar = (
            "" if action.nargs == 0 else f" {self._format_args(action, self._get_default_metavar_for_optional(action))}"
        )
        return ", ".join(shown) + metavar
