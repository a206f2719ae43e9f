"""Read and check variants of a recipe: sets of flags by name, from a YAML file or the command line."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ..errors import InputError
from ..flag_parser import recipe_arguments
from ..recipe_file import DRIVER_FLAGS, Flags, VariantsFile, check_recipe, read_recipe
from ..recipes import RecipeParser
from .run import CLASSIFY_ARGUMENTS

# Programs that can train a trial, chosen by the key `program` among its flags: module name, and dataclasses of its
# flags. All but run_classify are in trainer_ext. The first dataclass may have `extra_columns`, the columns that the
# program reads besides text and label.
Programs = Mapping[str, Sequence[type]]
CLASSIFY: Programs = {"run_classify": CLASSIFY_ARGUMENTS}
INNER_VALIDATION = 20  # percent of the training writers, if a trial chooses its best epoch

F = TypeVar("F", bound=VariantsFile)


def resolve(flags: dict[str, Any], source: str, programs: Programs = CLASSIFY) -> tuple[Any, ...]:
    """Return the dataclasses of a program, filled from flags by name.

    Raises:
        InputError: if the program or a flag is unknown, or a value does not fit. The message begins with `source`.
    """
    program, flags = split_program(flags)
    if not isinstance(program, str) or program not in programs:
        raise InputError(f"{source}: program {program!r}; want one of {', '.join(programs)}")
    parser = RecipeParser(programs[program])
    try:
        return parser.parse(recipe_arguments(parser, {**flags, "output_dir": "-"}, source))
    except InputError as error:
        message = str(error)
        raise InputError(message if message.startswith(source) else f"{source}: {message}") from error


def split_program(flags: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the name of the program, and the other flags."""
    rest = {name: value for name, value in flags.items() if name != "program"}
    return flags.get("program", "run_classify"), rest


def extra_columns(flags: dict[str, Any], source: str, programs: Programs = CLASSIFY) -> list[str]:
    """Return the columns that a trial with these flags reads besides text and label.

    Raises:
        InputError: as [`resolve`].
    """
    return getattr(resolve(flags, source, programs)[0], "extra_columns", [])


def flags_given(argv: list[str]) -> dict:
    """Return the flags of run_classify.py that the command line gives, by name.

    Raises:
        InputError: if a flag is unknown, or a value does not fit.
    """
    checker = RecipeParser(CLASSIFY_ARGUMENTS)
    checker.parse(["--output_dir", "-", *argv])
    for action in checker._actions:
        action.default = argparse.SUPPRESS
    given, _ = checker.parse_known_args(argv)
    return vars(given)


def read_variants(
    path: Path, kind: type[F], barred: set[str], programs: Programs = CLASSIFY
) -> tuple[Flags, dict[str, Flags], F]:
    """Read a YAML file of variants.

    Returns:
        The shared flags (from the file's recipe, overridden by its settings), the flags of each variant by name, and
        the whole content of the file.

    Raises:
        InputError: if a key or flag is unknown, a value does not fit, or a flag is in `barred`.
    """
    file = check_recipe(read_recipe(path), kind, path)
    settings: Flags = {}
    if file.recipe:
        settings = read_recipe(path.parent / file.recipe)
        settings = {flag: value for flag, value in settings.items() if flag not in DRIVER_FLAGS}
    settings |= file.settings or {}
    variants = {name: flags or {} for name, flags in getattr(file, kind.KEY).items()}
    check_flags(variants, settings, barred, path, kind.KEY, programs)
    return settings, variants, file


def check_flags(
    variants: dict[str, Any],
    settings: dict[str, Any],
    barred: set[str],
    path: Path,
    key: str,
    programs: Programs = CLASSIFY,
) -> None:
    """Check the flags of each variant in a YAML file.

    Args:
        variants: Flags by variant name.
        settings: Flags that all variants share.
        barred: Flags that a variant may not set.
        key: Key of the variants in the file, for messages.

    Raises:
        InputError: if a flag does not fit the shared ones, or is in `barred`.
    """
    for name, overrides in variants.items():
        if found := sorted(barred & overrides.keys()):
            raise InputError(f"{path}, {name}: {found[0]} is the same for all {key}; put it under settings")
        seed = overrides.get("seed", 1)
        if not isinstance(seed, int) or isinstance(seed, bool):
            raise InputError(f"{path}, {name}, seed: {seed!r}; want an integer")
        resolve({**settings, **overrides}, f"{path}, {name}", programs)


def inner_validation(flags: dict, folds: int, name: str) -> dict:
    """Return the flags to add for a variant that chooses its best or its last epoch: a validation split of its own
    training writers.

    Raises:
        InputError: without folds, since the variant would be scored on the rows that chose its epoch.
    """
    chooser = "--select best_on_dev" if flags.get("select") == "best_on_dev" else None
    if patience := flags.get("early_stopping_patience"):
        chooser = f"--early_stopping_patience {patience}"
    if chooser is None:
        return {}
    if not folds:
        raise InputError(f"{name}: {chooser} would be scored on the rows that chose its epoch; use --cv_folds")
    return {} if flags.get("validation_split_percentage") else {"validation_split_percentage": INNER_VALIDATION}


def check_teachers(flags: dict, folds: int, name: str) -> None:
    """Check that a variant does not learn from an ensemble if it is scored by cross-validation.

    The ensemble's members trained on the gold labels of each scored fold, so the score would be too high.

    Raises:
        InputError: if it does.
    """
    if folds and (teacher := flags.get("distill_from")):
        raise InputError(
            f"{name}: distill_from {teacher}: its teachers trained on the scored folds; use student: of run_fuse.py"
        )
