"""Plots of whatever people call their labels: drawn, and as text."""

import json
import logging
import warnings

import numpy as np
import pytest
from matplotlib import font_manager, image
from matplotlib.font_manager import FontProperties

from trainer_ext.evaluation import plots
from trainer_ext.evaluation.plots import drawn_as_text, plot_comparison, plot_confusion_matrix, plot_reliability

NAMES = ["$_$", "$\\frac$", "$", "a\nb", "日本語", "مرحبا", "😀", "👩‍👩‍👧", "\ud83d", "\0", "x" * 5000, "^_{", "%", ""]


def draw(labels, tmp_path):
    source, target = tmp_path / "a.json", tmp_path / "a.png"
    bins = [{"rows": 3, "confidence": 0.5, "accuracy": 0.4}]
    for plot, content in (
        (
            plot_confusion_matrix,
            {"split": labels[0], "labels": labels, "counts": np.eye(len(labels), dtype=int).tolist()},
        ),
        (plot_reliability, {"calibration": {labels[0]: {"expected_calibration_error": 0.1, "reliability": bins}}}),
        (
            plot_comparison,
            {
                "variants": [
                    {"name": name, "interval": [0, 1], "macro_f1": 0.5, "macro_f1_by_seed": [0.5]} for name in labels
                ]
            },
        ),
    ):
        source.write_text(json.dumps(content))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            plot(source, target)
        assert image.imread(target).std() > 0
        yield target


def test_no_name_breaks_a_plot_or_warns(tmp_path):
    assert len(list(draw(NAMES, tmp_path))) == 3


def test_many_labels_make_a_picture_that_can_be_written(tmp_path):
    assert len(list(draw([f"label {number}" for number in range(90)], tmp_path))) == 3


def test_names_are_drawn_as_they_are():
    """Not as the formula that the dollars would make of them."""
    with drawn_as_text(["$_$", "a\tb", "x" * 61]) as names:
        assert names == ["$_$", "a b", "x" * 59 + "…"]


def test_a_character_that_no_font_has_is_written_as_a_code(monkeypatch, caplog):
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [])
    monkeypatch.setattr(font_manager, "findSystemFonts", list)
    monkeypatch.setattr(font_manager, "findfont", lambda _: DEJAVU)
    with caplog.at_level(logging.WARNING), drawn_as_text(["喜び", "怒り", "joy"]) as names:
        assert names == [r"\u559c\u3073", r"\u6012\u308a", "joy"]
    (record,) = caplog.records
    assert "no font of this machine has びり喜怒" in record.getMessage()


DEJAVU = font_manager.findfont("DejaVu Sans")


@pytest.fixture
def only_han(tmp_path):
    """A font with one glyph, a filled square for 喜, as a machine with a Japanese font has."""
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen

    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for point in ((0, 900), (900, 900), (900, 0)):
        pen.lineTo(point)
    pen.closePath()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "joy"])
    builder.setupCharacterMap({ord("喜"): "joy"})
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "joy": pen.glyph()})
    builder.setupHorizontalMetrics({".notdef": (500, 0), "joy": (1000, 0)})
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": "Only Han", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    path = tmp_path / "OnlyHan-Regular.ttf"
    builder.save(path)
    return str(path)


def test_a_font_of_the_machine_is_found_for_what_the_usual_one_lacks(only_han, monkeypatch, caplog):
    monkeypatch.setattr(font_manager.fontManager, "ttflist", list(font_manager.fontManager.ttflist))
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [only_han])
    with drawn_as_text(["喜 joy"]) as names:
        assert names == ["喜 joy"]
        assert "Only Han" in FontProperties().get_family()
    assert not caplog.records
    assert plots._fonts_for(frozenset("joy")) == (["DejaVu Sans"], set())
