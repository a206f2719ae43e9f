"""Check labelled texts before training on them, and print what is wrong or may be.

    python run_check.py train.csv --text_column_name text --label_column_name emotion
    python run_check.py train.csv validation.csv test.csv --model_name_or_path microsoft/deberta-v3-base
    python run_check.py --train_file all.tsv --split_column_name split --json findings.json

The files are train, validation and test, in this order. The page shows how many rows each class has in each split, and:

    wrong     an id, a score, a date or the text in the label column, or a single class: run_classify.py stops, too
    warnings  label names that differ by case, spaces, accents or a letter; classes with few rows or in one split only;
              copies and near-copies across splits and within them; equal texts with different labels; writers in
              several splits; texts that are cut; other scripts and languages; most rows in one class; labels
              that the words say nothing about, as of another column
    notes     the same where it is usual, and lengths
    flags     what to give to run_classify.py

A near-copy has at least six words, and at most one word in eight differs from the other text. From ten words on, it is
one in five. A text of ten words or more is also a near-copy if a longer text contains most of it. Case, punctuation,
emoji, links and user names do not count. A text that was reworded throughout is not found.

Rows are named by number (the header is row 1), or by --id_column_name. No text is printed. run_classify.py makes the
same checks when it starts.

The exit status is 0 if nothing is wrong, also with warnings, and 2 if something is or the rows cannot be read.
"""

from trainer_ext.front_door import check_flags

if __name__ == "__main__":
    check_flags("run_check")  # --help and wrong flags end here; the imports below take seconds

import logging
import sys
import textwrap
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import asdict, dataclass, fields, make_dataclass
from pathlib import Path
from typing import Literal, get_type_hints

from trainer_ext.data.checks import findings
from trainer_ext.data.columns import choose_columns
from trainer_ext.data.corpus import Corpus
from trainer_ext.data.findings import Finding, class_table
from trainer_ext.data.folds import check_trainable
from trainer_ext.data.load import DataArguments, corpus_arguments, load_corpus
from trainer_ext.errors import InputError, run_command
from trainer_ext.escape import one_line
from trainer_ext.files import check_no_input, read_object, write_json
from trainer_ext.recipes import HubAccess, RecipeParser, flag

# Flags of run_classify.py that say what to do with the rows, not what they are.
_OF_TRAINING = {
    "validation_split_percentage", "cv_folds", "cv_fold", "bagging", "preprocessing_num_workers", "max_train_samples",
    "max_eval_samples", "max_predict_samples",
}  # fmt: skip
_HINTS = get_type_hints(DataArguments)
_DATA = [(f.name, _HINTS[f.name], copy(f)) for f in fields(DataArguments) if f.name not in _OF_TRAINING]
SourceArguments = make_dataclass("SourceArguments", _DATA, namespace={"_argument_group_name": "Data"})
_TITLES = {"wrong": "Wrong", "warning": "Warnings", "note": "Notes", "flag": "Flags to try"}


@dataclass
class CheckArguments:
    """Flags of the check."""

    _argument_group_name = "Check"

    model_name_or_path: str | None = flag(
        None, "Model whose tokenizer counts the tokens of each text: a folder or a Hub id. Default: they are estimated."
    )
    class_weights: Literal["none", "balanced"] = flag("none", "As for run_classify.py, which is then not advised.")
    json: str | None = flag(None, "Also write counts and findings, each with all of its rows, to this file.")
    cache_dir: str | None = flag(None, "Cache of what comes from the Hub.")
    token: str | None = flag(None, "Hub token, if not the one of `hf auth login`.")


class Notes(logging.Handler):
    """Collects what the readers log, as notes."""

    def __init__(self):
        super().__init__(logging.INFO)
        self.found: list[Finding] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(Finding("note", "reading", record.getMessage()))


def main() -> None:
    notes = Notes()
    logging.basicConfig(level=logging.ERROR, handlers=[logging.NullHandler()])
    for reader in ("labels", "load", "columns", "folds"):
        logging.getLogger(f"trainer_ext.data.{reader}").setLevel(logging.INFO)
        logging.getLogger(f"trainer_ext.data.{reader}").addHandler(notes)
    source_args, args = parse(sys.argv[1:])
    data_args = DataArguments(**vars(source_args))
    output = Path(args.json) if args.json else None
    data = [data_args.train_file, data_args.validation_file, data_args.test_file, data_args.dataset_name]
    if output:
        check_json(output, data[:3])
    try:
        access = HubAccess(cache_dir=args.cache_dir, token=args.token)
        tables = choose_columns(data_args, access)
        corpus = load_corpus(**corpus_arguments(data_args, access), tables=tables)
        check_trainable(corpus)
    except InputError as error:
        if output and any(data):
            write_json(output, {"findings": [asdict(Finding("wrong", "rows", str(error)))]})
        raise
    found = [*findings(corpus, data_args, args.class_weights, token_counter(args)), *notes.found]
    if output:
        write_json(output, record(corpus, found))
    print("\n".join(page(corpus, found)))
    if wrong := [finding.message for finding in found if finding.level == "wrong"]:
        raise InputError(f"{corpus.source}: {wrong[0]}")


def parse(argv: list[str]) -> tuple[SourceArguments, CheckArguments]:
    """Return the flags; files without a flag are those of train, validation and test."""
    parser = RecipeParser((SourceArguments, CheckArguments), description=__doc__)
    parser.usage = "%(prog)s [TRAIN [VALIDATION [TEST]]] [--flag value ...]"
    parser.add_argument("files", nargs="*", metavar="FILE", help="train, validation and test file")
    given = parser.parse_known_args(argv)[0]
    splits = ("train", "validation", "test")
    if len(given.files) > len(splits):
        raise InputError(f"{len(given.files)} files; want at most three: train, validation and test")
    flags = []
    for split, file in zip(splits, given.files, strict=False):
        if getattr(given, f"{split}_file"):
            raise InputError(f"{file}: is the {split} file, and --{split}_file names another; give one of the two")
        flags.append(f"--{split}_file={file}")
    return parser.parse([*flags, *argv])


def check_json(output: Path, files: Sequence[str | None]) -> None:
    """Check that the file of `--json` can be written, and replaces at most the record of an earlier check.

    Raises:
        InputError: if not.
    """
    check_no_input("--json", output, files)
    if output.exists() and "findings" not in read_object(output):
        raise InputError(f"--json {output}: exists, and is not the record of a check; give another, or remove it")
    if not output.parent.is_dir():
        raise InputError(f"--json {output}: there is no folder {output.parent}; want one that exists")


def token_counter(args: CheckArguments) -> Callable[[list[str]], list[int]] | None:
    """Return a function that counts the tokens of texts, or `None` if no model is named."""
    if not args.model_name_or_path:
        return None
    from trainer_ext.training.saved_model import read_tokenizer  # imports slowly

    tokenizer = read_tokenizer(args.model_name_or_path, HubAccess(cache_dir=args.cache_dir, token=args.token))
    return lambda texts: [len(ids) for ids in tokenizer(texts, truncation=False, verbose=False)["input_ids"]]


def page(corpus: Corpus, found: list[Finding]) -> list[str]:
    """Return the lines to print, each at most 80 columns wide."""
    lines = [*textwrap.wrap(one_line(corpus.source), 80), ""]
    if not any(finding.level == "wrong" for finding in found):
        lines += class_table(corpus)
    for level, title in _TITLES.items():
        messages = [finding.message for finding in found if finding.level == level]
        if messages:
            lines += ["", title]
        for message in messages:
            lines += textwrap.wrap(one_line(message), 80, initial_indent="  - ", subsequent_indent="    ",
                                   break_on_hyphens=False)  # fmt: skip
    if not any(finding.level in ("wrong", "warning") for finding in found):
        lines += ["", "Nothing is wrong."]
    return lines


def record(corpus: Corpus, found: list[Finding]) -> dict:
    """Return the content of the file of `--json`."""
    return {
        "source": corpus.source,
        "rows": {split: len(rows) for split, rows in corpus.splits.items()},
        "classes": {split: corpus.class_counts(split) for split in corpus.splits if corpus.is_labelled(split)},
        "findings": [asdict(finding) for finding in found],
    }


if __name__ == "__main__":
    run_command(main)
