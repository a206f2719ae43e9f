"""Keep a target's evaluation texts out of what a model is trained on: exact, near and contained copies."""

import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ..recipes import flag
from .corpus import Corpus
from .emotion_corpora import normalised
from .load import load_corpus, read_texts


@dataclass
class TargetArguments:
    """Whose evaluation texts a stage before the target's must not see."""

    target_dataset_name: str | None = flag(
        None,
        "wassa2022: what equals, nearly equals, holds or is part of one of its dev or test essays is removed from the "
        "corpus, counted and named.",
    )
    target_file: list[str] = field(
        default_factory=list,
        metadata={"help": "The same for files of a target of your own: its validation and test texts."},
    )
    target_text_column_name: str = flag("text", "Column with the text in --target_file.")


logger = logging.getLogger(__name__)
# Words in a row that two texts must share to be compared at all.
SHINGLE = 4
# Share of the shorter text's shingles, also found in the other, from which it counts as a copy.
NEAR = 0.7
SHOWN = 10  # copies that the log names; all of them are in left_out.json


def shingles(text: str) -> set[str]:
    """Each run of `SHINGLE` words of the normalised text; the whole text if it has fewer."""
    words = normalised(text).split()
    if len(words) <= SHINGLE:
        return {" ".join(words)} if words else set()
    return {" ".join(words[i : i + SHINGLE]) for i in range(len(words) - SHINGLE + 1)}


@dataclass
class LeakageGuard:
    """Tells whether a text is one of the protected ones, nearly, or holds or is part of one.

    Exact, not by hashing into buckets: an index of the protected texts' shingles gives, for each text, the overlap
    with every protected one. A text of at most `SHINGLE` words counts only if it is a whole protected text, and one
    that shares fewer than 3 shingles never does: a common phrase is no leak.

    Attributes:
        source: What is protected, for messages.
        found: Of the texts asked about: row id, and the protected row it copies.
    """

    source: str
    found: list[tuple[str, str]] = field(default_factory=list)
    _index: dict[str, list[int]] = field(default_factory=dict, repr=False)
    _sizes: list[int] = field(default_factory=list, repr=False)
    _ids: list[str] = field(default_factory=list, repr=False)
    _exact: dict[str, int] = field(default_factory=dict, repr=False)

    def protect(self, ids: Iterable[str], texts: Iterable[str]) -> None:
        """Add texts that must not be trained on; one that is there already, but for case and punctuation, is not
        added again."""
        for row_id, text in zip(ids, texts, strict=True):
            position = len(self._ids)
            if self._exact.setdefault(normalised(text) or text, position) != position:
                continue
            self._ids.append(row_id)
            of_text = shingles(text)
            self._sizes.append(len(of_text))
            for shingle in of_text:
                self._index.setdefault(shingle, []).append(position)

    def __len__(self) -> int:
        return len(self._ids)

    def copied(self, text: str) -> str | None:
        """The id of the protected text that `text` copies, or `None`."""
        if not self._ids:
            return None
        exact = self._exact.get(normalised(text) or text)
        if exact is not None:
            return self._ids[exact]
        of_text = shingles(text)
        shared = Counter(position for shingle in of_text for position in self._index.get(shingle, ()))
        for position, count in shared.most_common():
            smaller = min(len(of_text), self._sizes[position])
            if count >= 3 and count >= NEAR * smaller:
                return self._ids[position]
        return None

    def keeps(self, row_id: str, text: str) -> bool:
        """Whether the text may be trained on; if not, it is noted in `found`."""
        copy = self.copied(text)
        if copy is not None:
            self.found.append((row_id, copy))
        return copy is None

    def protect_splits(self, corpus: Corpus, train: bool = False) -> None:
        """As `protect`, all splits of a corpus, the training rows only if `train`."""
        for split, rows in corpus.splits.items():
            if train or split != "train":
                self.protect(rows["id"], rows["text"])

    def without_copies(self, corpus: Corpus) -> Corpus:
        """Return the corpus without the training rows that copy a protected text."""
        if not self._ids or "train" not in corpus.splits:
            return corpus
        train = corpus.splits["train"]
        kept = [i for i, row in enumerate(zip(train["id"], train["text"], strict=True)) if self.keeps(*row)]
        return corpus.with_splits(train=train.select(kept))


def guard_of_target(args: TargetArguments, data_dir: str | None, train: bool) -> tuple[LeakageGuard, Corpus | None]:
    """Return a guard over the evaluation texts of the target that the flags name, and the target, if it is a corpus.

    With `train` it protects the target's training texts too, which cross-validation scores on. Without a target it
    protects nothing.
    """
    guard, target = LeakageGuard(", ".join(filter(None, [args.target_dataset_name, *args.target_file]))), None
    if args.target_dataset_name:
        target = load_corpus(dataset_name=args.target_dataset_name, data_dir=data_dir)
        guard.protect_splits(target, train)
    for path in args.target_file:
        texts = read_texts(path, args.target_text_column_name)
        guard.protect((f"{Path(path).name}, text {number}" for number in range(1, len(texts) + 1)), texts)
    return guard, target


def report_left_out(left_out: dict[str, int], guard: LeakageGuard) -> None:
    """Log how many rows were left out, by reason, and which copy a protected text."""
    for reason, count in left_out.items():
        logger.info(f"left out: {count} ({reason})")
    if len(guard):
        logger.info(f"left out: {len(guard.found)} that copy one of {len(guard)} texts of {guard.source}")
        for row_id, copied in guard.found[:SHOWN]:
            logger.info(f"  {row_id} copies {copied}")
        if len(guard.found) > SHOWN:
            logger.info(f"  and {len(guard.found) - SHOWN} more, see left_out.json")


def left_out_rows(left_out: dict[str, int], guard: LeakageGuard) -> dict:
    """What [`report_left_out`] says, whole, as JSON values."""
    return {
        "counts": left_out,
        "copies_of_target_texts": [{"row": row_id, "copies": copied} for row_id, copied in guard.found],
    }
