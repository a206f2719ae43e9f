"""Texts on their way to a model: which values are texts, how much of one is read, which are read together.

Shipped inside every saved model, beside the pipeline that uses it.
"""

import unicodedata
from collections.abc import Iterator
from typing import Any

# Characters in which the first tokens are looked for: almost all of a longer one would be blanks or one word.
LONGEST_TEXT = 2**20
# Letters and symbols of Unicode that show nothing: Hangul fillers and the Braille blank.
BLANK = frozenset("\u115f\u1160\u3164\uffa0\u2800")


def token_budget_batches(lengths: list[int], tokens_per_batch: int) -> Iterator[list[int]]:
    """Yield batches of positions, longest texts first, with at most `tokens_per_batch` tokens, padding included.

    A longer text is a batch of its own. Since the longest come first, what does not fit in memory fails at once.
    """
    batch: list[int] = []
    for position in sorted(range(len(lengths)), key=lambda position: -lengths[position]):
        if batch and lengths[batch[0]] * (len(batch) + 1) > tokens_per_batch:
            yield batch
            batch = []
        batch.append(position)
    if batch:
        yield batch


def is_text(value: object) -> bool:
    """Return whether a value is a string with something to read in it.

    That is a letter, a digit, a punctuation mark or a symbol: not only spaces, controls, zero-width characters or marks
    without a letter. A string with half of a surrogate pair is not a text.
    """
    try:
        if not isinstance(value, str) or not value.encode():
            return False
    except UnicodeEncodeError:
        return False
    # "Cn" is for characters that are newer than this Python
    return any(
        character not in BLANK and ((kind := unicodedata.category(character))[0] in "LNPS" or kind == "Cn")
        for character in value
    )


def as_pair(value: Any) -> tuple[str, str | None] | None:
    """Return an input's text and the second text that belongs to it, `None` if there is no text."""
    second = None
    if isinstance(value, dict) and {"text"} <= value.keys() <= {"text", "text_pair"}:
        value, second = value["text"], value.get("text_pair") or None
    elif isinstance(value, list) and len(value) == 1 and isinstance(value[0], list) and len(value[0]) == 2:
        value, second = value[0]  # the library's old way
    if not is_text(value) or not (second is None or is_text(second)):
        return None
    return str(value), second


def beginning(text: str | tuple[str, str], tokenizer: Any, room: int) -> str | tuple[str, ...]:
    """Return a text as far as it fills `room` tokens, and more than fills it if it did before; of a pair both texts.

    A tokenizer reads a text whole before it cuts it, and takes some 200 bytes for each character that it reads.
    """
    if isinstance(text, tuple):
        return tuple(str(beginning(part, tokenizer, room)) for part in text)
    characters = 8 * room
    while len(text) > characters:
        whole_words = text[:characters].rsplit(None, 1)[:-1]  # half a word may have other tokens
        part = whole_words[0] if whole_words else text[:characters]
        tokens = tokenizer(part, truncation=False, add_special_tokens=False, verbose=False)["input_ids"]
        if (whole_words and len(tokens) > room) or characters >= LONGEST_TEXT:
            return part
        characters *= 4
    return text


def truncated(encoded: list[Any]) -> list[bool]:
    """Return for each text that `EmotionPipeline.encode` encoded whether a tokenizer cut it.

    A tokenizer without a Rust part does not say, and counts as one that did not cut.
    """
    cut = [False] * len(encoded[0]["input_ids"])
    for of_tokenizer in encoded:
        for text, encoding in enumerate(of_tokenizer.encodings or ()):
            cut[text] |= bool(encoding.overflowing)
    return cut
