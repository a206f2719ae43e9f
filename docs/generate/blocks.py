"""Fill the marked blocks of a page. People write the text around them.

A block starts with the line `<!-- begin: NAME -->` and stops with the line `<!-- end: NAME -->`.
"""

import re

from trainer_ext.errors import InputError

MARKER = re.compile(r"<!-- (begin|end): (.+) -->")


def fill(page: str, text: str, blocks: dict[str, list[str]]) -> str:
    """Return a page's text with new lines in its blocks.

    Args:
        page: The page's file, for error messages.
        text: What the page holds now.
        blocks: The lines of each block, by the block's name.

    Raises:
        InputError: If the page and `blocks` do not name the same blocks, if a block occurs twice, or if its markers do
            not pair up.
    """
    filled: list[str] = []
    begun: dict[str, int] = {}
    inside = None
    for row, line in enumerate(text.splitlines(), 1):
        marker = MARKER.fullmatch(line.strip())
        kind, name = marker.groups() if marker else ("", "")
        where = f"{page}, line {row}: block {name!r}"
        if kind == "begin":
            if inside is not None:
                raise InputError(f"{where} begins inside block {inside!r}; close that first: <!-- end: {inside} -->")
            if name in begun:
                raise InputError(f"{where} is already on line {begun[name]}; a name may occur once")
            if name not in blocks:
                raise InputError(f"{where} is not made by docs/generate; these are: {', '.join(blocks)}")
            inside, begun[name] = name, row
            filled += [line, "", *"\n".join(blocks[name]).strip("\n").split("\n"), ""]
        elif kind == "end":
            if name != inside:
                raise InputError(f"{where} ends without a beginning; write <!-- begin: {name} --> above it")
            inside = None
        if inside is None:
            filled.append(line)
    if inside is not None:
        raise InputError(
            f"{page}, line {begun[inside]}: block {inside!r} is not closed; write <!-- end: {inside} --> below it"
        )
    for name in blocks:
        if name not in begun:
            raise InputError(
                f"{page}: block {name!r} is missing; write <!-- begin: {name} --> and <!-- end: {name} --> on two lines"
            )
    return "\n".join(filled) + "\n"


def shown(command: str) -> str:
    """Return a command in Markdown that can be typed on any machine.

    FOLDER stands for the folder of the corpora. Of a path outside the clone, a run records only the last part, as
    `.../name`. It becomes `outputs/name`.
    """
    command = re.sub(r"--data_dir [^ ]+", "--data_dir FOLDER", command)
    return f"`{re.sub(r'(?<=[ =])[.]{3}/', 'outputs/', command)}`"


def table(header: list[str], rows: list[list[object]]) -> list[str]:
    """Return the lines of a markdown table."""
    return [_row(header), f"|{'---|' * len(header)}", *map(_row, rows)]


def _row(cells: list[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"
