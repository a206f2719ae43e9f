"""Whether a model knows the language of a text: by its tokenizer's pieces, its script and a language detector."""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

from py3langid.langid import MODEL_FILE, LanguageIdentifier

# From this share of a text on, the tokenizer is said not to know it.
MOSTLY = 0.5
UNKNOWN = "The model does not know most of this text"
LETTER = r"(?:[^\W\d_]|[\u0300-\u036f])"
WORD = re.compile(rf"{LETTER}(?:{LETTER}|['’])*")
NO_WORDS = re.compile(r"(?:https?://|www\.)\S+|[@#]\w+")
STRETCHED = re.compile(r"(.)\1{2,}")  # as in "sooo"
# The detector's classes that English texts fall in as well: Nigerian Pidgin, and what is not language.
ALIKE = {"en": ("pcm", "zxx")}

Span = tuple[int, int]


class Languages:
    """The languages of the texts that a model knows, and a detector that finds texts in others.

    Attributes:
        codes: ISO 639 codes, as a model's card gives them; may be empty.
    """

    def __init__(self, codes: Sequence[str]):
        self.codes = list(codes)
        self._detector = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True) if codes else None
        # A language that the detector lacks would always be taken for another one.
        if self._detector and not set(codes) <= set(self._detector.labels):
            self._detector = None
        self._known = {*codes, *(name for code in codes for name in ALIKE.get(code, ()))}

    def warning(self, text: str, ids: list[int], spans: list[Span] | None, unknown: int | None) -> str | None:
        """Return a line for a text that the model does not know for the most part.

        Args:
            ids: The text's tokens.
            spans: Where each token begins and ends, if the tokenizer tells.
            unknown: The token for what is not in the vocabulary.
        """
        if unknown_share(text, ids, spans, unknown) > MOSTLY:
            script = script_of(text)
            why = f" ({script} script)" if script not in (None, "Latin") else ""
        elif self.lacks(text, spans):
            why = " (it seems to be in another language)"
        else:
            return None
        return f"{UNKNOWN}{why}. Its answer means little."

    def lacks(self, text: str, spans: list[Span] | None) -> bool:
        """Return whether a text is most likely in a language that is not known.

        The detector alone takes slang and names for other languages. So the fewer words there are and the more of them
        are in the tokenizer's vocabulary as a whole, the surer it must be. A single word is not judged, and neither are
        words that begin with a capital inside a text, which may be names.
        """
        if self._detector is None:
            return False
        probability, count, split = self.evidence(text, spans)
        return count > 1 and probability < 0.001 + 0.1 * (split * min(1.5, (count - 1) / 3)) ** 2

    def evidence(self, text: str, spans: list[Span] | None) -> tuple[float, int, float]:
        """Return the probability of a known language, the number of words, and the share of words split into tokens."""
        found = list(WORD.finditer(NO_WORDS.sub(lambda match: " " * len(match[0]), text)))
        words = [word for number, word in enumerate(found) if not number or word[0][0].islower() or word[0].isupper()]
        if len(words) < 2:
            return 1.0, len(words), 0.0
        plain = " ".join(STRETCHED.sub(r"\1", word[0]) for word in words)
        probability = sum(score for name, score in self._detector.rank(plain) if name in self._known)
        return probability, len(words), share_of_split(words, spans or [])


def share_of_split(words: list[re.Match], spans: list[Span]) -> float:
    """Return the share of words that the tokenizer splits into several tokens."""
    starts, position, split = sorted({start for start, end in spans if end > start}), 0, 0
    for word in words:
        while position < len(starts) and starts[position] <= word.start():
            position += 1
        first = position
        while position < len(starts) and starts[position] < word.end():
            position += 1
        split += position > first
    return split / len(words)


def unknown_share(text: str, ids: list[int], spans: list[tuple[int, int]] | None, unknown: int | None) -> float:
    """Return the share of a text's characters that a tokenizer does not know.

    Unknown are pieces without an entry, and letters that are a piece each inside a word: so a tokenizer reads a script
    that it has never learnt. Chinese characters are known as a piece each, but not as several. ASCII letters are known.
    Symbols count only in a text that has no letters or digits.
    """
    if spans is None:
        return ids.count(unknown) / max(1, len(ids))
    per_character = Counter(span for span in spans if span[1] - span[0] == 1)
    known = unclear = 0
    has_words = any(map(str.isalnum, text))
    for token, (start, end) in zip(ids, spans, strict=True):
        piece = text[start:end].strip()
        size = len(piece) if token == unknown and not has_words else sum(map(str.isalnum, piece))
        if not size:
            continue
        inside = (text[start - 1 : start] + text[end : end + 1]).strip()
        alone = len(piece) == 1 and not piece.isascii() and piece.isalpha() and any(map(str.isalpha, inside))
        if alone and "\u4e00" <= piece <= "\u9fff":
            alone = per_character[start, end] > 1
        if token == unknown or alone:
            unclear += size
        else:
            known += size
    return unclear / max(1, known + unclear)


def script_of(text: str) -> str | None:
    """Return the script that most letters of a text are in, as Unicode calls it."""
    found = Counter(unicodedata.name(letter, "").split(" ")[0] for letter in text if letter.isalpha())
    name = found.most_common(1)[0][0] if found else ""
    return {"CJK": "Chinese"}.get(name, name.title()) or None
