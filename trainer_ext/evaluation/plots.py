"""Draw the plots of a run, each from a JSON file in the same folder."""

import json
import logging
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font

from ..escape import one_line

logger = logging.getLogger(__name__)
# The demo's colours: those of `plots` in `space/palette.json`.
COLORS = {"first": "#2a70f5", "second": "#c25a00", "quiet": "#5c5f71"}
_LARGEST = 30.0  # inches; a picture of hundreds of labels takes gigabytes, or has more pixels than a file may hold
_SHOWN = 8.5  # inches; pages shrink wider pictures to about this, so letters grow with them
_LONGEST_LABEL = 24  # characters, next to a matrix
_MOST_NUMBERED = 60  # labels of a matrix whose cells hold their counts; its JSON holds them always


def plot_confusion_matrix(source: Path, target: Path) -> None:
    """Draw a confusion matrix: rows are gold, columns are predicted, shaded by the share of the row.

    Args:
        source: JSON file with `{"split": …, "labels": […], "counts": [[…]]}`.
        target: PNG file to write.
    """
    content = json.loads(source.read_text(encoding="utf-8"))
    counts = np.array(content["counts"])
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    size = min(2 + 0.62 * len(counts), _LARGEST)
    names = [name if len(name) <= _LONGEST_LABEL else f"{name[: _LONGEST_LABEL - 1]}…" for name in content["labels"]]
    with drawn_as_text([content["split"], *names]) as (split, *labels):
        figure = Figure(figsize=(size, size * 0.9), layout="constrained")
        axes = figure.subplots()
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        letters = {"fontsize": 10 * max(1, size / _SHOWN)}
        small = {"fontsize": min(letters["fontsize"], 72 * 0.6 * size / len(counts))}
        number = min(small["fontsize"], 72 * size / len(counts) / len(str(counts.max())))  # fits into its cell
        if len(counts) <= _MOST_NUMBERED:
            for (row, column), count in np.ndenumerate(counts):
                color = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, count, ha="center", va="center", color=color, fontsize=number)
        axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right", **small)
        axes.set_yticks(range(len(labels)), labels, **small)
        axes.set_xlabel("predicted", **letters)
        axes.set_ylabel("gold", **letters)
        axes.set_title(f"{split}: {counts.sum()} rows", fontsize=1.2 * letters["fontsize"])
        figure.savefig(target, dpi=150)


def plot_learning_curve(source: Path, target: Path) -> None:
    """Draw the training loss, validation loss and validation macro F1 by epoch, from `Trainer`'s log history."""
    history = json.loads(source.read_text(encoding="utf-8"))
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    loss_axes = figure.subplots()
    f1_axes = loss_axes.twinx()
    for axes, key, label, style in (
        (loss_axes, "loss", "training loss", {"color": COLORS["first"]}),
        (loss_axes, "eval_loss", "validation loss", {"color": COLORS["first"], "linestyle": "--", "marker": "o"}),
        (f1_axes, "eval_macro_f1", "validation macro F1", {"color": COLORS["second"], "marker": "o"}),
    ):
        points = [(entry["epoch"], entry[key]) for entry in history if key in entry]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, **style)
    loss_axes.set(xlabel="epoch", ylabel="loss")
    loss_axes.set_ylim(bottom=0)
    f1_axes.set(ylabel="macro F1", ylim=(0, 1))
    if loss_axes.lines or f1_axes.lines:
        figure.legend(loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(target, dpi=150)


def plot_comparison(source: Path, target: Path) -> None:
    """Draw macro F1 of each variant and its difference to the first, with intervals, from `run_compare.py`'s JSON."""
    variants = json.loads(source.read_text(encoding="utf-8"))["variants"]
    with drawn_as_text([row["name"] for row in variants]) as names:
        figure = draw_comparison(variants, names)
        figure.savefig(target, dpi=150)


def draw_comparison(variants: list[dict], names: list[str]) -> Figure:
    """Return the figure of [`plot_comparison`], with the variants' names as they should be drawn."""
    figure = Figure(figsize=(10, min(1.4 + 0.45 * len(variants), _LARGEST)), layout="constrained")
    score_axes, difference_axes = figure.subplots(1, 2, sharey=True)
    for position, row in enumerate(variants):
        low, high = row["interval"]
        score_axes.plot([low, high], [position, position], color=COLORS["first"], linewidth=1.5)
        score_axes.plot(row["macro_f1"], position, "o", color=COLORS["first"])
        seeds = row["macro_f1_by_seed"]
        if len(seeds) > 1:
            score_axes.plot(seeds, [position] * len(seeds), "|", color=COLORS["quiet"], markersize=12)
        if "difference" in row:
            found = row["difference"]
            color = COLORS["second"] if found["p_holm"] < 0.05 else COLORS["quiet"]
            difference_axes.plot(found["interval"], [position, position], color=color, linewidth=1.5)
            difference_axes.plot(found["macro_f1"], position, "o", color=color)
    difference_axes.axvline(0, color="black", linewidth=0.8)
    score_axes.set_yticks(range(len(variants)), names)
    score_axes.invert_yaxis()
    several = any(len(row["macro_f1_by_seed"]) > 1 for row in variants)
    score_axes.set(xlabel="macro F1, 95% interval" + ("; grey strokes: seeds" if several else ""))
    for axes in (score_axes, difference_axes):
        axes.locator_params(axis="x", nbins=6)
    difference_axes.set(xlabel="difference to the first line\norange: p (Holm) < .05")
    return figure


def plot_search(source: Path, target: Path) -> None:
    """Draw a search from `run_search.py`'s JSON: macro F1 by configuration, and by the value of each searched flag."""
    content = json.loads(source.read_text(encoding="utf-8"))
    own, *tried = content["configurations"]
    finished = [row for row in (own, *tried) if row["state"] == "finished"]
    flags = list(content["space"])
    choices = {flag: list(values) for flag, values in content["space"].items() if isinstance(values, list)}
    for flag, values in choices.items():
        if flag in own["values"] and own["values"][flag] not in values:
            values.append(own["values"][flag])  # the recipe's own value need not be listed
    with drawn_as_text([*flags, *(str(each) for values in choices.values() for each in values)]) as texts:
        names, shown = texts[: len(flags)], iter(texts[len(flags) :])
        wide = min(4, 1 + len(flags))
        deep = -(-(1 + len(flags)) // wide)
        figure = Figure(figsize=(3.2 * wide, min(2.6 * deep, _LARGEST)), layout="constrained")
        panels = figure.subplots(deep, wide, sharey=True, squeeze=False).ravel()
        axes = panels[0]
        low, high = content["nested"]["nested"]["interval"]
        axes.axhspan(low, high, color=COLORS["quiet"], alpha=0.2, linewidth=0)
        axes.axhline(content["nested"]["nested"]["macro_f1"], color=COLORS["quiet"], label="nested, 95% interval")
        axes.axhline(own["scores"][-1], color="black", linewidth=0.8, linestyle="--", label="the recipe's own values")
        for state, marker, color, label in (
            ("finished", "o", COLORS["first"], "finished"),
            ("stopped", "x", COLORS["quiet"], "stopped, on fewer folds"),
        ):
            points = [(place, row["scores"][-1]) for place, row in enumerate(tried, 1) if row["state"] == state]
            if points:
                axes.scatter(*zip(*points, strict=True), marker=marker, color=color, s=18, label=label)
        axes.set(xlabel="configuration", ylabel="macro F1")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlim(0, len(tried) + 1)
        for axes, flag, name in zip(panels[1:], flags, names, strict=False):
            points = [(row["values"][flag], row["scores"][-1]) for row in finished if flag in row["values"]]
            if flag in choices:
                points = [(choices[flag].index(value), score) for value, score in points]
                axes.set_xticks(range(len(choices[flag])), [next(shown) for _ in choices[flag]])
                axes.set_xlim(-0.5, len(choices[flag]) - 0.5)
            else:
                points = [(value, score) for value, score in points if value is not None]  # None: the recipe sets none
            if points:
                axes.scatter(*zip(*points, strict=True), color=COLORS["first"], s=18)
            if flag not in choices:
                _number_axis(axes, **content["space"][flag])
            share = content["importance"].get(flag)
            axes.set(xlabel=name if share is None else f"{name} ({share:.0%})")
        for axes in panels[1 + len(flags) :]:
            axes.set_axis_off()
        figure.legend(loc="outside upper center", ncols=4, frameon=False)
        figure.savefig(target, dpi=150)


def _number_axis(axes: Axes, low: float, high: float, log: bool, step: float | None) -> None:
    """Show the range of a searched flag."""
    middle = (low * high) ** 0.5 if log else (low + high) / 2
    margin = (high / low) ** 0.05 if log else (high - low) * 0.05
    axes.set_xscale("log" if log else "linear")
    axes.set_xticks([low, middle, high], [f"{each:.3g}" for each in (low, middle, high)])
    axes.set_xticks([], minor=True)
    axes.set_xlim((low / margin, high * margin) if log else (low - margin, high + margin))


def plot_pretraining(source: Path, target: Path) -> None:
    """Draw the training loss and the held-out perplexity by step.

    Args:
        source: JSON file with the log history of a training of run_mlm.py.
        target: Picture to write.
    """
    history = json.loads(source.read_text(encoding="utf-8"))
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    loss_axes = figure.subplots()
    perplexity_axes = loss_axes.twinx()
    for axes, key, label, style in (
        (loss_axes, "loss", "training loss", {"color": COLORS["first"]}),
        (perplexity_axes, "eval_perplexity", "held-out perplexity", {"color": COLORS["second"], "marker": "o"}),
    ):
        points = [(entry["step"], entry[key]) for entry in history if key in entry]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, **style)
    loss_axes.set(xlabel="step", ylabel="loss")
    perplexity_axes.set(ylabel="perplexity", yscale="log")
    loss_axes.ticklabel_format(axis="y", useOffset=False)  # 7.576, not 0.001 above 7.575
    perplexity_axes.yaxis.set_major_formatter("{x:g}")
    perplexity_axes.yaxis.set_minor_formatter("{x:g}")
    if loss_axes.lines or perplexity_axes.lines:
        figure.legend(loc="outside upper center", ncols=2, frameon=False)
    figure.savefig(target, dpi=150)


def plot_reliability(source: Path, target: Path) -> None:
    """Draw accuracy by confidence, before and after the temperature for a fusion, from the `calibration` in a JSON
    file.
    """
    content = json.loads(source.read_text(encoding="utf-8"))["calibration"]
    with drawn_as_text(content) as names:
        figure = Figure(figsize=(5, 4.6), layout="constrained")
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color="black", linewidth=0.8)
        for name, figures, color in zip(names, content.values(), (COLORS["quiet"], COLORS["first"]), strict=False):
            bins = figures["reliability"]
            most = max(part["rows"] for part in bins)
            points = [(part["confidence"], part["accuracy"], 12 + 120 * part["rows"] / most) for part in bins]
            what = f"{name} the temperature" if len(content) > 1 else name
            label = f"{what}: error {figures['expected_calibration_error']:.3f}"
            axes.scatter(*zip(*points, strict=True), color=color, alpha=0.7, label=label, clip_on=False, zorder=3)
        axes.set(xlabel="probability of the predicted class (area: rows)", ylabel="share that is right")
        axes.set(xlim=(0, 1), ylim=(0, 1))
        figure.legend(loc="outside upper center", frameon=False)
        figure.savefig(target, dpi=150)


def plot_coverage(source: Path, target: Path) -> None:
    """Draw accuracy by coverage, and what the wanted accuracies give on held-out folds, from a run's coverage.json."""
    content = json.loads(source.read_text(encoding="utf-8"))
    points = [(point["coverage"], point["accuracy"]) for point in content["points"]]
    figure = Figure(figsize=(5, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.plot(*zip(*points, strict=True), color=COLORS["first"])
    for row in content["accuracies"]:
        axes.axhline(row["accuracy"], color=COLORS["quiet"], linewidth=0.8, linestyle="--")
        found = row["measured"].get(content["split"], {})
        if found.get("answered_accuracy") is not None:
            label = f"for {row['accuracy']:.0%}: not sure below {row['abstain_below']:.3f}"
            at = (found["coverage"], found["answered_accuracy"])
            axes.plot(*at, "o", color=COLORS["second"], label=label, clip_on=False, zorder=3)
    axes.set(xlabel="share of texts that are answered", ylabel="share of the answers that is right")
    axes.set(xlim=(0, 1), ylim=(min(0.5, *(accuracy for _, accuracy in points)), 1))
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside upper center", frameon=False)
    figure.savefig(target, dpi=150)


# ---- Fonts for the names in a plot, so that labels in any script are readable -------------------------------------
_LONGEST = 60  # characters of a name in a plot
# Fonts whose glyphs are boxes, or coloured, which matplotlib cannot draw.
_NOT_FOR_TEXT = ("LastResort", "Color")


@contextmanager
def drawn_as_text(names: Iterable[str]) -> Iterator[list[str]]:
    """Set matplotlib, within a `with` block, to draw names literally (not as formulas) in fonts that have their
    characters.

    Yields:
        The names as they should be drawn: on one line, at most 60 characters each. A character that no installed font
        has is replaced by its escape code, and a warning is logged.
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
