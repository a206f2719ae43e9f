"""Prepare texts for a model: check that they are texts, cut very long ones, and batch those of similar length.

Shipped inside every saved model, next to the pipeline that uses it.
"""

import re
import unicodedata
from collections.abc import Iterator
from typing import Any

# Maximum number of characters to tokenize for the first tokens. A longer text would be mostly blanks or one word.
LONGEST_TEXT = 2**20
# Letters and symbols of Unicode that are invisible: Hangul fillers and the Braille blank.
BLANK = frozenset("\u115f\u1160\u3164\uffa0\u2800")
# A word with the blanks around it.
_WORD = re.compile(r"\s*(?:[^\s。！？]+[。！？]*|[。！？]+)\s*")


def token_budget_batches(lengths: list[int], tokens_per_batch: int) -> Iterator[list[int]]:
    """Yield batches of positions, longest texts first, with at most `tokens_per_batch` tokens, padding included.

    A longer text is a batch of its own. The longest texts come first, so that a lack of memory shows at once.
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

    That is a letter, a digit, a punctuation mark or a symbol. Spaces, controls, zero-width characters and marks without
    a letter do not count. A string with half of a surrogate pair is not a text.
    """
    try:
        if not isinstance(value, str) or not value.encode():
            return False
    except UnicodeEncodeError:
        return False
    # "Cn" is the category of characters that are newer than this Python
    return any(
        character not in BLANK and ((kind := unicodedata.category(character))[0] in "LNPS" or kind == "Cn")
        for character in value
    )


def as_pair(value: Any) -> tuple[str, str | None] | None:
    """Return an input's text and its second text (or `None`), or just `None` if the input is not a text."""
    second = None
    if isinstance(value, dict) and {"text"} <= value.keys() <= {"text", "text_pair"}:
        value, second = value["text"], value.get("text_pair") or None
    elif isinstance(value, list) and len(value) == 1 and isinstance(value[0], list) and len(value[0]) == 2:
        value, second = value[0]  # the library's old form of a pair
    if not is_text(value) or not (second is None or is_text(second)):
        return None
    return str(value), second


def in_order(inputs: Any) -> Any:
    """Return several texts as an iterable of Python values, in their order.

    A column of pyarrow becomes a list, and an array with a single column loses its second dimension.

    Raises:
        ValueError: if their order is not known, or they are not texts but a table: iterating one yields its column
            names, or rows with other columns. A dataset may have the columns `text` and `text_pair` only, since its
            rows are then texts or pairs.
    """
    kind, is_frame = type(inputs).__name__, hasattr(inputs, "columns")
    if isinstance(inputs, dict):
        raise ValueError(f"a {kind} with {', '.join(map(str, inputs))}; give one of them")
    names = list(getattr(inputs, "column_names", None) or (inputs.columns if is_frame else []))
    if is_frame or not set(names) <= {"text", "text_pair"}:
        name = "text" if "text" in names or not names else names[0]
        column = f'"{name}"' if isinstance(name, str) else repr(name)
        raise ValueError(f"a table ({kind}); give the column with the texts, such as df[{column}]")
    if isinstance(inputs, set | frozenset):
        raise ValueError(f"a {kind}, which has no order; give a list, so that it is known which result is whose")
    if (dimensions := getattr(inputs, "ndim", 1)) != 1:
        if dimensions != 2 or inputs.shape[1] != 1:
            raise ValueError(f"an array of shape {tuple(inputs.shape)}; give the texts in one dimension")
        inputs = inputs[:, 0]
    if not hasattr(inputs, "__iter__") and hasattr(inputs, "__len__"):
        return map(inputs.__getitem__, range(len(inputs)))  # iter() of a torch dataset would never end
    return inputs.to_pylist() if hasattr(inputs, "to_pylist") else inputs


def without_each_word(text: str) -> tuple[list[str], Iterator[str]]:
    """Return the words of a text, with the blanks around them, and yield the text without each of them.

    Nothing at all, or marks alone, is not a text. The shortest one, a full stop, is used instead.
    """
    words = _WORD.findall(text)
    without = ("".join(words[:place] + words[place + 1 :]) for place in range(len(words)))
    return words, (each if is_text(each) else "." for each in without)


def beginning(text: str | tuple[str, str], tokenizer: Any, room: int) -> str | tuple[str, ...]:
    """Return the start of a text that is long enough to fill `room` tokens, or the whole text; for a pair, both starts.

    A tokenizer reads a text whole before it cuts it, and needs about 200 bytes per character.
    """
    if isinstance(text, tuple):
        return tuple(str(beginning(part, tokenizer, room)) for part in text)
    characters = 8 * room
    while len(text) > characters:
        whole_words = text[:characters].rsplit(None, 1)[:-1]  # half a word may give other tokens
        part = whole_words[0] if whole_words else text[:characters]
        tokens = tokenizer(part, truncation=False, add_special_tokens=False, verbose=False)["input_ids"]
        if (whole_words and len(tokens) > room) or characters >= LONGEST_TEXT:
            return part
        characters *= 4
    return text


def truncated(encoded: list[Any]) -> list[bool]:
    """Return for each text that `EmotionPipeline.encode` encoded whether a tokenizer cut it.

    Slow tokenizers do not record this. Their texts count as not cut.
    """
    cut = [False] * len(encoded[0]["input_ids"])
    for of_tokenizer in encoded:
        for text, encoding in enumerate(of_tokenizer.encodings or ()):
            cut[text] |= bool(encoding.overflowing)
    return cut
