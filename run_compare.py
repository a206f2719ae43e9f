"""Compare variants of a recipe by cross-validation: same folds, same seeds, paired differences.

    python run_compare.py recipes/compare/pooling.yaml --data_dir FOLDER
    python run_compare.py recipes/compare/pooling.yaml --data_dir FOLDER --plan
    python run_compare.py mine.yaml --train_file essays.csv --label_column_name emotion --group_column writer \\
        --cv_folds 10 --seeds 1 2 3

The YAML file lists the variants. Each is a set of flags of run_classify.py, or of baselines.mtl with the key `program`:

    recipe: ../plain.yaml              # flags that all share, a file relative to this one; optional
    settings: {num_train_epochs: 4}    # more shared flags, which override the recipe's; optional
    variants:
      mean of the token states: {}
      "[CLS]": {pooling: cls}
    sums:                              # extra rows, each the summed probabilities of several models; optional
      "[CLS], three seeds summed": {variants: ["[CLS]"], seeds: [1, 2, 3]}
    reference: mean of the token states   # the row to compare the others with; optional, by default the first
    seeds: [1]                         # optional, like cv_folds and columns; the flags below override them

All other flags are those of run_classify.py (see its --help) and apply to every variant that does not set them. Each
training is a process of its own, stored in --trials_dir under a hash of what decides its result. Finished trainings
are skipped, killed ones resume. Rows are divided into folds by writer (--group_column) and class. Each row is scored
by a model that did not train on its writer. A variant with --select best_on_dev chooses its epoch on 20% of its
training writers, never on the held-out fold.

The results are:

- comparison.json, comparison.md and comparison.png: the comparison, then the errors of one variant: confusions,
  contested rows, and F1 by --columns, with row ids but without texts
- predictions.parquet: the predictions of every training, from which the tables can be rebuilt without training
"""

from trainer_ext.front_door import check_flags

if __name__ == "__main__":
    check_flags("run_compare")  # --help and wrong flags end here; the imports below take seconds

import argparse
import json
import logging
from pathlib import Path

import numpy as np

from trainer_ext.baselines import mtl
from trainer_ext.data.folds import check_trainable, cross_validation_folds
from trainer_ext.data.load import corpus_arguments, load_corpus
from trainer_ext.errors import InputError, run_command
from trainer_ext.evaluation.comparison import compare
from trainer_ext.evaluation.error_analysis import analyse_errors
from trainer_ext.evaluation.pages import comparison_page, errors_section
from trainer_ext.evaluation.plots import plot_comparison
from trainer_ext.files import read_object, write_json, write_text
from trainer_ext.recipe_file import DATA_FLAGS, DRIVER_FLAGS, ComparisonFile
from trainer_ext.runs.provenance import command_line
from trainer_ext.runs.run import NOT_SETTINGS
from trainer_ext.runs.trial import Trial, one_a_fold
from trainer_ext.runs.trial_archive import ARCHIVE, archives_for
from trainer_ext.runs.trials import Trials, add_trials_dir
from trainer_ext.runs.variants import (
    CLASSIFY,
    check_teachers,
    extra_columns,
    flags_given,
    inner_validation,
    read_variants,
    resolve,
)

PROGRAMS = CLASSIFY | {"baselines.mtl": mtl.ARGUMENTS}


def main() -> None:
    # ---- Flags and recipe -----------------------------------------------------------------------------------------
    args, rest = parser().parse_known_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    content = read_comparison(args.comparison)
    output_dir = args.output_dir or Path("results") / "compare" / args.comparison.stem
    if args.variants is not None:
        keep_variants(content, args.variants, args.comparison)
    seeds = args.seeds or content["seeds"]
    folds = content["cv_folds"] if args.cv_folds is None else args.cv_folds
    if args.only_folds and not folds:
        raise InputError("--only_folds needs folds; leave out --cv_folds 0")
    columns = content["columns"] if args.columns is None else args.columns
    if len(set(seeds)) < len(seeds):
        raise InputError(f"seeds {' '.join(map(str, seeds))}: a seed is listed twice")
    names = [*content["variants"], *content["sums"]]
    errors_of = args.errors_of or content["reference"] or names[0]
    if errors_of not in names:
        raise InputError(f"--errors_of {errors_of}: no such variant; want one of {', '.join(names)}")
    shared = content["settings"] | flags_given(rest)
    if taken := sorted(DRIVER_FLAGS & shared.keys()):
        raise InputError(f"{args.comparison}: {taken[0]} is not for run_compare.py's variants; see --help")
    for name, overrides in content["variants"].items():
        check_teachers(shared | overrides, folds, f"{args.comparison}, {name}")
    settings = {key: value for key, value in shared.items() if key != "data_dir"}
    if not args.plan:
        check_not_fuller(output_dir / "comparison.json", names, seeds, folds, args.only_folds, settings)

    # ---- Data -----------------------------------------------------------------------------------------------------
    first = resolve(shared | next(iter(content["variants"].values())), str(args.comparison), PROGRAMS)
    read = [
        name
        for overrides in content["variants"].values()
        for name in extra_columns(shared | overrides, str(args.comparison), PROGRAMS)
    ]
    corpus = load_corpus(
        **corpus_arguments(first[1], first[0].hub_access()),
        extra_columns=list(dict.fromkeys([*columns, *read])),
    )
    check_trainable(corpus)
    split = "train" if folds else "validation"
    if split not in corpus.splits or "labels" not in corpus.splits[split].column_names:
        raise InputError(f"{corpus.source}: no labelled validation split to score on; leave out --cv_folds 0")
    rows = corpus.splits[split]
    only = sorted(set(args.only_folds or range(folds)))
    if folds:
        assigned = cross_validation_folds(corpus, folds)  # fails at once if there are too few writers
        if args.only_folds:
            if unknown := sorted(set(only) - set(range(folds))):
                raise InputError(f"--only_folds {unknown[0]}: with {folds} folds they are 0 to {folds - 1}")
            rows = rows.select(np.flatnonzero(np.isin(assigned, only)))
    groups = rows["group"][:] if "group" in rows.column_names else None

    # ---- Trainings ------------------------------------------------------------------------------------------------
    trials = Trials(
        args.trials_dir, shared, corpus, str(args.comparison), args.jobs, archives_for(output_dir), PROGRAMS
    )

    def one_a_seed(name: str, of_seeds: list[int]) -> list[list[Trial]]:
        """Return for each seed its trials, one per fold."""
        overrides = content["variants"][name]
        overrides = overrides | inner_validation(shared | overrides, folds, name)
        every = [one_a_fold(overrides, folds, seed, name) for seed in of_seeds]
        return [[of_seed[fold] for fold in only] if folds else of_seed for of_seed in every]

    variants = {name: one_a_seed(name, seeds) for name in content["variants"]}
    sums = {
        name: [of_seed for variant in row["variants"] for of_seed in one_a_seed(variant, row["seeds"])]
        for name, row in content["sums"].items()
    }
    rows_of = variants | sums
    if content["reference"] is not None:
        rows_of = {content["reference"]: rows_of.pop(content["reference"])} | rows_of
    every = [trial for of_row in rows_of.values() for of_seed in of_row for trial in of_seed]
    if args.plan:
        planned = trials.plan(every)  # before anything is printed, because a stage may be missing
        print(f"{len(variants)} variants, {folds or 'no'} folds, seeds {' '.join(map(str, seeds))}: {planned}")
        return
    trials.train(every)

    # ---- Figures --------------------------------------------------------------------------------------------------
    ids = rows["id"][:]
    systems = {
        name: np.stack([trials.collect(of_seed, ids, "test" if folds else "validation") for of_seed in of_row])
        for name, of_row in rows_of.items()
    }
    for name in sums:  # one system, repeated to match the number of seeds
        systems[name] = np.repeat(systems[name].mean(axis=0, keepdims=True), len(seeds), axis=0)
    gold = np.array(corpus.classes(split))[np.isin(assigned, only)] if folds else corpus.classes(split)
    table = compare(systems, gold, groups, corpus.label_names)
    for row, (name, of_row) in zip(table, rows_of.items(), strict=True):
        records = [trials.record(trial) for of_seed in of_row for trial in of_seed]
        whole = [record["seconds"] / 60 for record in records if not record["resumed"]]
        row["minutes_a_training"] = float(np.median(whole)) if whole else None
        row["last_training_loss"] = last_training_loss(records)
        row["overrides"] = content["variants"].get(name, content["sums"].get(name))
        row["trials"] = [trials.path(trial).name for of_seed in of_row for trial in of_seed]
    analysed = {name: rows[f"column_{name}"][:] for name in columns}
    result = {
        "name": args.comparison.stem,
        "command": command_line(),
        "source": corpus.source,
        "rows": len(rows),
        "grouped": groups is not None,
        "groups": len(set(groups or ids)),
        "folds": folds,
        **({"only_folds": only} if args.only_folds else {}),
        "seeds": seeds,
        "labels": corpus.label_names,
        "settings": settings,
        "machine": " and ".join(sorted({trials.record(trial)["machine"] for trial in every})),
        "libraries": libraries([trials.record(trial) for trial in every]),
        "variants": table,
        "errors": analyse_errors(systems, errors_of, gold, groups, corpus.label_names, ids, analysed),
    }
    output_dir.mkdir(parents=True, exist_ok=True)
    write_json(output_dir / "comparison.json", result)
    trials.write_archive(output_dir / ARCHIVE)
    page = comparison_page(result)
    write_text(output_dir / "comparison.md", page + errors_section(result["errors"]))
    print(page)
    plot_comparison(output_dir / "comparison.json", output_dir / "comparison.png")
    print(f"written to {output_dir}/")


def libraries(records: list[dict]) -> dict[str, str]:
    """Return the versions that the trainings used, by library."""
    return {
        name: ", ".join(sorted({record["libraries"][name] for record in records})) for name in records[0]["libraries"]
    }


def last_training_loss(records: list[dict]) -> float | None:
    """Return the mean of the last logged losses of the trainings, or `None` if one of them has none."""
    losses = [record.get("last_loss") for record in records]
    return None if None in losses else float(np.mean(losses))


def parser() -> argparse.ArgumentParser:
    """Return the parser of the comparison's own flags; flags of run_classify.py are parsed separately."""
    made = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s COMPARISON.yaml [--seeds N ...] [--cv_folds N] [--plan] [--flag of run_classify.py value ...]",
        allow_abbrev=False,
    )
    made.add_argument("comparison", type=Path, metavar="COMPARISON.yaml", help="the variants; see above")
    made.add_argument(
        "--seeds", type=int, nargs="+", help="seeds of the trainings (default: those of the file, else 1)"
    )
    made.add_argument(
        "--cv_folds",
        type=int,
        help="number of folds (default: 5); 0 trains once per seed on all rows and scores on the validation split",
    )
    made.add_argument(
        "--only_folds",
        type=int,
        nargs="+",
        metavar="N",
        help="train and score only these folds (from 0), for a quick look before the whole comparison",
    )
    made.add_argument("--variants", nargs="+", metavar="NAME", help="variants of the file to compare (default: all)")
    made.add_argument("--columns", nargs="*", help="columns of the data by which the errors break F1 down")
    made.add_argument("--errors_of", metavar="VARIANT", help="variant whose errors to analyse (default: the first)")
    made.add_argument("--plan", action="store_true", help="print how many trainings and hours it would take, and stop")
    made.add_argument(
        "--jobs",
        type=int,
        help="trainings at a time (default: one per GPU, or one on CPU). Several small models fit on one GPU; on CPU, "
        "two at a time finish earlier than one after the other",
    )
    made.add_argument("--output_dir", type=Path, help="default: results/compare/<name of the YAML file>")
    add_trials_dir(made)
    return made


def read_comparison(path: Path) -> dict:
    """Return the content of the YAML file as a dict, with defaults filled in.

    Raises:
        InputError: if something in the file does not fit.
    """
    settings, variants, file = read_variants(path, ComparisonFile, DRIVER_FLAGS | DATA_FLAGS, PROGRAMS)
    sums = {name: row.model_dump() for name, row in (file.sums or {}).items()}
    for name, row in sums.items():
        if name in variants:
            raise InputError(f"{path}, sums, {name}: a variant has this name")
        if unknown := [variant for variant in row["variants"] if variant not in variants]:
            raise InputError(
                f"{path}, sums, {name}: {unknown[0]!r}; want a sum with variants among {', '.join(variants)}"
            )
        if len(row["variants"]) * len(row["seeds"]) < 2:
            raise InputError(f"{path}, sums, {name}: a sum of one model; want two or more")
    content = {"settings": settings, "variants": variants, "sums": sums, "reference": file.reference}
    content |= {"seeds": file.seeds, "cv_folds": file.cv_folds, "columns": file.columns}
    check_reference(content, path)
    return content


def keep_variants(content: dict, names: list[str], path: Path) -> None:
    """Remove all variants but those in `names` from `content`, and the sums that need a removed variant.

    Raises:
        InputError: if the file does not have a variant.
    """
    if unknown := sorted(set(names) - set(content["variants"])):
        raise InputError(f"--variants {unknown[0]}: {path} has {', '.join(content['variants'])}")
    content["variants"] = {name: flags for name, flags in content["variants"].items() if name in names}
    content["sums"] = {name: row for name, row in content["sums"].items() if set(row["variants"]) <= set(names)}
    check_reference(content, path)


def check_not_fuller(
    path: Path, names: list[str], seeds: list[int], folds: int, only_folds: list[int] | None, settings: dict
) -> None:
    """Check that the new table has all that is in an earlier one, which it would overwrite with its predictions.

    Args:
        path: The earlier comparison.json; may be absent.
        names: The rows of the new table.
        settings: The flags that all variants share.

    Raises:
        InputError: if a row, a seed or a fold is missing, or the number of folds or a shared flag differs.
    """
    before = read_object(path)
    if "variants" not in before:  # none yet, or damaged: it is made again
        return
    for what, had, has in (
        ("variant", [row["name"] for row in before["variants"]], names),
        ("seed", before["seeds"], seeds),
        ("fold", before.get("only_folds") or range(before["folds"]), only_folds or range(folds)),
    ):
        if lost := [each for each in had if each not in has]:
            raise InputError(f"{path}: has {what} {lost[0]!r}, which is left out here; give another --output_dir")
    if before["folds"] != folds:
        raise InputError(f"{path}: is of {before['folds']} folds, not of {folds}; give another --output_dir")
    earlier, now = before["settings"], json.loads(json.dumps(settings))
    if changed := sorted(key for key in (earlier | now).keys() - NOT_SETTINGS if earlier.get(key) != now.get(key)):
        raise InputError(f"{path}: is of another {', '.join(changed)}; give another --output_dir")


def check_reference(content: dict, path: Path) -> None:
    """Check that the reference row exists.

    Raises:
        InputError: if it does not.
    """
    rows = [*content["variants"], *content["sums"]]
    if content["reference"] not in (None, *rows):
        raise InputError(f"{path}: reference {content['reference']!r}; want one of {', '.join(rows)}")


if __name__ == "__main__":
    run_command(main)
