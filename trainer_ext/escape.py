"""Escape names that a user chose (labels, variants, columns, ids, folders), so that they are shown as plain text, and
hide the keys in addresses of object stores.

All code that writes such a name into Markdown, a plot, a table's header or a message uses these functions. The demo,
which does not import the project, uses `html.escape`.
"""

import re
from collections.abc import Iterable, Sequence

# Prefix of each label in the header of a predictions table, so that no label is mistaken for another column.
_PROBABILITY = "probability_"
_SPECIAL = re.compile(
    r"[\\`*|~$#]"  # code, emphasis, table cells, strikethrough, formulas, headings
    r"|(?<![^\W_])_|_(?![^\W_])"  # emphasis, too, but not between two letters or digits
    r"|\](?=[\[(:])"  # links and images
)
_ENTITY = re.compile(r"&(?=[#\w])")
_TAG = re.compile(r"<(?![\d\s.=])")  # not "<0.001"
_CONTROL = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029]+")  # line breaks among them
# The password of an address, also with a slash in it, but not a port. Azure has keys among the parameters, too.
_KEY = re.compile(r"(\b\w+://[^/@:\s]*:)(?!\d{2,5}/)[^@\s]*(?=@)|([?&](?:client_secret|sig)=)[^&\s]*")
_BROKEN = re.compile("[\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


def without_keys(text: str) -> str:
    """Return the text with the keys in its addresses (as in `s3://id:key@bucket`) replaced by asterisks."""
    return _KEY.sub(r"\1\2***", text)


def one_line(text: str) -> str:
    """Return the text with each run of control characters (line breaks, tabs and others) replaced by one space.

    Lone surrogates, and marks that change the direction of the text around them, become U+FFFD. The keys in addresses
    are hidden.
    """
    return without_keys(_BROKEN.sub("\N{REPLACEMENT CHARACTER}", _CONTROL.sub(" ", text)))


def in_markdown(text: str) -> str:
    """Return Markdown that shows the text, in a sentence or a table cell, but not at the start of a line."""
    text = _ENTITY.sub("&amp;", one_line(text))
    return _SPECIAL.sub(r"\\\g<0>", _TAG.sub("&lt;", text)).strip(" ")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table whose cells show the given texts."""
    names = (f" {in_markdown(name)} " if name else " " for name in header)
    lines = [f"| {' | '.join(map(in_markdown, cells))} |" for cells in rows]
    return [f"|{'|'.join(names)}|", f"|{'---|' * len(header)}", *lines]


def in_code(text: str) -> str:
    """Return the text as a Markdown code span; not for a table cell, where `|` would end the cell."""
    text = one_line(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    pad = " " * (text.startswith("`") or text.endswith("`"))
    return f"{fence}{pad}{text}{pad}{fence}"


def probability_column(label: str) -> str:
    """Return the name of the column with a label's probabilities in tables of predictions."""
    return _PROBABILITY + label


def labels_of_columns(names: list[str]) -> list[str]:
    """Return the labels of probability columns; in older files, the column names are the labels."""
    if all(name.startswith(_PROBABILITY) for name in names):
        return [name.removeprefix(_PROBABILITY) for name in names]
    return names
