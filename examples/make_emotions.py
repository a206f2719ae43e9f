"""Make examples/emotions.parquet, the embedded corpus, from GoEmotions and XED.

    python examples/make_emotions.py --data_dir FOLDER      # the folder that holds goemotions/ and xed/

The same corpora give the same file, byte for byte, with the pinned pyarrow. What it does:

- GoEmotions' labels become seven by the published Ekman grouping, XED's by dropping anticipation and trust
  (`trainer_ext/data/label_maps.yaml`). Only rows with exactly one of the seven labels are used.
- Splits are GoEmotions' own. XED has none: a hash of the text sends one sentence in ten to validation, one to test.
- Every class has up to 2,000 rows in train, 100 in validation and 200 in test, half of them from each corpus. Where one
  corpus has too few, the other fills up.
- Held-out rows are drawn without a preference, by a hash of the text. Training rows come in this order: those that say
  the emotion in words (`WORDS`), then those of GoEmotions whose own label names it (`CLOSE`: "surprise" before
  "curiosity"), then the others, each by the hash.
- XED's labels are noisier. Of its training rows, the quarter of each class with which TF-IDF and logistic regression,
  fitted to GoEmotions' training rows, agrees least is left out.
- A text that occurs twice, but for case and punctuation, is used once, and not at all if its labels differ. Rows that
  copy, nearly copy, hold or are part of a text of a later split, a plain sentence or an essay are left out
  (`trainer_ext/data/leakage.py`).
"""

import argparse
import hashlib
import os
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

sys.path.insert(0, str(Path(__file__).parents[1]))

from trainer_ext.data.corpus import ATTRIBUTION, SPLITS
from trainer_ext.data.emotion_corpora import LICENCE, normalised, read_emotion_corpus
from trainer_ext.data.label_maps import read_label_map
from trainer_ext.data.leakage import LeakageGuard
from trainer_ext.data.load import read_texts
from trainer_ext.errors import InputError, run_command

TARGET = Path(__file__).with_name("emotions.parquet")
OTHERS = [Path(__file__).with_name(name) for name in ("plain_sentences.tsv", "essays.tsv")]
ROWS_PER_CLASS = {"train": 2000, "validation": 100, "test": 200}
LEAST_AGREED = 0.25  # of XED's training rows of a class, left out
SOURCES = ("go_emotions", "xed")
# Labels of GoEmotions that name the class itself.
CLOSE = {
    "anger": {"anger"},
    "disgust": {"disgust"},
    "fear": {"fear", "nervousness"},
    "joy": {"joy", "excitement", "love", "gratitude", "pride", "relief", "amusement"},
    "neutral": {"neutral"},
    "sadness": {"sadness", "grief", "disappointment", "remorse"},
    "surprise": {"surprise", "realization"},
}
# How words begin that say the emotion. A model that seldom sees them looks between the lines, and distrusts the word.
WORDS = {
    "anger": "anger angry annoy bastard damn fed_up frustrat fume fuming furious hate how_dare idiot infuriat livid "
    "mad_ outrag piss rage_ raging shut_up sick_of unacceptable",
    "disgust": "creep disgust eww_ ew_ filth gross nasty nausea puke repuls revolt rotten sick smell stink vile vomit "
    "yuck",
    "fear": "afraid anxi danger dread fear fright help_ nervous panic scared scary terrif terror worr",
    "joy": "amazing delight excit fun_ glad great happ joy laugh love proud relie thank wonderful",
    "neutral": "",
    "sadness": "alone cried cry dead_ death depress died disappoint grief heart hopeless hurt lonel lost miserable "
    "miss_ missing sad sorry tears unhappy",
    "surprise": "amazed astonish believe had_no_idea never_thought no_way omg realis realiz really_? shock surpris "
    "unexpect what_? whoa wow",
}
CREDIT = (
    "Rows of GoEmotions (Demszky et al. 2020, https://aclanthology.org/2020.acl-main.372, "
    "https://github.com/google-research/google-research/tree/master/goemotions) and of XED (Öhman et al. 2020, "
    f"https://aclanthology.org/2020.coling-main.575, https://github.com/Helsinki-NLP/XED), both {LICENCE} "
    "(https://creativecommons.org/licenses/by/4.0/). Changed: labels grouped into seven, placeholders such as [NAME] "
    "replaced by words, rows selected and split anew."
)


# "_" is the end of a word and, between two words, the space.
PATTERNS = {
    label: [re.compile(r"\b" + re.escape(word).replace("_", r"\b\s*")) for word in words.split()]
    for label, words in WORDS.items()
}


class Row(NamedTuple):
    """A row that may be used.

    Attributes:
        rank: Training rows of a class are taken from the lowest rank to the highest.
    """

    id: str
    source: str
    label: str
    text: str
    rank: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data_dir",
        default=os.environ.get("EMODEBERTA_DATA"),
        help="folder with goemotions/ and xed/ (default: EMODEBERTA_DATA)",
    )
    parser.add_argument("--output", type=Path, default=TARGET, help="default: examples/emotions.parquet")
    args = parser.parse_args()
    if not args.data_dir:
        raise InputError("give --data_dir, the folder that holds goemotions/ and xed/ with the authors' files")
    splits = without_repeats(read_rows(args.data_dir))
    splits["train"] = by_agreement(splits["train"])
    splits = choose(splits)
    for split, rows in splits.items():
        counts = Counter((row.label, row.source) for row in rows)
        each = ", ".join(f"{label} {' + '.join(str(counts[label, source]) for source in SOURCES)}" for label in CLOSE)
        print(f"{split}: {len(rows)} rows ({' + '.join(SOURCES)}: {each})")
    write(splits, args.output)
    print(f"{args.output}: {args.output.stat().st_size / 1e6:.2f} MB")


def read_rows(data_dir: str) -> dict[str, list[Row]]:
    """Return all rows with exactly one of the seven labels, by split."""
    splits: dict[str, list[Row]] = {split: [] for split in SPLITS}
    for source, split in [("go_emotions", split) for split in SPLITS] + [("xed", "train")]:
        corpus, target_of = read_emotion_corpus(source, data_dir, split=split), read_label_map(source).target_of
        for row_id, text, labels in zip(corpus.ids, corpus.texts, corpus.labels, strict=True):
            mapped = {target_of[label] for label in labels} - {None}
            if len(mapped) != 1:
                continue
            (label,) = mapped
            number = row_id.rpartition("row ")[2]
            if source == "go_emotions":
                rank = 0 if says(label, text) else 1 if not CLOSE[label].isdisjoint(labels) else 2
                splits[split].append(Row(f"go_emotions-{split}-{number}", source, label, text, rank))
            else:
                part = "neutral" if labels == ["neutral"] else "annotated"
                row = Row(f"xed-{part}-{number}", source, label, text, 0 if says(label, text) else 1)
                splits[split_of_sentence(text)].append(row)
    return splits


def says(label: str, text: str) -> bool:
    """Return whether the text has one of the words that name the emotion."""
    return any(re.search(pattern, text.lower()) for pattern in PATTERNS[label])


def split_of_sentence(text: str) -> str:
    """Return the split that a sentence of XED belongs to."""
    return {0: "validation", 1: "test"}.get(hashed("split", text) % 10, "train")


def hashed(purpose: str, text: str) -> int:
    """Return a number that depends on the text, without case and punctuation, and on what the number is for."""
    return int(hashlib.sha256(f"{purpose}:{normalised(text)}".encode()).hexdigest(), 16)


def without_repeats(splits: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """Return each text once, in the last split that has it, without texts whose labels differ."""
    labels = defaultdict(set)
    for row in (row for rows in splits.values() for row in rows):
        labels[normalised(row.text)].add(row.label)
    seen: set[str] = {""}  # a text without a word
    kept: dict[str, list[Row]] = {}
    for split in reversed(SPLITS):
        kept[split] = []
        for row in splits[split]:
            key = normalised(row.text)
            if key not in seen and len(labels[key]) == 1:
                seen.add(key)
                kept[split].append(row)
    return {split: kept[split] for split in SPLITS}


def by_agreement(rows: list[Row]) -> list[Row]:
    """Leave out the rows of XED whose labels seem least likely to a classifier trained on GoEmotions."""
    first, second = ([row for row in rows if row.source == source] for source in SOURCES)
    classifier = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2),
        # To the end: the order of two rows must not depend on where a machine's rounding stops the search.
        LogisticRegression(C=4, class_weight="balanced", max_iter=5000, tol=1e-8),
    ).fit([normalised(row.text) for row in first], [row.label for row in first])
    column = {label: number for number, label in enumerate(classifier.classes_)}
    found = classifier.predict_proba([normalised(row.text) for row in second])
    agreement = {row.id: scores[column[row.label]] for row, scores in zip(second, found, strict=True)}
    kept = list(first)
    for label in CLOSE:
        of_label = sorted((row for row in second if row.label == label), key=lambda row: -agreement[row.id])
        kept += of_label[: round(len(of_label) * (1 - LEAST_AGREED))]
    return kept


def choose(splits: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """Return the rows of the file, with balanced classes and no copies across splits."""
    guard = LeakageGuard("later splits, and the other files of this folder")
    for path in OTHERS:
        texts = read_texts(path)
        guard.protect((f"{path.name}, text {number}" for number in range(1, len(texts) + 1)), texts)
    chosen: dict[str, list[Row]] = {}
    for split in reversed(SPLITS):
        rows = [row for row in splits[split] if guard.copied(row.text) is None]
        rows = [row for label in CLOSE for row in of_class([row for row in rows if row.label == label], split)]
        # In no order of classes, so that the first rows of the file are a fair sample.
        chosen[split] = sorted(rows, key=lambda row: hashed("file", row.text))
        guard.protect((row.id for row in rows), (row.text for row in rows))
    return {split: chosen[split] for split in SPLITS}


def of_class(rows: list[Row], split: str) -> list[Row]:
    """Return the split's rows of one class, half from each corpus where both have enough."""
    ordered = sorted(rows, key=lambda row: (row.rank if split == "train" else 0, hashed("order", row.text)))
    first, second = ([row for row in ordered if row.source == source] for source in SOURCES)
    wanted = ROWS_PER_CLASS[split]
    half = wanted // 2
    return first[: max(half, wanted - len(second))] + second[: max(half, wanted - len(first))]


def write(splits: dict[str, list[Row]], path: Path) -> None:
    """Write a parquet file with the columns id, split, source, label and text, and the attribution as metadata."""
    rows = [(row.id, split, row.source, row.label, row.text) for split, of_split in splits.items() for row in of_split]
    names = ["id", "split", "source", "label", "text"]
    table = pa.table([pa.array(column, pa.string()) for column in zip(*rows, strict=True)], names=names)
    table = table.replace_schema_metadata({ATTRIBUTION: CREDIT.encode()})
    partial = path.with_name(f".{path.name}.partial")
    pyarrow.parquet.write_table(table, partial, compression="zstd", compression_level=19)
    partial.replace(path)


if __name__ == "__main__":
    run_command(main)
