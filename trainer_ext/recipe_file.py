"""Read YAML recipes safely, and check them against a schema. Imports nothing heavy, see `trainer_ext.front_door`."""

import os
import re
import sys
from collections.abc import Hashable
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from .errors import InputError

_PACKAGE = Path(__file__).parent
# The folder with recipes/ and examples/: a part of the installed package, and otherwise the clone.
SHIPPED = _PACKAGE / "shipped" if (_PACKAGE / "shipped").is_dir() else _PACKAGE.parent
_told: set[Path] = set()
_LONGEST, _DEEPEST = 1_000_000, 40
_UNWRITABLE = re.compile("[\0\ud800-\udfff]")  # these cannot be in a path or on a command line
# By pydantic's error type, the value that would be right.
_WANTED = {
    "bool_type": "true or false",
    "dict_type": "lines of `name: value`",
    "float_type": "a number",
    "int_type": "an integer",
    "list_type": "a list",
    "model_type": "lines of `name: value`",
    "string_type": "text; a number needs quotes",
    "too_short": "at least one",
}


class Schema(BaseModel):
    """The base class of a recipe's schema. Subclasses have a field for each key."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


S = TypeVar("S", bound=Schema)


def found(path: Path) -> Path:
    """Return a recipe's path if there is such a file, else that of the project's own recipe of this name.

    The second is said in a line on standard error. If neither exists, the path comes back as it is.
    """
    own = Path(os.path.normpath(SHIPPED / path))
    if os.path.exists(path) or path.is_absolute() or not own.is_relative_to(SHIPPED / "recipes"):
        return path
    if not os.path.isfile(own):  # of a name that is too long, Path.is_file would raise an error
        return path
    if own not in _told and os.environ.get("RANK", "0") == "0":
        _told.add(own)
        name = own.relative_to(SHIPPED)
        print(f"{name}: not in this folder; using the one that comes with emodeberta", file=sys.stderr)
    return own


def read_recipe(path: Path) -> dict[str, Any]:
    """Return the names and values in a YAML file: text, numbers, true, false, null, and lists and mappings of these.

    Names are always text, even `1`, `no` and `2022-01-01`. The file is the one that [`found`] returns. In the project's
    own recipes, a file of `examples/` that is not in the working folder is the project's own, too.

    Raises:
        InputError: if there is no such file, or its content has another form.
    """
    given, path = path, found(path)
    content = _read(path)
    return content if path == given else {key: _with_own_examples(value) for key, value in content.items()}


def _with_own_examples(value: Any) -> Any:
    if isinstance(value, list):
        return list(map(_with_own_examples, value))
    own = isinstance(value, str) and value.startswith("examples/") and not Path(value).exists()
    return str(SHIPPED / value) if own else value


def _read(path: Path) -> dict[str, Any]:
    try:
        if not path.is_file():
            raise InputError(f"{path}: no such recipe")
        if path.stat().st_size > _LONGEST:
            raise InputError(f"{path}: has {path.stat().st_size:,} bytes; a recipe has at most {_LONGEST:,}")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a YAML file in UTF-8 ({error.reason} at byte {error.start})") from error
    try:
        content = yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        where = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InputError(f"{path}{where}: not a YAML file that can be read ({error.problem})") from error
    except (yaml.YAMLError, ValueError, KeyError, OverflowError) as error:
        raise InputError(f"{path}: not a YAML file that can be read ({error})") from error
    except RecursionError as error:
        raise InputError(f"{path}: nested more than {_DEEPEST} deep") from error
    if not isinstance(content, dict | None):
        raise InputError(f"{path}: holds a {type(content).__name__}; want `flag: value` lines")
    return content or {}


def check_recipe(content: dict[str, Any], schema: type[S], path: Path) -> S:
    """Return the content of a recipe as an instance of the schema.

    Raises:
        InputError: if a key is unknown or missing, or a value is not valid.
    """
    try:
        return schema.model_validate(content)
    except ValidationError as found:
        errors = found.errors(include_url=False)
        error = next(
            (each for each in errors if each["type"] == "extra_forbidden"), errors[0]
        )  # report a possible misspelling first
    *outer, key = map(str, error["loc"] or ("",))
    place = ", ".join([str(path), *outer])
    known = "" if outer else f"; want {', '.join(sorted(schema.model_fields))}"
    if error["type"] == "extra_forbidden":
        raise InputError(f"{place}: unknown key {key!r}{known}")
    if error["type"] == "missing":
        raise InputError(f"{place}: no {key}{known}")
    if key:
        place += f", {key}"
    if error["type"] == "value_error":  # from a validator of the schema, whose message is complete
        raise InputError(f"{place}: {error['ctx']['error']}")
    value = repr(error["input"])
    wanted = _WANTED.get(error["type"], error["msg"].replace("Input should be ", ""))
    raise InputError(f"{place}: {value if len(value) <= 80 else value[:79] + '…'}; want {wanted}")


def _error(problem: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


class _Loader(yaml.SafeLoader):
    """A YAML loader for plain values only, without duplicate names, and with limits on size and nesting."""

    def get_single_data(self) -> Any:
        node = self.get_single_node()
        if node is None:
            return None
        self._count(node, {}, 0)
        return self.construct_document(node)

    def _count(self, node: yaml.Node, counted: dict[int, int], depth: int) -> int:
        """Return the number of characters after expanding all aliases, with which a short file can hold billions."""
        if depth > _DEEPEST:
            raise _error(f"nested more than {_DEEPEST} deep", node)
        if id(node) not in counted:
            if isinstance(node, yaml.ScalarNode):
                counted[id(node)] = 1 + len(node.value)
            else:
                pairs = isinstance(node, yaml.MappingNode)
                inner = [each for pair in node.value for each in pair] if pairs else node.value
                counted[id(node)] = 1 + sum(self._count(each, counted, depth + 1) for each in inner)
            if counted[id(node)] > _LONGEST:
                raise _error(f"more than {_LONGEST:,} characters, aliases written out", node)
        return counted[id(node)]

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        names = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _error("a name is not text", key)
            if key.value in names:
                raise _error(f"{key.value!r} is listed twice", key)
            names.add(key.value)
        self.flatten_mapping(node)  # merges `<<`; existing values take precedence
        return {self.construct_text(key): self.construct_object(value, deep=True) for key, value in node.value}

    def construct_text(self, node: yaml.ScalarNode) -> str:
        if _UNWRITABLE.search(node.value):
            raise _error(f"{node.value!r} holds NUL or half a character (a lone surrogate)", node)
        return node.value

    def construct_map(self, node: yaml.MappingNode) -> dict[Hashable, Any]:
        return self.construct_mapping(node, deep=True)

    def construct_list(self, node: yaml.SequenceNode) -> list[Any]:
        return self.construct_sequence(node, deep=True)


_PLAIN = {"null", "bool", "int", "float"}
_Loader.yaml_constructors = {
    tag: made for tag, made in yaml.SafeLoader.yaml_constructors.items() if tag and tag.rpartition(":")[2] in _PLAIN
} | {
    "tag:yaml.org,2002:str": _Loader.construct_text,
    "tag:yaml.org,2002:timestamp": _Loader.construct_text,
    "tag:yaml.org,2002:map": _Loader.construct_map,
    "tag:yaml.org,2002:seq": _Loader.construct_list,
    None: yaml.SafeLoader.construct_undefined,
}


# ---- The files of run_compare.py and run_fuse.py, which name many trainings ----
# Flags that choose the rows. Variants may not change them, since all are scored on the same rows.
DATA_FLAGS = {
    "dataset_name", "dataset_config_name", "train_file", "validation_file", "test_file", "train_split_name",
    "validation_split_name", "split_column_name", "text_column_name", "text_column_delimiter", "label_column_name",
    "group_column_name", "id_column_name", "label_set",
}  # fmt: skip
# Flags that belong to the script that starts many trainings, or to a single one.
DRIVER_FLAGS = {
    "seed", "cv_folds", "cv_fold", "output_dir", "overwrite_output_dir", "resume_from_checkpoint", "push_to_hub",
    "hub_model_id", "tfidf_baseline", "token", "hub_token", "max_eval_samples", "max_predict_samples", "calibrate",
    "target_accuracy", "extra_tests",
}  # fmt: skip


def _different(values: list) -> list:
    if len(set(values)) < len(values):
        raise ValueError(f"{values}; a value is listed twice")
    return values


def _of_rows(folds: int) -> int:
    if folds == 1:
        raise ValueError("1 fold leaves no row to train on; want 2 or more, or 0 for none")
    return folds


Flags = dict[str, Any]  # values by flag name
Named = Annotated[dict[str, Flags | None], Field(min_length=1)]
Names = Annotated[list[str], AfterValidator(_different)]
Seeds = Annotated[list[Annotated[int, Field(ge=0, lt=2**32)]], Field(min_length=1), AfterValidator(_different)]


class VariantsFile(Schema):
    """The schema of a YAML file of variants.

    Attributes:
        KEY: The key that holds the variants.
        recipe: A file of flags that all variants share, relative to this file.
        settings: More shared flags; they override those of the recipe.
    """

    KEY: ClassVar[str]
    recipe: str | None = None
    settings: Flags | None = None


class Sum(Schema):
    """A row of a comparison's table: the summed probabilities of these variants, with each of these seeds."""

    variants: Names
    seeds: Seeds


class ComparisonFile(VariantsFile):
    """The schema of run_compare.py's YAML file."""

    KEY = "variants"
    variants: Named
    sums: dict[str, Sum] | None = None
    reference: str | None = None
    seeds: Seeds = [1]
    cv_folds: Annotated[int, Field(ge=0), AfterValidator(_of_rows)] = 5
    columns: Names = []


class FusionFile(VariantsFile):
    """The schema of run_fuse.py's YAML file."""

    KEY = "members"
    members: Named
    cv_folds: Annotated[int, Field(ge=2)] = 5
    tfidf: bool = False
    final: Flags = {}
    student: Flags | None = None
    teachers: Names | None = None
    without: dict[str, Names] | None = None
