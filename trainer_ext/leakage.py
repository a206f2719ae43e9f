"""Keep a target's evaluation texts out of what a model is trained on: exact, near and contained copies."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from .emotion_corpora import normalised

# Words in a row that two texts must share to be compared at all.
SHINGLE = 4
# Share of the shorter text's shingles, also found in the other, from which it counts as a copy.
NEAR = 0.7


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
        """Add texts that must not be trained on."""
        for row_id, text in zip(ids, texts, strict=True):
            position = len(self._ids)
            self._ids.append(row_id)
            self._exact.setdefault(normalised(text), position)
            of_text = shingles(text)
            self._sizes.append(len(of_text))
            for shingle in of_text:
                self._index.setdefault(shingle, []).append(position)

    def __len__(self) -> int:
        return len(self._ids)

    def copied(self, text: str) -> str | None:
        """The id of the protected text that `text` copies, or `None`."""
        exact = self._exact.get(normalised(text))
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
