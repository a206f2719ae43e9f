"""Show what a data check found, and how many rows of each class every split has."""

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from ..escape import one_line
from .corpus import SPLITS, Corpus

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


# ---- Table of classes ------------------------------------------------------------------------------------------------
_MOST = 16  # classes in the table; of more, the largest and the smallest are shown
_LARGEST, _SMALLEST = 10, 5
_WIDEST_CLASS, _WIDEST_SPLIT = 32, 14  # characters


def class_table(corpus: Corpus) -> list[str]:
    """Return a table of rows per class, with a column per split and a last line with the number of rows.

    Classes are sorted by their number of training rows. Of more than 16 classes, the table has the ten largest and the
    five smallest, and says how many are between them. A row with several classes counts for each. An unlabelled split
    has `-`.
    """
    splits = {
        split: corpus.splits[split] for split in dict.fromkeys((*SPLITS, *corpus.splits)) if split in corpus.splits
    }
    counts = {
        split: corpus.class_counts(split) if corpus.is_labelled(split) and len(rows) else None
        for split, rows in splits.items()
    }
    leading = counts.get("train") or next(filter(None, counts.values()), dict.fromkeys(corpus.label_names, 0))
    names = sorted(corpus.label_names, key=lambda name: -leading[name])
    hidden = names[_LARGEST:-_SMALLEST] if len(names) > _MOST else []
    cells = [["class", *splits]]
    for name in names:
        if name not in hidden:
            cells.append([name, *("-" if of is None else f"{of[name]:,}" for of in counts.values())])
        elif name == hidden[0]:
            cells.append([f"... {len(hidden):,} more", *("" for _ in counts)])
    cells.append(["rows", *(f"{len(rows):,}" for rows in splits.values())])
    cells = [
        [shown_name(first, _WIDEST_CLASS), *(shown_name(each, _WIDEST_SPLIT) for each in rest)]
        for first, *rest in cells
    ]
    widths = [max(map(columns, column)) for column in zip(*cells, strict=True)]

    def line(first: str, *rest: str) -> str:
        name = first + " " * (widths[0] - columns(first))
        return "  ".join([name, *map(str.rjust, rest, widths[1:])]).rstrip()

    return [line(*row) for row in cells]
