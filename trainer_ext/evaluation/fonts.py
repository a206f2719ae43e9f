"""Find fonts for the names in a plot, so that labels in any script are readable."""

import logging
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache

import matplotlib
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

from ..escape import one_line

logger = logging.getLogger(__name__)
_LONGEST = 60  # characters of a name in a plot
# Fonts whose glyphs are boxes, or coloured, which matplotlib cannot draw.
_NOT_FOR_TEXT = ("LastResort", "Color")


@contextmanager
def drawn_as_text(names: Iterable[str]) -> Iterator[list[str]]:
    """Set matplotlib, within a `with` block, to draw names literally (not as formulas) in fonts that have their
    characters.

    Yields:
        The names as they should be drawn: on one line, at most 60 characters each. A character that no installed font
            has
        is replaced by its escape code, and a warning is logged.
    """
    lines = [line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}…" for line in map(one_line, names)]
    families, missing = _fonts_for(frozenset("".join(lines)))
    if missing:
        shown = "".join(sorted(missing))[:20]
        logger.warning(f"no font of this machine has {shown}: plots show codes instead; a Noto font would do")
    escaped = {ord(character): _escape(character) for character in missing}
    settings = {"text.parse_math": False, "text.usetex": False, "font.family": families}
    with matplotlib.rc_context(settings):
        yield [line.translate(escaped) for line in lines]


def _escape(character: str) -> str:
    joins = unicodedata.category(character) in ("Cf", "Mn")  # joiners and emoji variation selectors
    return "" if joins else character.encode("unicode_escape").decode()


def _fonts_for(characters: frozenset[str]) -> tuple[list[str], set[str]]:
    """Return font families that together have the characters, the default one first, and the characters none has."""
    usual = font_manager.findfont("DejaVu Sans")
    families, missing = ["DejaVu Sans"], {each for each in characters if ord(each) not in _characters_of(usual)}
    if missing:
        paths = {*(font.fname for font in font_manager.fontManager.ttflist), *font_manager.findSystemFonts()}
        for path in sorted(paths, key=lambda path: ("Regular" not in path, path)):
            if any(part in path for part in _NOT_FOR_TEXT):
                continue
            found = {character for character in missing if ord(character) in _characters_of(path)}
            if found:
                if path not in {font.fname for font in font_manager.fontManager.ttflist}:
                    font_manager.fontManager.addfont(path)
                families.append(font_manager.FontProperties(fname=path).get_name())
                missing -= found
            if not missing:
                break
    return families, missing


@cache
def _characters_of(path: str) -> frozenset[int]:
    try:
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):  # not a readable font
        return frozenset()
