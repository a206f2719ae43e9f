"""Describe the YAML files of run_compare.py and run_fuse.py. It imports nothing heavy, see `trainer_ext.front_door`."""

from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, Field

from ..recipe_file import Schema

# Flags that choose the rows. Variants may not change them, since all are scored on the same rows.
DATA_FLAGS = {
    "dataset_name", "dataset_config_name", "train_file", "validation_file", "test_file", "train_split_name",
    "validation_split_name", "split_column_name", "text_column_name", "text_column_delimiter", "label_column_name",
    "group_column_name", "id_column_name", "label_set",
}  # fmt: skip
# Flags that belong to the script that starts many trainings.
DRIVER_FLAGS = {
    "seed", "cv_folds", "cv_fold", "output_dir", "overwrite_output_dir", "resume_from_checkpoint", "push_to_hub",
    "hub_model_id", "tfidf_baseline", "token", "hub_token", "max_eval_samples", "max_predict_samples", "calibrate",
    "target_accuracy",
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
    seeds: Seeds = [1]  # noqa: RUF012 (pydantic copies it)
    cv_folds: Annotated[int, Field(ge=0), AfterValidator(_of_rows)] = 5
    columns: Names = []  # noqa: RUF012


class FusionFile(VariantsFile):
    """The schema of run_fuse.py's YAML file."""

    KEY = "members"
    members: Named
    cv_folds: Annotated[int, Field(ge=2)] = 5
    tfidf: bool = False
    final: Flags = {}  # noqa: RUF012 (pydantic copies it)
    student: Flags | None = None
    teachers: Names | None = None
    without: dict[str, Names] | None = None
