"""Late fusion: the vote of several models as one model, in one folder, behind one pipeline (paper, section 2.4).

    python run_fuse.py recipes/fuse/wassa2022.yaml --data_dir ../shared/data --output_dir outputs/ensemble
    python run_fuse.py --members outputs/a outputs/b outputs/c --output_dir outputs/ensemble

Members that differ in more than the seed are what makes a vote better than one model. A recipe trains them:

    recipe: ../plain.yaml              # flags of run_classify.py that all share, relative to this file; optional
    settings: {num_train_epochs: 4}    # more of them; optional
    members:
      mean: {}
      "[CLS]": {pooling: cls, seed: 2}
      bagged: {bagging: true, child_tuning: F, seed: 3}
    cv_folds: 5                        # optional
    tfidf: true                        # TF-IDF + logistic regression in the table, alone and as a voter; optional
    student: {}                        # flags of one model that learns what members say, for the table; optional
    teachers: [mean, bagged]           # of the student in the table; optional, all members if not given
    without: {Child-Tuning: [bagged]}  # members to do without, for the table of what an ingredient brings; optional

Each is trained by cross-validation, for the figures, and once on all training rows, for the folder. Where members and
others that differ from them by `bagging` alone are both there, the votes of either stand in the table. The student that
is scored on one fold learns, of each other fold, what teachers say that saw neither: with 5 folds that takes 10 more
trainings a teacher. Trainings are kept in --trials_dir by the hash of what decides their result, as run_compare.py's
are. With --members, output folders of run_classify.py are fused that are there already: the figures
are then about the labelled rows of their predictions.tsv, of validation if there are some, else of test. Sizes and
tokenizers may differ, labels may not.

--fusion is the rule that the folder keeps:

    hard       majority of the members' decisions; ties go to the higher mean probability (the paper's)
    soft       mean of their probabilities
    weighted   mean with weights fitted to the labelled rows
    selected   greedy ensemble selection on the labelled rows; members that it never picks stay out of the folder

All four are compared, what is fitted on writers that it is not scored on; the folder gets the weights and the
temperature fitted on all rows. It holds the ensemble (config.json, model.safetensors, code, tokenizers), fusion.json
with the figures, a plot, a reliability diagram, a card, and what the ensemble says of the rows that all members'
predictions.tsv hold (predictions.tsv, predictions_EMO.tsv); AutoModelForSequenceClassification and
pipeline("text-classification") load it with trust_remote_code=True. A recipe's figures and pictures are in
--results_dir, too, before its members are trained on all rows; predictions.parquet there has the predictions of every
training, from which the figures are computed again without training.
"""

import argparse
import logging
import shutil
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from baselines.tfidf import held_out_probabilities
from trainer_ext.data.corpus import Corpus
from trainer_ext.data.folds import check_trainable, cross_validation_folds
from trainer_ext.data.load import corpus_arguments, load_corpus
from trainer_ext.errors import InputError, run_command
from trainer_ext.evaluation.comparison import compare
from trainer_ext.evaluation.fusion import FUSIONS, fuse_cross_fitted
from trainer_ext.evaluation.fusion_table import check_names, compare_fusions, plain_votes, voters
from trainer_ext.evaluation.plots import plot_comparison, plot_reliability
from trainer_ext.files import RESULTS, check_free, claim, digest, lock, write_json
from trainer_ext.release.ensemble_folder import compare_folders, read_members, save_ensemble, write_fused_predictions
from trainer_ext.release.model_card import write_ensemble_card
from trainer_ext.runs.provenance import command_line
from trainer_ext.runs.run import check_usable, staged, start
from trainer_ext.runs.trial import Trial, one_a_fold, one_each_two_folds
from trainer_ext.runs.trial_archive import ARCHIVE
from trainer_ext.runs.trials import RUN, Trials, add_trials_dir, archives_for
from trainer_ext.runs.variants import OWN, SHARED, check_flags, flags_given, read_variants, resolve
from trainer_ext.training.distillation import write_out_of_fold

KEYS = ("cv_folds", "tfidf", "student", "teachers", "without")  # of a recipe, besides what it shares and its members
TFIDF = "TF-IDF + logistic regression"
STUDENT, TEACHERS, ENSEMBLE = "student", "the student's teachers", "the ensemble"
logger = logging.getLogger("run_fuse")


def main() -> None:
    args, rest = parser().parse_known_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if (args.recipe is None) == (args.members is None):
        raise InputError("give either a recipe, whose members are trained, or --members FOLDER FOLDER …")
    check_usable(args.output_dir, {}, args.overwrite_output_dir)
    check_free(args.output_dir)
    command = command_line()
    if args.recipe is not None and args.names:
        raise InputError("--names is for --members; a recipe names its own")
    if args.recipe is None:
        if args.plan:
            raise InputError("--plan is for a recipe; with --members nothing is trained")
        for folder in args.members:
            if folder.resolve().is_relative_to(args.output_dir.resolve()):
                raise InputError(f"--output_dir {args.output_dir}: {folder} is a member; give another")
        if rest:
            raise InputError(f"unknown argument {rest[0]!r}; with --members nothing is trained, see --help")
        if len(args.members) < 2:
            raise InputError("--members: an ensemble needs at least two")
        members = read_members(args.members, args.names)
        figures = compare_folders(members, args.fusion)
        print_figures(figures)
        kept = picked(figures)
        members = [member for member in members if member.name in kept]
    else:
        recipe = read_fusion_recipe(args.recipe, flags_given(rest))
        first = resolve(recipe.shared, str(args.recipe))
        corpus = load_corpus(**corpus_arguments(first[1], first[0].cache_dir, first[0].token))
        check_trainable(corpus)
        if corpus.classes("train").ndim == 2:
            raise InputError(f"{corpus.source}: gives several classes a row; a vote is on one")
        results_dir = args.results_dir or Path("results") / "fuse" / args.recipe.stem
        archives = archives_for(results_dir)
        driver = Trials(args.trials_dir, recipe.shared, corpus, str(args.recipe), args.jobs, archives)
        if args.plan:
            print(plan(recipe, driver))
            return
        claim(args.output_dir)  # for the hours before the folder is written
        figures, fused = cross_validate(recipe, driver, corpus, args.fusion)
        print_figures(figures)
        print_figures({"variants": figures["against_the_ensemble"]})
        results_dir.mkdir(parents=True, exist_ok=True)
        write_figures(results_dir, figures | {"command": command})  # before the members themselves are trained
        driver.write_archive(results_dir / ARCHIVE)
        print(f"figures in {results_dir}/")
        whole = {name: recipe.on_all_rows(name) for name in picked(figures)}
        driver.train(list(whole.values()), keep_models=True)
        members = read_members([driver.path(member) / RUN for member in whole.values()], list(whole))
    start(args.output_dir, {}, args.overwrite_output_dir)
    with staged(args.output_dir) as folder:
        save_ensemble(folder, members, args.fusion, figures)
        write_fused_predictions(folder, members, args.fusion, figures)
        if args.recipe is not None:
            rows = corpus.splits["train"]
            write_out_of_fold(folder, rows["id"][:], rows["text"][:], fused, corpus.label_names)
        write_figures(folder, figures | {"command": command})
        write_ensemble_card(folder / "README.md", args.output_dir.name, members, figures, command)
        results = {"members": len(members), "rows": figures["rows"], "temperature": figures["temperature"]}
        write_json(folder / RESULTS, results)
    print(f"saved to {args.output_dir}/")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s RECIPE.yaml --output_dir FOLDER [--flag of run_classify.py value ...]\n"
        "       %(prog)s --members FOLDER FOLDER ... --output_dir FOLDER",
        allow_abbrev=False,
    )
    made.add_argument("recipe", type=Path, nargs="?", metavar="RECIPE.yaml", help="members to train; see above")
    made.add_argument("--members", nargs="+", type=Path, metavar="FOLDER", help="members that are there; see above")
    made.add_argument("--names", nargs="+", help="what to call --members (default: the folders' names)")
    made.add_argument("--fusion", choices=FUSIONS, default="hard", help="the folder's rule (default: hard)")
    made.add_argument("--output_dir", type=Path, required=True, help="where the ensemble goes")
    made.add_argument("--overwrite_output_dir", action="store_true", help="replace an ensemble that is there")
    add_trials_dir(made)
    made.add_argument("--results_dir", type=Path, help="for a recipe's figures (default: results/fuse/RECIPE)")
    made.add_argument("--jobs", type=int, help="trainings at a time (default: one a GPU, or one)")
    made.add_argument("--plan", action="store_true", help="say how many trainings and hours it would take; train none")
    return made


@dataclass
class Recipe:
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


def read_fusion_recipe(path: Path, flags: dict) -> Recipe:
    """The recipe, with `flags` of the command line over those that members share.

    Raises:
        InputError: for what does not fit; says what would.
    """
    barred = (OWN | SHARED) - {"seed"}
    settings, members, rest = read_variants(path, "members", KEYS, barred)
    if STUDENT in rest:
        rest[STUDENT] = rest[STUDENT] or {}  # `student:` alone shares all flags with the members
    recipe = Recipe(path, settings | flags, members, **{key: value for key, value in rest.items() if value is not None})
    students = {} if recipe.student is None else {STUDENT: recipe.student}
    check_flags(students, settings, barred, path, "members")
    if any("program" in of_one for of_one in (recipe.shared, *members.values(), *students.values())):
        raise InputError(f"{path}: program is for run_compare.py; an ensemble's members are run_classify.py's")
    if taken := sorted(OWN & recipe.shared.keys()):
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


def plan(recipe: Recipe, driver: Trials) -> str:
    """How many trainings the recipe takes, and about how long those that are not done."""
    names, folds = list(recipe.members), recipe.cv_folds
    every = [member for name in names for member in [*one_a_fold(*recipe.member(name)), recipe.on_all_rows(name)]]
    beside = ""
    if recipe.student is not None:
        every += [m for name in recipe.teachers for m in one_each_two_folds(*recipe.member(name)).values()]
        teachers = f"{len(recipe.teachers)} teacher{'s' * (len(recipe.teachers) > 1)}"
        beside = f", {teachers} without each two folds; and {folds} of the student"
    return f"{len(names)} members, {folds} folds and all rows{beside}: {driver.plan(every)}"


def cross_validate(recipe: Recipe, driver: Trials, corpus: Corpus, rule: str) -> tuple[dict, np.ndarray]:
    """What cross-validation says of the recipe's members, of their fusions and of the student.

    Args:
        rule: Of the folder.

    Returns:
        The figures; and `(rows, labels)`, what the folder's rule says, of each row by members that did not see it.
    """
    gold, rows = corpus.classes("train"), corpus.splits["train"]
    groups = rows["group"][:] if "group" in rows.column_names else None
    assigned = cross_validation_folds(corpus, recipe.cv_folds)
    names = list(recipe.members)
    held_out = [one_a_fold(*recipe.member(name)) for name in names]
    driver.train([member for of_folds in held_out for member in of_folds])
    probabilities = np.stack([driver.collect(of_folds, rows["id"][:], "test") for of_folds in held_out])
    further = bagged_votes(recipe.members, probabilities)
    if recipe.tfidf:
        texts = np.array(rows["text"][:], dtype=object)
        further[TFIDF] = held_out_probabilities(texts, gold, groups, assigned, len(corpus.label_names), seed=1)
        further |= plain_votes(f"with {TFIDF}", np.concatenate([probabilities, further[TFIDF][None]]))

    if recipe.student is not None:
        further[STUDENT] = cross_validate_student(recipe, driver, corpus, assigned, rule)
    figures, fused = compare_fusions(names, probabilities, gold, groups, assigned, corpus.label_names, rule, further)
    figures["scored_on"] = f"training rows, {recipe.cv_folds}-fold cross-validation,"

    def fused_without(left_out: Collection[str]) -> np.ndarray:
        others = probabilities[[name not in left_out for name in names]]
        return fuse_cross_fitted(rule, others, gold, assigned)

    against = {ENSEMBLE: fused}
    against |= {f"without {what}": fused_without(left_out) for what, left_out in recipe.without.items()}
    if recipe.student is not None:
        if len(recipe.teachers) < len(names):
            against[TEACHERS] = fused_without(set(names) - set(recipe.teachers))
        against[STUDENT] = further[STUDENT]
    figures["against_the_ensemble"] = compare(
        {name: values[None] for name, values in against.items()}, gold, groups, corpus.label_names
    )
    return figures, fused


def cross_validate_student(
    recipe: Recipe, driver: Trials, corpus: Corpus, assigned: np.ndarray, rule: str
) -> np.ndarray:
    """What students say of the rows of the fold that neither they nor their teachers saw: `(rows, labels)`.

    A student that is scored on one fold learns, of the rows of each other fold, what teachers say that were trained
    without both.
    """
    gold, rows = corpus.classes("train"), corpus.splits["train"]
    ids, texts = (np.array(rows[name][:], dtype=object) for name in ("id", "text"))
    of_teachers = [one_each_two_folds(*recipe.member(name)) for name in recipe.teachers]
    driver.train([member for of_pairs in of_teachers for member in of_pairs.values()])
    flags = dict(recipe.student)
    seed = flags.pop("seed", 1)
    lessons = {}  # by the fold that the student is scored on, its rows and what its teachers say of them
    for scored in range(recipe.cv_folds):
        seen = assigned != scored
        said = [[member for pair, member in of_pairs.items() if scored in pair] for of_pairs in of_teachers]
        probabilities = np.stack([driver.collect(of_fold, ids[seen], "test") for of_fold in said])
        lessons[scored] = seen, fuse_cross_fitted(rule, probabilities, gold[seen], assigned[seen])
    # The same folders when a killed run goes on. Another run with these teachers waits, for its folders are these.
    names = {scored: f"teacher-{digest(fused.tolist())}" for scored, (_, fused) in lessons.items()}
    with lock(driver.folder / f".teachers-{digest(names)}.lock", "the student's teachers", "in use by another process"):
        taught = []
        for scored, (seen, fused) in lessons.items():
            teacher = driver.folder / names[scored]
            teacher.mkdir(exist_ok=True)
            write_out_of_fold(teacher, ids[seen].tolist(), texts[seen].tolist(), fused, corpus.label_names)
            taught.append(one_a_fold(flags | {"distill_from": str(teacher)}, recipe.cv_folds, seed, STUDENT)[scored])
        driver.train(taught)
        for member in taught:
            shutil.rmtree(member.overrides["distill_from"])
    return driver.collect(taught, ids, "test")


def bagged_votes(overrides: dict[str, dict], probabilities: np.ndarray) -> dict[str, np.ndarray]:
    """The votes of the bagged members whose like without bagging is a member, too, and of the latter."""
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


def picked(figures: dict) -> list[str]:
    """The members that the folder is to hold; says which others there are."""
    names = list(voters(figures))
    if left_out := [name for name in figures["members"] if name not in names]:
        print(f"never picked, so not in the folder: {', '.join(left_out)}", flush=True)
    return names


def write_figures(folder: Path, figures: dict) -> None:
    """fusion.json, and the plots if there were labelled rows."""
    write_json(folder / "fusion.json", figures)
    if figures["variants"]:
        plot_comparison(folder / "fusion.json", folder / "fusion.png")
        plot_reliability(folder / "fusion.json", folder / "reliability.png")


def print_figures(figures: dict) -> None:
    """Macro F1 of each member and each rule, where there are labelled rows."""
    for row in figures["variants"]:
        low, high = row["interval"]
        print(f"{row['name']:40} macro F1 {row['macro_f1']:.3f} ({low:.3f} to {high:.3f})", flush=True)


def command() -> None:
    """Console entry point."""
    run_command(main)


if __name__ == "__main__":
    command()
