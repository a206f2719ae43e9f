"""Keep test texts out of training rows: find the same text in two sets, copies, and further test sets."""

import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..files import shown, write_json
from ..recipes import flag
from .corpus import SPLITS, Corpus
from .emotion_corpora import normalised
from .load import DataArguments, extra_test_name, load_corpus, load_extra_test, read_texts


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
        """Return the id of the protected text that `text` is a copy of, or `None` if it is not a copy."""
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


# ---- Copies: texts that are the same but for case, spaces and punctuation --------------------------------------------
_UNSAID = re.compile("(?<=\\w)['’](?=\\w)|https?://\\S+|(?<!\\w)@\\w+")  # apostrophes, links and names of users
_WORDS = 6  # a text of fewer words is a copy only if it is the same: people say the same short things
_CONTAINED = 10  # words of a text that is a copy because a longer one contains it
_LONG = 1000  # words; the order of the words of longer texts is not compared
_RUN = 3  # words; two texts are compared only if they share a run of this many
_RUNS = 64  # runs to look at per text; of a longer text, those with the smallest hashes
_NEIGHBOURS = 4  # of the texts that share a run, each is compared with this many that follow it
_SHARED = 0.25  # of the shorter text's runs, before two texts are compared word by word
_ALIKE = 0.8  # of the words of both texts that they have in common
_ALIKE_SHORT = 0.87  # of texts of fewer than `_CONTAINED` words, of which people say similar ones by chance


def copies(texts: Sequence[str]) -> list[tuple[int, int]]:
    """Return pairs of texts of which the first is a copy of the second, each text once as a copy at most.

    The first of a pair has the higher index. Exact copies differ in case, punctuation, links, user names and the width
    of letters only. Near-copies have at least six words, and at most one word in eight differs, or one in five from ten
    words on. A text of ten words or more is also a near-copy if a longer one contains most of it. Only texts that share
    a run of three words are compared, so a copy with changes everywhere is missed.

    Args:
        texts: Their order decides which of two is the copy.
    """
    plain = [normalised(_UNSAID.sub("", unicodedata.normalize("NFKC", text))) for text in texts]
    first: dict[str, int] = {}
    found: dict[int, int] = {}
    for index, text in enumerate(plain):
        if (earlier := first.setdefault(text or texts[index], index)) != index:
            found[index] = earlier
    words = {index: plain[index].split() for index in first.values()}
    for earlier, later in _candidates({index: each for index, each in words.items() if len(each) >= _WORDS}):
        if later not in found and _near(words[earlier], words[later]):
            found[later] = found.get(earlier, earlier)
    return sorted(found.items())


def _near(first: list[str], second: list[str]) -> bool:
    """Return whether two texts, as lists of words, are near-copies of one another."""
    shorter, longer = sorted((first, second), key=len)
    common = (Counter(first) & Counter(second)).total()
    alike = _ALIKE if len(shorter) >= _CONTAINED else _ALIKE_SHORT
    if 2 * common >= alike * (len(first) + len(second)):
        matcher = SequenceMatcher(None, first, second, autojunk=False)  # in this order, too
        return len(longer) > _LONG or matcher.ratio() >= alike
    if len(shorter) < _CONTAINED or common < NEAR * len(shorter):
        return False
    one, other = shingles(" ".join(shorter)), shingles(" ".join(longer))
    return len(one & other) >= NEAR * len(one)


def _candidates(words: dict[int, list[str]]) -> list[tuple[int, int]]:
    """Return pairs of the texts that share enough runs of words, the lower index first, sorted."""
    if not words:
        return []
    number: dict[str, int] = {}
    ids = np.array([number.setdefault(word, len(number) + 1) for each in words.values() for word in each], np.uint64)
    text = np.repeat(np.fromiter(words, np.int64), [len(each) for each in words.values()])
    odd = np.uint64(0x9E3779B97F4A7C15)
    runs = ids[: 1 - _RUN].copy()
    for offset in range(1, _RUN):  # a polynomial hash, modulo 2**64
        runs = (runs ^ (runs >> np.uint64(29))) * odd + ids[offset : len(ids) + 1 - _RUN + offset]
    runs = (runs ^ (runs >> np.uint64(32))) * odd
    inside = text[: 1 - _RUN] == text[_RUN - 1 :]
    runs, text = runs[inside], text[: 1 - _RUN][inside]

    order = np.lexsort((runs, text))
    runs, text = runs[order], text[order]
    start = np.searchsorted(text, text)
    kept = np.arange(len(text)) - start < _RUNS
    runs, text = runs[kept], text[kept]
    size = np.bincount(text)
    order = np.lexsort((text, runs))
    runs, text = runs[order], text[order]
    total = int(text.max()) + 1
    keys = []
    for distance in range(1, _NEIGHBOURS + 1):
        same = (runs[:-distance] == runs[distance:]) & (text[:-distance] != text[distance:])
        keys.append(text[:-distance][same] * total + text[distance:][same])
    pairs, shared = np.unique(np.concatenate(keys), return_counts=True)
    first, second = np.divmod(pairs, total)
    enough = shared >= _SHARED * np.minimum(size[first], size[second])
    return list(zip(first[enough].tolist(), second[enough].tolist(), strict=True))


# ---- Further test sets -----------------------------------------------------------------------------------------------
def protect_extra_tests(guard: LeakageGuard, sources: Sequence[str], data_args: DataArguments) -> None:
    """Add the texts of the extra test sets to the guard, so that copies of them are kept out of training.

    Args:
        sources: Files, or `wassa2022`, as in [`load_extra_test`].
    """
    for source in sources:
        guard.source = ", ".join(filter(None, [guard.source, shown(source)]))
        if source == "wassa2022":
            rows = load_corpus(dataset_name=source, data_dir=data_args.data_dir).splits["train"]
            ids, texts = rows["id"], rows["text"]
        else:
            texts = read_texts(
                source, data_args.text_column_name or "text", data_args.quoting, data_args.text_column_delimiter
            )
            ids = [f"{Path(source).name}, text {number}" for number in range(1, len(texts) + 1)]
        guard.protect(ids, texts)


def with_extra_tests(corpus: Corpus, sources: Sequence[str], data_args: DataArguments) -> Corpus:
    """Return the corpus with each extra test set as a split of its own.

    Raises:
        InputError: as [`load_extra_test`], or if two test sets have the same name.
    """
    for source in sources:
        name = extra_test_name(source)
        if name in (*SPLITS, "eval") or name in corpus.splits:
            raise InputError(
                f"--extra_tests {source}: its figures would be called {name}, like another's; rename the file"
            )
        rows = load_extra_test(
            source,
            corpus,
            data_dir=data_args.data_dir,
            text_column=data_args.text_column_name,
            text_delimiter=data_args.text_column_delimiter,
            label_column=data_args.label_column_name,
            group_column=data_args.group_column_name,
            id_column=data_args.id_column_name,
            quoting=data_args.quoting,
        )
        if data_args.max_predict_samples is not None:
            rows = rows.select(range(min(data_args.max_predict_samples, len(rows))))
        corpus = corpus.with_splits(**{name: rows})
    return corpus
