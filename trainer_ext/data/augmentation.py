"""Supervised transfer (section 2.3.1 of the paper): train on rows of other corpora, mapped to the target's labels.

The rows are a training stage of their own, or are added to the target's training rows.

The paper uses Random and Balanced Augmentation of the year before without describing them. This follows Mundra et al.
(WASSA 2021, https://arxiv.org/abs/2104.09827): 1,000 random rows, or 400 per class.
"""

import logging
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets

from ..errors import InputError
from .corpus import Corpus
from .emotion_corpora import text_groups
from .findings import class_table
from .label_maps import TransferArguments, TransferRows
from .leakage import LeftOut

logger = logging.getLogger(__name__)
RANDOM_ROWS = 1000
BALANCED_ROWS = 400


def check_transfer(args: TransferArguments, described: dict[str, Any]) -> bool:
    """Return whether to train on `--transfer_datasets` alone, instead of adding their rows to a target.

    Args:
        described: Arguments of `trainer_ext.data.load.load_corpus`, from the flags.

    Raises:
        InputError: if the flags contradict each other.
    """
    has_target = bool(described["dataset_name"] or described["files"])
    used = {
        "--augmentation": args.augmentation != "none",
        "--augmentation_rows": args.augmentation_rows is not None,
        "--ba_mode": args.ba_mode != "added",
        "--join_to_words": args.join_to_words is not None,
    }
    if not args.transfer_datasets:
        if given := [flag for flag, is_used in used.items() if is_used]:
            raise InputError(f"{given[0]} needs --transfer_datasets, for example go_emotions xed")
        return False
    for flag, value in (("augmentation_rows", args.augmentation_rows), ("join_to_words", args.join_to_words)):
        if value is not None and value < 1:
            raise InputError(f"--{flag} is {value}; want at least 1")
    if used["--augmentation_rows"] and not used["--augmentation"]:
        raise InputError("--augmentation_rows says how many rows; say which with --augmentation RA or BA")
    if used["--ba_mode"] and (args.augmentation != "BA" or not has_target):
        raise InputError("--ba_mode topped_up counts the target's rows in; it needs a target and --augmentation BA")
    if has_target:
        if not used["--augmentation"]:
            raise InputError(
                "which rows of --transfer_datasets are to be added? Give --augmentation RA or BA; or leave out "
                "--dataset_name and --train_file to train on --transfer_datasets alone"
            )
        return False
    own = {"text_column", "label_column", "group_column", "id_column", "split_column", "split_names"}
    if given := sorted(key for key in own if described[key]):
        raise InputError(
            f"{given[0]} is for --train_file and Hub datasets; what --transfer_datasets holds, its .yaml says"
        )
    return True


# ---- Choosing -----------------------------------------------------------------------------------------------------
def random_augmentation(rows: TransferRows, count: int, seed: int) -> TransferRows:
    """Return `count` rows, drawn uniformly from all rows without replacement (RA).

    Raises:
        InputError: if there are fewer than `count` rows.
    """
    if count > len(rows):
        raise InputError(
            f"--augmentation_rows {count}: {', '.join(rows.licences)} have {len(rows)} usable rows; ask for fewer, or "
            "add a corpus"
        )
    return rows.select(sorted(np.random.default_rng(seed).choice(len(rows), count, replace=False)))


def balanced_augmentation(
    rows: TransferRows, count: int, seed: int, present: dict[str, int] | None = None
) -> TransferRows:
    """Return `count` rows of each label, drawn without replacement (BA).

    The rows drawn of a label depend only on the rows of that label and the seed.

    Args:
        present: How many rows of each label there are already. If given, each label is only topped up to `count`.

    Raises:
        InputError: if a label has too few rows.
    """
    chosen = []
    labels = np.asarray(rows.labels, dtype=object)
    for number, label in enumerate(rows.label_names):
        candidates = np.flatnonzero(labels == label)
        wanted = max(0, count - (present or {}).get(label, 0))
        if wanted > len(candidates):
            raise InputError(
                f"--augmentation_rows {count}: {', '.join(rows.licences)} have {len(candidates)} usable rows of "
                f"{label}; {wanted} are wanted. Ask for fewer, or add a corpus"
            )
        chosen += sorted(np.random.default_rng([seed, number]).choice(candidates, wanted, replace=False))
    return rows.select(chosen)


def choose_rows(
    rows: TransferRows, args: TransferArguments, seed: int, present: dict[str, int] | None = None
) -> TransferRows:
    """Return the rows that `--augmentation` asks for; with `none`, all rows.

    Args:
        present: Number of target rows by label, which `--ba_mode topped_up` counts.

    Raises:
        InputError: if there are too few rows, or too few with some label.
    """
    if args.augmentation == "RA":
        return random_augmentation(rows, args.augmentation_rows or RANDOM_ROWS, seed)
    if args.augmentation == "BA":
        topped_up = present if args.ba_mode == "topped_up" else None
        return balanced_augmentation(rows, args.augmentation_rows or BALANCED_ROWS, seed, topped_up)
    return rows


# ---- Using --------------------------------------------------------------------------------------------------------
def as_corpus(rows: TransferRows) -> Corpus:
    """Return the rows as a corpus with a training split, to train a stage on."""
    index = {label: position for position, label in enumerate(rows.label_names)}
    columns = {
        "id": rows.ids,
        "text": rows.texts,
        "group": text_groups(rows.texts),
        "labels": [index[label] for label in rows.labels],
    }
    return Corpus(
        {"train": Dataset.from_dict(columns)},
        rows.label_names,
        "single_label_classification",
        source=", ".join(rows.licences),
    )


def with_rows(corpus: Corpus, rows: TransferRows) -> Corpus:
    """Return the corpus with these rows appended to its training split."""
    train = corpus.splits["train"]
    index = {label: position for position, label in enumerate(corpus.label_names)}
    labels: list[Any] = [index[label] for label in rows.labels]
    if isinstance(train[0]["labels"], list):
        labels = np.eye(len(corpus.label_names))[labels].tolist()
    columns: dict[str, list] = {"id": rows.ids, "text": rows.texts, "labels": labels}
    for name in train.column_names:
        columns.setdefault(name, rows.ids if name == "group" else [""] * len(rows))
    added = Dataset.from_dict({name: columns[name] for name in train.column_names}, features=train.features)
    return corpus.with_splits(train=concatenate_datasets([train, added]))


def report_rows(corpus: Corpus, transferred: TransferRows | None, left_out: LeftOut) -> None:
    """Log the rows of each split by class, those of other corpora, and the rows that were left out."""
    for line in class_table(corpus):
        logger.info(line)
    for name, counts in ({} if transferred is None else transferred.counts()).items():
        by_class = ", ".join(f"{label} {count}" for label, count in counts.items())
        logger.info(f"of {name}: {sum(counts.values())} rows ({by_class})")
    left_out.report()
