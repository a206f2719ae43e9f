"""Load a corpus from files, the Hub, or a built-in corpus."""

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from datasets import Dataset

from ..errors import InputError
from ..recipes import DEFAULT_ACCESS, HubAccess, flag
from .corpus import SPLITS, Corpus
from .delimited import QUOTING_HELP
from .emotion_corpora import BUILT_IN, load_wassa2022, read_emotion_corpus, text_groups
from .folds import join_validation
from .labels import read_labels
from .rows import readable
from .tables import (
    Table,
    check_column,
    check_extra_columns,
    divide_by_split,
    read_common_columns,
    read_file,
    read_hub_dataset,
)

TEXT_DELIMITER_HELP = "What joins the texts of several columns of --text_column_name."


@dataclass
class DataArguments:
    """Flags for the corpus to read."""

    _argument_group_name = "Data"

    dataset_name: str | None = flag(
        None,
        "wassa2022 (built in; needs --data_dir), go_emotions or xed with their own labels, several per row (built in; "
        "from --data_dir, else from the Hub), or a dataset on the Hub. go_emotions has its official validation and "
        "test rows; as a stage before --target_dataset_name or --target_file, only its training rows.",
    )
    dataset_config_name: str | None = flag(None, "Configuration of the Hub dataset.")
    data_dir: str | None = field(
        default_factory=lambda: os.environ.get("EMODEBERTA_DATA"),
        metadata={
            "help": "Folder with wassa2022/, goemotions/ and xed/. Default: the environment variable EMODEBERTA_DATA."
        },
    )
    train_file: str | None = flag(
        None,
        "Training file: .csv, .tsv, .json, .jsonl or .parquet; also as .gz. Without a recipe, run_classify.py chooses "
        "columns, holds out validation rows, and sets rates and epochs that no flag gives; it says how, and run.json "
        "records it. The same holds for a Hub dataset that is not built in.",
    )
    validation_file: str | None = flag(None, "Validation file.")
    test_file: str | None = flag(None, "Test file; its labels may be missing.")
    train_split_name: str | None = flag(None, "Name of the training split of the Hub dataset, if it is not train.")
    validation_split_name: str | None = flag(None, "Name of its validation split, if it is not validation.")
    test_split_name: str | None = flag(None, "Name of its test split, if it is not test.")
    split_column_name: str | None = flag(
        None, "Column of the training file that says train, validation (or dev) or test for each row."
    )
    validation_split_percentage: float = flag(
        0.0,
        "If there is no validation split, move about this percentage of the training rows there, in whole groups. "
        "Without a recipe, 10 if it is not given (20 of fewer than 500 rows).",
    )
    train_on_validation: bool = flag(
        False,
        "Train on the validation rows, too, once rate and epochs are fixed. Nothing is validated then, and the last "
        "epoch is kept.",
    )
    cv_folds: int | None = flag(
        None,
        "Cross-validation: divide the training rows into this many folds, in whole groups and always in the same way. "
        "--cv_fold becomes the test split; other splits are not used. run_compare.py runs all folds.",
    )
    cv_fold: list[int] = field(
        default_factory=lambda: [0],
        metadata={"help": "Which of the --cv_folds folds to hold out, counted from 0; one or several. Default: 0."},
    )
    bagging: bool = flag(
        False,
        "Train on a bootstrap sample: writers are drawn with replacement (by --seed), each with all rows (Breiman "
        "1996). The paper's late fusion uses it to make its models differ.",
    )
    quoting: Literal["auto", "minimal", "none"] = flag("auto", QUOTING_HELP)
    text_column_name: str | None = flag(
        None,
        "Column with the text. Several, separated by commas, are joined; empty cells are left out. Default: text, or "
        "without a recipe a column with a usual name.",
        aliases=["--text_column_names"],
    )
    text_column_delimiter: str = flag(" ", TEXT_DELIMITER_HELP)
    label_column_name: str | None = flag(
        None,
        "Column with the label: a name, an integer, a list of names (several classes) or of numbers (one-hot, or a "
        "distribution); or several columns separated by commas, one per label. Default: label, "
        "or without a recipe a column with a usual name.",
    )
    group_column_name: str | None = flag(
        None,
        "Column with the writer of a row. All rows of a writer stay in one split, and intervals resample writers.",
        aliases=["--group_column"],
    )
    id_column_name: str | None = flag(None, "Column with row ids for predictions.tsv. Default: the row number.")
    label_set: list[str] = field(
        default_factory=list,
        metadata={"help": "The label set, in order. Default: all labels of all splits, sorted."},
    )
    max_seq_length: int = flag(256, "Longest text in tokens. Longer texts are cut, and their number is reported.")
    preprocessing_num_workers: int | None = flag(None, "Number of processes that tokenise. Default: one.")
    max_train_samples: int | None = flag(None, "Use only the first rows of train, for a quick try.")
    max_eval_samples: int | None = flag(None, "Use only the first rows of validation.")
    max_predict_samples: int | None = flag(None, "Use only the first rows of test, and of each of --extra_tests.")


def corpus_arguments(data_args: DataArguments, access: HubAccess = DEFAULT_ACCESS) -> dict[str, Any]:
    """Return the keyword arguments for `load_corpus` from the flags.

    Raises:
        InputError: if `--train_on_validation` meets a flag that holds rows out.
    """
    if data_args.train_on_validation:
        for name in ("cv_folds", "validation_split_percentage"):
            if getattr(data_args, name):
                raise InputError(f"--train_on_validation holds nothing out; leave out --{name}")
    files = {split: getattr(data_args, f"{split}_file") for split in ("train", "validation", "test")}
    split_names = {split: getattr(data_args, f"{split}_split_name") for split in files}
    return {
        "dataset_name": data_args.dataset_name,
        "dataset_config_name": data_args.dataset_config_name,
        "data_dir": data_args.data_dir,
        "files": {split: path for split, path in files.items() if path},
        "split_names": {split: name for split, name in split_names.items() if name},
        "text_column": data_args.text_column_name,
        "text_delimiter": data_args.text_column_delimiter,
        "label_column": data_args.label_column_name,
        "group_column": data_args.group_column_name,
        "id_column": data_args.id_column_name,
        "split_column": data_args.split_column_name,
        "label_names": data_args.label_set or None,
        "train_on_validation": data_args.train_on_validation,
        "quoting": data_args.quoting,
        "access": access,
    }


logger = logging.getLogger(__name__)


def load_corpus(
    *,
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    data_dir: str | None = None,
    files: dict[str, str] | None = None,
    split_names: dict[str, str] | None = None,
    text_column: str | None = None,
    text_delimiter: str = " ",
    label_column: str | None = None,
    group_column: str | None = None,
    id_column: str | None = None,
    split_column: str | None = None,
    label_names: Sequence[str] | None = None,
    multi_label: bool = False,
    extra_columns: Sequence[str] = (),
    quoting: str = "auto",
    access: HubAccess = DEFAULT_ACCESS,
    train_only: bool = False,
    train_on_validation: bool = False,
    tables: dict[str, Table] | None = None,
) -> Corpus:
    """Read a corpus from a dataset name or from files.

    Args:
        dataset_name: `wassa2022` (built in, needs `data_dir`), `go_emotions` or `xed` (built in, with their own labels;
            only `go_emotions` has validation and test rows), or a dataset on the Hub. Give either this or `files`.
        dataset_config_name: Configuration of a Hub dataset.
        data_dir: Folder with the built-in corpora.
        files: Path by split (`train`, `validation`, `test`): .csv, .tsv, .json, .jsonl or .parquet.
        split_names: Split names of a Hub dataset, if not `train`, `validation` and `test`.
        text_column: Column with the text, by default `text`. Several columns, separated by commas, are joined.
        text_delimiter: Separates the joined columns.
        label_column: Column with the label, by default `label`: a name, an integer, a list of names (several classes)
            or a list of numbers. Several columns separated by commas make such a list of numbers, too. Numbers are
            one-hot if each row has a single 1, distributions if each row sums to 1, else 0/1 for several classes. A
            test split may lack labels.
        group_column: Column with the writer (or another group) of a row. Default for wassa2022: its writers.
        id_column: Column with row ids, by default the row number.
        split_column: Column of the train file that names each row's split.
        label_names: The label set in order, by default all labels of all splits, sorted.
        multi_label: Whether rows may have several classes even if each of these has one, or their labels are not given.
        extra_columns: Other columns to keep, as strings, for example for an error analysis.
        quoting: For csv and tsv, see `trainer_ext.data.delimited.delimited_rows`.
        access: How to reach the Hub, for a Hub dataset.
        train_only: Read only the training rows of `go_emotions`, for a stage before another target.
        train_on_validation: Move the validation rows to `train`.
        tables: The rows of the files or the Hub dataset, if [`read_tables`] has read them before.

    Raises:
        InputError: if something cannot be read as described.
    """
    join = join_validation if train_on_validation else lambda corpus: corpus
    if dataset_name in ("wassa2022", *BUILT_IN):
        described = {
            "files": files, "text_column": text_column, "label_column": label_column, "id_column": id_column,
            "split_column": split_column, "split_names": split_names, "label_names": label_names,
            **({} if dataset_name == "wassa2022" else {"group_column": group_column, "extra_columns": extra_columns}),
        }  # fmt: skip
        if given := [name for name, value in described.items() if value]:
            raise InputError(f"{dataset_name} has its own {', '.join(given)}; leave out the flags that say otherwise")
        if dataset_name == "wassa2022":
            return join(load_wassa2022(data_dir, group_column or "response_id", extra_columns))
        splits = SPLITS if dataset_name == "go_emotions" and not train_only else ("train",)
        return join(_load_emotion_corpus(dataset_name, splits, data_dir, access))
    if tables is None:
        tables = _read_tables(dataset_name, dataset_config_name, files or {}, split_names or {}, quoting, access)
    source = dataset_name or ", ".join(readable(Path(path).name) for path in files.values())
    if split_column:
        tables = divide_by_split(tables, split_column)

    text_column, label_column = text_column or "text", label_column or "label"
    _check_label_column(label_column, text_column, group_column, id_column, split_column)
    check_extra_columns(tables, extra_columns)
    columns = {
        split: read_common_columns(table, text_column, group_column, id_column, extra_columns, text_delimiter)
        for split, table in tables.items()
    }
    labels, names, problem_type = read_labels(tables, label_column.split(","), label_names, multi_label)
    for split, values in labels.items():
        columns[split]["labels"] = values
    credited = " ".join(dict.fromkeys(table.attribution for table in tables.values() if table.attribution)) or None
    splits = {split: Dataset.from_dict(content) for split, content in columns.items()}
    return join(Corpus(splits, names, problem_type, source, attribution=credited))


def read_tables(data_args: DataArguments, access: HubAccess = DEFAULT_ACCESS) -> dict[str, Table]:
    """Return the rows of the flags' files or Hub dataset as they are, by split.

    Raises:
        InputError: if there is no data, or it cannot be read.
    """
    described = corpus_arguments(data_args, access)
    names = ("dataset_name", "dataset_config_name", "files", "split_names", "quoting", "access")
    return _read_tables(*(described[name] for name in names))


def _read_tables(
    dataset_name: str | None,
    config: str | None,
    files: dict[str, str],
    split_names: dict[str, str],
    quoting: str,
    access: HubAccess,
) -> dict[str, Table]:
    if dataset_name and files:
        raise InputError(f"give dataset_name ({dataset_name}) or files ({', '.join(files.values())}), not both")
    if dataset_name:
        return read_hub_dataset(dataset_name, config, split_names, access)
    if not files:
        raise InputError("no data: give --dataset_name (wassa2022, or a Hub dataset) or --train_file")
    return {split: read_file(path, quoting) for split, path in files.items()}


def _check_label_column(label_column: str, text_column: str, *others: str | None) -> None:
    """Check that no label column is also the text, a group, an id or a split."""
    for column in label_column.split(","):
        for flag_name, used in zip(("text", "group", "id", "split"), (text_column, *others), strict=True):
            if used and (column == used or (flag_name == "text" and column in used.split(","))):
                raise InputError(
                    f"column {column!r} is the label and --{flag_name}_column_name, too; name another with "
                    "--label_column_name"
                )


def load_labelled_as(
    label_names: Sequence[str], data_args: DataArguments, access: HubAccess = DEFAULT_ACCESS, multi_label: bool = False
) -> Corpus:
    """Return the corpus of the flags, with labels in the order of a model's labels.

    Args:
        label_names, data_args, access: The model's labels, the flags, and how to reach the Hub.
        multi_label: Whether the model may give a text several labels.

    Raises:
        InputError: as `load_corpus`, or if a label is unknown to the model.
    """
    described = corpus_arguments(data_args, access)
    built_in = described["dataset_name"] in ("wassa2022", *BUILT_IN)
    if not built_in:
        described["label_names"] = list(label_names)
    corpus = load_corpus(**described, multi_label=multi_label)
    if corpus.label_names != list(label_names):
        ours, theirs = (", ".join(names) for names in (label_names, corpus.label_names))
        raise InputError(f"{corpus.source}: its labels are {theirs}; the model's are {ours}")
    return corpus


def read_texts(
    path: str | Path, text_column: str = "text", quoting: str = "auto", text_delimiter: str = " "
) -> list[str]:
    """Return the texts of a file, in order.

    Raises:
        InputError: as `load_corpus`, or if the file has no rows.
    """
    return read_common_columns(read_file(path, quoting), text_column, delimiter=text_delimiter)["text"]


def extra_test_name(source: str) -> str:
    """Return the name of an extra test set in results: its file name without the suffix."""
    return re.sub(r"\W+", "_", Path(source).stem)


def load_extra_test(
    source: str,
    corpus: Corpus,
    *,
    data_dir: str | None = None,
    text_column: str | None = None,
    text_delimiter: str = " ",
    label_column: str | None = None,
    group_column: str | None = None,
    id_column: str | None = None,
    quoting: str = "auto",
) -> Dataset:
    """Return the rows of an extra test set: all rows of a labelled file, or the training essays of `wassa2022`.

    Args:
        source: A file as in `load_corpus`, or `wassa2022`, which needs `data_dir`.
        corpus: The test set may have only labels of this corpus.
        text_column, text_delimiter, label_column, quoting: As in `load_corpus`.
        group_column, id_column: As in `load_corpus`, but ignored if the file lacks them.

    Raises:
        InputError: if something cannot be read as described, or a label is not one of the corpus.
    """
    if source == "wassa2022":
        read = load_wassa2022(data_dir, "response_id", ())
        if lacking := [name for name in read.label_names if name not in corpus.label_names]:
            raise InputError(
                f"--extra_tests wassa2022: its label {lacking[0]!r} is not one of {', '.join(corpus.label_names)}"
            )
        rows = read.splits["train"]
        ids = [corpus.label_names.index(read.label_names[label]) for label in rows["labels"]]
        return rows.remove_columns("labels").add_column("labels", ids)
    table = read_file(source, quoting)
    label_columns = (label_column or "label").split(",")
    own = {name: name for name in (group_column, id_column) if name and name in next(iter(table.rows), ())}
    columns = read_common_columns(
        table, text_column or "text", own.get(group_column), own.get(id_column), delimiter=text_delimiter
    )
    for column in label_columns:
        check_column(table, column)
    labels, _, problem_type = read_labels({"test": table}, label_columns, corpus.label_names, corpus.multi_label)
    if problem_type != corpus.problem_type:
        have = "one class" if problem_type == "single_label_classification" else "several classes"
        raise InputError(f"{source}: its rows have {have}, unlike those that are trained on")
    return Dataset.from_dict(columns | {"labels": labels["test"]})


def _load_emotion_corpus(name: str, splits: Sequence[str], data_dir: str | None, access: HubAccess) -> Corpus:
    """Return the rows of a built-in emotion corpus with their own labels, several per row."""
    rows, names = {}, []
    for split in splits:
        read = read_emotion_corpus(name, data_dir, access, split)
        for reason, count in read.left_out.items():
            logger.info(f"{name}: left out: {count} ({reason})")
        names = read.label_names
        index = {label: position for position, label in enumerate(names)}
        labels = np.zeros((len(read.ids), len(index)))
        for row, of_row in enumerate(read.labels):
            labels[row, [index[label] for label in of_row]] = 1
        columns = {"id": read.ids, "text": read.texts, "group": text_groups(read.texts), "labels": labels.tolist()}
        rows[split] = Dataset.from_dict(columns)
    return Corpus(rows, names, "multi_label_classification", source=name)
