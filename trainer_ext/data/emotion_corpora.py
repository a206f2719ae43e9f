"""Read the corpora that are built in, as published: GoEmotions, XED and WASSA 2022.

GoEmotions (Demszky et al. 2020, https://aclanthology.org/2020.acl-main.372) has Reddit comments. XED (Öhman et al.
2020, https://aclanthology.org/2020.coling-main.575) has film subtitles. Both have the licence `LICENCE`. They are read
from a folder with the authors' files in `goemotions/` and `xed/`, else from the Hub.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from datasets import Dataset

from ..errors import InputError
from ..recipes import DEFAULT_ACCESS, HubAccess
from .corpus import Corpus
from .labels import read_labels
from .tables import check_column, check_extra_columns, hub_dataset, read_common_columns, read_file, read_lines

BUILT_IN = ("go_emotions", "xed")
# Licence of both corpora, from the publishers' repositories. It decides what may be published, so it is defined once.
LICENCE = "CC BY 4.0"
GO_EMOTIONS_HUB = "google-research-datasets/go_emotions"
XED_HUB = "Helsinki-NLP/xed_en_fi"
XED_LABELS = ["neutral", "anger", "anticipation", "disgust", "fear", "joy", "sadness", "surprise", "trust"]
_XED_NEUTRAL = "9"  # in neu_en.txt; the Hub's files say 0
# Placeholders for names in the corpora, and English words for them that are one token in any English vocabulary.
MASKS = {"NAME": "someone", "PERSON": "someone", "LOCATION": "somewhere", "RELIGION": "religion"}
_MASK = re.compile(rf"\[({'|'.join(MASKS)})\]")


@dataclass
class EmotionCorpus:
    """A published emotion corpus.

    Attributes:
        name, licence: Name and licence of the corpus.
        ids: Row ids: file name and row number, from 1.
        texts: As published, except that placeholders in `MASKS` are replaced.
        labels: Names of each row's labels, one or more.
        label_names: All label names, in the corpus' order.
        left_out: Number of rows left out, by reason.
    """

    name: str
    licence: str
    label_names: list[str]
    ids: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    labels: list[list[str]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    def add(self, row_id: str, text: str, labels: list[str]) -> None:
        self.ids.append(row_id)
        self.texts.append(_MASK.sub(lambda mask: MASKS[mask[1]], text))
        self.labels.append(labels)


def normalised(text: str) -> str:
    """Return the text in lower case, with each run of non-word characters as one space, to compare texts."""
    return re.sub(r"\W+", " ", text.lower()).strip()


def text_groups(texts: Iterable[str]) -> list[str]:
    """Return a group for each text, the same for texts that differ only in case and punctuation.

    Texts of one group stay in the same split.
    """
    return [normalised(text) or text for text in texts]


def read_emotion_corpus(
    name: str, data_dir: str | None, access: HubAccess = DEFAULT_ACCESS, split: str = "train"
) -> EmotionCorpus:
    """Read `go_emotions` or `xed`, from `data_dir` if the corpus is there, else from the Hub.

    Args:
        name: `go_emotions` or `xed`.
        data_dir: Folder with `goemotions/` and `xed/`.
        access: How to reach the Hub, if the folder does not have the corpus.
        split: `train`, `validation` or `test` of GoEmotions. XED has only `train`.

    Raises:
        InputError: if the corpus cannot be found, or a row is malformed. The message names file and row.
    """
    if name == "go_emotions" and split in _GO_EMOTIONS_FILES:
        folder = Path(data_dir or "") / "goemotions"
        if data_dir and folder.is_dir():
            return _go_emotions(folder, split)
        return _go_emotions_from_hub(split, access)
    if split != "train":
        raise InputError(f"{name}: no split {split!r}; go_emotions has train, validation and test, xed has train")
    if name == "xed":
        folder = Path(data_dir or "") / "xed"
        return _xed(folder) if data_dir and folder.is_dir() else _xed_from_hub(access)
    raise InputError(f"{name}: not a built-in emotion corpus; want go_emotions or xed")


# ---- GoEmotions ---------------------------------------------------------------------------------------------------
_GO_EMOTIONS_FILES = {"train": "train.tsv", "validation": "dev.tsv", "test": "test.tsv"}


def _go_emotions(folder: Path, split: str) -> EmotionCorpus:
    names = read_lines(folder / "original" / "labels.txt")
    corpus = EmotionCorpus("go_emotions", LICENCE, names)
    path = folder / "original" / _GO_EMOTIONS_FILES[split]
    for number, line in enumerate(read_lines(path), start=1):
        fields = line.split("\t")  # quotes are ordinary characters here
        if len(fields) != 3:
            raise InputError(f"{path}, row {number}: {len(fields)} fields; want text, label ids and comment id")
        corpus.add(f"{path.name}, row {number}", fields[0], _names(fields[1], names, f"{path}, row {number}"))
    return corpus


def _go_emotions_from_hub(split: str, access: HubAccess) -> EmotionCorpus:
    rows = _hub_rows(GO_EMOTIONS_HUB, access, name="simplified", split=split)
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
        fields = line.split("\t")  # here the label comes first
        if len(fields) == 2 and fields[0] == _XED_NEUTRAL:
            neutral.append((f"{path.name}, row {number}", fields[1]))
        else:
            malformed += 1
    return _joined(annotated, neutral, malformed)


def _xed_from_hub(access: HubAccess) -> EmotionCorpus:
    """Read XED from the Hub's parquet branch, because `datasets` no longer runs dataset scripts."""
    files = f"hf://datasets/{XED_HUB}@refs/convert/parquet"
    annotated, neutral = (
        _hub_rows("parquet", access, data_files=f"{files}/{part}/train/*.parquet", split="train")
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
    """Join annotated and neutral sentences, without those that are in both files and without duplicate neutral ones."""
    corpus = EmotionCorpus("xed", LICENCE, XED_LABELS)
    if malformed:
        corpus.left_out["malformed line of the neutral file"] = malformed
    of_emotion = {normalised(text) for _, text, _ in annotated}
    of_neutral = {normalised(text) for _, text in neutral}
    for row_id, text, labels in annotated:
        if normalised(text) in of_neutral:
            corpus.left_out["annotated, and neutral in the other file"] += 1
        else:
            corpus.add(row_id, text, labels)
    seen: set[str] = set()
    for row_id, text in neutral:
        key = normalised(text)
        if key in of_emotion:
            corpus.left_out["neutral, and annotated in the other file"] += 1
        elif key in seen:
            corpus.left_out["neutral, a second time"] += 1
        else:
            seen.add(key)
            corpus.add(row_id, text, ["neutral"])
    return corpus


# ---- Lines and labels ---------------------------------------------------------------------------------------------
def _names(ids: str, names: list[str], where: str) -> list[str]:
    """Return the names for label ids such as `"1, 4"`, each once, in the corpus' order."""
    try:
        return [names[label] for label in sorted({_within(int(part), len(names)) for part in ids.split(",")})]
    except ValueError as error:
        raise InputError(f"{where}: label ids {ids!r}; want numbers from 0 to {len(names) - 1}") from error


def _within(label: int, count: int) -> int:
    if not 0 <= label < count:
        raise ValueError(label)
    return label


def _hub_rows(path: str, access: HubAccess, **described: object) -> Iterable[dict]:
    try:
        return hub_dataset(path, access, **described)
    except InputError as error:
        raise InputError(f"{error}; or give --data_dir, a folder with goemotions/ and xed/") from error


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
)  # spelled as in the training file


def load_wassa2022(data_dir: str | None, group_column: str, extra_columns: Sequence[str]) -> Corpus:
    """Return the WASSA 2022 corpus from the shared task's files.

    The labels of dev are in a separate file without a header, row by row. Test has no labels.

    Args:
        data_dir: Folder with `wassa2022/`.
        group_column: Column with the writer of an essay.
        extra_columns: Other columns to keep, as strings.

    Raises:
        InputError: if a file is missing or malformed.
    """
    if data_dir is None:
        raise InputError(
            "wassa2022 needs --data_dir (or EMODEBERTA_DATA), the folder that holds wassa2022/ with the "
            "shared task's files, which its organisers give out"
        )
    folder = Path(data_dir) / "wassa2022"
    tables = {split: read_file(folder / name) for split, name in _WASSA_FILES.items()}
    for table in tables.values():
        for column in ("message_id", group_column, "essay"):
            check_column(table, column)
    check_column(tables["train"], "emotion")
    gold = read_file(folder / _WASSA_DEV_GOLD, header=False)
    if len(gold.rows) != len(tables["validation"].rows):
        raise InputError(
            f"{gold.name}: {len(gold.rows)} rows; want {len(tables['validation'].rows)}, one per row of "
            f"{tables['validation'].name}"
        )
    for row, of_gold in zip(tables["validation"].rows, gold.rows, strict=True):
        row |= {name: of_gold.get(f"column_{number}") for number, name in enumerate(_WASSA_DEV_GOLD_COLUMNS, 1)}
    tables["validation"].columns |= dict.fromkeys(_WASSA_DEV_GOLD_COLUMNS)
    check_extra_columns(tables, extra_columns)
    gold_labels = replace(gold, rows=[{"emotion": row.get("column_3")} for row in gold.rows], columns={"emotion": None})
    columns = {
        split: read_common_columns(table, "essay", group_column, "message_id", extra_columns)
        for split, table in tables.items()
    }
    labels, _, problem_type = read_labels(
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
