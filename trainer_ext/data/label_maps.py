"""Map rows of other corpora to the target's labels."""

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
from ..recipes import DEFAULT_ACCESS, HubAccess, flag
from .emotion_corpora import BUILT_IN, EmotionCorpus, read_emotion_corpus
from .leakage import LeakageGuard, TargetArguments
from .load import load_corpus


@dataclass
class TransferArguments(TargetArguments):
    """Flags for training on other corpora with the target's labels."""

    _argument_group_name = "Supervised transfer"

    transfer_datasets: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Corpora to transfer from: go_emotions, xed (from --data_dir, else from the Hub), or a .yaml file "
            "that maps the labels of your own corpus, like one map of trainer_ext/data/label_maps.yaml. With "
            "--dataset_name or --train_file, also give --augmentation. Without them, this trains a stage on these "
            "corpora alone; use its output folder as --model_name_or_path of the next stage."
        },
    )
    augmentation: Literal["none", "RA", "BA"] = flag(
        "none",
        "Which rows of --transfer_datasets to use (paper, section 2.3.1). RA (Random Augmentation): random rows. BA "
        "(Balanced Augmentation): equally many per class. Only rows with exactly one of the target's labels are used.",
    )
    augmentation_rows: int | None = flag(
        None, "RA: rows in all, default 1000. BA: rows per class, default 400 (Mundra et al. 2021)."
    )
    ba_mode: Literal["added", "topped_up"] = flag(
        "added",
        "added: BA adds --augmentation_rows rows to each class. topped_up: BA fills each class up to that number, "
        "counting the target's own rows. The literature does not say which.",
    )
    join_to_words: int | None = flag(
        None,
        "Before rows are chosen, join texts with the same label into texts of about this many words (half to one and a "
        "half times as many). Use it if the target's texts are longer: comments have 13 words, WASSA's essays 82.",
    )
    distill_from: str | None = flag(
        None,
        "Output folder of a run_fuse.py recipe: learn the ensemble's predicted distributions instead of the labels. "
        "Those of the target's training rows come from members that did not train on them, those of "
        "--transfer_datasets from the whole ensemble.",
    )


LABEL_MAPS = Path(__file__).with_name("label_maps.yaml")


class LabelMapFile(Schema):
    """The schema of a file that maps labels; see [`read_label_map`]."""

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
    """A map from a corpus' labels to the target's labels.

    Attributes:
        path: The YAML file, for messages.
        corpus: Its other keys, which say what to read.
        target_of: Target label by corpus label; `None` for a label that is left out.
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
        ids, texts, labels, corpora: One entry per row: id, text, label name and corpus name.
        label_names: The target's label names, in their order.
        licences: Licence by corpus name.
        left_out: Number of rows left out, by reason.
    """

    label_names: list[str]
    ids: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    corpora: list[str] = field(default_factory=list)
    licences: dict[str, str] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)

    def __len__(self) -> int:
        return len(self.ids)

    def add(self, row_id: str, text: str, label: str, corpus: str) -> None:
        self.ids.append(row_id)
        self.texts.append(text)
        self.labels.append(label)
        self.corpora.append(corpus)

    def select(self, indices: Iterable[int]) -> "TransferRows":
        """Return the rows at `indices`, in that order."""
        rows = TransferRows(self.label_names, licences=self.licences, left_out=self.left_out)
        for index in indices:
            rows.add(self.ids[index], self.texts[index], self.labels[index], self.corpora[index])
        return rows

    def counts(self) -> dict[str, dict[str, int]]:
        """Return the number of rows by corpus name, then by label name."""
        found = Counter(zip(self.corpora, self.labels, strict=True))
        return {corpus: {label: found[corpus, label] for label in self.label_names} for corpus in self.licences}


# ---- Reading ------------------------------------------------------------------------------------------------------
def read_label_map(name: str) -> LabelMap:
    """Return the label map of a built-in corpus (go_emotions, xed), or of a YAML file.

    The YAML file has these keys:

    - `labels`: for each target label, the corpus labels that map to it
    - `left_out`: corpus labels that map to no target label
    - `train_file` (relative to the YAML file) or `dataset_name` (on the Hub): what to read
    - `text_column_name`, `label_column_name`, `dataset_config_name`, `train_split_name`: where they are not the
      defaults
    - `licence`: for the model card

    Raises:
        InputError: if there is no such file, or its content does not have this form.
    """
    path = LABEL_MAPS if name in BUILT_IN else Path(name)
    if path.suffix not in (".yaml", ".yml"):
        raise InputError(
            f"--transfer_datasets {name}: want {', '.join(BUILT_IN)}, or a .yaml file that maps the labels of a corpus "
            "of your own, like one of those in trainer_ext/data/label_maps.yaml"
        )
    content = read_recipe(path)
    file = check_recipe(content[name] if name in BUILT_IN else content, LabelMapFile, path)
    if bool(file.dataset_name) == bool(file.train_file):
        raise InputError(f"{path}: want either dataset_name or train_file, the corpus whose labels it maps")
    target_of: dict[str, str | None] = {}
    for target, sources in [*file.labels.items(), (None, file.left_out)]:
        for source in map(str, sources if isinstance(sources, list | tuple) else [sources]):
            if source in target_of:
                raise InputError(f"{path}: {source!r} is listed twice; want each label of the corpus once")
            target_of[source] = target
    return LabelMap(path, file.model_dump(exclude_unset=True, exclude={"labels", "left_out"}), target_of)


def load_transfer_rows(
    args: TransferArguments,
    *,
    label_names: Sequence[str] | None,
    guard: LeakageGuard,
    seed: int,
    data_dir: str | None,
    access: HubAccess = DEFAULT_ACCESS,
) -> TransferRows:
    """Return all rows of `--transfer_datasets` with exactly one of the target's labels, joined if the flags say so.

    Args:
        label_names: The target's label names. If `None`, all labels that the maps name, sorted.
        guard: Texts that must not be trained on. Its `found` lists the rows that copy one.
        seed: Decides which texts are joined.

    Raises:
        InputError: if a corpus or map cannot be read, or a map names an unknown label.
    """
    maps = [read_label_map(name) for name in args.transfer_datasets]
    every = sorted(set().union(*(label_map.targets() for label_map in maps)))
    rows = TransferRows(list(label_names or every))
    for label_map in maps:
        if unknown := sorted(label_map.targets() - set(rows.label_names)):
            raise InputError(
                f"{label_map.path}: maps to {unknown[0]!r}, which is not a label of the target; those are "
                f"{', '.join(rows.label_names)}. Write a map of your own, with the same keys"
            )
        corpus = _read_corpus(label_map, data_dir, access)
        if corpus.name in rows.licences:
            raise InputError(f"--transfer_datasets: {corpus.name} is listed twice")
        if unknown := sorted(label_map.target_of.keys() - set(corpus.label_names)):
            raise InputError(
                f"{label_map.path}: {unknown[0]!r} is not a label of {corpus.name}; those are "
                f"{', '.join(corpus.label_names)}"
            )
        if missing := [label for label in corpus.label_names if label not in label_map.target_of]:
            raise InputError(
                f"{label_map.path}: does not map {', '.join(missing)}; map these labels, or list them in left_out"
            )
        _add_mapped(rows, corpus, label_map, guard)
    return rows if args.join_to_words is None else join_texts(rows, args.join_to_words, seed)


def transfer_digest(names: Iterable[str], data_dir: str | None) -> str:
    """Return a hash of the mapped rows of these corpora, to detect changes."""
    args = TransferArguments(transfer_datasets=list(names))
    rows = load_transfer_rows(args, label_names=None, guard=LeakageGuard(""), seed=0, data_dir=data_dir)
    return digest([rows.ids, rows.texts, rows.labels])


def _read_corpus(label_map: LabelMap, data_dir: str | None, access: HubAccess) -> EmotionCorpus:
    """Read the corpus that a label map names: built in, a file or on the Hub."""
    described = label_map.corpus
    if described.get("dataset_name") in BUILT_IN:
        return read_emotion_corpus(described["dataset_name"], data_dir, access)
    file, split = described.get("train_file"), described.get("train_split_name")
    name = described.get("dataset_name") or Path(file).name
    loaded = load_corpus(
        dataset_name=described.get("dataset_name"),
        dataset_config_name=described.get("dataset_config_name"),
        files={"train": str(label_map.path.parent / file)} if file else None,
        split_names={"train": split} if split else None,
        text_column=described.get("text_column_name"),
        label_column=described.get("label_column_name"),
        access=access,
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
    """Add the corpus' rows that have exactly one target label to `rows`, and count the others."""
    rows.licences[corpus.name] = corpus.licence
    for reason, count in corpus.left_out.items():
        rows.left_out[f"{corpus.name}: {reason}"] += count
    for row_id, text, labels in zip(corpus.ids, corpus.texts, corpus.labels, strict=True):
        mapped = {label_map.target_of[label] for label in labels} - {None}
        if len(mapped) != 1:
            rows.left_out[f"{corpus.name}: {'several labels' if mapped else 'no label'} of the target"] += 1
        elif guard.keeps(f"{corpus.name}, {row_id}", text):
            rows.add(f"{corpus.name}, {row_id}", text, mapped.pop(), corpus.name)


def join_texts(rows: TransferRows, words: int, seed: int) -> TransferRows:
    """Return rows whose texts are joined in random order to about `words` words, within each label and corpus.

    The length of each joined text is drawn uniformly from half to one and a half times `words`. Every text is used
    once. The last joined text of a label may be shorter. A joined row has the id of its first text, plus the number of
    the others.
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
