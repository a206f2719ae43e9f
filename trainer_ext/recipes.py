"""Parse flags and YAML recipes into the scripts' dataclasses, with `HfArgumentParser`.

A recipe is a YAML file of flag names and values. It is read as if its entries came first on the command line. So every
flag overrides it, and both are checked in the same way.
"""

import difflib
import json
import os
import re
import sys
from argparse import SUPPRESS, ArgumentDefaultsHelpFormatter, ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

import torch
from transformers import HfArgumentParser, TrainingArguments

from .child_tuning import ChildTuningArguments
from .errors import InputError, expand_home
from .files import CHECKPOINTS, begun_settings
from .precision import Choice, choose
from .recipe_file import read_recipe

# A language as the Hub has it (ISO 639: two or three letters, perhaps with a region), and the id of a licence.
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]+)*|multilingual")
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")


def flag(default: Any, help: str, **metadata: Any) -> Any:
    return field(default=default, metadata={"help": help, **metadata})


@dataclass
class CardArguments:
    """Flags for what the model card says, and whether the model may be published.

    Raises:
        InputError: if a language or licence is not in the form that the Hub reads.
    """

    language: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Language of the texts for the model card, one or several, as ISO 639 codes: en, de. Default: the "
            "built-in corpus', else the base model's. If that is not known either, the card leaves it out."
        },
    )
    license: str | None = flag(
        None,
        "Licence of the model for its card, as the Hub writes it: apache-2.0, mit, cc-by-4.0. Default: the base "
        "model's. A model that saw data with restricted use has the licence other.",
    )
    publish_restricted: bool = flag(
        False,
        "With --push_to_hub: also publish a model that saw data with restricted use. Give it only after reading the "
        "data's terms, if they allow it. The card names them.",
    )

    def __post_init__(self):
        for code in self.language:
            if not _LANGUAGE.fullmatch(code):
                raise InputError(f"--language {code}: want codes of ISO 639, for example en, de or pt-BR")
        if self.license is not None and not _LICENCE.fullmatch(self.license):
            raise InputError(
                f"--license {self.license}: want an id of https://hf.co/docs/hub/repositories-licenses, for example "
                "apache-2.0, mit or cc-by-4.0"
            )

    def check_terms(self, source: str, terms: str | None) -> None:
        """Check that the licence does not promise more than the terms of what the model saw, if these restrict it.

        Raises:
            InputError: if it does.
        """
        if terms and self.license not in (None, "other"):
            raise InputError(f"--license {self.license}: {source} is for {terms}; leave it out, the card says other")


def add_card_flags(parser: ArgumentParser) -> None:
    """Add `--language` and `--license` of [`CardArguments`] to a parser of other flags."""
    of = CardArguments.__dataclass_fields__
    parser.add_argument("--language", nargs="+", default=[], metavar="CODE", help=of["language"].metadata["help"])
    parser.add_argument("--license", metavar="ID", help=of["license"].metadata["help"])


class RecipeParser(HfArgumentParser):
    """An `HfArgumentParser` whose first argument may be a YAML recipe, and whose errors are one line.

    Attributes:
        precision: After parsing, the precision of training and why it was chosen; `None` if nothing is trained.
    """

    precision: Choice | None = None

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
            path = Path(argv.pop(0))
            recipe = recipe_arguments(self, read_recipe(path), path)
        namespace, unknown = self.parse_known_args([*recipe, *argv])
        if unknown:
            flags = [flag for flag in self._option_string_actions if "_" in flag or "-" not in flag[2:]]
            close = difflib.get_close_matches(unknown[0].partition("=")[0], flags, n=1)
            raise InputError(
                f"unknown argument {unknown[0]!r}" + (f"; did you mean {close[0]}?" if close else "; see --help")
            )
        values = vars(namespace)
        if "output_dir" in values and values["output_dir"] is None:
            values["output_dir"] = ""  # with `None`, the library chooses a name
        if "bf16" in values:
            tokens = (token.partition("=")[0] for token in [*recipe, *argv])
            given = {token[2:].replace("-", "_") for token in tokens if token[:2] == "--"}
            self.precision = choose_precision(values, given)
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


def choose_precision(values: dict[str, Any], given: set[str]) -> Choice:
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
