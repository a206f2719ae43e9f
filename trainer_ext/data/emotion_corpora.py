"""GoEmotions and XED: texts, the labels they were published with, and what was left out and why.

GoEmotions (Demszky et al. 2020, https://aclanthology.org/2020.acl-main.372), Reddit comments. XED (Öhman et al. 2020,
https://aclanthology.org/2020.coling-main.575), film subtitles. Both are under `LICENCE`. They are read from a folder
that holds `goemotions/` and `xed/` with the authors' files, else from the Hub.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from datasets import load_dataset

from ..errors import InputError
from .tables import read_lines

BUILT_IN = ("go_emotions", "xed")
# Of both corpora, by their publishers' repositories. It decides what may be published, so it is said in this one place.
LICENCE = "CC BY 4.0"
GO_EMOTIONS_HUB = "google-research-datasets/go_emotions"
XED_HUB = "Helsinki-NLP/xed_en_fi"
XED_LABELS = ["neutral", "anger", "anticipation", "disgust", "fear", "joy", "sadness", "surprise", "trust"]
_XED_NEUTRAL = "9"  # in neu_en.txt; the Hub's files say 0
# What the corpora put in place of names: as words of English, each one token of any English vocabulary.
MASKS = {"NAME": "someone", "PERSON": "someone", "LOCATION": "somewhere", "RELIGION": "religion"}
_MASK = re.compile(rf"\[({'|'.join(MASKS)})\]")


@dataclass
class EmotionCorpus:
    """A published corpus.

    Attributes:
        name, licence: Of the corpus.
        ids: Of the rows: file and row, counted from 1.
        texts: As published, but for `MASKS`.
        labels: Names of each row's labels, one or more.
        label_names: All of them, in the corpus' order.
        left_out: How many rows are not in here, by reason.
    """

    name: str
    licence: str
    label_names: list[str]
    ids: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    labels: list[list[str]] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)

    def add(self, row_id: str, text: str, labels: list[str]) -> None:
        self.ids.append(row_id)
        self.texts.append(_MASK.sub(lambda mask: MASKS[mask[1]], text))
        self.labels.append(labels)

    def leave_out(self, reason: str, count: int = 1) -> None:
        if count:
            self.left_out[reason] = self.left_out.get(reason, 0) + count


def normalised(text: str) -> str:
    """Lower-cased, every run of non-word characters one space: what makes two texts the same."""
    return re.sub(r"\W+", " ", text.lower()).strip()


def text_groups(texts: Iterable[str]) -> list[str]:
    """Equal for texts that differ in case and punctuation alone, so that no split divides them."""
    return [normalised(text) or text for text in texts]


def read_emotion_corpus(
    name: str, data_dir: str | None, cache_dir: str | None = None, token: str | None = None, split: str = "train"
) -> EmotionCorpus:
    """Read `go_emotions` or `xed`, from `data_dir` where it has them, else from the Hub.

    Args:
        name: Of the corpus.
        data_dir: Folder that holds `goemotions/` and `xed/`.
        cache_dir, token: As in `datasets.load_dataset`.
        split: `train`, `validation` or `test` of GoEmotions. XED is published in one piece, `train`.

    Raises:
        InputError: if neither has it, or a row is not as published; names file and row.
    """
    if name == "go_emotions" and split in _GO_EMOTIONS_FILES:
        folder = Path(data_dir or "") / "goemotions"
        if data_dir and folder.is_dir():
            return _go_emotions(folder, split)
        return _go_emotions_from_hub(split, cache_dir, token)
    if split != "train":
        raise InputError(f"{name}: no split {split!r}; go_emotions has train, validation and test, xed has train")
    if name == "xed":
        folder = Path(data_dir or "") / "xed"
        return _xed(folder) if data_dir and folder.is_dir() else _xed_from_hub(cache_dir, token)
    raise InputError(f"{name}: not a built-in emotion corpus; want go_emotions or xed")


# ---- GoEmotions ---------------------------------------------------------------------------------------------------
_GO_EMOTIONS_FILES = {"train": "train.tsv", "validation": "dev.tsv", "test": "test.tsv"}


def _go_emotions(folder: Path, split: str) -> EmotionCorpus:
    names = read_lines(folder / "original" / "labels.txt")
    corpus = EmotionCorpus("go_emotions", LICENCE, names)
    path = folder / "original" / _GO_EMOTIONS_FILES[split]
    for number, line in enumerate(read_lines(path), start=1):
        fields = line.split("\t")  # quotes are text here
        if len(fields) != 3:
            raise InputError(f"{path}, row {number}: {len(fields)} fields; want text, label ids and comment id")
        corpus.add(f"{path.name}, row {number}", fields[0], _names(fields[1], names, f"{path}, row {number}"))
    return corpus


def _go_emotions_from_hub(split: str, cache_dir: str | None, token: str | None) -> EmotionCorpus:
    rows = _hub_rows(GO_EMOTIONS_HUB, cache_dir, token, name="simplified", split=split)
    names = list(rows.features["labels"].feature.names)
    corpus = EmotionCorpus("go_emotions", LICENCE, names)
    for number, row in enumerate(rows, start=1):
        corpus.add(f"{GO_EMOTIONS_HUB} {split}, row {number}", row["text"], [names[label] for label in row["labels"]])
    return corpus


# ---- XED ----------------------------------------------------------------------------------------------------------
def _xed(folder: Path) -> EmotionCorpus:
    path = folder / "en-annotated.tsv"
    annotated = []
    for number, line in enumerate(read_lines(path), start=1):
        where = f"{path}, row {number}"
        fields = line.split("\t")
        if len(fields) != 2:
            raise InputError(f"{where}: {len(fields)} fields; want sentence and label numbers")
        annotated.append((f"{path.name}, row {number}", fields[0], _names(fields[1], XED_LABELS, where)))
    path = folder / "neu_en.txt"
    neutral, malformed = [], 0
    for number, line in enumerate(read_lines(path), start=1):
        fields = line.split("\t")  # columns the other way round
        if len(fields) == 2 and fields[0] == _XED_NEUTRAL:
            neutral.append((f"{path.name}, row {number}", fields[1]))
        else:
            malformed += 1
    return _joined(annotated, neutral, malformed)


def _xed_from_hub(cache_dir: str | None, token: str | None) -> EmotionCorpus:
    """The Hub's branch of parquet files: `datasets` runs no dataset scripts any more."""
    files = f"hf://datasets/{XED_HUB}@refs/convert/parquet"
    annotated, neutral = (
        _hub_rows("parquet", cache_dir, token, data_files=f"{files}/{part}/train/*.parquet", split="train")
        for part in ("en_annotated", "en_neutral")
    )
    return _joined(
        [
            (f"{XED_HUB} en_annotated, row {i}", row["sentence"], [XED_LABELS[label] for label in row["labels"]])
            for i, row in enumerate(annotated, start=1)
        ],
        [(f"{XED_HUB} en_neutral, row {i}", row["sentence"]) for i, row in enumerate(neutral, start=1)],
        0,
    )


def _joined(
    annotated: list[tuple[str, str, list[str]]], neutral: list[tuple[str, str]], malformed: int
) -> EmotionCorpus:
    """Sentences that stand in both files belong to neither; neutral ones are there once each."""
    corpus = EmotionCorpus("xed", LICENCE, XED_LABELS)
    corpus.leave_out("malformed line of the neutral file", malformed)
    of_emotion = {normalised(text) for _, text, _ in annotated}
    of_neutral = {normalised(text) for _, text in neutral}
    for row_id, text, labels in annotated:
        if normalised(text) in of_neutral:
            corpus.leave_out("annotated, and neutral in the other file")
        else:
            corpus.add(row_id, text, labels)
    seen: set[str] = set()
    for row_id, text in neutral:
        key = normalised(text)
        if key in of_emotion:
            corpus.leave_out("neutral, and annotated in the other file")
        elif key in seen:
            corpus.leave_out("neutral, a second time")
        else:
            seen.add(key)
            corpus.add(row_id, text, ["neutral"])
    return corpus


# ---- Lines and labels ---------------------------------------------------------------------------------------------
def _names(ids: str, names: list[str], where: str) -> list[str]:
    """`"1, 4"` as names, each once, in the corpus' order."""
    try:
        return [names[label] for label in sorted({_within(int(part), len(names)) for part in ids.split(",")})]
    except ValueError as error:
        raise InputError(f"{where}: label ids {ids!r}; want numbers from 0 to {len(names) - 1}") from error


def _within(label: int, count: int) -> int:
    if not 0 <= label < count:
        raise ValueError(label)
    return label


def _hub_rows(path: str, cache_dir: str | None, token: str | None, **described: object) -> Iterable[dict]:
    try:
        return load_dataset(path, cache_dir=cache_dir, token=token, **described)
    except Exception as error:  # datasets raises many kinds; all mean that it cannot be had
        raise InputError(
            f"{described.get('data_files', path)}: {str(error).strip().splitlines()[0]}; or give --data_dir, a folder "
            "with goemotions/ and xed/"
        ) from error
