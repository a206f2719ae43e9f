"""Late fusion: combine several models by a vote into one model, one folder and one pipeline (paper, section 2.4).

    python run_fuse.py recipes/fuse/wassa2022.yaml --data_dir FOLDER --output_dir outputs/ensemble
    python run_fuse.py --members outputs/a outputs/b outputs/c --output_dir outputs/ensemble

A vote beats a single model if its members differ in more than the seed. A recipe trains the members:

    recipe: ../plain.yaml              # flags of run_classify.py that all share, relative to this file; optional
    settings: {num_train_epochs: 4}    # more shared flags; optional
    members:
      mean: {}
      "[CLS]": {pooling: cls, seed: 2}
      bagged: {bagging: true, child_tuning: F, seed: 3}
    cv_folds: 5                        # optional
    tfidf: true                        # also TF-IDF + logistic regression, alone and as a voter; optional
    final: {train_on_validation: true} # more flags of the members that go into the folder; optional
    student: {}                        # flags of one model that learns from the members' predictions; optional
    teachers: [mean, bagged]           # members that the student learns from; optional, by default all
    without: {Child-Tuning: [bagged]}  # members to leave out, to show what an ingredient brings; optional

Each member is trained by cross-validation, for the figures, and once on all training rows, for the folder (`final` can
add the validation rows, once rate and epochs are fixed). If some members differ only in `bagging`, the table has the
votes of both groups. The student is cross-validated, too. Its soft labels come from teachers that trained on neither
the row's fold nor the scored fold, which takes 10 extra trainings per teacher with 5 folds. Trainings are stored in
--trials_dir under a hash of what decides their result, as for run_compare.py.

--members fuses finished output folders of run_classify.py instead. The figures are then about the labelled rows of
their predictions.tsv: validation rows if there are any, else test rows. Sizes and tokenizers may differ, but not the
labels.

--fusion is the rule of the ensemble:

    hard       majority of the members' decisions; ties go to the higher mean probability (the paper's)
    soft       mean of their probabilities
    weighted   mean with weights fitted to the labelled rows
    selected   greedy ensemble selection on the labelled rows; members that it never picks are not in the folder

All four rules are compared. Fitted rules are scored on writers that they were not fitted on. The folder's weights and
temperature are fitted on all rows.

The folder contains the ensemble (config.json, model.safetensors, code, tokenizers), fusion.json with the figures, a
plot, a reliability diagram and a card. It also has the ensemble's predictions (predictions.tsv, predictions_EMO.tsv) on
the rows that all members predicted. Load it with AutoModelForSequenceClassification or pipeline("text-classification"),
with trust_remote_code=True. A recipe's figures and plots are also written to --results_dir, before its members are
trained on all rows. The predictions.parquet there contains all predictions, so the figures can be recomputed without
training.
"""

from trainer_ext.front_door import check_flags

if __name__ == "__main__":
    check_flags("run_fuse")  # --help and wrong flags end here; the imports below take seconds

import argparse
import logging
import sys
from collections.abc import Collection
from pathlib import Path

import numpy as np

from trainer_ext.baselines.probe import held_out_probabilities
from trainer_ext.data.corpus import Corpus
from trainer_ext.data.folds import check_trainable, cross_validation_folds
from trainer_ext.data.load import corpus_arguments, load_corpus
from trainer_ext.errors import InputError, run_command
from trainer_ext.escape import one_line
from trainer_ext.evaluation.comparison import compare
from trainer_ext.evaluation.fusion import FUSIONS, compare_fusions, fuse_cross_fitted, plain_votes, voters
from trainer_ext.evaluation.plots import plot_comparison, plot_reliability
from trainer_ext.files import RESULTS, check_free, claim, write_json
from trainer_ext.recipes import CardArguments, add_card_flags
from trainer_ext.release.ensemble_folder import (
    compare_folders,
    read_members,
    restricting_terms,
    save_ensemble,
    write_ensemble_card,
    write_fused_predictions,
)
from trainer_ext.runs.fusion_recipe import (
    STUDENT,
    FusionRecipe,
    bagged_votes,
    cross_validate_student,
    read_fusion_recipe,
)
from trainer_ext.runs.provenance import command_line, recipe_digest
from trainer_ext.runs.run import check_usable, staged, start
from trainer_ext.runs.trial import one_a_fold
from trainer_ext.runs.trial_archive import ARCHIVE, archives_for
from trainer_ext.runs.trials import RUN, Trials, add_trials_dir
from trainer_ext.runs.variants import flags_given, resolve
from trainer_ext.training.distillation import write_out_of_fold

TFIDF = "TF-IDF + logistic regression"
TEACHERS, ENSEMBLE = "the student's teachers", "the ensemble"
logger = logging.getLogger("run_fuse")


def main() -> None:
    # ---- Flags ----------------------------------------------------------------------------------------------------
    args, rest = parser().parse_known_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    check_arguments(args, rest)
    command, card = command_line(), CardArguments(language=args.language, license=args.license)
    made_by = {"command": command, "recipe": recipe_digest(sys.argv[1:])}

    # ---- Members, and what each rule scores (paper, section 2.4; rules: ensemble_emodeberta.py) ---------------------
    if args.members is not None:
        members = read_members(args.members, args.names)
        card.check_terms("one of the members", restricting_terms(members))
        figures = compare_folders(members, args.fusion)
        print_figures(figures)
        kept = picked(figures)
        members = [member for member in members if member.name in kept]
    else:
        recipe = read_fusion_recipe(args.recipe, flags_given(rest))
        corpus = load_target(recipe)
        card.check_terms(corpus.source, corpus.licence)
        results_dir = args.results_dir or Path("results") / "fuse" / args.recipe.stem
        archives = archives_for(results_dir)
        trials = Trials(args.trials_dir, recipe.shared, corpus, str(args.recipe), args.jobs, archives)
        if args.plan:
            print(recipe.plan(trials))
            return
        claim(args.output_dir)  # reserve it now, hours before it is written
        figures, fused = cross_validate(recipe, trials, corpus, args.fusion)
        print_figures(figures)
        print_figures({"variants": figures["against_the_ensemble"]})
        results_dir.mkdir(parents=True, exist_ok=True)
        trials.write_archive(results_dir / ARCHIVE)
        write_figures(results_dir, figures | made_by)  # before the members are trained on all rows
        print(f"figures in {results_dir}/")
        whole = {name: recipe.on_all_rows(name) for name in picked(figures)}
        trials.train(list(whole.values()), keep_models=True)
        members = read_members([trials.path(member) / RUN for member in whole.values()], list(whole))

    # ---- One folder, one repository -------------------------------------------------------------------------------
    start(args.output_dir, {}, args.overwrite_output_dir)
    with staged(args.output_dir) as folder:
        save_ensemble(folder, members, args.fusion, figures)
        write_fused_predictions(folder, members, args.fusion, figures)
        if args.recipe is not None:
            rows = corpus.splits["train"]
            write_out_of_fold(folder, rows["id"][:], rows["text"][:], fused, corpus.label_names)
        write_figures(folder, figures | made_by)
        write_ensemble_card(folder / "README.md", args.output_dir.resolve().name, members, figures, command, card)
        results = {"members": len(members), "rows": figures["rows"], "temperature": figures["temperature"]}
        write_json(folder / RESULTS, results)
    print(f"saved to {args.output_dir}/")


def check_arguments(args: argparse.Namespace, rest: list[str]) -> None:
    """Check that the arguments fit together.

    Args:
        rest: The flags of run_classify.py.

    Raises:
        InputError: if they do not.
    """
    if (args.recipe is None) == (args.members is None):
        raise InputError("give either a recipe, whose members are trained, or --members FOLDER FOLDER …")
    check_usable(args.output_dir, {}, args.overwrite_output_dir)
    check_free(args.output_dir)
    if args.recipe is not None:
        if args.names:
            raise InputError("--names is for --members; a recipe names its own")
        return
    for name in ("plan", "results_dir", "trials_dir", "jobs"):
        if getattr(args, name) != parser().get_default(name):
            raise InputError(f"--{name} is for a recipe; with --members nothing is trained")
    for folder in args.members:
        if folder.resolve().is_relative_to(args.output_dir.resolve()):
            raise InputError(f"--output_dir {args.output_dir}: {folder} is a member; give another")
    if rest:
        raise InputError(f"unknown argument {rest[0]!r}; with --members nothing is trained, see --help")
    if len(args.members) < 2:
        raise InputError("--members: an ensemble needs at least two")
    seen = [folder.resolve() for folder in args.members]
    if twice := [str(folder) for folder in args.members if seen.count(folder.resolve()) > 1]:
        raise InputError(f"--members {' '.join(twice)}: are one folder; want a different model each")


def load_target(recipe: FusionRecipe) -> Corpus:
    """Return the corpus that the members are trained and scored on.

    Raises:
        InputError: if it cannot be read, or its rows may have several labels.
    """
    model_args, data_args, *_ = resolve(recipe.shared, str(recipe.path))
    corpus = load_corpus(**corpus_arguments(data_args, model_args.hub_access()))
    check_trainable(corpus)
    if corpus.classes("train").ndim == 2:
        raise InputError(f"{corpus.source}: gives several classes a row; a vote is on one")
    return corpus


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s RECIPE.yaml --output_dir FOLDER [--flag of run_classify.py value ...]\n"
        "       %(prog)s --members FOLDER FOLDER ... --output_dir FOLDER",
        allow_abbrev=False,
    )
    made.add_argument("recipe", type=Path, nargs="?", metavar="RECIPE.yaml", help="members to train; see above")
    made.add_argument("--members", nargs="+", type=Path, metavar="FOLDER", help="finished folders to fuse; see above")
    made.add_argument("--names", nargs="+", help="names for --members (default: the folders' names)")
    made.add_argument(
        "--fusion", choices=FUSIONS, default="hard", help="rule of the ensemble, see above (default: hard)"
    )
    made.add_argument("--output_dir", type=Path, required=True, help="folder for the ensemble")
    made.add_argument("--overwrite_output_dir", action="store_true", help="replace an ensemble in --output_dir")
    add_trials_dir(made)
    made.add_argument("--results_dir", type=Path, help="folder for a recipe's figures (default: results/fuse/RECIPE)")
    add_card_flags(made)
    made.add_argument("--jobs", type=int, help="trainings at a time (default: one per GPU, or one on CPU)")
    made.add_argument("--plan", action="store_true", help="print how many trainings and hours it would take, and stop")
    return made


def cross_validate(recipe: FusionRecipe, trials: Trials, corpus: Corpus, rule: str) -> tuple[dict, np.ndarray]:
    """Return the cross-validated figures of the recipe's members, their fusions and the student.

    Args:
        rule: The fusion rule of the ensemble.

    Returns:
        The figures as JSON values, and the ensemble's probabilities `(rows, labels)`, each row's from members that did
        not train on it.
    """
    gold, rows = corpus.classes("train"), corpus.splits["train"]
    groups = rows["group"][:] if "group" in rows.column_names else None
    assigned = cross_validation_folds(corpus, recipe.cv_folds)
    names = list(recipe.members)
    held_out = [one_a_fold(*recipe.member(name)) for name in names]
    trials.train([member for of_folds in held_out for member in of_folds])
    probabilities = np.stack([trials.collect(of_folds, rows["id"][:], "test") for of_folds in held_out])
    further = bagged_votes(recipe.members, probabilities)
    if recipe.tfidf:
        texts = np.array(rows["text"][:], dtype=object)
        further[TFIDF] = held_out_probabilities(texts, gold, groups, assigned, len(corpus.label_names), seed=1)
        further |= plain_votes(f"with {TFIDF}", np.concatenate([probabilities, further[TFIDF][None]]))

    if recipe.student is not None:
        further[STUDENT] = cross_validate_student(recipe, trials, corpus, assigned, rule)
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


def picked(figures: dict) -> list[str]:
    """Return the names of the members that belong in the folder, and print the names of the others."""
    names = list(voters(figures))
    if left_out := [name for name in figures["members"] if name not in names]:
        print(f"never picked, so not in the folder: {', '.join(left_out)}", flush=True)
    return names


def write_figures(folder: Path, figures: dict) -> None:
    """Write fusion.json and, if there were labelled rows, the plots."""
    write_json(folder / "fusion.json", figures)
    if figures["variants"]:
        plot_comparison(folder / "fusion.json", folder / "fusion.png")
        plot_reliability(folder / "fusion.json", folder / "reliability.png")


def print_figures(figures: dict) -> None:
    """Print macro F1 of each row of the table, if there were labelled rows."""
    for row in figures["variants"]:
        low, high = row["interval"]
        print(f"{one_line(row['name']):40} macro F1 {row['macro_f1']:.3f} ({low:.3f} to {high:.3f})", flush=True)


if __name__ == "__main__":
    run_command(main)
