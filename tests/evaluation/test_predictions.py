"""Tables and plots of predictions, whatever people call their labels and write into their files."""

import csv
import io
import json
import logging
import warnings

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest
from matplotlib import font_manager, image
from matplotlib.font_manager import FontProperties

from trainer_ext.errors import InputError
from trainer_ext.evaluation import plots
from trainer_ext.evaluation.comparison import compare
from trainer_ext.evaluation.fusion import compare_fusions
from trainer_ext.evaluation.metrics import SEVEN_FIGURES
from trainer_ext.evaluation.plots import drawn_as_text, plot_comparison, plot_confusion_matrix, plot_reliability
from trainer_ext.evaluation.predictions import SYSTEMS, print_results, read_predictions, write_rows
from trainer_ext.runs.trial import convert_predictions
from trainer_ext.runs.trial_archive import (
    ARCHIVE,
    PROBABILITIES,
    RECORD,
    TrialArchive,
    read_probabilities,
    write_archive,
)
from trainer_ext.scoring.score_folder import ScoreFolder
from trainer_ext.scoring.scorer import Scores
from trainer_ext.scoring.text_stream import open_source

# As the columns that are not probabilities, in any of the tables; and what a table's own syntax is made of.
LABELS = [
    *("group", "id", "row", "error", "text", "split", "gold", "predicted", "trial", "variant", "seed", "fold", "label"),
    *("truncated", "disagreement", "probability_x", "a\tb", 'say "hi"', "two\nlines", "a,b", "a.b", "$_$", "日本語"),
]


def written(folder, labels=LABELS, rows=None):
    values = np.random.default_rng(0).dirichlet(np.ones(len(labels)), size=4)
    rows = rows or [("validation", f"v{i}", f"w{i % 2}", labels[i % 2], labels[0]) for i in range(4)]
    write_rows(folder, labels, rows, values, True)
    return rows, values


def test_no_label_is_taken_for_a_column_of_ours(tmp_path):
    rows, values = written(tmp_path)
    table = read_predictions(tmp_path, one_label=True)
    assert (table.rows, table.label_names) == (rows, LABELS)
    assert np.allclose(table.probabilities, values)
    header = next(csv.reader(io.StringIO((tmp_path / "predictions.tsv").read_text(), newline=""), delimiter="\t"))
    assert len(set(header)) == len(header) == 5 + len(LABELS)


def test_the_archive_of_trials_gives_them_back(tmp_path):
    _, values = written(tmp_path)
    trial = tmp_path / "trial"
    trial.mkdir()
    convert_predictions(tmp_path, trial / PROBABILITIES)
    (trial / RECORD).write_text(json.dumps({"trial": {"overrides": {}, "fold": [2, 0], "seed": 1}, "settings": {}}))
    write_archive(tmp_path / ARCHIVE, [(trial, "mean")])
    names = pyarrow.parquet.read_table(tmp_path / ARCHIVE).column_names
    assert len(set(names)) == len(names)
    restored = tmp_path / "again" / "trial"
    TrialArchive(tmp_path / ARCHIVE).restore(restored)
    ids, found, labels = read_probabilities(restored / PROBABILITIES)
    assert (ids, labels) == ({"validation": [f"v{i}" for i in range(4)]}, LABELS)
    assert np.allclose(found["validation"], values, atol=1e-7)

    # As it was written before, with bare labels for columns.
    table = pyarrow.parquet.read_table(tmp_path / ARCHIVE)
    bare = [name.removeprefix("probability_") for name in names]
    old = table.rename_columns([f"{name}?" if bare.count(name) > 1 and i > 5 else name for i, name in enumerate(bare)])
    pyarrow.parquet.write_table(old.replace_schema_metadata(table.schema.metadata), tmp_path / "old.parquet")
    TrialArchive(tmp_path / "old.parquet").restore(tmp_path / "old" / "trial")
    assert np.array_equal(read_probabilities(tmp_path / "old" / "trial" / PROBABILITIES)[1]["validation"],
                          found["validation"])  # fmt: skip


@pytest.mark.parametrize("form", ["parquet", "csv", "jsonl"])
def test_scores_have_a_column_for_each_label(form, tmp_path):
    (tmp_path / "texts.txt").write_text("one\ntwo\n")
    source = open_source(str(tmp_path / "texts.txt"))
    settings = {"rows_per_shard": 2, "format": form}
    folder = ScoreFolder(tmp_path / "scores", source, {"name": "m", "version": "1"}, LABELS, settings, {})
    values = np.random.default_rng(0).dirichlet(np.ones(len(LABELS)), size=2).astype(np.float32)
    ((number, rows),) = folder.shards(0, 1)
    folder.write(number, rows, Scores(values, False, np.zeros(2, dtype=bool), None))
    (path,) = (tmp_path / "scores").glob("scores-*")
    if form == "jsonl":
        found = [json.loads(line) for line in path.read_text().splitlines()]
    elif form == "csv":
        found = pyarrow.csv.read_csv(path, parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True)).to_pylist()
    else:
        found = pyarrow.parquet.read_table(path).to_pylist()
    for row, of_row in zip(found, values, strict=True):
        assert [row[f"probability_{label}"] for label in LABELS] == pytest.approx(of_row.tolist())
        assert row["label"] == LABELS[of_row.argmax()]


@pytest.mark.parametrize(
    "header", [["split", "id", "group", "gold", "predicted"], ["split", "id", "gold", "predicted"]], ids=len
)
def test_files_of_before_are_read(header, tmp_path):
    """With bare labels, one of them called as a column of ours, and from before there were groups."""
    of_column = {"split": "test", "id": "1", "group": "w1", "gold": "group", "predicted": "id"}
    line = [*(of_column[name] for name in header), "0.25", "0.75"]
    with open(tmp_path / "predictions.tsv", "w", newline="") as file:
        csv.writer(file, delimiter="\t").writerows([[*header, "group", "id"], line])
    table = read_predictions(tmp_path, one_label=True)
    assert table.label_names == ["group", "id"]
    assert table.rows == [("test", "1", "w1" if len(header) == 5 else "", "group", "id")]
    assert table.probabilities.tolist() == [[0.25, 0.75]]


@pytest.mark.parametrize(
    ("number", "says"),
    [
        ("nan", "row 2, joy: 'nan'; want a probability, 0 to 1"),
        ("-1", "row 2, joy: '-1'; want a probability"),
        ("1e308", "row 2, joy: '1e308'; want a probability"),
        ("inf", "row 2, joy: 'inf'; want a probability"),
        ("", "row 2, joy: ''; want a probability"),
        ("much", "row 2, joy: 'much'; want a probability"),
        ("0.2", "row 2: its probabilities add up to 0.9; want 1"),
        ("0.3\t0.1", "row 2: 8 fields; want 7"),
    ],
)
def test_a_number_that_no_probability_can_be_is_refused(number, says, tmp_path):
    lines = ["split\tid\tgroup\tgold\tpredicted\tprobability_joy\tprobability_fear", "test\t1\t\tjoy\tjoy\t1\t0"]
    (tmp_path / "predictions.tsv").write_text("\n".join([*lines, f"test\t2\t\tjoy\tjoy\t{number}\t0.7"]))
    with pytest.raises(InputError) as error:
        read_predictions(tmp_path, one_label=True)
    assert str(error.value).startswith(f"{tmp_path}/predictions.tsv, {says}")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not a table of predictions"),
        (b"text\tlabel\nx\ty\n", "its columns are text, label; want split, id, gold, predicted and one for each"),
        (b"split\tid\tgroup\tgold\tpredicted\n", "want split, id, group, gold, predicted and one for each label"),
        (b"split\tid\tgold\tpredicted\tjoy\n\xff", "not a table of predictions"),
        (b"split\tid\tgold\tpredicted\tjoy\tjoy\n", "two columns have one label's probabilities"),
        (b"split\tid\tgold\tpredicted\tjoy\ntest\t1\tjoy\tbliss\t1\n", "row 1: 'bliss'; want one of joy"),
        (b'split\tid\tgold\tpredicted\tjoy\ntest\t1\tjoy\t"joy\t1\n', "not a table of predictions"),
    ],
)
def test_what_is_no_table_of_predictions_is_one_line(content, says, tmp_path):
    (tmp_path / "predictions.tsv").write_bytes(content)
    with pytest.raises(InputError) as error:
        read_predictions(tmp_path, one_label=True)
    assert str(error.value).startswith(f"{tmp_path}/predictions.tsv")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [np.nan, -1.0, 1e308])
def test_a_system_that_gives_no_probabilities_is_named(value):
    values = np.full((3, 20, 2), 0.5)
    values[1, 7, 0] = value
    gold = np.arange(20) % 2
    with pytest.raises(InputError, match="second: its probabilities are not all from 0 to 1"):
        compare_fusions(["first", "second", "third"], values, gold, None, gold, ["joy", "fear"], "weighted")
    with pytest.raises(InputError, match="second: its probabilities are not all from 0 to 1"):
        compare({"first": values[:1], "second": values[1:2]}, gold, None, ["joy", "fear"])


def test_printed_figures_fit_a_terminal(capsys):
    """A column per system, with all systems that a run can have."""
    figures = {f"test_{infix}{name}": 0.12345 for infix in SYSTEMS.values() for name in SEVEN_FIGURES}
    print_results(figures | {"test_rows": 1860, "test_macro_f1_low": 0.1, "test_macro_f1_high": 0.2}, ["test"])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines[3:10]] == list(SEVEN_FIGURES)
    assert all(line.split()[1:] == ["0.1235"] * 3 for line in lines[3:10])
    assert len({len(line) for line in lines[2:10]}) == 1


# ---- Plots -----------------------------------------------------------------------------------------------------------
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
