"""Search the flags of run_classify.py by cross-validation, and say honestly what the search gained.

    python run_search.py recipes/plain.yaml --data_dir FOLDER --budget 2h
    python run_search.py recipes/search/wassa2022.yaml --data_dir FOLDER --trials 20
    python run_search.py --train_file essays.csv --label_column_name emotion --group_column writer --budget 30m

Give a recipe of run_classify.py, flags alone, or a YAML file that says what to search:

    recipe: ../plain.yaml              # a recipe to start from, relative to this file; optional
    settings: {max_seq_length: 128}    # more flags that all configurations share; optional
    search:                            # the values to choose from; optional
      learning_rate: {low: 1e-5, high: 3e-4, log: true}
      num_train_epochs: {low: 2, high: 8}          # whole numbers, since both ends are
      weight_decay: {low: 0.0, high: 0.1, step: 0.01}
      class_weights: [none, balanced]
    cv_folds: 5                        # optional

Without a file, the columns are chosen. The search starts from the rate, batch size and epochs that run_classify.py
uses when there are no validation rows (3 to 10 epochs). Without `search:`, learning rate, epochs and batch size are
searched around the recipe's own values, and with them the head (classifier_hidden_size, pooling), class weights and
Child-Tuning. All other flags on the command line are those of run_classify.py (see its --help) and apply to all
configurations.

The recipe's own values are trained first. Optuna then proposes configurations. Each is trained fold by fold, and
stopped where its gain is below the median of those that were finished. Each training is a process of its own, kept in
--trials_dir as for run_compare.py, and keeps its last epoch, so that no fold chooses an epoch. Start an interrupted
search again with the same command: it resumes where it was. With a larger --budget or --trials it continues, too.

The results are:

- best.yaml: the winner as a recipe; `python run_classify.py FOLDER/best.yaml` trains it on all training rows
- search.json, search.md and search.png: all configurations, the winner's selection score, and the nested score, in
  which each fold is scored by the configuration that is best on the other folds. Report the nested score.
- predictions.parquet and study.jsonl: the predictions of every training, and Optuna's study
"""

from trainer_ext.front_door import check_flags

if __name__ == "__main__":
    check_flags("run_search")  # --help and wrong flags end here; the imports below take seconds

import argparse
import logging
from pathlib import Path

import numpy as np
import yaml

from trainer_ext.data.folds import check_trainable, cross_validation_folds
from trainer_ext.data.load import corpus_arguments, load_corpus
from trainer_ext.errors import InputError, run_command
from trainer_ext.evaluation.comparison import nested_comparison, running_scores
from trainer_ext.evaluation.pages import search_page
from trainer_ext.evaluation.plots import plot_search
from trainer_ext.files import claim, write_json, write_text
from trainer_ext.runs.defaults import Defaults
from trainer_ext.runs.provenance import command_line
from trainer_ext.runs.search_space import parse_budget, read_search
from trainer_ext.runs.trial import Trial
from trainer_ext.runs.trial_archive import ARCHIVE, archives_for
from trainer_ext.runs.trials import Trials, add_trials_dir
from trainer_ext.runs.variants import flags_given, resolve


def main() -> None:
    # ---- Flags and recipe -----------------------------------------------------------------------------------------
    args, rest = parser().parse_known_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    for chooses in ("data.columns", "runs.defaults"):
        logging.getLogger(f"trainer_ext.{chooses}").setLevel(logging.INFO)
    budget = None if args.budget is None else parse_budget(args.budget)
    if budget is None and args.trials is None:
        raise InputError("say how long to search: --budget 2h, --trials 20, or both")
    if args.trials is not None and args.trials < 2:
        raise InputError(f"--trials {args.trials}; want 2 or more, since the recipe's own values are the first")
    path = Path(rest.pop(0)) if rest and not rest[0].startswith("-") else None
    flags = flags_given(rest)
    of_own_data, corpus = ({}, None) if path else Defaults.of_search(rest)
    recipe = read_search(path, of_own_data | flags, args.cv_folds)
    from trainer_ext.runs.search import Search  # needs Optuna, an extra

    # ---- Data -----------------------------------------------------------------------------------------------------
    if corpus is None:
        flags = resolve(recipe.settings, recipe.source)
        corpus = load_corpus(**corpus_arguments(flags[1], flags[0].hub_access()))
    check_trainable(corpus)
    assigned = cross_validation_folds(corpus, recipe.cv_folds)
    rows, gold = corpus.splits["train"], corpus.classes("train")
    ids = np.array(rows["id"][:], dtype=object)
    groups = rows["group"][:] if "group" in rows.column_names else None

    # ---- Trainings ------------------------------------------------------------------------------------------------
    output_dir = args.output_dir or Path("results") / "search" / recipe.name
    claim(output_dir)
    trials = Trials(args.trials_dir, recipe.settings, corpus, recipe.source, args.jobs, archives_for(output_dir))

    def score(of_folds: list[Trial]) -> list[float]:
        seen = assigned < len(of_folds)
        return running_scores(trials.collect(of_folds, ids[seen], "test"), gold[seen], assigned[seen])

    search = Search(recipe, trials, score, output_dir, args.sampler, args.pruner)
    print(f"{recipe.source}: from {recipe.settings['model_name_or_path']}, {recipe.cv_folds} folds; searches")
    for flag, values in recipe.space.items():
        print(f"  {flag}: {', '.join(map(str, values)) if isinstance(values, list) else values.shown()}")
    search.run(args.trials, budget)

    # ---- Figures --------------------------------------------------------------------------------------------------
    finished = {each.name: trials.collect(each.trials, ids, "test") for each in search.finished()}
    nested = nested_comparison(finished, gold, assigned, groups, corpus.label_names)
    every = [search.own, *search.configurations]
    winner = next(each for each in every if each.name == nested["winner"])
    best = recipe.best(recipe.overrides(winner.values), output_dir / "best")
    records = {each.name: [trials.record(one) for one in each.trials[: len(each.scores)]] for each in every}
    result = {
        "name": recipe.name,
        "command": command_line(),
        "source": corpus.source,
        "rows": len(rows),
        "grouped": groups is not None,
        "groups": len(set(groups or ids)),
        "folds": recipe.cv_folds,
        "seed": recipe.seed,
        "labels": corpus.label_names,
        "settings": {flag: value for flag, value in recipe.settings.items() if flag != "data_dir"},
        "space": {flag: each if isinstance(each, list) else vars(each) for flag, each in recipe.space.items()},
        "sampler": args.sampler,
        "pruner": args.pruner,
        "minutes": search.seconds / 60,
        "machine": " and ".join(sorted({record["machine"] for of_one in records.values() for record in of_one})),
        "winner": winner.name,
        "best": winner.values,
        "nested": nested,
        "importance": search.importance(),
        "configurations": [
            {
                "name": each.name,
                "state": each.state,
                "values": each.values,
                "scores": each.scores,
                "minutes": sum(record["seconds"] for record in records[each.name]) / 60 if each.scores else None,
                "trials": [trials.path(one).name for one in each.trials[: len(each.scores)]],
                **({} if each.why is None else {"why": each.why}),
            }
            for each in every
        ],
    }
    write_json(output_dir / "search.json", result)
    for each in every:
        if each.scores:
            score(each.trials[: len(each.scores)])  # so that the archive has those that earlier starts stopped, too
    trials.write_archive(output_dir / ARCHIVE)
    write_text(output_dir / "search.md", search_page(result))
    head = (
        f"# run: python run_classify.py best.yaml\n# The winner of a search over {len(every)} configurations. "
        f"Nested macro F1 of the search: {nested['nested']['macro_f1']:.3f}\n# (search.md has more). "
        "Paths are in full, so it runs from anywhere on this machine.\n"
    )
    write_text(output_dir / "best.yaml", head + yaml.safe_dump(best, sort_keys=False, allow_unicode=True))
    print(search_page(result))
    plot_search(output_dir / "search.json", output_dir / "search.png")  # last: without it, nothing else is lost
    print(f"written to {output_dir}/; `python run_classify.py {output_dir}/best.yaml` trains the winner")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the search's own flags; flags of run_classify.py are parsed separately."""
    made = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s [RECIPE.yaml] [--budget 2h] [--trials N] [--cv_folds N] [--flag of run_classify.py value ...]",
        allow_abbrev=False,
    )
    made.add_argument(
        "--budget",
        metavar="TIME",
        help="how long to search, all starts together: 2h, 90m, 1h30m or 300s. A training that would not fit into the "
        "rest is not started, by the speed of those so far",
    )
    made.add_argument(
        "--trials", type=int, metavar="N", help="number of configurations to try, the recipe's own values among them"
    )
    made.add_argument("--cv_folds", type=int, help="number of folds (default: the file's, else 5)")
    made.add_argument(
        "--sampler",
        choices=("tpe", "random"),
        default="tpe",
        help="what proposes values: tpe (the default) learns from the scores so far, random does not",
    )
    made.add_argument(
        "--pruner",
        choices=("median", "none"),
        default="median",
        help="what stops a configuration early: median (the default), where its gain over the recipe's own values on "
        "the folds so far is below the median of those finished, or none",
    )
    made.add_argument("--jobs", type=int, help="trainings at a time (default: one per GPU, or one on CPU)")
    made.add_argument("--output_dir", type=Path, help="default: results/search/<name of the file>")
    add_trials_dir(made)
    return made


if __name__ == "__main__":
    run_command(main)
