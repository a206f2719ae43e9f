"""Names that a user chose (labels, variants, columns, ids, folders), written so that they are read as text only.

Whoever writes such a name into Markdown, a plot, a table's header or a message passes it through here. The demo, which
stands alone, has `html.escape`.
"""

import re
from collections.abc import Iterable, Sequence

# Before each label in the header of a table of predictions, so that no label is taken for a column of ours.
_PROBABILITY = "probability_"
_SPECIAL = re.compile(
    r"[\\`*|~$#]"  # code, emphasis, table cells, strikethrough, formulas, headings
    r"|(?<![^\W_])_|_(?![^\W_])"  # emphasis, too, but not between two letters or digits
    r"|\](?=[\[(:])"  # links and images
)
_ENTITY = re.compile(r"&(?=[#\w])")
_TAG = re.compile(r"<(?![\d\s.=])")  # not "<0.001"
_CONTROL = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029]+")  # line breaks among them
_BROKEN = re.compile("[\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


def one_line(text: str) -> str:
    """Return the text with each run of line breaks, tabs and other control characters as one space.

    Half a character (a lone surrogate) and marks that turn the direction of the text around them become U+FFFD.
    """
    return _BROKEN.sub("\N{REPLACEMENT CHARACTER}", _CONTROL.sub(" ", text))


def in_markdown(text: str) -> str:
    """Return Markdown that shows the text, in a sentence or a table cell; it must not stand first in its line."""
    text = _ENTITY.sub("&amp;", one_line(text))
    return _SPECIAL.sub(r"\\\g<0>", _TAG.sub("&lt;", text)).strip(" ")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table; each cell shows its text."""
    names = (f" {in_markdown(name)} " if name else " " for name in header)
    lines = [f"| {' | '.join(map(in_markdown, cells))} |" for cells in rows]
    return [f"|{'|'.join(names)}|", f"|{'---|' * len(header)}", *lines]


def in_code(text: str) -> str:
    """Return a Markdown code span of the text; not for a table cell, where `|` would end it."""
    text = one_line(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    pad = " " * (text.startswith("`") or text.endswith("`"))
    return f"{fence}{pad}{text}{pad}{fence}"


def probability_column(label: str) -> str:
    """Return the name of the column with a label's probabilities, as every table of predictions has it."""
    return _PROBABILITY + label


def labels_of_columns(names: list[str]) -> list[str]:
    """Return the labels whose probabilities the columns hold; files of before have the bare labels."""
    if all(name.startswith(_PROBABILITY) for name in names):
        return [name.removeprefix(_PROBABILITY) for name in names]
    return names
