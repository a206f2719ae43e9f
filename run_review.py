"""Find rows whose label is probably wrong, write them for people to look at, and apply what they say.

From a file with labels alone, in minutes:

    python run_review.py --train_file mine.csv --text_column_name text --label_column_name emotion --output review.csv
    python run_review.py --apply review.csv --train_file mine.csv --label_column_name emotion --output better.csv

The first command lists the rows whose label the models contest, most suspect first. In its column `corrected`, write
the right label, `remove` or `unsure`; leave it empty to keep the label. The second command writes a new file. The file
with the mistakes stays as it is.

Without --predictions, two small models predict each row after training on the other folds: logistic regressions on the
text vectors of --encoder and on character n-grams. With it, the predictions of trained models are used:

    python run_review.py --predictions results/compare/mine --train_file mine.csv --output review.csv
    python run_review.py --predictions outputs/ensemble --dataset_name wassa2022 --data_dir FOLDER --output review.csv
    python run_review.py --predictions outputs/mine --validation_file dev.csv --output review.csv

Only predictions of rows that no model trained on count: those of the held-out folds of a comparison, fusion or
ensemble, or of the validation and test rows of a run. Label errors are found by cleanlab (extra `review`).

Of texts without labels, those that the models disagree on most are listed, or those that a single model is least sure
of. Give the folder of one or several calls of run_score.py:

    python run_review.py --predictions scores/ --test_file texts.csv --output label_these.csv
    python run_review.py --apply label_these.csv --test_file texts.csv --label_set joy anger fear --output labelled.csv

--format label_studio writes tasks with predictions for Label Studio, and beside them (.xml) the labeling configuration
to paste. --format argilla writes a folder for `rg.Dataset.from_disk`. --apply reads the exports of both.
"""

from trainer_ext.front_door import check_flags

if __name__ == "__main__":
    check_flags("run_review")  # --help and wrong flags end here; the imports below take seconds

import dataclasses
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from trainer_ext.baselines.probe import text_vectors
from trainer_ext.baselines.review_models import encoder_at_hand, quick_predictions
from trainer_ext.data.columns import choose_columns
from trainer_ext.data.corpus import Corpus
from trainer_ext.data.corrections import WRITABLE, correct, rows_of, the_file, write_corrected
from trainer_ext.data.folds import check_trainable
from trainer_ext.data.load import DataArguments, corpus_arguments, load_corpus
from trainer_ext.data.review_list import FORMATS, Listed, read_list, write_list
from trainer_ext.errors import InputError, run_command
from trainer_ext.escape import one_line
from trainer_ext.evaluation.error_analysis import Review, check_installed, review
from trainer_ext.files import check_no_input
from trainer_ext.flag_parser import MINILM, MPNET
from trainer_ext.recipes import RecipeParser, flag
from trainer_ext.runs.held_out import Opinion, aligned, load_predicted, read_held_out, several_labels
from trainer_ext.training.callbacks import bars_on_a_terminal_only

SHOWN = 10  # rows and pairs of labels that are printed


@dataclass
class ReviewArguments:
    """Flags of the review."""

    _argument_group_name = "Review"

    output: str | None = flag(None, "File (for argilla: folder) to write. With --apply: the corrected data.")
    format: Literal["csv", "label_studio", "argilla"] = flag("csv", "What to write the list for; see above.")
    top: int = flag(200, "Rows to list, the most suspect first.")
    predictions: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Folders of a comparison, fusion, ensemble, run or of scores, or their predictions.parquet or "
            "predictions.tsv. Several count as several models. Default: predict with two small models."
        },
    )
    encoder: str | None = flag(
        None,
        f"Without --predictions: checkpoint whose text vectors are used. Default: {MPNET} (438 MB), or if that cannot "
        f"be had {MINILM}.",
    )
    apply: str | None = flag(None, "Corrected list, or export of Label Studio or Argilla, to apply to the data.")
    overwrite: bool = flag(False, "Replace --output if it exists.")


def main() -> None:
    args, data_args = RecipeParser((ReviewArguments, DataArguments), description=__doc__).parse()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("trainer_ext.data.columns").setLevel(logging.INFO)
    bars_on_a_terminal_only()
    if not args.output:
        raise InputError("give --output, the file for the list (or, with --apply, for the corrected data)")
    check_output(Path(args.output), WRITABLE if args.apply else FORMATS[args.format], args.overwrite)
    data = (data_args.train_file, data_args.validation_file, data_args.test_file)
    check_no_input("--output", Path(args.output), (*data, args.apply))
    if args.apply:
        apply(args, data_args)
        return
    if args.top < 1:
        raise InputError(f"--top is {args.top}; want at least 1")

    # ---- Data, and what models predict of it that did not train on it ---------------------------------------------
    tables = None
    if data_args.dataset_name or data_args.train_file or data_args.validation_file or data_args.test_file:
        tables = choose_columns(data_args)
    if args.predictions:
        held_out = [read_held_out(Path(path)) for path in args.predictions]
        corpus = load_predicted(held_out, data_args)
        opinions = [opinion for each in held_out for opinion in each.opinions]
    else:
        corpus = load_corpus(**corpus_arguments(data_args), tables=tables)
        check_trainable(corpus)
        check_installed()
        encoder = args.encoder or encoder_at_hand()
        vectors_of = partial(text_vectors, encoder, max_seq_length=data_args.max_seq_length, layers=True, fast=True)
        of_models = quick_predictions(corpus, data_args.cv_folds, vectors_of)
        opinions = [Opinion("train", None, probabilities) for probabilities in of_models]

    # ---- The list -------------------------------------------------------------------------------------------------
    keys, given, models, disagreement = aligned(corpus, opinions)
    multi_label = corpus.multi_label or (given is None and several_labels(models))
    found = review(models, len(keys), given, multi_label, disagreement)
    listed = [listed_row(corpus, keys[index], found, index, given) for index in found.order[: args.top]]
    if args.predictions and held_out[0].scored is not None:  # of a file that has no splits
        listed = [dataclasses.replace(row, split="") for row in listed]
    write_list(Path(args.output), args.format, listed, corpus.label_names, multi_label)
    report(found, listed, len(keys), given is not None, len(models), args)
    for split, rows in corpus.splits.items():
        if left := len(rows) - sum(of == split for of, _ in keys):
            print(f"not reviewed: {left:,} rows of {split}, which have no label or no held-out prediction")


def check_output(path: Path, suffixes: Sequence[str], overwrite: bool) -> None:
    """Check that the output can be written, and replaces nothing unless asked.

    Raises:
        InputError: if not.
    """
    if path.suffix not in suffixes:
        wanted = "a folder" if suffixes == FORMATS["argilla"] else f"a name with {', '.join(suffixes)}"
        raise InputError(f"--output {path}: want {wanted}")
    written = (path, path.with_suffix(".xml")) if suffixes == FORMATS["label_studio"] else (path,)
    if not overwrite and (there := next((each for each in written if each.exists()), None)):
        beside = "" if there == path else f"the file beside it, {there.name}, "
        raise InputError(f"--output {path}: {beside}exists; give another, or --overwrite to replace it")


# ---- The list -----------------------------------------------------------------------------------------------------
def listed_row(corpus: Corpus, key: tuple[str, int], found: Review, index: int, given: np.ndarray | None) -> Listed:
    """Return a row of the list."""

    def names(decision: Any) -> list[str]:
        chosen = np.flatnonzero(decision) if np.ndim(decision) else [decision]
        return [corpus.label_names[label] for label in chosen]

    split, position = key
    row = corpus.splits[split][position]
    return Listed(
        row=row["id"],
        split=split,
        text=row["text"],
        label=[] if given is None else names(given[index]),
        proposed=names(found.proposed[index]),
        confidence=float(found.confidence[index]),
        models_against=float(found.against[index]),
        quality=None if found.quality is None else float(found.quality[index]),
        suspect=None if found.suspect is None else bool(found.suspect[index]),
    )


def report(found: Review, listed: Sequence[Listed], rows: int, labelled: bool, models: int, args: Any) -> None:
    """Print what was found, without texts."""
    if labelled:
        print(
            f"{rows:,} rows: the models contest {len(found.order):,} labels, cleanlab suspects {found.suspect.sum():,}"
        )
        pairs = Counter((",".join(row.label) or "none", ",".join(row.proposed) or "none") for row in listed)
        for (given, proposed), count in pairs.most_common(SHOWN):
            print(one_line(f"  {given} should perhaps be {proposed}: {count}"))
        print("the most suspect rows:" if listed else "no row to look at")
        for row in listed[:SHOWN]:
            said = f"{','.join(row.label) or 'none'}; the models say {','.join(row.proposed) or 'none'}"
            print(one_line(f"  row {row.row} of {row.split}: {said} ({row.confidence:.2f})"))
    elif models == 1 and not found.against.any():
        print(f"{rows:,} texts: one model alone disagrees with nobody; the first are those it is least sure of")
    else:
        print(f"{rows:,} texts: the models disagree on {(found.against > 0).sum():,}")
    print(
        f"{len(listed):,} rows in {args.output}"
        + f" and {Path(args.output).stem}.xml" * (args.format == "label_studio")
    )


# ---- Apply --------------------------------------------------------------------------------------------------------
def apply(args: ReviewArguments, data_args: DataArguments) -> None:
    """Write the data with the corrections to a new file, read it back, and print what changed.

    Raises:
        InputError: if a correction does not fit, or the new file would not read as it should.
    """
    split, path = the_file(data_args)
    choose_columns(data_args)
    output = Path(args.output)
    said = read_list(Path(args.apply))
    rows = rows_of(split, path, data_args)
    splits = {of for of, _ in rows.keys} | {""} | ({split} if rows.keys and not rows.keys[0][0] else set())
    elsewhere = Counter(each.split for each in said if each.split not in splits)
    if elsewhere and elsewhere.total() == len(said):
        raise InputError(
            f"{args.apply}: is about {', '.join(elsewhere)}, and {path} is {split}; give that file instead"
        )
    found = correct(rows, [each for each in said if each.split in splits])
    if not found.rows:
        raise InputError(f"{args.apply}: no row would be left; fill in its column 'corrected'")
    write_corrected(output, found, rows, split, path, data_args)
    changed = sum(map(len, found.changed.values()))
    print(f"{changed:,} labels changed, {len(found.removed):,} rows removed, {len(found.rows):,} rows in {output}")
    for (before, now), ids in sorted(found.changed.items(), key=lambda each: -len(each[1])):
        print(one_line(f"  {before} to {now}: {len(ids)} (row {first_of(ids)})"))
    for ids, what in (
        (found.removed, "removed"),
        (found.unsure, "unsure: as before"),
        (found.unanswered, "without an answer: as before"),
    ):
        if ids:
            print(one_line(f"  {what}: {len(ids)} (row {first_of(ids)})"))
    for of, count in elsewhere.items():
        print(f"  not in this file: {count} of {of}")


def first_of(ids: Sequence[str]) -> str:
    return ", ".join(ids[:SHOWN]) + (" and more" if len(ids) > SHOWN else "")


if __name__ == "__main__":
    run_command(main)
