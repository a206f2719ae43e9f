"""Label errors and contested rows, from a csv alone and from what the other scripts leave."""

import csv
import json
import random
import shutil

import numpy as np
import pandas
import pytest
from scipy.special import softmax
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from support import ESSAYS, call

import run_review
from trainer_ext.baselines.review_models import encoder_at_hand, quick_group_folds
from trainer_ext.data.load import load_corpus
from trainer_ext.data.review_list import read_list
from trainer_ext.errors import InputError
from trainer_ext.evaluation.error_analysis import review
from trainer_ext.flag_parser import MINILM, MPNET
from trainer_ext.runs.held_out import Opinion, aligned, read_held_out
from trainer_ext.scoring.score_folder import ScoreFolder
from trainer_ext.scoring.scorer import Scores
from trainer_ext.scoring.text_stream import open_source
from trainer_ext.training.checkpoint_source import PINNED, PinnedCheckpoint
from trainer_ext.training.distillation import write_out_of_fold

WORDS = {
    "happy": ["sunshine", "laughed", "wonderful", "danced", "birthday", "hug"],
    "angry": ["shouted", "furious", "lied", "unfair", "refund", "slammed"],
    "scared": ["dark", "hallway", "trembling", "alone", "footsteps", "nightmare"],
}
FILLER = ["the", "my", "our", "again", "today", "we", "they", "it", "was", "and", "work", "house", "street", "morning"]


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A csv of 300 rows with 5% flipped labels, its folder, and the numbers of the flipped rows."""
    draw = random.Random(5)
    rows = [(mood, [*draw.choices(WORDS[mood], k=2), *draw.choices(FILLER, k=6)]) for mood in [*WORDS] * 100]
    flipped = set(draw.sample(range(len(rows)), 15))
    folder = tmp_path_factory.mktemp("planted")
    with open(folder / "hers.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["message", "mood"])
        for index, (mood, words) in enumerate(rows):
            draw.shuffle(words)
            given = draw.choice([each for each in WORDS if each != mood]) if index in flipped else mood
            writer.writerow([" ".join(words), given])
    return folder, {str(index + 2) for index in flipped}


COLUMNS = ["--text_column_name", "message", "--label_column_name", "mood"]


def test_flipped_labels_are_found_in_a_csv_alone_and_put_right(planted, bert_folder, tmp_path):
    folder, flipped = planted
    hers, found = folder / "hers.csv", tmp_path / "list.csv"
    flags = ["--train_file", hers, *COLUMNS, "--output", found, "--encoder", bert_folder]
    printed = call(run_review.main, *flags)
    listed = read_list(found)
    assert len(flipped & {each.row for each in listed[:30]}) >= 0.7 * len(flipped)
    assert not any(each.text in printed for each in listed)  # texts go to the file alone
    assert f"row {listed[0].row} of train: {listed[0].label}; the models say" in printed
    with pytest.raises(InputError, match=r"list\.csv: exists; give another, or --overwrite"):
        call(run_review.main, *flags)

    with open(found, newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    with open(found, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(row | {"corrected": row["proposed"] if row["row"] in flipped else ""} for row in rows)
    flags = ["--train_file", hers, *COLUMNS, "--output", tmp_path / "better.csv"]
    printed = call(run_review.main, "--apply", found, *flags)
    changed = len(flipped & {row["row"] for row in rows})
    assert f"{changed} labels changed, 0 rows removed, 300 rows in " in printed
    before, after = (path.read_text(encoding="utf-8").splitlines() for path in (hers, tmp_path / "better.csv"))
    assert sum(map(str.__ne__, before, after)) == changed


def test_confident_learning_ranks_flipped_labels_first(planted):
    """By TF-IDF: 70% of them in the first tenth, and cleanlab's suspects are mostly they."""
    folder, flipped = planted
    corpus = load_corpus(files={"train": str(folder / "hers.csv")}, text_column="message", label_column="mood")
    rows, given = corpus.splits["train"], corpus.classes("train")
    model = make_pipeline(TfidfVectorizer(), LogisticRegression(C=10))
    probabilities = cross_val_predict(model, rows["text"], given, cv=5, method="predict_proba")
    found = review([(np.arange(300), probabilities)], 300, given, False)
    ids = np.array(rows["id"])
    assert len(flipped & set(ids[found.order[:30]])) >= 0.7 * len(flipped)
    suspects = set(ids[found.suspect])
    assert len(flipped & suspects) > len(suspects - flipped)


def test_several_labels_are_reviewed(tmp_path):
    draw = np.random.default_rng(0)
    given = (draw.random((80, 3)) > 0.6).astype(int)
    probabilities = np.where(given, 0.9, 0.1) + draw.uniform(-0.05, 0.05, given.shape)
    given[7] = 1 - given[7]
    found = review([(np.arange(80), probabilities)], 80, given, True)
    assert found.order.tolist() == [7]
    assert found.proposed[7].tolist() == (1 - given[7]).tolist()
    assert found.suspect[7]


def test_rows_of_a_group_are_in_one_fold():
    groups, classes = [f"group {i // 2}" for i in range(60)], np.arange(60) // 2 % 2
    folds = quick_group_folds(classes, groups, 5)
    assert (folds[::2] == folds[1::2]).all()
    assert set(folds) == set(range(5))
    assert set(quick_group_folds(classes[:12], groups[:12], None)) == set(range(3))
    with pytest.raises(InputError, match=r"--cv_folds is 50; want 2 to 15"):
        quick_group_folds(classes, groups, 50)
    with pytest.raises(InputError, match="want two labels with two different texts or more"):
        quick_group_folds(classes[:6], groups[:6], None)


def test_a_handful_of_rows_will_do_and_copies_do_not_vouch_for_one_another(bert_folder, tmp_path):
    lines = [f"{mood} {n} {word},{mood}" for mood in WORDS for n, word in enumerate(WORDS[mood])]
    lines += ["Scared 7 footsteps!,happy", "scared 7 footsteps,happy", "happy 7 sunshine,happpy"]
    (tmp_path / "few.csv").write_text("\n".join(["text,label", *lines, ""]))
    flags = ["--train_file", tmp_path / "few.csv", "--encoder", bert_folder, "--output", tmp_path / "list.csv"]
    call(run_review.main, *flags)
    assert {"20", "21", "22"} <= {each.row for each in read_list(tmp_path / "list.csv")}


def test_where_mpnet_cannot_be_had_minilm_is_used_and_a_line_says_so(monkeypatch, caplog):
    missing = PinnedCheckpoint("0" * 40, "mit", "0" * 64, ("no-such-piece==0.0.1",), PINNED[MPNET].remedy)
    monkeypatch.setitem(PINNED, MPNET, missing)
    assert encoder_at_hand() == MINILM
    (line,) = caplog.messages
    assert "`make base` brings the files" in line
    assert line.endswith(f"{MINILM} is used instead, and finds fewer label errors")


@pytest.mark.parametrize("form", ["json", "csv"])
def test_people_who_disagree_are_unsure_in_every_export_of_label_studio(form, tmp_path):
    """JSON-MIN and CSV have a record per annotation. The same row twice in a list of one's own is an error."""
    said = {"2": ["happy", "angry"], "3": ["angry", "angry"], "4": ["scared", ""], "5": ["", ""], "6": ["remove"]}
    rows = [
        {"row": row, "split": "train", "text": f"text {row}", "label": "happy", "corrected": answer, "id": int(row)}
        | {"annotator": person, "annotation_id": 10 * int(row) + person}
        for person in (0, 1)
        for row, answers in said.items()
        for answer in answers[person : person + 1]
    ]
    table, path = pandas.DataFrame(rows), tmp_path / f"export.{form}"

    def write(table):
        table.to_csv(path, index=False) if form == "csv" else table.to_json(path, orient="records")

    write(table)
    found = {each.row: (each.text, each.label, each.corrected) for each in read_list(path)}
    answers = {"2": ["unsure"], "3": ["angry"], "4": ["scared"], "5": [], "6": ["remove"]}
    assert found == {row: (f"text {row}", "happy", answer) for row, answer in answers.items()}
    for changed in (table.drop(columns=["annotator", "annotation_id"]), table.copy()):  # which has two texts for row 2
        changed.loc[changed["row"] == "6", "row"] = "2"
        write(changed)
        with pytest.raises(InputError, match=r"row 2 is there twice, see .*export\.\w+, row \d"):
            read_list(path)


# ---- What the other scripts leave ---------------------------------------------------------------------------------
def test_a_comparisons_held_out_predictions_are_reviewed(compared, comparison, tmp_path):
    folder, _ = compared
    flags = ["--train_file", comparison / "mine.csv", "--text_column_name", "body", "--id_column_name", "number"]
    flags += ["--predictions", folder, "--label_column_name", "mood"]
    printed = call(run_review.main, *flags, "--output", tmp_path / "list.csv", "--top", 5)
    assert printed.startswith("90 rows: the models contest ")
    with open(tmp_path / "list.csv", newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    held_out = read_held_out(folder)
    votes: dict[str, list] = {}
    for opinion in held_out.opinions:
        for row_id, values in zip(opinion.ids, opinion.probabilities, strict=True):
            votes.setdefault(row_id, []).append(values)
    assert {len(each) for each in votes.values()} == {2}  # two variants, each by the model that did not see the row
    for row in rows:
        mean = dict(zip(held_out.label_names, np.mean(votes[row["row"]], axis=0), strict=True))
        assert row["proposed"] == max(mean, key=mean.get) != row["label"]
        assert float(row["quality"]) == pytest.approx(mean[row["label"]], abs=1e-3)
    changed = (comparison / "mine.csv").read_text(encoding="utf-8").replace(",dark,", ",light,", 1)
    (tmp_path / "mine.csv").write_text(changed, encoding="utf-8")
    flags[1] = tmp_path / "mine.csv"
    with pytest.raises(InputError, match=r"predictions\.parquet: is of other rows than mine\.csv"):
        call(run_review.main, *flags, "--output", tmp_path / "other.csv")


def test_a_run_is_reviewed_on_the_rows_it_did_not_train_on(finished, tmp_path):
    folder, _ = finished
    flags = ["--predictions", folder, "--output", tmp_path / "list.json", "--format", "label_studio"]
    essays = ["--train_file", ESSAYS, "--id_column_name", "id", "--split_column_name", "split"]
    call(run_review.main, *flags, *essays, "--group_column_name", "writer")
    tasks = json.loads((tmp_path / "list.json").read_text(encoding="utf-8"))
    assert {task["data"]["split"] for task in tasks} <= {"validation", "test"}
    assert (tmp_path / "list.xml").is_file()
    flags[3] = tmp_path / "other.json"
    pandas.read_csv(ESSAYS, sep="\t").drop(columns="split").to_csv(tmp_path / "undivided.tsv", sep="\t", index=False)
    with pytest.raises(InputError, match="Rows that a model trained on have no held-out predictions"):
        call(run_review.main, *flags, "--train_file", tmp_path / "undivided.tsv", "--id_column_name", "id")

    later = tmp_path / "later"  # as --do_predict leaves it: nobody knows what the model trained on
    later.mkdir()
    shutil.copy(folder / "predictions.tsv", later)
    (later / "all_results.json").write_text("{}")
    with pytest.raises(InputError, match="a finished model predicted these rows, and may have trained on them"):
        call(run_review.main, "--predictions", later, *flags[2:], *essays)
    lines = (folder / "predictions.tsv").read_text(encoding="utf-8")
    (later / "predictions.tsv").write_text(lines.replace("validation\t", "train\t"), encoding="utf-8")
    with pytest.raises(InputError, match=r"predictions\.tsv: predicts rows of train, which the model trained on"):
        read_held_out(later)


def test_an_ensembles_cross_validated_predictions_are_reviewed(planted, tmp_path):
    folder, _ = planted
    corpus = load_corpus(files={"train": str(folder / "hers.csv")}, text_column="message", label_column="mood")
    rows = corpus.splits["train"]
    values = softmax(np.random.default_rng(0).normal(size=(300, 3)), axis=1)
    write_out_of_fold(tmp_path, rows["id"][:], rows["text"][:], values, corpus.label_names)
    (opinion,) = read_held_out(tmp_path).opinions
    assert (opinion.split, opinion.ids) == ("train", rows["id"][:])
    assert np.allclose(opinion.probabilities, values, atol=1e-6)
    flags = ["--train_file", folder / "hers.csv", *COLUMNS, "--predictions", tmp_path]
    call(run_review.main, *flags, "--output", tmp_path / "list.tsv")
    (tmp_path / "hers.csv").write_text((folder / "hers.csv").read_text().replace("my ", "your "))
    flags[1] = tmp_path / "hers.csv"
    with pytest.raises(InputError, match=r"out_of_fold\.safetensors: row \d+ of hers\.csv has another text"):
        call(run_review.main, *flags, "--output", tmp_path / "other.tsv")


def scored(folder, path, values, disagreement=None):
    """Leave scores of a file, as run_score.py does."""
    settings = {"rows_per_shard": 2, "format": "parquet"}
    scores = ScoreFolder(folder, open_source(str(path)), {"name": "m", "version": "1"}, [*WORDS], settings, {})
    for number, rows in scores.shards(0, 1):
        part = slice(2 * number, 2 * number + len(rows))
        values_of = np.array(values[part], dtype=np.float32)
        told = None if disagreement is None else np.array(disagreement[part], dtype=np.float32)
        scores.write(number, rows, Scores(values_of, False, np.zeros(len(rows), dtype=bool), told))
    scores.close(2)


def test_texts_on_which_models_disagree_come_first(tmp_path):
    texts = tmp_path / "texts.csv"
    texts.write_text("text\none\ntwo\nthree\nfour\n")
    first = [[0.8, 0.1, 0.1], [0.6, 0.2, 0.2], [0.15, 0.15, 0.7], [np.nan] * 3]
    second = [[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.1, 0.2, 0.7], [0.1, 0.1, 0.8]]
    scored(tmp_path / "a", texts, first)
    scored(tmp_path / "b", texts, second)
    scored(tmp_path / "c", texts, second, [0.0, 0.1, 0.4, 0.2])

    def listed(*folders, name):
        flags = ["--test_file", texts, "--output", tmp_path / name, "--predictions", *(tmp_path / f for f in folders)]
        return call(run_review.main, *flags), [(each.row, each.split) for each in read_list(tmp_path / name)]

    printed, rows = listed("a", "b", name="two.csv")
    assert rows == [("3", ""), ("4", ""), ("2", "")]
    assert "1 rows could not be scored and are left out" in printed
    assert "3 texts: the models disagree on 1\n" in printed
    printed, rows = listed("b", name="one.csv")
    assert [row for row, _ in rows] == ["2", "4", "3", "5"]
    assert "one model alone disagrees with nobody" in printed
    assert [row for row, _ in listed("c", name="ensemble.csv")[1]] == ["4", "5", "3", "2"]

    texts.write_text("text\none\ntwo\nthree\nfive\n")
    with pytest.raises(InputError, match=r"texts\.csv: is not the file that .* has scores of"):
        listed("b", name="other.csv")
    labelled = tmp_path / "labelled.csv"
    labelled.write_text("text,label\none,happy\ntwo,angry\nthree,angry\nfour,angry\n")
    scored(tmp_path / "d", labelled, second)
    with pytest.raises(InputError, match="has labels in its column 'label', and scores do not say"):
        call(run_review.main, "--test_file", labelled, "--predictions", tmp_path / "d", "--output", tmp_path / "e.csv")


def test_a_predicted_row_that_is_not_in_the_data_is_told(planted):
    folder, _ = planted
    corpus = load_corpus(files={"train": str(folder / "hers.csv")}, text_column="message", label_column="mood")
    with pytest.raises(InputError, match=r"hers\.csv: has no row 'x' in train, which is predicted"):
        aligned(corpus, [Opinion("train", ["2", "x"], np.eye(3)[:2])])


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "give --output"),
        (["--output", "list.txt"], r"--output list\.txt: want a name with \.csv, \.tsv"),
        (["--output", "list.csv", "--format", "argilla"], r"--output list\.csv: want a folder"),
        (["--output", "list.csv", "--top", 0], "--top is 0; want at least 1"),
        (["--output", "list.csv", "--predictions", "none"], "none: no such file or folder"),
        (["--output", "old.json", "--format", "label_studio"], r"the file beside it, old\.xml, exists; give another"),
        (["--output", "old.csv", "--train_file", "./old.csv", "--overwrite"], r"old\.csv: is one of the files to read"),
        (["--output", "old.csv", "--apply", "old.csv", "--overwrite"], r"old\.csv: is one of the files to read"),
        (["--output", "new.csv", "--apply", "list.csv"], "give one file of the data: --train_file"),
        (["--output", "new.csv", "--apply", "list.csv", "--train_file", "none.csv"], r"none\.csv: no such file"),
    ],
    ids=str,
)
def test_flags_that_do_not_fit_are_one_line(flags, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("old.xml", "old.csv"):
        (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match=says):
        call(run_review.main, *flags)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"old.xml": "mine", "old.csv": "mine"}
