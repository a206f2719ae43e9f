"""Show how many rows of each class every split has, as a table of lines."""

from .corpus import SPLITS, Corpus
from .findings import columns, shown_name

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
