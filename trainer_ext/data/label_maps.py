"""Rows of other corpora under the target's labels: the maps between label sets."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from datasets import Dataset
from pydantic import Field

from ..errors import InputError
from ..files import digest
from ..recipe_file import Schema, check_recipe, read_recipe
from ..recipes import flag
from .emotion_corpora import BUILT_IN, EmotionCorpus, read_emotion_corpus
from .leakage import LeakageGuard, TargetArguments
from .load import load_corpus


@dataclass
class TransferArguments(TargetArguments):
    """Other corpora under the target's labels."""

    _argument_group_name = "Supervised transfer"

    transfer_datasets: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Corpora to transfer from: go_emotions, xed (from --data_dir, else from the Hub), or a .yaml file "
            "that maps the labels of one of your own, as those in trainer_ext/data/maps do. With --dataset_name or "
            "--train_file give --augmentation; without, they are what is trained on: a stage whose folder is the next "
            "one's --model_name_or_path."
        },
    )
    augmentation: Literal["none", "RA", "BA"] = flag(
        "none",
        "Which rows of --transfer_datasets to take (paper, section 2.3.1): Random Augmentation, any; Balanced "
        "Augmentation, equally many of each class. Only rows with exactly one of the target's labels are taken.",
    )
    augmentation_rows: int | None = flag(
        None, "RA: rows in all, 1000 if not given; BA: rows a class, 400 if not given (Mundra et al. 2021)."
    )
    ba_mode: Literal["added", "topped_up"] = flag(
        "added",
        "BA adds so many rows to each class, or tops each class up to so many rows, the target's own counted; the "
        "literature does not say which.",
    )
    join_to_words: int | None = flag(
        None,
        "Join texts of one label to about so many words (half to one and a half times as many), before rows are "
        "chosen: comments have 13 words, WASSA's essays 82.",
    )
    distill_from: str | None = flag(
        None,
        "Folder of run_fuse.py's recipe: learn the ensemble's distribution in place of the labels. The target's "
        "training rows get its out-of-fold one, from members that did not see them; rows of --transfer_datasets what "
        "it predicts for them.",
    )


LABEL_MAPS = Path(__file__).with_name("maps")


class LabelMapFile(Schema):
    """What a file that maps labels may hold; see [`read_label_map`]."""

    dataset_name: str | None = None
    dataset_config_name: str | None = None
    train_split_name: str | None = None
    train_file: str | None = None
    text_column_name: str | None = None
    label_column_name: str | None = None
    licence: str | None = None
    labels: Annotated[dict[str, Any], Field(min_length=1)]
    left_out: Any = ()


@dataclass
class LabelMap:
    """Which of a target's labels each label of a corpus stands for.

    Attributes:
        path: Of the YAML file, for messages.
        corpus: Its other keys: what to read.
        target_of: By label of the corpus; `None` for one that is left out.
    """

    path: Path
    corpus: dict[str, Any]
    target_of: dict[str, str | None]

    def targets(self) -> set[str]:
        return {label for label in self.target_of.values() if label is not None}


@dataclass
class TransferRows:
    """Rows of one or several corpora that have exactly one of the target's labels.

    Attributes:
        ids, texts, labels, corpora: Of each row; `labels` by name, `corpora` is what it comes from.
        label_names: The target's, in their order.
        licences: By corpus.
        left_out: How many rows are not in here, by reason.
    """

    label_names: list[str]
    ids: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    corpora: list[str] = field(default_factory=list)
    licences: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def add(self, row_id: str, text: str, label: str, corpus: str) -> None:
        self.ids.append(row_id)
        self.texts.append(text)
        self.labels.append(label)
        self.corpora.append(corpus)

    def leave_out(self, reason: str, count: int = 1) -> None:
        if count:
            self.left_out[reason] = self.left_out.get(reason, 0) + count

    def select(self, indices: Iterable[int]) -> "TransferRows":
        """Some of the rows, in the order of `indices`."""
        rows = TransferRows(self.label_names, licences=self.licences, left_out=self.left_out)
        for index in indices:
            rows.add(self.ids[index], self.texts[index], self.labels[index], self.corpora[index])
        return rows

    def counts(self) -> dict[str, dict[str, int]]:
        """Rows by corpus and label."""
        found = Counter(zip(self.corpora, self.labels, strict=True))
        return {corpus: {label: found[corpus, label] for label in self.label_names} for corpus in self.licences}


# ---- Reading ------------------------------------------------------------------------------------------------------
def read_label_map(name: str) -> LabelMap:
    """The mapping of a built-in corpus (go_emotions, xed), or a YAML file of the same form.

    Such a file holds `labels` (each of the target's with those of the corpus that stand for it), `left_out` (labels of
    the corpus that stand for none) and what to read: `train_file` (beside it) or `dataset_name` (on the Hub), with
    `text_column_name`, `label_column_name`, `dataset_config_name` and `train_split_name` where they are not the usual
    ones, and `licence` for the model card.

    Raises:
        InputError: if there is none, or it is not of this form.
    """
    path = LABEL_MAPS / f"{name}.yaml" if name in BUILT_IN else Path(name)
    if path.suffix not in (".yaml", ".yml"):
        raise InputError(
            f"--transfer_datasets {name}: want {', '.join(BUILT_IN)}, or a .yaml file that maps the labels of a corpus "
            "of your own"
        )
    file = check_recipe(read_recipe(path), LabelMapFile, path)
    if bool(file.dataset_name) == bool(file.train_file):
        raise InputError(f"{path}: want either dataset_name or train_file, the corpus whose labels it maps")
    target_of: dict[str, str | None] = {}
    for target, sources in [*file.labels.items(), (None, file.left_out)]:
        for source in map(str, sources if isinstance(sources, list | tuple) else [sources]):
            if source in target_of:
                raise InputError(f"{path}: {source!r} stands twice; a label of the corpus has one place")
            target_of[source] = target
    return LabelMap(path, file.model_dump(exclude_unset=True, exclude={"labels", "left_out"}), target_of)


def load_transfer_rows(
    args: TransferArguments,
    *,
    label_names: Sequence[str] | None,
    guard: LeakageGuard,
    seed: int,
    data_dir: str | None,
    cache_dir: str | None = None,
    token: str | None = None,
) -> TransferRows:
    """All rows of `--transfer_datasets` with exactly one of the target's labels, joined where the flags say so.

    Args:
        label_names: The target's; all that the mappings name, sorted, if `None`.
        guard: Texts that must not be trained on; its `found` names the rows that copy one.
        seed: Decides which texts are joined.

    Raises:
        InputError: for a corpus or mapping that cannot be read, or one that names a label which is not there.
    """
    maps = [read_label_map(name) for name in args.transfer_datasets]
    every = sorted(set().union(*(label_map.targets() for label_map in maps)))
    rows = TransferRows(list(label_names or every))
    for label_map in maps:
        if unknown := sorted(label_map.targets() - set(rows.label_names)):
            raise InputError(
                f"{label_map.path}: maps to {unknown[0]!r}, which is no label of the target; those are "
                f"{', '.join(rows.label_names)}. Copy the file and give your own"
            )
        corpus = _read_corpus(label_map, data_dir, cache_dir, token)
        if corpus.name in rows.licences:
            raise InputError(f"--transfer_datasets: {corpus.name} stands twice")
        if unknown := sorted(label_map.target_of.keys() - set(corpus.label_names)):
            raise InputError(
                f"{label_map.path}: {unknown[0]!r} is no label of {corpus.name}; those are "
                f"{', '.join(corpus.label_names)}"
            )
        if missing := [label for label in corpus.label_names if label not in label_map.target_of]:
            raise InputError(
                f"{label_map.path}: says nothing of {', '.join(missing)}; map them, or put them in left_out"
            )
        _add_mapped(rows, corpus, label_map, guard)
    return rows if args.join_to_words is None else join_texts(rows, args.join_to_words, seed)


def transfer_digest(names: Iterable[str], data_dir: str | None) -> str:
    """Hash of the mapped rows of these corpora, to tell whether they changed."""
    args = TransferArguments(transfer_datasets=list(names))
    rows = load_transfer_rows(args, label_names=None, guard=LeakageGuard(""), seed=0, data_dir=data_dir)
    return digest([rows.ids, rows.texts, rows.labels])


def _read_corpus(label_map: LabelMap, data_dir: str | None, cache_dir: str | None, token: str | None) -> EmotionCorpus:
    """Texts and names of their labels, whatever the source."""
    described = label_map.corpus
    if described.get("dataset_name") in BUILT_IN:
        return read_emotion_corpus(described["dataset_name"], data_dir, cache_dir, token)
    file, split = described.get("train_file"), described.get("train_split_name")
    name = described.get("dataset_name") or Path(file).name
    loaded = load_corpus(
        dataset_name=described.get("dataset_name"),
        dataset_config_name=described.get("dataset_config_name"),
        files={"train": str(label_map.path.parent / file)} if file else None,
        split_names={"train": split} if split else None,
        text_column=described.get("text_column_name"),
        label_column=described.get("label_column_name"),
        cache_dir=cache_dir,
        token=token,
    )
    if "labels" not in loaded.splits.get("train", Dataset.from_dict({})).column_names:
        raise InputError(f"{label_map.path}: {name} has no labelled train split; name it with train_split_name")
    corpus = EmotionCorpus(name, described.get("licence", "licence not stated"), loaded.label_names)
    several = loaded.problem_type == "multi_label_classification"
    train = loaded.splits["train"]
    for row_id, text, classes in zip(train["id"], train["text"], loaded.classes("train"), strict=True):
        chosen = np.flatnonzero(classes) if several else [classes]
        corpus.add(f"row {row_id}", text, [loaded.label_names[label] for label in chosen])
    return corpus


def _add_mapped(rows: TransferRows, corpus: EmotionCorpus, label_map: LabelMap, guard: LeakageGuard) -> None:
    """Rows with one label of the target, in the corpus' order; the others are counted."""
    rows.licences[corpus.name] = corpus.licence
    for reason, count in corpus.left_out.items():
        rows.leave_out(f"{corpus.name}: {reason}", count)
    for row_id, text, labels in zip(corpus.ids, corpus.texts, corpus.labels, strict=True):
        mapped = {label_map.target_of[label] for label in labels} - {None}
        if len(mapped) != 1:
            rows.leave_out(f"{corpus.name}: {'several labels' if mapped else 'no label'} of the target")
        elif guard.keeps(f"{corpus.name}, {row_id}", text):
            rows.add(f"{corpus.name}, {row_id}", text, mapped.pop(), corpus.name)


def join_texts(rows: TransferRows, words: int, seed: int) -> TransferRows:
    """Texts of one label and corpus joined, in random order, to about `words` words: comments as long as essays.

    How long each becomes is drawn evenly from half to one and a half times `words`. Every text is used once; the last
    of a label may stay shorter. The id of a joined row is its first text's with the number of the others.
    """
    joined = rows.select([])
    of_kind: dict[tuple[str, str], list[int]] = {}
    for index, kind in enumerate(zip(rows.corpora, rows.labels, strict=True)):
        of_kind.setdefault(kind, []).append(index)
    rng = np.random.default_rng(seed)
    for (corpus, label), indices in of_kind.items():
        parts: list[int] = []
        length, wanted = 0, rng.uniform(0.5, 1.5) * words
        for position, index in enumerate(rng.permutation(indices)):
            parts.append(index)
            length += len(rows.texts[index].split())
            if length >= wanted or position == len(indices) - 1:
                more = f" and {len(parts) - 1} more" if len(parts) > 1 else ""
                joined.add(rows.ids[parts[0]] + more, " ".join(rows.texts[part] for part in parts), label, corpus)
                parts, length, wanted = [], 0, rng.uniform(0.5, 1.5) * words
    return joined
