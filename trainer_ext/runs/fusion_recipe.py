"""Recipes of run_fuse.py: the members of an ensemble, what stands beside them, and its student."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..data.corpus import Corpus
from ..errors import InputError
from ..evaluation.fusion import fuse_cross_fitted
from ..evaluation.fusion_table import check_names, plain_votes
from ..files import digest, lock
from ..training.distillation import write_out_of_fold
from .trial import Trial, one_a_fold, one_each_two_folds
from .trials import Trials
from .variants import DATA_FLAGS, DRIVER_FLAGS, FusionFile, check_flags, read_variants

STUDENT = "student"


@dataclass
class FusionRecipe:
    """What the YAML file says, checked; flags as run_classify.py's, by name.

    Attributes:
        path: Of the file.
        shared: Flags of all members and of the student.
        members: By name, the flags of each that differ.
        cv_folds, tfidf, without, student, teachers: As in the file.
    """

    path: Path
    shared: dict
    members: dict[str, dict]
    cv_folds: int = 5
    tfidf: bool = False
    without: dict[str, list[str]] = field(default_factory=dict)
    student: dict | None = None
    teachers: list[str] = field(default_factory=list)

    def member(self, name: str) -> tuple[dict, int, int, str]:
        """Flags, folds, seed and name of a member, as [`one_a_fold`] and [`one_each_two_folds`] take them."""
        flags = dict(self.members[name])
        seed = flags.pop("seed", 1)
        return flags, self.cv_folds, seed, name

    def on_all_rows(self, name: str) -> Trial:
        """The training of a member for the folder."""
        flags, _, seed, _ = self.member(name)
        return Trial(flags, None, seed, name)

    def plan(self, trials: Trials) -> str:
        """Say how many trainings the recipe takes, and about how long those that are not done."""
        every = [trial for name in self.members for trial in [*one_a_fold(*self.member(name)), self.on_all_rows(name)]]
        beside = ""
        if self.student is not None:
            every += [trial for name in self.teachers for trial in one_each_two_folds(*self.member(name)).values()]
            teachers = f"{len(self.teachers)} teacher{'s' * (len(self.teachers) > 1)}"
            beside = f", {teachers} without each two folds; and {self.cv_folds} of the student"
        return f"{len(self.members)} members, {self.cv_folds} folds and all rows{beside}: {trials.plan(every)}"


def read_fusion_recipe(path: Path, flags: dict) -> FusionRecipe:
    """Read a recipe, with `flags` of the command line over those that members share.

    Raises:
        InputError: for what does not fit; says what would.
    """
    barred = (DRIVER_FLAGS | DATA_FLAGS) - {"seed"}
    settings, members, file = read_variants(path, FusionFile, barred)
    rest = file.model_dump(exclude_unset=True, exclude={"recipe", "settings", "members"})
    if STUDENT in rest:
        rest[STUDENT] = rest[STUDENT] or {}  # `student:` alone shares all flags with the members
    recipe = FusionRecipe(
        path, settings | flags, members, **{key: value for key, value in rest.items() if value is not None}
    )
    students = {} if recipe.student is None else {STUDENT: recipe.student}
    check_flags(students, settings, barred, path, "members")
    if any("program" in of_one for of_one in (recipe.shared, *members.values(), *students.values())):
        raise InputError(f"{path}: program is for run_compare.py; an ensemble's members are run_classify.py's")
    if taken := sorted(DRIVER_FLAGS & recipe.shared.keys()):
        hint = "; give each member its own" if taken[0] == "seed" else "; see --help"
        raise InputError(f"{path}: {taken[0]} is not for what run_fuse.py's members share{hint}")
    check_names(list(members))
    if len(members) < 2:
        raise InputError(f"{path}: one member; an ensemble needs at least two")
    for name, of_one in (members | students).items():
        if of_one.get("select", recipe.shared.get("select")) == "best_on_dev":
            raise InputError(f"{path}, {name}: select best_on_dev is for single models; fix the epochs here")
    some = f"want a list of some of the members ({', '.join(members)})"
    for what, left_out in recipe.without.items():
        if not isinstance(left_out, list) or not set(left_out) < members.keys():
            raise InputError(f"{path}, without, {what}: {left_out!r}; {some}, not of all")
    if "teachers" in rest and (not isinstance(recipe.teachers, list) or not set(recipe.teachers) <= members.keys()):
        raise InputError(f"{path}, teachers: {recipe.teachers!r}; {some}")
    if students and recipe.cv_folds < 3:
        raise InputError(f"{path}: a student's teachers train without two folds; want cv_folds of at least 3")
    recipe.teachers = recipe.teachers or list(members)
    return recipe


def cross_validate_student(
    recipe: FusionRecipe, trials: Trials, corpus: Corpus, assigned: np.ndarray, rule: str
) -> np.ndarray:
    """Return what students say of the rows of the fold that neither they nor their teachers saw: `(rows, labels)`.

    A student that is scored on one fold learns, of the rows of each other fold, what teachers say that were trained
    without both.
    """
    gold, rows = corpus.classes("train"), corpus.splits["train"]
    ids, texts = (np.array(rows[name][:], dtype=object) for name in ("id", "text"))
    of_teachers = [one_each_two_folds(*recipe.member(name)) for name in recipe.teachers]
    trials.train([member for of_pairs in of_teachers for member in of_pairs.values()])
    flags = dict(recipe.student)
    seed = flags.pop("seed", 1)
    lessons = {}  # by the fold that the student is scored on, its rows and what its teachers say of them
    for scored in range(recipe.cv_folds):
        seen = assigned != scored
        said = [[member for pair, member in of_pairs.items() if scored in pair] for of_pairs in of_teachers]
        probabilities = np.stack([trials.collect(of_fold, ids[seen], "test") for of_fold in said])
        lessons[scored] = seen, fuse_cross_fitted(rule, probabilities, gold[seen], assigned[seen])
    # The same folders when a killed run goes on. Another run with these teachers waits, for its folders are these.
    names = {scored: f"teacher-{digest(fused.tolist())}" for scored, (_, fused) in lessons.items()}
    with lock(trials.folder / f".teachers-{digest(names)}.lock", "the student's teachers", "in use by another process"):
        taught = []
        for scored, (seen, fused) in lessons.items():
            teacher = trials.folder / names[scored]
            teacher.mkdir(exist_ok=True)
            write_out_of_fold(teacher, ids[seen].tolist(), texts[seen].tolist(), fused, corpus.label_names)
            taught.append(one_a_fold(flags | {"distill_from": str(teacher)}, recipe.cv_folds, seed, STUDENT)[scored])
        trials.train(taught)
        for member in taught:
            shutil.rmtree(member.overrides["distill_from"])
    return trials.collect(taught, ids, "test")


def bagged_votes(overrides: dict[str, dict], probabilities: np.ndarray) -> dict[str, np.ndarray]:
    """Return the votes of bagged members that have a twin without bagging, and the votes of their twins.

    Args:
        overrides: Flags of the members, by name.
        probabilities: `(members, rows, labels)`.
    """
    names = list(overrides)
    plain = {name: {**flags, "bagging": False} for name, flags in overrides.items()}
    pairs = [
        (names.index(bagged), names.index(like))
        for bagged in names
        for like in names
        if overrides[bagged].get("bagging") and not overrides[like].get("bagging") and plain[bagged] == plain[like]
    ]
    if len(pairs) < 2:
        return {}
    bagged, likes = map(list, zip(*pairs, strict=True))
    return plain_votes(f"{len(pairs)} bagged", probabilities[bagged]) | plain_votes(
        f"the same {len(pairs)}, not bagged", probabilities[likes]
    )
