"""Find copies and near-copies among many texts, in time that grows with their number."""

import re
from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher

import numpy as np

from .emotion_corpora import normalised
from .leakage import NEAR, shingles

_APOSTROPHE = re.compile("(?<=\\w)['’](?=\\w)")
_WORDS = 6  # a text of fewer words is a copy only if it is the same: people say the same short things
_CONTAINED = 10  # words of a text that is a copy because a longer one contains it
_LONG = 1000  # words; the order of the words of longer texts is not compared
_RUN = 3  # words; two texts are compared only if they share a run of this many
_RUNS = 64  # runs to look at per text; of a longer text, those with the smallest hashes
_NEIGHBOURS = 4  # of the texts that share a run, each is compared with this many that follow it
_SHARED = 0.25  # of the shorter text's runs, before two texts are compared word by word
_ALIKE = 0.87  # of the words of both texts that they have in common


def copies(texts: Sequence[str]) -> list[tuple[int, int]]:
    """Return pairs of texts of which the first is a copy of the second, each text once as a copy at most.

    The first of a pair has the higher index. Exact copies differ in case and punctuation only. Near-copies
    have at least six words, of which one in eight may be changed, or one contains the other, as in
    [`trainer_ext.data.leakage.LeakageGuard`]. Only texts that share a run of three words are compared, so a copy with
    changes everywhere is missed.

    Args:
        texts: Their order decides which of two is the copy.
    """
    first: dict[str, int] = {}
    found: dict[int, int] = {}
    for index, text in enumerate(texts):
        if (earlier := first.setdefault(normalised(text) or text, index)) != index:
            found[index] = earlier
    words = {index: _APOSTROPHE.sub("", texts[index]) for index in first.values()}
    words = {index: normalised(text).split() for index, text in words.items()}
    for earlier, later in _candidates({index: each for index, each in words.items() if len(each) >= _WORDS}):
        if later not in found and _near(words[earlier], words[later]):
            found[later] = found.get(earlier, earlier)
    return sorted(found.items())


def _near(first: list[str], second: list[str]) -> bool:
    """Return whether two texts, as lists of words, are near-copies of one another."""
    shorter, longer = sorted((first, second), key=len)
    common = (Counter(first) & Counter(second)).total()
    if 2 * common >= _ALIKE * (len(first) + len(second)):
        matcher = SequenceMatcher(None, first, second, autojunk=False)  # in this order, too
        return len(longer) > _LONG or matcher.ratio() >= _ALIKE
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
