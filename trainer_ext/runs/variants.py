"""Variants of a recipe: flags by name, checked, from a YAML file or the command line."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..recipes import RecipeParser, read_recipe, recipe_arguments
from .run import CLASSIFY_ARGUMENTS

# What may train a trial, by the key `program` among its flags: a module's name and the dataclasses of its flags. The
# first of them may have `extra_columns`: the columns that it reads besides text and label.
Programs = Mapping[str, Sequence[type]]
CLASSIFY: Programs = {"run_classify": CLASSIFY_ARGUMENTS}
INNER_VALIDATION = 20  # percent of the training writers, where a trial chooses its epoch
# A variant changes how a model learns, not what it is scored on.
SHARED = {
    "dataset_name", "dataset_config_name", "train_file", "validation_file", "test_file", "train_split_name",
    "validation_split_name", "split_column_name", "text_column_name", "label_column_name", "group_column_name",
    "id_column_name", "label_set",
}  # fmt: skip
# What whoever starts many trainings decides.
OWN = {"seed", "cv_folds", "cv_fold", "output_dir", "overwrite_output_dir", "resume_from_checkpoint", "push_to_hub",
       "hub_model_id", "tfidf_baseline", "token", "hub_token", "max_eval_samples", "max_predict_samples"}  # fmt: skip


def resolve(flags: dict[str, Any], source: str, programs: Programs = CLASSIFY) -> tuple[Any, ...]:
    """Return the dataclasses of the program that the flags are for, filled from flags by name.

    Raises:
        InputError: for an unknown program or flag, or a value that does not fit; begins with `source`.
    """
    program, flags = split_program(flags)
    if program not in programs:
        raise InputError(f"{source}: program {program!r}; want one of {', '.join(programs)}")
    parser = RecipeParser(programs[program])
    try:
        return parser.parse(recipe_arguments(parser, {**flags, "output_dir": "-"}, source))
    except InputError as error:
        message = str(error)
        raise InputError(message if message.startswith(source) else f"{source}: {message}") from error


def split_program(flags: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The program's name, and its flags."""
    rest = {name: value for name, value in flags.items() if name != "program"}
    return flags.get("program", "run_classify"), rest


def extra_columns(flags: dict[str, Any], source: str, programs: Programs = CLASSIFY) -> list[str]:
    """Return the columns that a trial with these flags reads besides text and label.

    Raises:
        InputError: as [`resolve`].
    """
    return getattr(resolve(flags, source, programs)[0], "extra_columns", [])


def flags_given(argv: list[str]) -> dict:
    """Flags of run_classify.py on the command line, by name, as they were written.

    Raises:
        InputError: for an unknown flag, or a value that does not fit.
    """
    checker = RecipeParser(CLASSIFY_ARGUMENTS)
    checker.parse(["--output_dir", "-", *argv])
    for action in checker._actions:
        action.default = argparse.SUPPRESS
    given, _ = checker.parse_known_args(argv)
    return vars(given)


def read_variants(
    path: Path, key: str, other_keys: Sequence[str], barred: set[str], programs: Programs = CLASSIFY
) -> tuple[dict[str, Any], dict[str, dict[str, Any]], dict[str, Any]]:
    """A YAML file with `recipe` (a file of flags beside it), `settings` over those, and flags by name under `key`.

    Returns:
        The shared flags; the flags of each name; the other keys that the file has.

    Raises:
        InputError: for an unknown key or flag, a value that does not fit, or one of the flags in `barred`.
    """
    content = read_recipe(path)
    known = {"recipe", "settings", key, *other_keys}
    if unknown := sorted(map(str, content.keys() - known)):
        raise InputError(f"{path}: unknown key {unknown[0]!r}; want {', '.join(sorted(known))}")
    variants = content.get(key)
    if not isinstance(variants, dict) or not variants:
        raise InputError(f"{path}: no {key}; want `{key}:` with a name and flags for each")
    settings = {}
    if content.get("recipe"):
        settings = read_recipe(path.parent / content["recipe"])
        settings = {flag: value for flag, value in settings.items() if flag not in OWN}
    settings |= content.get("settings") or {}
    variants = {str(name): overrides or {} for name, overrides in variants.items()}
    check_flags(variants, settings, barred, path, key, programs)
    rest = {name: content[name] for name in other_keys if name in content}
    return settings, variants, rest


def check_flags(
    variants: dict[str, Any],
    settings: dict[str, Any],
    barred: set[str],
    path: Path,
    key: str,
    programs: Programs = CLASSIFY,
) -> None:
    """Check the flags that a file gives under `key`, by name.

    Raises:
        InputError: where they are not flags, do not fit those that all share, or are among `barred`.
    """
    for name, overrides in variants.items():
        if not isinstance(overrides, dict):
            raise InputError(f"{path}, {name}: {overrides!r}; want flags by name, `{{flag: value}}`")
        if found := sorted(barred & overrides.keys()):
            raise InputError(f"{path}, {name}: {found[0]} is the same for all {key}; put it under settings")
        resolve({**settings, **overrides}, f"{path}, {name}", programs)


def inner_validation(flags: dict, folds: int, name: str) -> dict:
    """What a variant that chooses its epoch needs: writers of its own training rows to choose on."""
    if flags.get("select") != "best_on_dev":
        return {}
    if not folds:
        raise InputError(
            f"{name}: --select best_on_dev would be scored on the rows that chose its epoch; use --cv_folds"
        )
    return {} if flags.get("validation_split_percentage") else {"validation_split_percentage": INNER_VALIDATION}
