"""What a data check found, and how it is shown."""

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from ..escape import one_line
from .corpus import Corpus

EXAMPLES = 5  # rows to name in a message
_LONGEST_NAME = 40  # characters of a label's name in a message


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a corpus, or may be.

    Attributes:
        level: `wrong` stops a training, `warning` may be a mistake, `note` is for information, and `flag` is a flag of
            `run_classify.py` that fits this data.
        check: A short name of the check, for programs.
        message: One line: what was found, how often, and what to do. It never has a text of the corpus.
        rows: All rows that are concerned, as `train row 17`.
    """

    level: Literal["wrong", "warning", "note", "flag"]
    check: str
    message: str
    rows: Sequence[str] = ()


def row_names(corpus: Corpus, split: str, indices: Iterable[int]) -> list[str]:
    """Return rows of a split as `train row 17`, with the row's id."""
    ids = corpus.splits[split]["id"][:]
    return [f"{split} row {ids[int(index)]}" for index in indices]


def examples(rows: Sequence[str]) -> str:
    """Return the first rows for a message, and how many more there are."""
    more = f" and {len(rows) - EXAMPLES:,} more" if len(rows) > EXAMPLES else ""
    return ", ".join(rows[:EXAMPLES]) + more


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun, as `1 row` or `1,200 rows`."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def shown_name(name: str, limit: int = _LONGEST_NAME) -> str:
    """Return a label's name for a message, cut if it takes more than `limit` columns."""
    name = one_line(name)
    if columns(name) <= limit:
        return name
    while columns(name) >= limit:
        name = name[:-1]
    return f"{name}…"


def columns(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(unicodedata.combining(character) > 0 for character in text)
