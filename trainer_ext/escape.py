"""Names that a user chose (labels, variants, columns, ids, folders), written so that they are read as text only.

Whoever writes such a name into Markdown, a plot, a table's header or a message passes it through here. The demo, which
stands alone, has `html.escape`.
"""

import re
import unicodedata

# Before each label in the header of a table of predictions, so that no label is taken for a column of ours.
_PROBABILITY = "probability_"
_SPECIAL = re.compile(
    r"[\\`*|~$#]"  # code, emphasis, table cells, strikethrough, formulas, headings
    r"|(?<![^\W_])_|_(?![^\W_])"  # emphasis, too, but not between two letters or digits
    r"|\](?=[\[(:])"  # links and images
)
_ENTITY = re.compile(r"&(?=[#\w])")
# What turns the direction of the text around it.
_TURNING = {*map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2066, 0x206A))}


def one_line(text: str) -> str:
    """Return the text with each run of line breaks, tabs and other control characters as one space.

    Half a character (a lone surrogate) and marks that turn the direction of the text around them become U+FFFD.
    """

    def plain(character: str) -> str:
        kind = unicodedata.category(character)
        if kind == "Cs" or character in _TURNING:
            return "\N{REPLACEMENT CHARACTER}"
        return " " if kind in ("Cc", "Zl", "Zp") else character

    return re.sub(" +", " ", "".join(map(plain, text)))


def in_markdown(text: str) -> str:
    """Return Markdown that shows the text, in a sentence or a table cell; it must not stand first in its line."""
    return _SPECIAL.sub(r"\\\g<0>", _ENTITY.sub("&amp;", one_line(text)).replace("<", "&lt;"))


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
