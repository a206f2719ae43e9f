"""Read labelled texts: the WASSA 2022 files, any csv, tsv, json lines or parquet file, or a Hub dataset.

Whatever the source, the result is a [`Corpus`]: one `datasets.Dataset` a split and one label set for all of them.
Rows are never dropped: what is wrong with one is an error that names its file and row. Rows are counted from 1, and
a header is row 1, as in a spreadsheet.
"""

import csv
import difflib
import io
import json
import logging
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.parquet
from datasets import ClassLabel, Dataset, load_dataset
from sklearn.model_selection import StratifiedGroupKFold

from .emotion_corpora import BUILT_IN, read_emotion_corpus, text_groups
from .errors import InputError

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
_SPLIT_ALIASES = {"dev": "validation", "valid": "validation", "val": "validation", "eval": "validation"}
_PROBABILITY_TOLERANCE = 1e-3
_MANY_GROUPS = 5000
# The key in a parquet file's metadata under which it says whom to credit.
ATTRIBUTION = b"attribution"
_INTEGER = re.compile(r"-?[0-9]+")

csv.field_size_limit(2**31 - 1)


@dataclass
class Corpus:
    """Texts with labels, in up to three splits.

    Attributes:
        splits: By `train`, `validation`, `test`, and by its name each extra test set ([`load_extra_test`]). Columns:
            `id` and `text` (strings), `group` (string, if a group column was named), `column_<name>` (string) for each
            extra column, empty where a split lacks it, and, where the split is labelled, `labels`: an integer, or a
            list of one float per label.
        label_names: In the order of the label ids.
        problem_type: `single_label_classification` (one class, or a distribution, per row) or
            `multi_label_classification`.
        source: What was read, for the model card.
        licence: Terms of a built-in corpus.
        attribution: Whom a parquet file credits, if it says so in its metadata.
    """

    splits: dict[str, Dataset]
    label_names: list[str]
    problem_type: str
    source: str
    licence: str | None = None
    attribution: str | None = None

    def classes(self, split: str) -> np.ndarray:
        """Class ids `(rows,)`, the most probable one of a distribution; 0/1 `(rows, labels)` for several classes."""
        labels = np.asarray(self.splits[split]["labels"])
        if labels.ndim == 1 or self.problem_type == "multi_label_classification":
            return labels.astype(int)
        return labels.argmax(axis=1)


@dataclass
class Table:
    """Rows of one split as they were read, with where each stood; a Hub dataset's column types."""

    name: str
    rows: list[dict]
    first_row: int = 1
    features: dict | None = field(default=None, repr=False)
    attribution: str | None = None

    def where(self, index: int) -> str:
        return f"{self.name}, row {index + self.first_row}"


def load_corpus(
    *,
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    data_dir: str | None = None,
    files: dict[str, str] | None = None,
    split_names: dict[str, str] | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    group_column: str | None = None,
    id_column: str | None = None,
    split_column: str | None = None,
    label_names: Sequence[str] | None = None,
    extra_columns: Sequence[str] = (),
    cache_dir: str | None = None,
    token: str | None = None,
) -> Corpus:
    """Read a corpus.

    Args:
        dataset_name: `wassa2022` (built in, needs `data_dir`), `go_emotions` or `xed` (built in, their training rows
            with their own labels) or a dataset on the Hub; or give `files`.
        dataset_config_name: Configuration of a Hub dataset.
        data_dir: Folder that holds the built-in corpora.
        files: Path by split (`train`, `validation`, `test`): .csv, .tsv, .json, .jsonl or .parquet.
        split_names: Names of a Hub dataset's splits, where they differ from `train`, `validation` and `test`.
        text_column: Column with the text; `text` if not given.
        label_column: Column with the label: a name, an integer, a list of names (several classes), or a list of
            numbers, one per label; several columns separated by commas give such a list. Numbers that are all 0 or 1
            with a single 1 a row are one-hot, those of which each row adds up to 1 are distributions, other 0/1 rows
            are several classes. `label` if not given. A test split may be without labels.
        group_column: Column that names the writer (or any group) of a row; in wassa2022 the writer if not given.
        id_column: Column that identifies a row; the row number if not given.
        split_column: Column of the train file that names each row's split.
        label_names: The label set and its order; by default all labels of all splits, sorted.
        extra_columns: Other columns to keep, as strings, for example those that an error analysis goes by.
        cache_dir, token: As in `datasets.load_dataset`.

    Raises:
        InputError: for anything that cannot be read as described.
    """
    if dataset_name in ("wassa2022", *BUILT_IN):
        described = {
            "files": files, "text_column": text_column, "label_column": label_column, "id_column": id_column,
            "split_column": split_column, "split_names": split_names, "label_names": label_names,
            **({} if dataset_name == "wassa2022" else {"group_column": group_column, "extra_columns": extra_columns}),
        }  # fmt: skip
        if given := [name for name, value in described.items() if value]:
            raise InputError(f"{dataset_name} has its own {', '.join(given)}; leave out the flags that say otherwise")
        if dataset_name == "wassa2022":
            return _load_wassa2022(data_dir, group_column or "response_id", extra_columns)
        return _load_emotion_corpus(dataset_name, data_dir, cache_dir, token)
    if dataset_name and files:
        raise InputError(f"give dataset_name ({dataset_name}) or files ({', '.join(files.values())}), not both")
    if dataset_name:
        tables = _read_hub_dataset(dataset_name, dataset_config_name, split_names or {}, cache_dir, token)
        source = dataset_name
    elif files:
        tables = {split: _read_file(path) for split, path in files.items()}
        source = ", ".join(Path(path).name for path in files.values())
    else:
        raise InputError("no data: give --dataset_name (wassa2022, or a Hub dataset) or --train_file")
    if split_column:
        tables = _divide(tables, split_column)

    text_column, label_column = text_column or "text", label_column or "label"
    _check_extra_columns(tables, extra_columns)
    for table in tables.values():
        if not table.rows:
            raise InputError(f"{table.name}: no rows; want at least one")
        for column in [text_column, group_column, id_column]:
            if column:
                _check_column(table, column)
    columns = {
        split: _read_common_columns(t, text_column, group_column, id_column, extra_columns)
        for split, t in tables.items()
    }
    labels, names, problem_type = _read_labels(tables, label_column.split(","), label_names)
    for split, values in labels.items():
        columns[split]["labels"] = values
    credited = " ".join(dict.fromkeys(table.attribution for table in tables.values() if table.attribution)) or None
    splits = {split: Dataset.from_dict(content) for split, content in columns.items()}
    return Corpus(splits, names, problem_type, source, attribution=credited)


def read_texts(path: str | Path, text_column: str = "text") -> list[str]:
    """The texts of a file, in its order.

    Raises:
        InputError: as [`load_corpus`]; also if there are none.
    """
    table = _read_file(path)
    if not table.rows:
        raise InputError(f"{path}: no rows")
    _check_column(table, text_column)
    return _read_common_columns(table, text_column, None, None, ())["text"]


def extra_test_name(source: str) -> str:
    """Return the name of an extra test in figures: its file's name without the ending."""
    return re.sub(r"\W+", "_", Path(source).stem)


def load_extra_test(
    source: str,
    corpus: Corpus,
    *,
    data_dir: str | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    group_column: str | None = None,
    id_column: str | None = None,
) -> Dataset:
    """Read a labelled test set beside the corpus' own: all rows of a file, or the training essays of `wassa2022`.

    Args:
        source: A file as in [`load_corpus`], or `wassa2022`, which needs `data_dir`.
        corpus: Whose labels the test set must have, all or some of them.
        text_column, label_column: As in [`load_corpus`].
        group_column, id_column: As there, but read only where the file has them.

    Raises:
        InputError: for anything that cannot be read as described, or a label that the corpus does not have.
    """
    if source == "wassa2022":
        read = _load_wassa2022(data_dir, "response_id", ())
        if lacking := [name for name in read.label_names if name not in corpus.label_names]:
            raise InputError(
                f"--extra_tests wassa2022: its label {lacking[0]!r} is not one of {', '.join(corpus.label_names)}"
            )
        rows = read.splits["train"]
        ids = [corpus.label_names.index(read.label_names[label]) for label in rows["labels"]]
        return rows.remove_columns("labels").add_column("labels", ids)
    table = _read_file(source)
    text_column, label_columns = text_column or "text", (label_column or "label").split(",")
    if not table.rows:
        raise InputError(f"{source}: no rows; want at least one")
    for column in (text_column, *label_columns):
        _check_column(table, column)
    own = {name: name if name in table.rows[0] else None for name in (group_column, id_column) if name}
    columns = _read_common_columns(table, text_column, own.get(group_column), own.get(id_column), ())
    labels, _, problem_type = _read_labels({"test": table}, label_columns, corpus.label_names)
    if problem_type != corpus.problem_type:
        have = "one class" if problem_type == "single_label_classification" else "several classes"
        raise InputError(f"{source}: its rows have {have}, unlike those that are trained on")
    return Dataset.from_dict(columns | {"labels": labels["test"]})


def split_off_validation(corpus: Corpus, percentage: float, seed: int) -> None:
    """Move about `percentage` percent of the training rows into `validation`, in place.

    Rows of one group stay together; the classes keep their shares as far as the groups allow.

    Raises:
        InputError: if that leaves too few groups or rows on one side.
    """
    train = corpus.splits["train"]
    groups = train["group"] if "group" in train.column_names else train["id"]
    folds = max(2, round(100 / percentage))
    classes = corpus.classes("train")
    if classes.ndim == 2:
        classes = classes.argmax(axis=1)
    if len(set(groups)) < folds:
        raise InputError(
            f"{corpus.source}: {len(set(groups))} groups in train cannot give {percentage}% for validation; "
            "name a validation file"
        )
    if len(set(groups)) > _MANY_GROUPS:
        kept, held_out = _split_many_groups(np.asarray(groups), classes, percentage, seed)
    else:
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        kept, held_out = next(splitter.split(classes, classes, groups))
    corpus.splits["train"], corpus.splits["validation"] = train.select(kept), train.select(held_out)


def _split_many_groups(
    groups: np.ndarray, classes: np.ndarray, percentage: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Indices of both sides: of the groups whose first row has a class, the same share of each class is held out.

    `StratifiedGroupKFold` weighs every group against every fold, minutes for a corpus of unrelated rows."""
    _, first, group_of = np.unique(groups, return_index=True, return_inverse=True)
    rng, chosen = np.random.default_rng(seed), np.zeros(len(first), dtype=bool)
    for label in np.unique(classes):
        of_class = np.flatnonzero(classes[first] == label)
        chosen[rng.permutation(of_class)[: round(len(of_class) * percentage / 100)]] = True
    return np.flatnonzero(~chosen[group_of]), np.flatnonzero(chosen[group_of])


def cross_validation_folds(corpus: Corpus, folds: int) -> np.ndarray:
    """The fold, 0 to `folds - 1`, of each training row: `(rows,)`.

    Rows of one group share a fold; folds are alike in size and in their classes' shares, as far as groups allow: of
    scikit-learn's `StratifiedGroupKFold` under 20 seeds, the one whose worst share is closest to the whole's. The
    same rows always give the same folds.

    Raises:
        InputError: if there are fewer groups than folds, or no class has as many rows as folds.
    """
    train = corpus.splits["train"]
    groups = np.asarray(train["group"] if "group" in train.column_names else train["id"])
    if not 2 <= folds <= len(set(groups)):
        raise InputError(
            f"{corpus.source}: {folds} folds of {len(set(groups))} groups in train; want 2 folds or more, and no more "
            "than groups"
        )
    classes = corpus.classes("train")
    classes = classes.argmax(axis=1) if classes.ndim == 2 else classes
    if folds > (most := int(np.bincount(classes).max())):
        raise InputError(
            f"{corpus.source}: {folds} folds, but no class has more than {most} rows in train; want {most} or fewer"
        )
    return group_folds(classes, groups, folds)


def group_folds(classes: np.ndarray, groups: Sequence[str], folds: int = 5) -> np.ndarray:
    """The fold, 0 to `folds - 1`, of rows with these class ids and groups; see [`cross_validation_folds`]."""
    one_hot = np.eye(classes.max() + 1)[classes]
    best, found = np.inf, np.zeros(len(classes), dtype=int)
    for seed in range(20):
        assigned = np.zeros(len(classes), dtype=int)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a class with fewer rows than folds
            splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
            for fold, (_, held_out) in enumerate(splitter.split(classes, classes, groups)):
                assigned[held_out] = fold
        sizes = np.bincount(assigned, minlength=folds)
        shares = np.stack([one_hot[assigned == fold].sum(axis=0) / max(sizes[fold], 1) for fold in range(folds)])
        worst = max(np.abs(shares - one_hot.mean(axis=0)).max(), np.abs(sizes / len(classes) - 1 / folds).max())
        if worst < best:
            best, found = worst, assigned
    return found


def hold_out_folds(corpus: Corpus, folds: int, which: Sequence[int]) -> None:
    """Make these folds of the training rows, by number, the test split, in place; other splits are left out.

    Raises:
        InputError: as [`cross_validation_folds`], or if there is no such fold, or none is left to train on.
    """
    if wrong := [fold for fold in which if not 0 <= fold < folds]:
        raise InputError(f"fold {wrong[0]} of {folds}; want 0 to {folds - 1}")
    if len(set(which)) == folds:
        raise InputError(f"all {folds} folds are held out; leave at least one to train on")
    train, assigned = corpus.splits["train"], cross_validation_folds(corpus, folds)
    held_out = np.isin(assigned, which)
    corpus.splits = {"train": train.select(np.flatnonzero(~held_out)), "test": train.select(np.flatnonzero(held_out))}


def bootstrap_groups(corpus: Corpus, seed: int) -> None:
    """Make the training rows a bootstrap sample of themselves, in place, for bagging (Breiman 1996): as many groups as
    there are, drawn with replacement, each with all of its rows, once for each time that it is drawn."""
    train = corpus.splits["train"]
    groups = np.asarray(train["group"] if "group" in train.column_names else train["id"])
    names, of_row = np.unique(groups, return_inverse=True)
    times = np.bincount(np.random.default_rng(seed).integers(len(names), size=len(names)), minlength=len(names))
    corpus.splits["train"] = train.select(np.repeat(np.arange(len(groups)), times[of_row]))


def check_trainable(corpus: Corpus) -> None:
    """Raises InputError if the training split cannot teach a classifier; logs labels that it lacks."""
    if "train" not in corpus.splits:
        raise InputError(f"{corpus.source}: no train split; name it with --train_file or --train_split_name")
    if "labels" not in corpus.splits["train"].column_names:
        raise InputError(f"{corpus.source}: the train split has no labels; name their column with --label_column_name")
    classes = corpus.classes("train")
    if classes.ndim == 2:
        counts = dict(zip(corpus.label_names, classes.sum(axis=0).tolist(), strict=True))
    else:
        counts = Counter(corpus.label_names[label] for label in classes)
    present = [name for name in corpus.label_names if counts.get(name)]
    if len(present) < 2:
        raise InputError(
            f"{corpus.source}: the train split has one class only ({', '.join(present) or 'none'}); want at least two"
        )
    for name in corpus.label_names:
        if not counts.get(name):
            logger.warning(f"{corpus.source}: no training row has the label {name!r}; it cannot be learnt")


def limit_rows(corpus: Corpus, train: int | None, validation: int | None, test: int | None) -> None:
    """Keep the first so many rows of each split, in place; all where no number is given.

    Raises:
        InputError: for a number below 1.
    """
    for split, limit in (("train", train), ("validation", validation), ("test", test)):
        if limit is not None and limit < 1:
            raise InputError(f"the sample limit of {split} is {limit}; want at least 1")
        if limit is not None and split in corpus.splits:
            corpus.splits[split] = corpus.splits[split].select(range(min(limit, len(corpus.splits[split]))))


# ---- WASSA 2022 ---------------------------------------------------------------------------------------------------

WASSA_LABELS = ["anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise"]
_WASSA_FILES = {
    "train": "messages_train_ready_for_WS.tsv",
    "validation": "messages_dev_features_ready_for_WS_2022.tsv",
    "test": "messages_test_features_ready_for_WS_2022.tsv",
}
_WASSA_DEV_GOLD = "goldstandard_dev_2022.tsv"
_WASSA_DEV_GOLD_COLUMNS = (
    *("empathy", "distress", "emotion", "personality_conscientiousness", "personality_openess"),
    *("personality_extraversion", "personality_agreeableness", "personality_stability"),
    *("iri_perspective_taking", "iri_personal_distress", "iri_fantasy", "iri_empathatic_concern"),
)  # spelt as in the training file


def _load_wassa2022(data_dir: str | None, group_column: str, extra_columns: Sequence[str]) -> Corpus:
    """The shared task's files: dev labels stand in a headerless file of their own, by row; test has none."""
    if data_dir is None:
        raise InputError(
            "wassa2022 needs --data_dir (or EMODEBERTA_DATA), the folder that holds wassa2022/ with the "
            "shared task's files, which its organisers give out"
        )
    folder = Path(data_dir) / "wassa2022"
    tables = {split: _read_file(folder / name) for split, name in _WASSA_FILES.items()}
    for table in tables.values():
        for column in ("message_id", group_column, "essay"):
            _check_column(table, column)
    _check_column(tables["train"], "emotion")
    gold = _read_delimited(folder / _WASSA_DEV_GOLD, "\t", header=False)
    if len(gold.rows) != len(tables["validation"].rows):
        raise InputError(
            f"{gold.name}: {len(gold.rows)} rows; want {len(tables['validation'].rows)}, one per row of "
            f"{tables['validation'].name}"
        )
    for row, of_gold in zip(tables["validation"].rows, gold.rows, strict=True):
        row |= {name: of_gold.get(f"column_{number}") for number, name in enumerate(_WASSA_DEV_GOLD_COLUMNS, 1)}
    _check_extra_columns(tables, extra_columns)
    gold_labels = Table(gold.name, [{"emotion": row.get("column_3")} for row in gold.rows])
    columns = {
        split: _read_common_columns(table, "essay", group_column, "message_id", extra_columns)
        for split, table in tables.items()
    }
    labels, _, problem_type = _read_labels(
        {"train": tables["train"], "validation": gold_labels}, ["emotion"], WASSA_LABELS
    )
    for split, values in labels.items():
        columns[split]["labels"] = values
    return Corpus(
        {split: Dataset.from_dict(content) for split, content in columns.items()},
        list(WASSA_LABELS),
        problem_type,
        source="wassa2022",
        licence="research use only, not redistributable",
    )


def _load_emotion_corpus(name: str, data_dir: str | None, cache_dir: str | None, token: str | None) -> Corpus:
    """Its training rows under its own labels, several a row; texts that differ in case and punctuation alone are one
    group."""
    read = read_emotion_corpus(name, data_dir, cache_dir, token)
    for reason, count in read.left_out.items():
        logger.info(f"{name}: left out: {count} ({reason})")
    index = {label: position for position, label in enumerate(read.label_names)}
    labels = np.zeros((len(read.ids), len(index)))
    for row, names in enumerate(read.labels):
        labels[row, [index[label] for label in names]] = 1
    columns = {"id": read.ids, "text": read.texts, "group": text_groups(read.texts), "labels": labels.tolist()}
    return Corpus({"train": Dataset.from_dict(columns)}, read.label_names, "multi_label_classification", source=name)


# ---- Files and Hub datasets ---------------------------------------------------------------------------------------


def _read_file(path: str | Path) -> Table:
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    match path.suffix.lower():
        case ".csv":
            return _read_delimited(path, ",")
        case ".tsv":
            return _read_delimited(path, "\t")
        case ".jsonl" | ".json":
            return _read_json(path)
        case ".parquet":
            try:
                read = pyarrow.parquet.read_table(path)
                credited = (read.schema.metadata or {}).get(ATTRIBUTION, b"").decode("utf-8", "replace")
                return Table(str(path), read.to_pylist(), attribution=credited or None)
            except pyarrow.ArrowException as error:
                raise InputError(f"{path}: not a parquet file ({str(error).splitlines()[0]})") from error
    raise InputError(f"{path}: unknown file type {path.suffix!r}; want .csv, .tsv, .json, .jsonl or .parquet")


def _read_text(path: Path) -> str:
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = content[: error.start].count(b"\n") + 1
        raise InputError(
            f"{path}, line {row}: not UTF-8 (byte 0x{content[error.start]:02x}); save the file with encoding UTF-8"
        ) from error


def _read_delimited(path: Path, delimiter: str, header: bool = True) -> Table:
    """Ordinary CSV quoting; every value a string. Without a header the columns are `column_1`, `column_2`, ..."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    reader = csv.reader(io.StringIO(_read_text(path), newline=""), delimiter=delimiter, strict=True)
    rows: list[list[str]] = []
    try:
        rows.extend(reader)
    except csv.Error as error:
        raise InputError(
            f"{path}, row {len(rows) + 1} (line {reader.line_num}): {error}; a quote inside a quoted field is doubled"
        ) from error
    while rows and not rows[-1]:  # blank lines at the end
        rows.pop()
    if not rows:
        raise InputError(f"{path}: empty; want {'a header and ' if header else ''}rows")
    names = rows.pop(0) if header else [f"column_{number}" for number in range(1, len(rows[0]) + 1)]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise InputError(f"{path}: the header names {twice[0]!r} twice")
    for index, row in enumerate(rows):
        if len(row) != len(names):
            raise InputError(f"{path}, row {index + 1 + header}: {len(row)} fields; want {len(names)}")
    return Table(str(path), [dict(zip(names, row, strict=True)) for row in rows], first_row=1 + header)


def _read_json(path: Path) -> Table:
    text = _read_text(path)
    try:
        if path.suffix.lower() == ".json":
            rows = json.loads(text)
            if not isinstance(rows, list):
                raise InputError(f"{path}: holds a {type(rows).__name__}; want a list of objects, one per row")
        else:
            rows = []
            for line in text.rstrip().split("\n") if text.strip() else ():
                rows.append(json.loads(line))
    except json.JSONDecodeError as error:
        row = error.lineno if path.suffix.lower() == ".json" else len(rows) + 1
        raise InputError(f"{path}, line {row}: not JSON ({error.msg})") from error
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise InputError(f"{path}, row {index + 1}: a {type(row).__name__}; want an object with named fields")
    return Table(str(path), rows)


def _read_hub_dataset(
    name: str, config: str | None, split_names: dict[str, str], cache_dir: str | None, token: str | None
) -> dict[str, Table]:
    try:
        loaded = load_dataset(name, config, cache_dir=cache_dir, token=token)
    except Exception as error:  # datasets raises many kinds; all mean that it cannot be had
        raise InputError(f"dataset {name}: {str(error).strip().splitlines()[0]}") from error
    tables = {}
    for split in SPLITS:
        wanted = split_names.get(split, split)
        if wanted in loaded:
            dataset = loaded[wanted]
            tables[split] = Table(f"{name} ({wanted})", dataset.to_list(), features=dataset.features)
        elif split in split_names:
            raise InputError(f"dataset {name}: no split {wanted!r}; it has {', '.join(loaded)}")
    if not tables:
        raise InputError(f"dataset {name}: its splits are {', '.join(loaded)}; say which is which, for example with "
                         "--train_split_name")  # fmt: skip
    return tables


def _divide(tables: dict[str, Table], column: str) -> dict[str, Table]:
    if set(tables) != {"train"}:
        raise InputError("a split column divides the train file; leave out the validation and test files")
    table = tables["train"]
    _check_column(table, column)
    divided: dict[str, list[tuple[int, dict]]] = {}
    for index, row in enumerate(table.rows):
        split = _SPLIT_ALIASES.get(str(row.get(column)), str(row.get(column)))
        if split not in SPLITS:
            raise InputError(
                f"{table.where(index)}: {column} is {row.get(column)!r}; want train, validation (or dev) or test"
            )
        divided.setdefault(split, []).append((index, row))
    return {
        split: _Part(
            table.name,
            [row for _, row in rows],
            table.first_row,
            attribution=table.attribution,
            positions=[index for index, _ in rows],
        )
        for split, rows in divided.items()
    }


@dataclass
class _Part(Table):
    """A split of a file that holds several; rows keep the numbers they have in the file."""

    positions: list[int] = field(default_factory=list)

    def where(self, index: int) -> str:
        return super().where(self.positions[index])


def _check_column(table: Table, column: str) -> None:
    present = list(table.rows[0]) if table.rows else []
    if column not in present:
        raise no_column(table.name, column, present)


def no_column(name: str, column: str, present: list[str]) -> InputError:
    """What to say of a table that lacks a column."""
    close = difflib.get_close_matches(column, present, n=1)
    return InputError(
        f"{name}: no column {column!r}; it has {', '.join(map(str, present))}"
        + (f"; did you mean {close[0]!r}?" if close else "")
    )


def _check_extra_columns(tables: dict[str, Table], columns: Sequence[str]) -> None:
    """Each stands in one split at least."""
    for column in columns:
        if not any(table.rows and column in table.rows[0] for table in tables.values()):
            _check_column(next(iter(tables.values())), column)


def _read_common_columns(
    table: Table, text_column: str, group_column: str | None, id_column: str | None, extra_columns: Sequence[str]
) -> dict[str, list]:
    columns: dict[str, list] = {"id": [], "text": []}
    if group_column:
        columns["group"] = []
    seen: dict[str, int] = {}
    for index, row in enumerate(table.rows):
        text = row.get(text_column)
        if not isinstance(text, str):
            raise InputError(f"{table.where(index)}: {text_column} is {text!r}; want a text")
        if not text.strip():
            raise InputError(f"{table.where(index)}: {text_column} is empty; want a text")
        if id_column and row.get(id_column) in (None, ""):
            raise InputError(f"{table.where(index)}: no {id_column}; want something that identifies the row")
        row_id = str(row[id_column]) if id_column else str(index + table.first_row)
        if row_id in seen:
            raise InputError(f"{table.where(index)}: {id_column} {row_id!r} stands in row {seen[row_id]} too")
        seen[row_id] = index + table.first_row
        columns["id"].append(row_id)
        columns["text"].append(text)
        if group_column:
            if row.get(group_column) in (None, ""):
                raise InputError(f"{table.where(index)}: no {group_column}; want the writer (or group) of the row")
            columns["group"].append(str(row[group_column]))
    for name in extra_columns:
        values = [row.get(name) for row in table.rows]
        columns[f"column_{name}"] = ["" if value is None else str(value) for value in values]
    return columns


# ---- Labels -------------------------------------------------------------------------------------------------------


def _read_labels(
    tables: dict[str, Table], label_columns: list[str], label_names: Sequence[str] | None
) -> tuple[dict[str, list], list[str], str]:
    """Labels by split, the label set over all splits, and the problem type."""
    labelled: dict[str, list] = {}
    for split, table in tables.items():
        if split == "test" and not all(column in table.rows[0] for column in label_columns):
            continue
        for column in label_columns:
            _check_column(table, column)
        raw = [
            row.get(label_columns[0]) if len(label_columns) == 1 else [row.get(column) for column in label_columns]
            for row in table.rows
        ]
        if split == "test" and all(value in (None, "", [], -1) for value in raw):  # -1: how the Hub hides them
            continue
        labelled[split] = raw
    if not labelled:
        raise InputError(f"no split has the label column {','.join(label_columns)!r}")

    if len(label_columns) > 1:
        if label_names and list(label_names) != label_columns:
            raise InputError(f"the label columns are {', '.join(label_columns)}; the label set names others")
        label_names = label_columns
        vectors = {
            split: [[_number(value, tables[split], i) for value in row] for i, row in enumerate(rows)]
            for split, rows in labelled.items()
        }
        return _from_vectors(tables, vectors, list(label_names))

    feature_names, id_lists = _class_label_names(tables, label_columns[0])
    first = next(iter(labelled.values()))[0]
    if isinstance(first, list) and not feature_names and all(_is_number(value) for value in first) and len(first) > 1:
        width = len(label_names) if label_names else len(first)
        vectors = {}
        for split, rows in labelled.items():
            vectors[split] = []
            for index, row in enumerate(rows):
                if not isinstance(row, list) or len(row) != width:
                    raise InputError(
                        f"{tables[split].where(index)}: label is {row!r}; want {width} numbers, one per label"
                    )
                vectors[split].append([_number(value, tables[split], index) for value in row])
        return _from_vectors(tables, vectors, list(label_names or map(str, range(width))))

    names = list(label_names) if label_names else feature_names
    if isinstance(first, list) or id_lists:
        values = {
            split: [
                [_label(v, tables[split], i, feature_names or label_names) for v in _as_list(row, tables[split], i)]
                for i, row in enumerate(rows)
            ]
            for split, rows in labelled.items()
        }
        names = names or _sorted_labels({name for rows in values.values() for row in rows for name in row})
        index = {name: position for position, name in enumerate(names)}
        hot = {}
        for split, rows in values.items():
            hot[split] = []
            for i, row in enumerate(rows):
                vector = [0.0] * len(names)
                for name in row:
                    vector[_index_of(name, index, tables[split], i)] = 1.0
                hot[split].append(vector)
        return hot, names, "multi_label_classification"

    values = {
        split: [_label(value, tables[split], i, feature_names or label_names) for i, value in enumerate(rows)]
        for split, rows in labelled.items()
    }
    names = names or _sorted_labels({name for rows in values.values() for name in rows})
    index = {name: position for position, name in enumerate(names)}
    ids = {
        split: [_index_of(name, index, tables[split], i) for i, name in enumerate(rows)]
        for split, rows in values.items()
    }
    return ids, names, "single_label_classification"


def _from_vectors(
    tables: dict[str, Table], vectors: dict[str, list[list[float]]], names: list[str]
) -> tuple[dict[str, list], list[str], str]:
    """One-hot rows become classes; distributions stay; other 0/1 rows are several classes."""
    every = [row for rows in vectors.values() for row in rows]
    hot = all(value in (0.0, 1.0) for row in every for value in row)
    if hot and all(sum(row) == 1 for row in every):
        return (
            {s: [row.index(1.0) for row in rows] for s, rows in vectors.items()},
            names,
            "single_label_classification",
        )
    if hot:
        return vectors, names, "multi_label_classification"
    for split, rows in vectors.items():
        for index, row in enumerate(rows):
            if min(row) < 0 or abs(sum(row) - 1) > _PROBABILITY_TOLERANCE:
                raise InputError(
                    f"{tables[split].where(index)}: the label's numbers add up to {sum(row):.4g}; want a distribution "
                    "(none below 0, sum 1), or 0 and 1 only"
                )
    normalised = {s: [[value / sum(row) for value in row] for row in rows] for s, rows in vectors.items()}
    return normalised, names, "single_label_classification"


def _class_label_names(tables: dict[str, Table], column: str) -> tuple[list[str] | None, bool]:
    """Names of a Hub dataset's ClassLabel column, and whether a row holds a list of them."""
    for table in tables.values():
        feature = (table.features or {}).get(column)
        inner = getattr(feature, "feature", None)
        if isinstance(feature, ClassLabel):
            return list(feature.names), False
        if isinstance(inner, ClassLabel):
            return list(inner.names), True
    return None, False


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: object, table: Table, index: int) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not np.isfinite(number):
        raise InputError(f"{table.where(index)}: label is {value!r}; want a number")
    return number


def _as_list(value: object, table: Table, index: int) -> list:
    if not isinstance(value, list):
        raise InputError(f"{table.where(index)}: label is {value!r}; want a list, as in the rows before")
    return value


def _label(value: object, table: Table, index: int, names: Sequence[str] | None) -> str:
    """The label's name; an integer stands for the name at that position, if names are known."""
    if value is None or value == "" or (isinstance(value, float) and np.isnan(value)):
        raise InputError(f"{table.where(index)}: no label")
    if isinstance(value, list):
        raise InputError(f"{table.where(index)}: label is {value!r}; want one label, as in the rows before")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise InputError(f"{table.where(index)}: label is {value!r}; want a name or an integer")
    text = str(value).strip()
    if not text:
        raise InputError(f"{table.where(index)}: no label")
    if names is not None and text not in names and _INTEGER.fullmatch(text):
        if not 0 <= int(text) < len(names):
            raise InputError(f"{table.where(index)}: label is {text}; want 0 to {len(names) - 1} ({', '.join(names)})")
        return names[int(text)]
    return text


def _sorted_labels(names: set[str]) -> list[str]:
    numeric = all(_INTEGER.fullmatch(name) for name in names)
    return sorted(names, key=int) if numeric else sorted(names)


def _index_of(name: str, index: dict[str, int], table: Table, row: int) -> int:
    if name not in index:
        close = difflib.get_close_matches(name, index, n=1)
        raise InputError(
            f"{table.where(row)}: label {name!r} is not one of {', '.join(index)}"
            + (f"; did you mean {close[0]!r}?" if close else "")
        )
    return index[name]
