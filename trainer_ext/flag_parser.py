"""Parse flags and YAML recipes, with errors of one line. Imports nothing heavy, see `front_door`."""

import difflib
import json
from argparse import (
    ArgumentDefaultsHelpFormatter,
    ArgumentParser,
    ArgumentTypeError,
    Namespace,
    RawDescriptionHelpFormatter,
)
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .errors import InputError, expand_home
from .recipe_file import read_recipe

NO_OUTPUT_DIR = "give --output_dir, the folder for what the run leaves"
# The checkpoint of 22 million weights that is used where no flag names one.
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
MPNET = "sentence-transformers/all-mpnet-base-v2"  # 109 million weights


class UnknownFlag(InputError):
    """An error for a flag, or a key of a recipe, that a script does not have.

    Attributes:
        name: The flag's name without dashes.
    """

    def __init__(self, message: str, name: str):
        super().__init__(message)
        self.name = name


class FlagParser(ArgumentParser):
    """An `ArgumentParser` whose first argument may be a YAML recipe, and whose errors are one line."""

    def read(self, argv: Sequence[str]) -> tuple[Namespace, list[str]]:
        """Parse a recipe (if the first argument is not a flag) and the flags after it.

        Returns:
            The values, and the arguments with the recipe written out as flags.

        Raises:
            InputError: if the recipe cannot be read, a key or flag is unknown, or a value does not fit.
        """
        arguments = list(argv)
        if arguments and not arguments[0].startswith("-"):
            path = Path(arguments.pop(0))
            arguments = recipe_arguments(self, read_recipe(path), path) + arguments
        namespace, unknown = self.parse_known_args(arguments)
        refuse(unknown, self._option_string_actions)
        return namespace, arguments

    def error(self, message: str) -> None:
        """Raise an `InputError`; argparse calls this for a value that does not fit."""
        raise InputError(message)


def refuse(unknown: Sequence[str], known: Iterable[str]) -> None:
    """Raise [`UnknownFlag`] if an argument is no known flag.

    The error names the first such argument and suggests a flag that looks similar.

    Args:
        unknown: The arguments that the parser did not know; may be empty.
        known: All flags of the script.
    """
    if unknown:
        name = unknown[0].partition("=")[0]
        flags = [flag for flag in known if "_" in flag or "-" not in flag[2:]]
        close = difflib.get_close_matches(name, flags, n=1)
        hint = f"; did you mean {close[0]}?" if close else "; see --help"
        raise UnknownFlag(f"unknown argument {unknown[0]!r}{hint}", name.lstrip("-").replace("-", "_"))


def recipe_arguments(parser: ArgumentParser, recipe: dict[str, Any], source: object) -> list[str]:
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
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise UnknownFlag(f"{source}: unknown key {key!r}{hint}", str(key))
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


def true_or_false(text: str) -> bool:
    """Return the value of a switch: true, yes, y, t or 1, or their opposites, in any case."""
    if text.lower() in ("true", "yes", "y", "t", "1"):
        return True
    if text.lower() in ("false", "no", "n", "f", "0"):
        return False
    raise ArgumentTypeError(f"{text!r}; want true or false")


class FlagFormatter(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """A help formatter that shows defaults, keeps line breaks of the description, and hides `--max-steps` spellings."""

    def _get_help_string(self, action):
        return action.help if action.default in (None, []) else super()._get_help_string(action)

    def _format_action_invocation(self, action):
        shown = [flag for flag in action.option_strings if "-" not in flag[2:]] or action.option_strings
        if not action.option_strings:
            return super()._format_action_invocation(action)
        metavar = (
            "" if action.nargs == 0 else f" {self._format_args(action, self._get_default_metavar_for_optional(action))}"
        )
        return ", ".join(shown) + metavar
