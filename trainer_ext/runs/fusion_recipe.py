"""Recipes of run_fuse.py: the members of an ensemble, other systems to compare them with, and a student."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..data.corpus import Corpus
from ..errors import InputError
from ..evaluation.fusion import check_names, fuse_cross_fitted, plain_votes
from ..files import digest, lock
from ..recipe_file import DATA_FLAGS, DRIVER_FLAGS, FusionFile
from ..training.distillation import write_out_of_fold
from .trial import Trial, one_a_fold, one_each_two_folds
from .trials import Trials
from .variants import check_flags, check_teachers, read_variants

STUDENT = "student"


@dataclass
class FusionRecipe:
    """The checked content of a recipe file. Flags are those of run_classify.py, by name.

    Attributes:
        path: The file.
        shared: Flags that all members and the student share.
        members: By member name, the flags that differ from the shared ones.
        final: Flags of the members that go into the folder, beside their own. Their cross-validation does not have
            them.
        cv_folds, tfidf, without, student, teachers: As in the file.
    """

    path: Path
    shared: dict
    members: dict[str, dict]
    cv_folds: int = 5
    final: dict = field(default_factory=dict)
    tfidf: bool = False
    without: dict[str, list[str]] = field(default_factory=dict)
    student: dict | None = None
    teachers: list[str] = field(default_factory=list)

    def member(self, name: str) -> tuple[dict, int, int, str]:
        """Return a member's flags, folds, seed and name, as arguments for [`one_a_fold`] and [`one_each_two_folds`]."""
        flags = dict(self.members[name])
        seed = flags.pop("seed", 1)
        return flags, self.cv_folds, seed, name

    def on_all_rows(self, name: str) -> Trial:
        """Return the training of a member on all rows, for the ensemble folder."""
        flags, _, seed, _ = self.member(name)
        return Trial(flags | self.final, None, seed, name)

    def plan(self, trials: Trials) -> str:
        """Return a line that says how many trainings the recipe needs, and about how long the unfinished ones take."""
        every = [trial for name in self.members for trial in [*one_a_fold(*self.member(name)), self.on_all_rows(name)]]
        beside = ""
        if self.student is not None:
            every += [trial for name in self.teachers for trial in one_each_two_folds(*self.member(name)).values()]
            teachers = f"{len(self.teachers)} teacher{'s' * (len(self.teachers) > 1)}"
            beside = f", {teachers} without each two folds; and {self.cv_folds} of the student"
        return f"{len(self.members)} members, {self.cv_folds} folds and all rows{beside}: {trials.plan(every)}"


def read_fusion_recipe(path: Path, flags: dict) -> FusionRecipe:
    """Read a recipe. Command-line `flags` override the flags that the members share.

    Raises:
        InputError: if a key, a flag or a member is not valid.
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
    check_flags({"final": recipe.final}, settings, barred | {"seed"}, path, "members")
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
        check_teachers(recipe.shared | of_one, recipe.cv_folds, f"{path}, {name}")
    some = f"want a list of some of the members ({', '.join(members)})"
    for what, left_out in recipe.without.items():
        if not set(left_out) < members.keys():
            raise InputError(f"{path}, without, {what}: {left_out!r}; {some}, not of all")
    if not set(recipe.teachers) <= members.keys():
        raise InputError(f"{path}, teachers: {recipe.teachers!r}; {some}")
    if students and recipe.cv_folds < 3:
        raise InputError(f"{path}: a student's teachers train without two folds; want cv_folds of at least 3")
    recipe.teachers = recipe.teachers or list(members)
    return recipe


def cross_validate_student(
    recipe: FusionRecipe, trials: Trials, corpus: Corpus, assigned: np.ndarray, rule: str
) -> np.ndarray:
    """Return the students' probabilities `(rows, labels)` for rows that neither they nor their teachers trained on.

    For each fold there is a student, scored on that fold and trained on the others. The soft labels of a row come from
    teachers that trained on neither the row's fold nor the scored fold.

    Args:
        assigned: `(rows,)`, the fold of each training row.
        rule: One of the fusion rules, to fuse the teachers.
    """
    gold, rows = corpus.classes("train"), corpus.splits["train"]
    ids, texts = (np.array(rows[name][:], dtype=object) for name in ("id", "text"))
    of_teachers = [one_each_two_folds(*recipe.member(name)) for name in recipe.teachers]
    trials.train([member for of_pairs in of_teachers for member in of_pairs.values()])
    flags = dict(recipe.student)
    seed = flags.pop("seed", 1)
    lessons = {}  # by scored fold: the mask of the student's training rows, and the teachers' fused probabilities
    for scored in range(recipe.cv_folds):
        seen = assigned != scored
        said = [[member for pair, member in of_pairs.items() if scored in pair] for of_pairs in of_teachers]
        probabilities = np.stack([trials.collect(of_fold, ids[seen], "test") for of_fold in said])
        lessons[scored] = seen, fuse_cross_fitted(rule, probabilities, gold[seen], assigned[seen])
    # A resumed run uses the same folders. Another run with the same teachers waits, since it uses them too.
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
    """Return the hard and soft votes of the bagged members that have a twin without bagging, and those of the twins.

    Args:
        overrides: Flags by member name.
        probabilities: `(members, rows, labels)`.

    Returns:
        `(rows, labels)` by name; empty with fewer than two pairs of twins.
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
