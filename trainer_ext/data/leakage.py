"""Keep exact, near and contained copies of a target's evaluation texts out of the training texts."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..files import write_json
from ..recipes import flag
from .corpus import Corpus
from .emotion_corpora import normalised
from .load import load_corpus, read_texts


@dataclass
class TargetArguments:
    """Flags that name the target whose evaluation texts an earlier training stage must not see."""

    target_dataset_name: str | None = flag(
        None,
        "wassa2022: remove from the corpus all exact, near and contained copies of its dev and test essays, and report "
        "them. Use it for a stage before training on wassa2022.",
    )
    target_file: list[str] = field(
        default_factory=list,
        metadata={"help": "The same for your own target: files with its validation and test texts."},
    )
    target_text_column_name: str = flag("text", "Column with the text in --target_file.")

    @property
    def has_target(self) -> bool:
        """Return whether the training is a stage before another target."""
        return bool(self.target_dataset_name or self.target_file)


logger = logging.getLogger(__name__)
# Length of a shingle, in words. Two texts are compared only if they share one.
SHINGLE = 4
# A text is a copy if at least this share of the shorter text's shingles is also in the other text.
NEAR = 0.7
SHOWN = 10  # copies to list in the log; left_out.json has all of them


def shingles(text: str) -> set[str]:
    """Return each run of `SHINGLE` words of the normalised text, or the whole text if it has fewer words."""
    words = normalised(text).split()
    if len(words) <= SHINGLE:
        return {" ".join(words)} if words else set()
    return {" ".join(words[i : i + SHINGLE]) for i in range(len(words) - SHINGLE + 1)}


@dataclass
class LeakageGuard:
    """A guard that detects exact, near and contained copies of protected texts.

    The overlap with every protected text is computed exactly, from an index of shingles, not estimated by hashing.
    Common phrases do not count as copies. So a text of at most `SHINGLE` words counts only if it equals a whole
    protected text, and a near copy must share at least 3 shingles.

    Attributes:
        source: Describes the protected texts, for messages.
        found: Detected copies: the row id, and the id of the protected row that it copies.
    """

    source: str
    found: list[tuple[str, str]] = field(default_factory=list)
    _index: dict[str, list[int]] = field(default_factory=dict, repr=False)
    _sizes: list[int] = field(default_factory=list, repr=False)
    _ids: list[str] = field(default_factory=list, repr=False)
    _exact: dict[str, int] = field(default_factory=dict, repr=False)

    def protect(self, ids: Iterable[str], texts: Iterable[str]) -> None:
        """Add texts that must not be trained on; texts already there, up to case and punctuation, are skipped."""
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
        """Return the id of the protected text that `text` copies, or `None`."""
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
        """Return whether the text may be trained on; a copy of a protected text is added to `found`."""
        copy = self.copied(text)
        if copy is not None:
            self.found.append((row_id, copy))
        return copy is None

    def protect_splits(self, corpus: Corpus, train: bool = False) -> None:
        """Protect the texts of all splits of a corpus, those of the training split only if `train` is true."""
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
    """Return a guard over the evaluation texts of the flags' target, and the target's corpus (`None` if there is none).

    Without a target, the guard protects nothing.

    Args:
        train: Also protect the target's training texts, which cross-validation scores on.
    """
    guard, target = LeakageGuard(", ".join(filter(None, [args.target_dataset_name, *args.target_file]))), None
    if args.target_dataset_name:
        target = load_corpus(dataset_name=args.target_dataset_name, data_dir=data_dir)
        guard.protect_splits(target, train)
    for path in args.target_file:
        texts = read_texts(path, args.target_text_column_name)
        guard.protect((f"{Path(path).name}, text {number}" for number in range(1, len(texts) + 1)), texts)
    return guard, target


@dataclass(frozen=True)
class LeftOut:
    """What was left out of the training texts, and why.

    Attributes:
        counts: Number of rows, by reason.
        guard: Its `found` lists the rows that copy a protected text.
    """

    counts: Mapping[str, int]
    guard: LeakageGuard

    def report(self) -> None:
        """Log how many rows were left out, by reason, and which rows copy a protected text."""
        for reason, count in self.counts.items():
            logger.info(f"left out: {count} ({reason})")
        if len(self.guard):
            found = self.guard.found
            logger.info(f"left out: {len(found)} that copy one of {len(self.guard)} texts of {self.guard.source}")
            for row_id, copied in found[:SHOWN]:
                logger.info(f"  {row_id} copies {copied}")
            if len(found) > SHOWN:
                logger.info(f"  and {len(found) - SHOWN} more, see left_out.json")

    def write(self, folder: Path) -> None:
        """Write left_out.json into a folder: counts by reason, and all copies of protected texts."""
        copies = [{"row": row_id, "copies": copied} for row_id, copied in self.guard.found]
        write_json(folder / "left_out.json", {"counts": self.counts, "copies_of_target_texts": copies})
