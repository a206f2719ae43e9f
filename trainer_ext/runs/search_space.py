"""Read what run_search.py searches: a YAML file, a recipe of run_classify.py or flags, and the ranges of the flags."""

import math
import re
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from transformers import PreTrainedConfig

from ..errors import InputError, first_line
from ..flag_parser import MINILM
from ..recipe_file import DATA_FLAGS, DRIVER_FLAGS, Flags, Schema, check_recipe, read_recipe
from ..training.checkpoint_source import resolve_checkpoint
from .variants import check_teachers, inner_validation, resolve

# Flags that are paths, with respect to the working directory. `best.yaml` has them in full.
_PATHS = {
    "model_name_or_path", "tokenizer_name", "cache_dir", "data_dir", "train_file", "validation_file", "test_file",
    "transfer_datasets", "target_file", "distill_from",
}  # fmt: skip
_FIXED = DRIVER_FLAGS | DATA_FLAGS  # a search may not change them
_BUDGET = re.compile(r"(?:([\d.]+)h)?(?:([\d.]+)m)?(?:([\d.]+)s)?")


@dataclass(frozen=True)
class Range:
    """The values from `low` to `high` of a flag that is a number: whole numbers if both are, else any.

    Attributes:
        log: Draw the logarithm evenly.
        step: Distance between two values. `None`: 1 for whole numbers, else any.
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None

    @property
    def whole(self) -> bool:
        """Return whether the values are whole numbers."""
        return all(isinstance(each, int) for each in (self.low, self.high, 1 if self.step is None else self.step))

    def holds(self, value: Any) -> bool:
        """Return whether a value is in the range and on its steps."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.low <= value <= self.high:
            return False
        step = 1 if self.whole and self.step is None else self.step
        return step is None or math.isclose((value - self.low) / step, round((value - self.low) / step), abs_tol=1e-9)

    def short(self, value: float) -> float:
        """Return a drawn value with three figures, which are enough and can be read."""
        return value if self.whole or self.step else min(max(float(f"{value:.3g}"), self.low), self.high)

    def shown(self) -> str:
        """Return the range as text."""
        step = f", in steps of {self.step:g}" if self.step else ""
        return f"{self.low:g} to {self.high:g}{step}{', logarithmic' if self.log else ''}"


Space = dict[str, Range | list]  # by flag: the values to choose from


def _dimension(value: Any) -> Range | list:
    """Return what a YAML file says of one flag.

    Raises:
        ValueError: if it is neither a list of values nor a range.
    """
    if isinstance(value, list):
        if len(value) < 2 or any(isinstance(each, list | dict) for each in value) or len(set(map(repr, value))) < 2:
            raise ValueError(f"{value!r}; want a list of two or more different values")
        return list({repr(each): each for each in value}.values())
    if not isinstance(value, dict):
        raise ValueError(f"{value!r}; want a list of values, or low and high; one value alone goes under settings")
    if unknown := sorted(value.keys() - {"low", "high", "log", "step"}):
        raise ValueError(f"unknown key {unknown[0]!r}; want low, high, log, step")
    if lacking := [key for key in ("low", "high") if key not in value]:
        raise ValueError(f"no {lacking[0]}; want low and high, or a list of values")
    low, high, step = (_number(key, value.get(key)) for key in ("low", "high", "step"))
    log = value.get("log", False)
    if not isinstance(log, bool):
        raise ValueError(f"log: {log!r}; want true or false")
    if not low < high:
        raise ValueError(f"low {low:g} and high {high:g}; want low below high")
    if log and (low <= 0 or step is not None):
        raise ValueError("log: true; want low above 0, and no step" if step is None else "log: true; want no step")
    if step is not None and not 0 < step <= high - low:
        raise ValueError(f"step {step:g}; want more than 0, and at most high minus low")
    return Range(low, high, log, step)


def _number(key: str, value: Any) -> Any:
    """Return a number. YAML takes `1e-5` for text, so text that is a number counts as one."""
    if isinstance(value, str):
        with suppress(ValueError):
            value = float(value)
    if value is None and key == "step":
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{key}: {value!r}; want a number")
    return value


class SearchFile(Schema):
    """The schema of run_search.py's YAML file.

    Attributes:
        recipe: A recipe of run_classify.py, relative to this file.
        settings: More flags; they override the recipe's.
        search: By flag, the values to choose from. `None` for [`default_space`].
        cv_folds: Number of folds.
    """

    recipe: str | None = None
    settings: Flags | None = None
    search: Annotated[dict[str, Annotated[Any, BeforeValidator(_dimension)]], Field(min_length=1)] | None = None
    cv_folds: Annotated[int, Field(ge=2)] = 5


@dataclass(frozen=True)
class SearchRecipe:
    """What to search, checked.

    Attributes:
        source: Where it comes from, for messages.
        name: Name of the search.
        settings: Flags of run_classify.py that all configurations share.
        own: The recipe's own value of each flag in `space`.
        space: The values to choose from, by flag.
        cv_folds, seed: Number of folds, and seed of the trainings and the search.
    """

    source: str
    name: str
    settings: Flags
    own: Flags
    space: Space
    cv_folds: int
    seed: int

    def overrides(self, values: Flags) -> Flags:
        """Return the flags to add to the shared ones, so that a configuration has these values.

        Values that the recipe has anyway are left out, so that its trainings are found under the same name.
        """
        found = {flag: value for flag, value in values.items() if value != self.own[flag]}
        return found | inner_validation(self.settings | found, self.cv_folds, self.source)

    def applies(self, flag: str, values: Flags) -> bool:
        """Return whether a flag has an effect in a configuration with these values."""
        return flag != "child_tuning_p" or values.get("child_tuning", self.own["child_tuning"]) != "none"

    def best(self, overrides: Flags, output_dir: Path) -> Flags:
        """Return the flags of a configuration as a recipe for run_classify.py, with paths that hold anywhere."""
        flags = self.settings | overrides | {"seed": self.seed, "output_dir": str(output_dir.resolve())}
        data_dir = resolve(flags, self.source)[1].data_dir
        flags |= {} if data_dir is None else {"data_dir": data_dir}  # perhaps the environment's
        return {flag: _in_full(value) if flag in _PATHS else value for flag, value in flags.items()}


def _in_full(value: Any) -> Any:
    """Return a path as an absolute one, or a list of them; the name of a corpus or checkpoint stays as it is."""
    if isinstance(value, list):
        return [_in_full(each) for each in value]
    return str(Path(value).resolve()) if isinstance(value, str) and Path(value).exists() else value


def read_search(path: Path | None, flags: Flags, cv_folds: int | None) -> SearchRecipe:
    """Return a search: the values to try, the settings that stay as they are, and the folds.

    Args:
        path: A search file or a recipe of run_classify.py. `None`: there are only flags.
        flags: Flags of run_classify.py; they override those of the file.
        cv_folds: Number of folds; overrides the file's.

    Raises:
        InputError: if a key, a flag or a range is not valid.
    """
    source, file, recipe = str(path or "the flags"), SearchFile(), {}
    if path is not None:
        content = read_recipe(path)
        if content.keys() & {"recipe", "settings", "search"}:
            file = check_recipe(content, SearchFile, path)
            recipe = read_recipe(path.parent / file.recipe) if file.recipe else {}
        else:
            recipe = content
    given = {"seed": recipe.get("seed", 1)} | (file.settings or {}) | flags
    if taken := sorted((DRIVER_FLAGS - {"seed"}) & given.keys()):
        raise InputError(f"{source}: {taken[0]} is not for a search's trainings; see run_search.py --help")
    settings = {"select": "last"} | {flag: value for flag, value in recipe.items() if flag not in DRIVER_FLAGS} | given
    parsed = resolve(settings, source)
    seed = parsed[-1].seed
    if parsed[0].model_name_or_path is None:
        settings["model_name_or_path"] = MINILM
        parsed = resolve(settings, source)
    del settings["seed"]
    own = _own_values(parsed)
    folds = file.cv_folds if cv_folds is None else cv_folds
    if folds < 2:
        raise InputError(f"--cv_folds {folds}; a search needs 2 folds or more")
    check_teachers(settings, folds, source)
    space = _checked_space(file.search or default_space(own), own, settings, folds, f"{source}, search")
    name = path.stem if path else Path(parsed[1].train_file or parsed[1].dataset_name or "search").stem
    # Said in full, so that a best.yaml stays what was scored if a default changes.
    for flag in ("learning_rate", "num_train_epochs"):
        settings.setdefault(flag, own[flag])
    return SearchRecipe(source, name, settings, own, space, folds, seed)


def _own_values(parsed: tuple[Any, ...]) -> Flags:
    """Return the values of all flags, those that are left to the checkpoint among them, by name."""
    own = _by_name(parsed)
    checkpoint = own["model_name_or_path"]
    try:
        config, _ = PreTrainedConfig.get_config_dict(resolve_checkpoint(checkpoint))
    except OSError as error:
        raise InputError(f"{checkpoint}: no config.json there ({first_line(error)})") from error
    if own["pooling"] is None:
        own["pooling"] = config.get("pooling", "mean")
    if own["classifier_hidden_size"] is None:
        own["classifier_hidden_size"] = config.get("classifier_hidden_size", 1024) or 0
    return own


def _by_name(parsed: tuple[Any, ...]) -> Flags:
    *parts, training = parsed
    return {flag: value for part in parts for flag, value in asdict(part).items()} | training.to_dict()


def default_space(own: Flags) -> Space:
    """Return the space to search around a recipe's own values.

    Raises:
        InputError: if the own learning rate is not above 0.
    """
    rate, epochs, batch = own["learning_rate"], own["num_train_epochs"], own["per_device_train_batch_size"]
    if not 0 < rate < math.inf:
        raise InputError(f"--learning_rate is {rate}; want more than 0")
    space: Space = {"learning_rate": Range(float(f"{rate / 5:.3g}"), float(f"{rate * 5:.3g}"), log=True)}
    if own["max_steps"] <= 0:
        space["num_train_epochs"] = Range(max(1, math.floor(epochs / 2)), max(2, math.ceil(epochs * 2)))
    if own["tokens_per_batch"] is None:
        space["per_device_train_batch_size"] = sorted({max(1, batch // 2), batch, batch * 2})
    width = own["classifier_hidden_size"]
    return space | {
        "classifier_hidden_size": sorted({0, width, 1024}),
        "pooling": ["mean", "cls"],
        "class_weights": ["none", "balanced"],
        "child_tuning": ["none", "F", "D"],
        "child_tuning_p": Range(min(0.1, own["child_tuning_p"]), max(0.9, own["child_tuning_p"])),
    }


def _checked_space(space: Space, own: Flags, settings: Flags, folds: int, place: str) -> Space:
    """Return the space, checked: flags exist, may be searched, and take all its values.

    YAML takes `1e-5` for text. Listed texts that are a number to their flag become that number.

    Raises:
        InputError: if a flag or value does not fit.
    """
    checked: Space = {}
    for flag, values in space.items():
        if flag in _FIXED:
            raise InputError(f"{place}: {flag} is the same for all configurations; put it under settings")
        meant = []
        for value in values if isinstance(values, list) else (values.low, values.high):
            flags = {**settings, flag: value}
            taken = _by_name(resolve(flags, f"{place}, {flag}")).get(flag)
            check_teachers(flags, folds, place)
            meant.append(taken if isinstance(value, str) and isinstance(taken, int | float) else value)
        if flag not in own:
            raise InputError(f"{place}: {flag} changes nothing that is learnt; leave it out")
        checked[flag] = meant if isinstance(values, list) else values
    if "child_tuning_p" in space and "child_tuning" not in space and own["child_tuning"] == "none":
        raise InputError(f"{place}: child_tuning_p has no effect without Child-Tuning; search child_tuning, too")
    return checked


def parse_budget(text: str) -> float:
    """Return the seconds in a time such as `2h`, `90m`, `1h30m` or `300s`.

    Raises:
        InputError: if it is no such time, or no time at all.
    """
    found = _BUDGET.fullmatch(text.strip().lower().replace(" ", ""))
    try:
        seconds = sum(float(part) * unit for part, unit in zip(found.groups(), (3600, 60, 1), strict=True) if part)
    except (AttributeError, ValueError):
        seconds = 0.0
    if not 0 < seconds < 1e9:
        raise InputError(f"--budget {text}; want a time such as 2h, 90m, 1h30m or 300s")
    return seconds
