"""Read models' predictions on rows that they did not train on, from the files of any script.

A comparison or fusion records splits and folds: the rows of a trial are those of its held-out folds, or of the
validation and test splits. A run's predictions.tsv records splits. Files of scores record neither, so they count for
texts without labels only.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from datasets import Dataset
from safetensors import safe_open

from ..data.corpus import Corpus
from ..data.corrections import the_file
from ..data.load import DataArguments, load_labelled_as
from ..data.tables import read_common_columns, read_file
from ..errors import InputError
from ..escape import probability_column
from ..evaluation.predictions import PREDICTIONS, read_predictions
from ..files import RESULTS, digest, file_digest, read_object
from ..training.distillation import OUT_OF_FOLD
from ..training.saved_model import reading
from .trial import METADATA
from .trial_archive import ARCHIVE

SCORES = "manifest.json"
_IDENTITY = ("split", "fold", "row")


class Opinion(NamedTuple):
    """What one model predicts of some rows.

    Attributes:
        split: The split of the corpus that the rows are in.
        ids: Row ids; `None` for all rows of the split in their order.
        probabilities: `(rows, labels)`; of a row that could not be scored NaN.
        disagreement: `(rows,)`, for an ensemble that tells it: the share of its members that disagree with it.
    """

    split: str
    ids: list[str] | None
    probabilities: np.ndarray
    disagreement: np.ndarray | None = None


@dataclass
class HeldOut:
    """The predictions in one place.

    Attributes:
        source: Name of the place, for messages.
        label_names: In the order of the columns.
        opinions: One per model, fold and split.
        of_training: Whether it is known that no model trained on the rows that it predicts.
        checks: Functions that raise an `InputError` if the corpus is not the one that was predicted.
        scored: For scores of run_score.py, the manifest's record of the file that was scored.
    """

    source: str
    label_names: list[str]
    opinions: list[Opinion]
    of_training: bool = True
    checks: list[Callable[[Corpus], None]] = field(default_factory=list)
    scored: dict[str, Any] | None = None


def read_held_out(path: Path) -> HeldOut:
    """Return the predictions in a folder or file.

    Args:
        path: The folder of a comparison, fusion, ensemble, run or of scores; or its predictions.parquet or .tsv.

    Raises:
        InputError: if there are none, they are damaged, or they are of rows that the model trained on.
    """
    folder = path if path.is_dir() else path.parent
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; want what run_compare.py, run_fuse.py or run_score.py wrote")
    if path.name == ARCHIVE or (path.is_dir() and (path / ARCHIVE).is_file()):
        return _archive(folder / ARCHIVE)
    if path.is_dir() and (path / SCORES).is_file():
        return _scores(path)
    if path.is_dir() and (path / OUT_OF_FOLD).is_file():
        return _out_of_fold(path / OUT_OF_FOLD)
    if path.name == PREDICTIONS or (path.is_dir() and (path / PREDICTIONS).is_file()):
        return _run(folder)
    raise InputError(f"{path}: has none of {ARCHIVE}, {PREDICTIONS}, {OUT_OF_FOLD} and {SCORES}; want predictions")


def _archive(path: Path) -> HeldOut:
    """Read the predictions of a comparison or fusion; see [`trainer_ext.runs.trial_archive`]."""
    with reading(path, "is not an archive of trials"):
        table = pq.read_table(path)
        described = json.loads(table.schema.metadata[METADATA.encode()])
        label_names, records = described["labels"], described["trials"]
        values = np.stack([column.to_numpy() for column in table.columns[-len(label_names) :]], axis=1)
        splits, folds, ids = (np.array(table[name].to_pylist(), dtype=object) for name in _IDENTITY)
        trials = np.array(table["trial"].to_pylist(), dtype=object)
        opinions = []
        for trial in records:
            for split in dict.fromkeys(splits[trials == trial]):
                here = (trials == trial) & (splits == split)
                # With folds, a trial's `test` is those of them that it did not train on.
                of = "train" if folds[here][0] else split
                if split == "train":
                    raise InputError(f"{path}: trial {trial} predicts rows that it trained on; want held-out ones")
                opinions.append(Opinion(of, ids[here].tolist(), values[here]))
        data = {record["data"] for record in records.values() if "data" in record}

    def same_rows(corpus: Corpus) -> None:
        if data and data != {corpus.digest(("id", "text", "group", "labels"))}:
            raise InputError(
                f"{path}: is of other rows than {corpus.source} (an id, text, label or group differs); give the data "
                "and the flags for its columns as they were for the comparison"
            )

    return HeldOut(str(path), label_names, opinions, checks=[same_rows])


def _out_of_fold(path: Path) -> HeldOut:
    """Read an ensemble's cross-validated predictions of its training rows."""
    with reading(path, "cannot be read; make the ensemble again"), safe_open(path, framework="numpy") as file:
        described = json.loads(file.metadata()[METADATA])
        keys = [key.rpartition(" ") for key in described["rows"]]
        values = file.get_tensor("probabilities").astype(np.float64)
    values /= values.sum(axis=1, keepdims=True)
    hashes = {row_id: text for row_id, _, text in keys}

    def same_texts(corpus: Corpus) -> None:
        train = corpus.splits.get("train", {"id": [], "text": []})
        for row_id, text in zip(train["id"], train["text"], strict=True):
            if hashes.get(row_id, digest(text)) != digest(text):
                raise InputError(f"{path}: row {row_id} of {corpus.source} has another text; want the ensemble's data")

    opinion = Opinion("train", [row_id for row_id, _, _ in keys], values)
    return HeldOut(str(path), described["labels"], [opinion], checks=[same_texts])


def _run(folder: Path) -> HeldOut:
    """Read predictions.tsv. What a finished model predicted later (--do_predict) may be of rows it trained on."""
    path, table = folder / PREDICTIONS, read_predictions(folder, one_label=False)
    opinions, gold = [], {}
    for split in dict.fromkeys(row.split for row in table.rows):
        if split == "train":
            raise InputError(f"{path}: predicts rows of train, which the model trained on; want held-out ones")
        here = [index for index, row in enumerate(table.rows) if row.split == split]
        gold |= {(split, table.rows[index].id): table.rows[index].gold for index in here}
        opinions.append(Opinion(split, [table.rows[index].id for index in here], table.probabilities[here]))

    def same_labels(corpus: Corpus) -> None:
        for split, rows in corpus.splits.items():
            if corpus.is_labelled(split) and not corpus.multi_label:
                for row_id, label in zip(rows["id"], corpus.classes(split), strict=True):
                    before = gold.get((split, row_id))
                    if before and before != corpus.label_names[label]:
                        raise InputError(
                            f"{path}: row {row_id} of {split} is {before} there and {corpus.label_names[label]} in "
                            f"{corpus.source}; want the data that were predicted"
                        )

    results = read_object(folder / RESULTS)
    trained = "train_runtime" in results or "members" in results
    return HeldOut(str(path), table.label_names, opinions, trained, [same_labels])


def _scores(folder: Path) -> HeldOut:
    """Read the shards of run_score.py, which have a row for each row of the input."""
    manifest = read_object(folder / SCORES)
    if not manifest.get("complete"):
        raise InputError(f"{folder}: its scores are not complete; start run_score.py again in the same way")
    with reading(folder / SCORES, "is not a manifest of scores"):
        label_names, inputs = manifest["labels"], manifest["input"]
        rows = [row for shard in manifest["shards"] for row in read_file(folder / shard["file"]).rows]
        values = np.array([[_number(row.get(probability_column(name))) for name in label_names] for row in rows])
        disagreement = None
        if rows and "disagreement" in rows[0]:
            disagreement = np.array([_number(row["disagreement"]) for row in rows])
        if len(inputs) != 1 or "sha256" not in inputs[0]:
            raise InputError(f"{folder}: holds scores of several files or of a dataset; want those of one file")
    return HeldOut(str(folder), label_names, [Opinion("test", None, values, disagreement)], False, scored=inputs[0])


def _number(value: object) -> float:
    return np.nan if value in (None, "") else float(value)


# ---- Data ---------------------------------------------------------------------------------------------------------
def load_predicted(held_out: Sequence[HeldOut], data_args: DataArguments) -> Corpus:
    """Return the corpus that was predicted, with labels in the order of the predictions.

    Raises:
        InputError: if the predictions are not of this corpus, or of labelled rows that a model may have trained on.
    """
    first = held_out[0]
    for each in held_out:
        if each.label_names != first.label_names:
            theirs, ours = ", ".join(each.label_names), ", ".join(first.label_names)
            raise InputError(f"{each.source}: its labels are {theirs}; those of {first.source} are {ours}")
        if (each.scored is None) != (first.scored is None):
            raise InputError(f"{each.source}: give either scores of run_score.py or held-out predictions, not both")
    if first.scored is not None:
        return scored_texts(held_out, data_args)
    corpus = load_labelled_as(first.label_names, data_args)
    for each in held_out:
        for check in each.checks:
            check(corpus)
        labelled = [opinion.split for opinion in each.opinions if corpus.is_labelled(opinion.split)]
        if labelled and not each.of_training:
            raise InputError(
                f"{each.source}: a finished model predicted these rows, and may have trained on them; want the "
                "predictions of run_compare.py, or of the run that trained it"
            )
    return corpus


def scored_texts(held_out: Sequence[HeldOut], data_args: DataArguments) -> Corpus:
    """Return the unlabelled texts that run_score.py scored; rows without a score are left out, and that is said.

    Raises:
        InputError: if the file is another one than was scored, or has labels.
    """
    _, path = the_file(data_args)
    for each in held_out:
        if each.scored["sha256"] != file_digest(path):
            raise InputError(f"{path}: is not the file that {each.source} has scores of ({each.scored['file']})")
    table = read_file(path, data_args.quoting)
    column = data_args.label_column_name or "label"
    if any(row.get(column) not in (None, "") for row in table.rows):
        raise InputError(
            f"{path}: has labels in its column {column!r}, and scores do not say which rows a model trained on; leave "
            "out --predictions, or give those of run_compare.py"
        )
    known = ~np.any([np.isnan(each.opinions[0].probabilities).any(axis=1) for each in held_out], axis=0)
    if lost := int((~known).sum()):
        print(f"{lost} rows could not be scored and are left out; the scores say why")
    for name in ("rows", "numbers", "places"):
        setattr(table, name, [value for value, keep in zip(getattr(table, name), known, strict=True) if keep])
    for each in held_out:
        (opinion,) = each.opinions
        unsure = None if opinion.disagreement is None else opinion.disagreement[known]
        each.opinions = [Opinion("test", None, opinion.probabilities[known], unsure)]
    columns = read_common_columns(
        table,
        data_args.text_column_name or "text",
        id_column=data_args.id_column_name,
        delimiter=data_args.text_column_delimiter,
    )
    rows = Dataset.from_dict(columns)
    return Corpus({"test": rows}, held_out[0].label_names, "single_label_classification", table.name)


def aligned(
    corpus: Corpus, opinions: Sequence[Opinion]
) -> tuple[list[tuple[str, int]], np.ndarray | None, list[tuple[np.ndarray, np.ndarray]], np.ndarray | None]:
    """Return the predicted rows, their labels, each model's predictions of them, and the members' disagreement.

    Labelled rows come first: if there are any, only they are reviewed.

    Returns:
        The rows as split and position in it; class ids `(rows,)` or 0/1 `(rows, labels)`, `None` without labels; and
        what [`trainer_ext.evaluation.error_analysis.review`] takes.

    Raises:
        InputError: if a predicted row is not in the corpus.
    """
    splits = list(dict.fromkeys(opinion.split for opinion in opinions))
    if absent := [split for split in splits if split not in corpus.splits]:
        if len(absent) == len(splits):
            raise InputError(
                f"the predictions are of {', '.join(splits)} rows; give their file (--{splits[0]}_file). "
                "Rows that a model trained on have no held-out predictions"
            )
        print(f"predictions of {', '.join(absent)} are left out: there are no such rows")
    labelled = [split for split in splits if corpus.is_labelled(split)]
    splits = labelled or [split for split in splits if split in corpus.splits]
    position = {split: {row_id: index for index, row_id in enumerate(corpus.splits[split]["id"])} for split in splits}
    where: dict[tuple[str, int], int] = {}
    models, told = [], []
    for opinion in opinions:
        if opinion.split not in splits:
            continue
        ids = corpus.splits[opinion.split]["id"][:] if opinion.ids is None else opinion.ids
        if unknown := [row_id for row_id in ids if row_id not in position[opinion.split]]:
            raise InputError(f"{corpus.source}: has no row {unknown[0]!r} in {opinion.split}, which is predicted")
        rows = [(opinion.split, position[opinion.split][row_id]) for row_id in ids]
        models.append((np.array([where.setdefault(row, len(where)) for row in rows]), opinion.probabilities))
        told += [] if opinion.disagreement is None else [opinion.disagreement]
    keys = list(where)
    given = None
    if labelled:
        classes = {split: corpus.classes(split) for split in splits}
        given = np.array([classes[split][index] for split, index in keys])
    alone = len(told) == len(models) == 1  # an ensemble; several models disagree with one another
    return keys, given, models, told[0] if alone else None


def several_labels(models: Sequence[tuple[np.ndarray, np.ndarray]]) -> bool:
    """Return whether the probabilities are of labels that do not exclude each other."""
    return any(np.abs(probabilities.sum(axis=1) - 1).max() > 1e-3 for _, probabilities in models)
