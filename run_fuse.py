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
    student: {}                        # flags of one model that learns what the ensemble says, for the table; optional
    without: {Child-Tuning: [bagged]}  # members to do without, for the table of what an ingredient brings; optional

Each is trained by cross-validation, for the figures, and once on all training rows, for the folder. Where members and
others that differ from them by `bagging` alone are both there, the votes of either stand in the table. The student's
targets for a row are from members that did not see that row; but they did see the fold that the student is scored on,
so its figure is too high. Trainings are kept in --members_dir by the hash of what decides their result, as
run_compare.py's are. With --members, output folders of run_classify.py are fused that are there already: the figures
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
--results_dir, too, before its members are trained on all rows.
"""

import argparse
import logging
import shutil
from pathlib import Path

import numpy as np

from baselines.tfidf import held_out_probabilities
from trainer_ext import run_folder
from trainer_ext.arguments import corpus_arguments
from trainer_ext.comparison import compare
from trainer_ext.corpora import check_trainable, cross_validation_folds, load_corpus
from trainer_ext.distillation import write_out_of_fold
from trainer_ext.errors import InputError, run_command
from trainer_ext.fusion import FUSIONS, fuse_cross_fitted
from trainer_ext.fusion_folder import (
    check_names,
    compare_folders,
    compare_fusions,
    plain_votes,
    read_members,
    save_ensemble,
    voters,
    write_fused_predictions,
)
from trainer_ext.members import (
    OWN,
    RUN,
    SHARED,
    Member,
    Members,
    check_flags,
    flags_given,
    one_a_fold,
    read_variants,
    resolve,
)
from trainer_ext.model_card import write_ensemble_card
from trainer_ext.plots import plot_comparison, plot_reliability

KEYS = ("cv_folds", "tfidf", "student", "without")  # of a recipe, besides what it shares and its members
TFIDF = "TF-IDF + logistic regression"
STUDENT, ENSEMBLE = "student", "the ensemble"
OPTIMISTIC = "student (its teachers saw the fold)"  # what the student's figure is called
logger = logging.getLogger("run_fuse")


def main() -> None:
    args, rest = parser().parse_known_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if (args.recipe is None) == (args.members is None):
        raise InputError("give either a recipe, whose members are trained, or --members FOLDER FOLDER …")
    run_folder.check_usable(args.output_dir, {}, args.overwrite_output_dir)
    command = run_folder.command_line()
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
        figures, out_of_fold = compare_folders(members, args.fusion), None
        print_figures(figures)
        kept = picked(figures)
        members = [member for member in members if member.name in kept]
    else:
        measured = cross_validate(args, flags_given(rest))
        if measured is None:
            return
        driver, whole, figures, out_of_fold = measured
        results_dir = args.results_dir or Path("results") / "fuse" / args.recipe.stem
        results_dir.mkdir(parents=True, exist_ok=True)
        write_figures(results_dir, figures | {"command": command})  # before the members themselves are trained
        print(f"figures in {results_dir}/")
        whole = {name: whole[name] for name in picked(figures)}
        driver.train(list(whole.values()), keep_models=True)
        members = read_members([driver.path(member) / RUN for member in whole.values()], list(whole))
    run_folder.start(args.output_dir, {}, args.overwrite_output_dir)
    with run_folder.staged(args.output_dir) as folder:
        save_ensemble(folder, members, args.fusion, figures)
        write_fused_predictions(folder, members, args.fusion, figures)
        if out_of_fold is not None:
            write_out_of_fold(folder, *out_of_fold)
        write_figures(folder, figures | {"command": command})
        write_ensemble_card(folder / "README.md", args.output_dir.name, members, figures, command)
        results = {"members": len(members), "rows": figures["rows"], "temperature": figures["temperature"]}
        run_folder.write_json(folder / run_folder.RESULTS, results)
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
    made.add_argument("--members_dir", type=Path, default=Path("results/members"), help="default: results/members")
    made.add_argument("--results_dir", type=Path, help="for a recipe's figures (default: results/fuse/RECIPE)")
    made.add_argument("--jobs", type=int, help="trainings at a time (default: one a GPU, or one)")
    made.add_argument("--plan", action="store_true", help="say how many trainings and hours it would take; train none")
    return made


def cross_validate(
    args: argparse.Namespace, flags: dict
) -> tuple[Members, dict[str, Member], dict, tuple[list[str], list[str], np.ndarray, list[str]]] | None:
    """What cross-validation says of the recipe's members, of their fusion and of the student.

    Returns:
        What trains them; the trainings on all rows, by name, not done yet; the figures; what [`write_out_of_fold`]
        wants. With `--plan`, says what all that takes, trains none, and returns nothing.
    """
    # ---- Recipe ---------------------------------------------------------------------------------------------------
    barred = (OWN | SHARED) - {"seed"}
    settings, overrides, rest = read_variants(args.recipe, "members", KEYS, barred)
    shared, folds = settings | flags, rest.get("cv_folds", 5)
    students = {STUDENT: rest[STUDENT] or {}} if STUDENT in rest else {}
    check_flags(students, settings, barred, args.recipe, "members")
    if any("program" in flags for flags in (shared, *(overrides | students).values())):
        raise InputError(f"{args.recipe}: program is for run_compare.py; an ensemble's members are run_classify.py's")
    if taken := sorted(OWN & shared.keys()):
        hint = "; give each member its own" if taken[0] == "seed" else "; see --help"
        raise InputError(f"{args.recipe}: {taken[0]} is not for what run_fuse.py's members share{hint}")
    first = resolve(shared, str(args.recipe))
    corpus = load_corpus(**corpus_arguments(first[1], first[0]))
    check_trainable(corpus)
    gold, rows = corpus.classes("train"), corpus.splits["train"]
    if gold.ndim == 2:
        raise InputError(f"{corpus.source}: gives several classes a row; a vote is on one")
    groups = rows["group"][:] if "group" in rows.column_names else None
    assigned = cross_validation_folds(corpus, folds)

    driver = Members(args.members_dir, shared, corpus, str(args.recipe), args.jobs)
    held_out, whole = {}, {}
    check_names(list(overrides))
    without = rest.get("without") or {}
    for what, left_out in without.items():
        if not isinstance(left_out, list) or not set(left_out) < overrides.keys():
            raise InputError(
                f"{args.recipe}, without, {what}: {left_out!r}; want a list of some of the members "
                f"({', '.join(overrides)}), not of all"
            )
    if len(overrides) < 2:
        raise InputError(f"{args.recipe}: one member; an ensemble needs at least two")
    for name, of_member in (overrides | students).items():
        if of_member.get("select", shared.get("select")) == "best_on_dev":
            raise InputError(f"{args.recipe}, {name}: select best_on_dev is for single models; fix the epochs here")
    for name, of_member in overrides.items():
        of_member = dict(of_member)
        seed = of_member.pop("seed", 1)
        held_out[name] = one_a_fold(of_member, folds, seed, name)
        whole[name] = Member(of_member, None, seed, f"{name}, seed {seed}, all rows")
    if args.plan:
        every = [*(member for of_name in held_out.values() for member in of_name), *whole.values()]
        beside = f", and {folds} of the student" if students else ""
        print(f"{len(whole)} members, {folds} folds and all rows: {driver.plan(every)}{beside}")
        return None

    # ---- What cross-validation says -------------------------------------------------------------------------------
    driver.train([member for of_name in held_out.values() for member in of_name])
    probabilities = np.stack([driver.collect(of_name, rows["id"][:], "test") for of_name in held_out.values()])
    names = list(whole)
    further = bagged_votes(overrides, probabilities)
    if rest.get("tfidf"):
        texts = np.array(rows["text"][:], dtype=object)
        further[TFIDF] = held_out_probabilities(texts, gold, groups, assigned, len(corpus.label_names), seed=1)
        further |= plain_votes(f"with {TFIDF}", np.concatenate([probabilities, further[TFIDF][None]]))

    def figures_and_fused() -> tuple[dict, np.ndarray]:
        figures, fused = compare_fusions(
            names, probabilities, gold, groups, assigned, corpus.label_names, args.fusion, further
        )
        return figures | {"scored_on": f"training rows, {folds}-fold cross-validation,"}, fused

    figures, fused = figures_and_fused()
    print_figures(figures)
    against = {ENSEMBLE: fused}
    for what, left_out in without.items():
        others = probabilities[[name not in left_out for name in names]]
        against[f"without {what}"] = fuse_cross_fitted(args.fusion, others, gold, assigned)
    out_of_fold = (rows["id"][:], rows["text"][:], fused, corpus.label_names)
    if students:
        teacher = args.members_dir / f"teacher-{run_folder.digest(fused.tolist())}"
        teacher.mkdir(exist_ok=True)
        write_out_of_fold(teacher, *out_of_fold)
        of_student = students[STUDENT] | {"distill_from": str(teacher)}
        taught = one_a_fold(of_student, folds, of_student.pop("seed", 1), STUDENT)
        driver.train(taught)
        shutil.rmtree(teacher)
        against[OPTIMISTIC] = further[OPTIMISTIC] = driver.collect(taught, rows["id"][:], "test")
        figures, _ = figures_and_fused()
    systems = {name: values[None] for name, values in against.items()}
    figures["against_the_ensemble"] = compare(systems, gold, groups, corpus.label_names)
    print_figures({"variants": figures["against_the_ensemble"]})
    return driver, whole, figures, out_of_fold


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
    run_folder.write_json(folder / "fusion.json", figures)
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
