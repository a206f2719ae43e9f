"""Cross-validated comparison: real processes, killed and started again, and trials that are damaged."""

import csv
import json
import random
import re
import shlex
import shutil
import sys
import time

import forked
import numpy as np
import pyarrow.parquet
import pytest
import torch
import yaml
from safetensors import safe_open
from sklearn.metrics import f1_score
from sklearn.model_selection import StratifiedGroupKFold
from support import ROOT, call

import run_classify
import run_compare
from trainer_ext import recipes
from trainer_ext.data.load import load_corpus
from trainer_ext.errors import InputError, run_command
from trainer_ext.evaluation.comparison import compare
from trainer_ext.evaluation.error_analysis import analyse_errors, banded
from trainer_ext.evaluation.pages import comparison_page, errors_section
from trainer_ext.precision import Choice
from trainer_ext.runs import trials
from trainer_ext.runs.checkpoints import checkpoint_digest
from trainer_ext.runs.run import start
from trainer_ext.runs.trial import RECORD, Trial, expected_seconds, machine, measured_rate, read_trial, trial_name
from trainer_ext.runs.trial_archive import (
    ARCHIVE,
    PROBABILITIES,
    read_probabilities,
    write_archive,
    write_probabilities,
)
from trainer_ext.runs.trials import Trials


def figures(path) -> dict:
    """The table without what may differ between two starts: command line and times."""
    content = json.loads((path / "comparison.json").read_text())
    content.pop("command")
    for row in content["variants"]:
        row.pop("minutes_a_training")
    return content


def test_a_users_csv_gives_a_table_a_plot_and_an_error_page_without_text(compared, comparison):
    folder, done = compared
    names = ["comparison.json", "comparison.md", "comparison.png", "predictions.parquet"]
    assert sorted(path.name for path in folder.iterdir()) == names
    page = (folder / "comparison.md").read_text()
    table, errors, _ = page.partition("\n## Errors of ")
    assert errors
    assert table in done.stdout
    assert errors not in done.stdout
    assert "| first token |" in page
    with open(comparison / "mine.csv", newline="", encoding="utf-8") as file:
        bodies = [row["body"] for row in csv.DictReader(file)]
    written = "".join((folder / name).read_bytes().decode(errors="ignore") for name in names)
    written += str(pyarrow.parquet.read_table(folder / "predictions.parquet").to_pydict())
    assert not any(body[:25] in written for body in bodies)
    errors = json.loads((folder / "comparison.json").read_text())["errors"]
    assert {row["id"] for row in errors["contested"]} <= {f"n{i}" for i in range(90)}
    assert sum(row["rows"] for row in errors["columns"]["length"]) == 90


def test_another_reading_of_the_probability_files_gives_the_same_figures(compared, comparison):
    """Folds are scikit-learn's, and macro F1 over all held-out rows is what the table says."""
    folder, _ = compared
    with open(comparison / "mine.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    gold = {row["number"]: row["mood"] for row in rows}
    numbers, moods = zip(*gold.items(), strict=True)
    possible = [
        {frozenset(held_out.tolist()) for _, held_out in splitter.split(moods, moods, numbers)}
        for splitter in (StratifiedGroupKFold(2, shuffle=True, random_state=seed) for seed in range(20))
    ]
    for variant in json.loads((folder / "comparison.json").read_text())["variants"]:
        predicted, folds = {}, set()
        for name in variant["trials"]:
            path = comparison / "outputs" / "trials" / name / "probabilities.safetensors"
            with safe_open(path, framework="numpy") as file:
                described = json.loads(file.metadata()["emodeberta"])
                values = file.get_tensor("test")
            ids = described["ids"]["test"]
            folds.add(frozenset(numbers.index(row_id) for row_id in ids))
            predicted |= {row_id: described["labels"][i] for row_id, i in zip(ids, values.argmax(1), strict=True)}
        assert folds in possible
        want = f1_score(moods, [predicted[number] for number in numbers], average="macro")
        assert variant["macro_f1"] == pytest.approx(want)


def test_the_table_says_how_far_each_training_got(compared, comparison):
    folder, _ = compared
    for variant in json.loads((folder / "comparison.json").read_text())["variants"]:
        logged = []
        for name in variant["trials"]:
            log = (comparison / "outputs" / "trials" / name / "log.txt").read_text()
            logged.append([float(loss) for loss in re.findall(r"^ +[\d.]+/3 +([\d.]+) ", log, re.MULTILINE)])
        assert variant["last_training_loss"] == pytest.approx(np.mean([losses[-1] for losses in logged]), abs=1e-3)
        assert all(len(losses) == 3 for losses in logged)  # one line per epoch
        assert f"| {variant['last_training_loss']:.2f} |" in (folder / "comparison.md").read_text()


def test_a_second_start_trains_nothing(compared, comparison, tmp_path, monkeypatch):
    folder, _ = compared
    monkeypatch.chdir(comparison)
    cache = comparison / "outputs" / "trials"
    kept = {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()}
    plan = call(run_compare.main, "mine.yaml", "--plan")
    assert "4 trainings, 4 of them done\n" in plan
    said = call(run_compare.main, "mine.yaml", "--output_dir", tmp_path / "table")  # others look at the first
    assert "4 of 4 trainings are done already" in said
    assert figures(tmp_path / "table") == figures(folder)
    assert kept == {
        path: path.stat().st_mtime_ns for path in (comparison / "outputs" / "trials").rglob("*") if path.is_file()
    }


def test_the_file_of_predictions_alone_gives_the_table_again(compared, comparison, tmp_path, monkeypatch):
    """With no training kept, it is as if all were there; a stage's folder may be gone, too."""
    folder, _ = compared
    monkeypatch.chdir(tmp_path)
    shutil.copy(comparison / "mine.csv", tmp_path)
    content = yaml.safe_load((comparison / "mine.yaml").read_text())
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    shutil.copytree(folder, tmp_path / "table")
    monkeypatch.setattr(Trials, "_run_script", None)
    said = call(run_compare.main, "mine.yaml", "--output_dir", "table")
    assert "4 of 4 trainings are done already" in said
    assert figures(tmp_path / "table") == figures(folder)
    before, after = (
        pyarrow.parquet.read_table(path / "predictions.parquet").to_pandas() for path in (folder, tmp_path / "table")
    )
    assert after.equals(before)
    assert list(before.columns[:6]) == ["trial", "variant", "seed", "fold", "split", "row"]
    names = [name for row in figures(folder)["variants"] for name in row["trials"]]
    assert set(before["trial"]) == set(names)
    assert set(before["variant"]) == {row["name"] for row in figures(folder)["variants"]}

    path = comparison / "outputs" / "trials" / names[0]
    kept = tmp_path / "outputs" / "trials" / names[0]
    assert json.loads((kept / "trial.json").read_text()) == json.loads((path / "trial.json").read_text())
    _, values, labels = read_probabilities(kept / PROBABILITIES)
    _, trained, as_before = read_probabilities(path / PROBABILITIES)
    assert labels == as_before
    assert values["test"].tobytes() == trained["test"].tobytes()


def test_some_folds_are_scored_alone(compared, comparison, tmp_path, monkeypatch):
    """The rows of fold 1 by the trainings that the whole comparison has, too; a fuller table is not replaced."""
    folder, _ = compared
    monkeypatch.chdir(comparison)
    flags = ("mine.yaml", "--only_folds", 1)
    said = call(run_compare.main, *flags, "--output_dir", tmp_path / "table")
    assert "2 of 2 trainings are done already" in said
    assert "(folds 1 only)" in (tmp_path / "table" / "comparison.md").read_text()
    content = figures(tmp_path / "table")
    whole = {row["name"]: row for row in figures(folder)["variants"]}
    table = pyarrow.parquet.read_table(tmp_path / "table" / "predictions.parquet").to_pandas()
    with open("mine.csv", newline="", encoding="utf-8") as file:
        gold = {row["number"]: row["mood"] for row in csv.DictReader(file)}
    for row in content["variants"]:
        assert row["trials"] == whole[row["name"]]["trials"][1:]
        of_row = table[table["variant"] == row["name"]]
        assert content["rows"] == len(of_row)
        predicted = of_row[[f"probability_{label}" for label in content["labels"]]].to_numpy().argmax(axis=1)
        want = f1_score([gold[i] for i in of_row["row"]], [content["labels"][i] for i in predicted], average="macro")
        assert row["macro_f1"] == pytest.approx(want)
    with pytest.raises(InputError, match="has fold 0, which is left out here"):
        call(run_compare.main, *flags, "--output_dir", folder)
    with pytest.raises(InputError, match="--only_folds 2: with 2 folds they are 0 to 1"):
        call(run_compare.main, "mine.yaml", "--only_folds", 2, "--output_dir", tmp_path / "other")
    with pytest.raises(InputError, match="--only_folds needs folds"):
        call(run_compare.main, *flags, "--cv_folds", 0, "--output_dir", tmp_path / "other")


def test_archived_trials_of_a_stage_that_is_gone_are_found(cache, tmp_path):
    make, corpus = cache
    stage = {"model_name_or_path": "outputs/stage"}
    trial = Trial(stage, (2, 0), 1, "after a stage")
    folder = tmp_path / "archived" / "0123"
    folder.mkdir(parents=True)
    record = {"trial": {"overrides": stage, "fold": [2, 0], "seed": 1}, "settings": {"model_name_or_path": "abc"}}
    (folder / "trial.json").write_text(json.dumps(record))
    write_probabilities(folder / PROBABILITIES, {"test": ["n1"]}, {"test": np.ones((1, 1), np.float32)}, ["joy"])
    write_archive(tmp_path / ARCHIVE, [(folder, "after a stage")])
    cached = make()
    alone = cached.identity(trial)["settings"]["model_name_or_path"]
    found = Trials(tmp_path, cached.recipe, corpus, "mine.yaml", archives=[tmp_path / ARCHIVE])
    assert (alone, found.identity(trial)["settings"]["model_name_or_path"]) == ("outputs/stage", "abc")


def test_other_programs_and_sums_over_seeds_stand_in_the_same_table(compared, comparison, tmp_path, monkeypatch):
    folder, _ = compared
    shutil.copytree(comparison / "outputs" / "trials", tmp_path / "trials")
    content = yaml.safe_load((comparison / "mine.yaml").read_text())
    own = {"classifier_hidden_size": content["settings"].pop("classifier_hidden_size")}  # not a flag of all programs
    content["variants"] = {name: own | flags for name, flags in content["variants"].items()}
    two_tasks = {"program": "baselines.mtl", "number_targets": ["length"], "eval_strategy": "epoch"}  # of no validation
    content["variants"]["two tasks"] = two_tasks
    content |= {"sums": {"summed": {"variants": ["first token"], "seeds": [1, 2]}}, "reference": "summed"}
    (tmp_path / "more.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    monkeypatch.chdir(comparison)
    flags = ("--trials_dir", tmp_path / "trials", "--output_dir", tmp_path / "table")
    said = call(run_compare.main, tmp_path / "more.yaml", *flags)
    assert "4 of 8 trainings are done already" in said
    table = json.loads((tmp_path / "table" / "comparison.json").read_text())["variants"]
    assert [row["name"] for row in table] == ["summed", "mean", "first token", "two tasks"]
    assert ["difference" in row for row in table] == [False, True, True, True]
    table = [*table[1:], table[0]]
    assert table[1]["macro_f1"] == json.loads((folder / "comparison.json").read_text())["variants"][1]["macro_f1"]
    assert len(table[3]["trials"]) == 4
    assert table[3]["trials"][:2] == table[1]["trials"]

    of_rows: dict[str, np.ndarray] = {}
    for name in table[3]["trials"]:
        with safe_open(tmp_path / "trials" / name / "probabilities.safetensors", framework="numpy") as file:
            described = json.loads(file.metadata()["emodeberta"])
            for row_id, values in zip(described["ids"]["test"], file.get_tensor("test"), strict=True):
                of_rows[row_id] = of_rows.get(row_id, 0) + values
    with open(comparison / "mine.csv", newline="", encoding="utf-8") as file:
        gold = {row["number"]: row["mood"] for row in csv.DictReader(file)}
    said = [described["labels"][of_rows[row_id].argmax()] for row_id in gold]
    assert table[3]["macro_f1"] == pytest.approx(f1_score(list(gold.values()), said, average="macro"))

    record = json.loads((tmp_path / "trials" / table[2]["trials"][0] / "trial.json").read_text())
    assert record["program"] == "baselines.mtl"
    with open(comparison / "mine.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    rows[0]["length"] += "0"
    with open(tmp_path / "mine.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    monkeypatch.chdir(tmp_path)
    again = call(run_compare.main, "more.yaml", "--plan", "--trials_dir", "trials")
    assert "8 trainings, 6 of them done" in again  # its numbers are others now; the rest does not read them


def test_killed_three_times_it_ends_with_the_same_table(compared, comparison):
    """SIGKILL to the driver alone: its training lives on, and the next start waits for it."""
    folder, _ = compared
    arguments = (ROOT / "run_compare.py", "mine.yaml", "--trials_dir", "again", "--output_dir", "table")
    draw = random.Random(0)
    for _ in range(3):
        process = forked.Forked(*arguments, cwd=comparison, env={forked.SERVER: ""})
        time.sleep(draw.uniform(1, 12))
        process.kill()
    forked.run(*arguments, cwd=comparison, env={forked.SERVER: ""})
    assert figures(comparison / "table") == figures(folder)


def test_some_of_the_variants_are_a_comparison_too(compared, comparison, tmp_path, monkeypatch):
    monkeypatch.chdir(comparison)
    flags = ("--variants", "mean", "--output_dir", tmp_path / "table")
    assert "2 of 2 trainings are done already" in call(run_compare.main, "mine.yaml", *flags)
    (row,) = json.loads((tmp_path / "table" / "comparison.json").read_text())["variants"]
    assert row["name"] == "mean"
    with pytest.raises(InputError, match=r"--variants maen: mine\.yaml has mean, first token"):
        call(run_compare.main, "mine.yaml", "--variants", "maen")
    with pytest.raises(InputError, match="'first token', which is left out here; give another --output_dir"):
        call(run_compare.main, "mine.yaml", "--variants", "mean")


@pytest.mark.parametrize(
    ("change", "flags", "says"),
    [
        ({"variants": {"mean": {}}}, (), "has variant 'first token', which is left out here; give another"),
        ({}, ("--seeds", 2, 3), "has seed 1, which is left out here; give another --output_dir"),
        ({"cv_folds": 0}, (), "has fold 0, which is left out here; give another --output_dir"),
        ({"cv_folds": 3}, (), "is of 2 folds, not of 3; give another --output_dir"),
        ({}, ("--learning_rate", "1e-4", "--pooling", "cls"), "is of another learning_rate, pooling; give another"),
    ],
)
def test_a_table_is_not_replaced_by_one_that_lacks_a_part_of_it(
    change, flags, says, compared, comparison, tmp_path, monkeypatch
):
    folder, _ = compared
    before = {path: path.read_bytes() for path in folder.iterdir()}
    content = yaml.safe_load((comparison / "mine.yaml").read_text())
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content | change, sort_keys=False))
    monkeypatch.chdir(comparison)
    with pytest.raises(InputError, match=re.escape(f"comparison.json: {says}")):
        call(run_compare.main, tmp_path / "mine.yaml", *flags)
    assert before == {path: path.read_bytes() for path in folder.iterdir()}


def test_a_table_may_grow(compared):
    """By a variant and a seed; on another machine, and with the data in another folder."""
    folder, _ = compared
    before = figures(folder)
    settings = before["settings"] | {"use_cpu": False, "cache_dir": "elsewhere"}
    names = [*(row["name"] for row in before["variants"]), "one more"]
    run_compare.check_not_fuller(folder / "comparison.json", names, [2, 1], 2, None, settings)


def test_a_plan_trains_nothing(comparison, tmp_path, monkeypatch):
    monkeypatch.chdir(comparison)
    flags = ("--plan", "--seeds", 1, 2, 3, "--cv_folds", 3, "--trials_dir", tmp_path)
    plan = call(run_compare.main, "mine.yaml", *flags)
    assert "2 variants, 3 folds, seeds 1 2 3: 18 trainings, 0 of them done; the rest takes about" in plan
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "flags", "says"),
    [
        ({}, (), "mine.yaml: no variants"),
        ({"variants": {"a": {}}, "varaints": 1}, (), "unknown key 'varaints'"),
        ({"variants": {"a": {"poling": "cls"}}}, (), "mine.yaml, a: unknown key 'poling'; did you mean 'pooling'?"),
        ({"variants": {"a": {"train_file": "x.csv"}}}, (), "a: train_file is the same for all variants"),
        ({"variants": {"a": {}}}, ("--polling", "cls"), "did you mean --pooling?"),
        ({"variants": {"a": {}}}, ("--train_file", "no.csv"), "no.csv: no such file"),
        ({"variants": {"a": {}}}, ("--target_file", "mine.csv"), "target_file would take rows out of the folds"),
        ({"variants": {"a": {}}}, ("--seed", "3"), "seed is not for"),
        ({"variants": {"a": {}}}, ("--extra_tests", "mine.csv"), "extra_tests is not for run_compare.py's variants"),
        ({"variants": {"a": {"extra_tests": ["x.csv"]}}}, (), "a: extra_tests is the same for all variants"),
        ({"variants": {"a": {}}}, ("--cv_folds", "0"), "no labelled validation split"),
        ({"variants": {"a": {}}}, ("--cv_folds", "91"), "91 folds of 90 groups"),
        ({"variants": {"a": {}}}, ("--columns", "lenght"), "no column 'lenght'"),
        ({"variants": {"a": {}}}, ("--errors_of", "b"), "--errors_of b"),
        ({"variants": {"a": {}}}, ("--model_name_or_path", "nowhere"), "nowhere: the Hub does not answer"),
        ({"variants": {"a": {}}}, ("--model_name_or_path", "unfinished"), "unfinished: no config.json there; want the"),
        ({"recipe": "gone.yaml", "variants": {"a": {}}}, (), "gone.yaml: no such recipe"),
        ({"variants": {"a": {"program": "os"}}}, (), "program 'os'; want one of run_classify, baselines.mtl"),
        ({"variants": {"a": {}}, "sums": {"b": {"variants": ["c"], "seeds": [1, 2]}}}, (), "with variants among a"),
        ({"variants": {"a": {}}, "sums": {"b": {"variants": ["a"], "seeds": [1]}}}, (), "want two or more"),
        ({"variants": {"a": {}}, "sums": {"b": {"variants": ["a"], "seeds": [1, 1]}}}, (), "listed twice"),
        ({"variants": {"a": {}}, "reference": "b"}, (), "mine.yaml: reference 'b'; want one of a"),
        ({"variants": {"a": {"distill_from": "t"}}}, (), "mine.yaml, a: distill_from t: its teachers trained on the"),
        ({"variants": {"a": {}}}, ("--distill_from", "t"), "scored folds; use student: of run_fuse.py"),
    ],
)
def test_errors_are_one_line(content, flags, says, comparison, tmp_path, monkeypatch, capsys):
    settings = yaml.safe_load((comparison / "mine.yaml").read_text())["settings"]
    settings["train_file"] = str(comparison / "mine.csv")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"settings": settings} | content))
    (tmp_path / "unfinished").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["run_compare.py", "mine.yaml", *flags])
    with pytest.raises(SystemExit) as stopped:
        run_command(run_compare.main)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert says in line
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("path", sorted((ROOT / "recipes" / "compare").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_comparison_parses_and_says_how_to_run_it(path):
    assert path.read_text(encoding="utf-8").startswith(f"# run: python run_compare.py recipes/compare/{path.name}")
    assert len(run_compare.read_comparison(path)["variants"]) > 1


def test_a_training_that_fails_says_which_and_where_its_log_is(comparison, tmp_path, monkeypatch):
    monkeypatch.chdir(comparison)
    with pytest.raises(InputError, match=r"training mean, seed 1, fold 0 failed: nowhere: .*log\.txt"):
        call(
            run_compare.main,
            *("mine.yaml", "--num_train_epochs", 1, "--tokenizer_name", "nowhere"),
            *("--trials_dir", tmp_path / "trials", "--output_dir", tmp_path / "table"),
        )
    assert not (tmp_path / "table").exists()


@pytest.fixture
def cache(comparison, tmp_path):
    content = yaml.safe_load((comparison / "mine.yaml").read_text())
    settings = content["settings"] | {"train_file": str(comparison / "mine.csv")}
    corpus = load_corpus(
        files={"train": settings["train_file"]}, text_column="body", label_column="mood", id_column="number"
    )
    return lambda flags=(), corpus=corpus: Trials(tmp_path, settings | dict(flags), corpus, "mine.yaml"), corpus


def test_a_finished_trial_without_its_model_is_trained_again(cache, monkeypatch):
    """Also where a kill left the beginning of a run, and where one fell into the removal of a finished one."""
    make, _ = cache
    cached, trial = make(), Trial({}, None, 1, "mean")
    path, started = cached.path(trial), []
    (path / "run" / "checkpoints").mkdir(parents=True)
    write_probabilities(path / PROBABILITIES, {"test": ["n1"]}, {"test": np.ones((1, 1), np.float32)}, ["joy"])
    times = {"seconds": 1, "resumed": True, "machine": "", "libraries": {}, "gflop": 0, "rows": {}}
    about = {"trial": {"overrides": {}, "fold": None, "seed": 1}, **times}
    (path / "trial.json").write_text(json.dumps(about | cached.identity(trial)))

    def run_script(*_):
        started.append(True)
        raise InputError("stopped")

    monkeypatch.setattr(Trials, "_run_script", run_script)
    with pytest.raises(InputError, match="stopped"):
        cached.train([trial], keep_models=True)
    assert started
    cached.train([trial])  # its probabilities are there: nothing to do


def test_the_speed_of_a_much_smaller_training_does_not_count(tmp_path):
    """Most of its seconds are its start, so that a plan from them would be off by a factor of thousands."""
    for gflop, bf16 in ((0.01, False), (500.0, False), (501.0, True)):
        times = {
            "seconds": 30 if bf16 else 60,
            "resumed": False,
            "machine": machine(),
            "libraries": {},
            "gflop": gflop,
            "rows": {},
        }
        about = {
            "trial": {"overrides": {}, "fold": None, "seed": 1},
            "settings": {"max_steps": gflop, "bf16": bf16},
            **times,
        }
        (tmp_path / trial_name(about)).mkdir()
        (tmp_path / trial_name(about) / RECORD).write_text(json.dumps(about))
    assert measured_rate(tmp_path, 1, torch.float32, gflop=1000.0) == 60 / 500
    assert measured_rate(tmp_path, 1, torch.float32, gflop=10_000.0) is None
    assert measured_rate(tmp_path, 1, torch.float32) == (60 / 500 + 60 / 0.01) / 2
    # Nor does another precision's.
    assert measured_rate(tmp_path, 1, torch.bfloat16) == 30 / 501
    assert measured_rate(tmp_path, 1, torch.float16) is None
    work = [(torch.float32, 1000.0), (torch.bfloat16, 501.0), (torch.bfloat16, 501.0)]
    assert expected_seconds(work, tmp_path, 1) == 120 + 60


def test_a_trial_is_named_by_what_decides_its_result(cache, v3_folder, monkeypatch, tmp_path):
    make, corpus = cache

    def path(cached=None, overrides=(), fold=(2, 0), seed=1, name=""):
        return (cached or make()).path(Trial(dict(overrides), fold, seed, name))

    same = path()
    assert path(name="called otherwise") == same
    assert path(make({"data_dir": "elsewhere", "adam_beta1": 0.9})) == same
    assert path(overrides={"pooling": None}) == same  # None is the flag's own default
    different = [
        path(overrides={"pooling": "cls"}),
        path(fold=(2, 1)),
        path(fold=None),
        path(seed=2),
        path(make({"learning_rate": 1e-4})),
    ]
    fewer = corpus.with_splits(train=corpus.splits["train"].select(range(80)))
    different.append(path(make(corpus=fewer)))
    monkeypatch.setattr(trials, "COMPUTATION", 0)
    different.append(path())
    assert len({same, *different}) == len(different) + 1


def test_a_stage_counts_by_what_decided_its_run_and_other_folders_by_their_weights(cache, v3_folder, tmp_path):
    make, _ = cache

    def path(folder):
        return make().path(Trial({"model_name_or_path": str(folder)}, (2, 0), 1, ""))

    def stage(name, settings, weights=b"0", finished=True):
        folder = tmp_path / "stages" / name
        start(folder, settings, overwrite=False)
        shutil.copytree(v3_folder, folder, dirs_exist_ok=True)
        (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes() + weights)
        if finished:
            (folder / "all_results.json").write_text("{}")
        return folder

    here = path(stage("here", {"learning_rate": 1e-4, "training data": "a"}))
    assert path(stage("elsewhere", {"training data": "a", "learning_rate": 1e-4}, weights=b"1")) == here
    different = [
        path(stage("other rate", {"learning_rate": 2e-4, "training data": "a"})),
        path(stage("other data", {"learning_rate": 1e-4, "training data": "b"})),
        path(stage("not finished", {"learning_rate": 1e-4, "training data": "a"}, weights=b"2", finished=False)),
        path(stage("an ensemble", {})),
        path(stage("another ensemble", {}, weights=b"1")),
        path(v3_folder),
    ]
    assert len({here, *different}) == len(different) + 1


def test_a_run_notes_what_it_started_from_by_what_decided_that_not_by_its_path(bert_folder, comparison, tmp_path):
    data = ("--train_file", comparison / "mine.csv", "--text_column_name", "body", "--label_column_name", "mood")
    flags = (*data, "--max_steps", 1, "--max_seq_length", 16, "--save_strategy", "no", "--use_cpu")
    found = []
    for seed in (1, 2):
        first, second = tmp_path / "first", tmp_path / f"second-{seed}"
        call(run_classify.main, "--model_name_or_path", bert_folder, *flags, "--seed", seed, "--output_dir", first)
        call(run_classify.main, "--model_name_or_path", first, *flags, "--output_dir", second)
        shutil.rmtree(first)
        found.append(checkpoint_digest(str(second)))
    assert found[0] != found[1]


@pytest.mark.parametrize("unit", [False, True])
def test_precision_is_part_of_a_trials_name_whoever_chose_it(cache, monkeypatch, unit):
    make, _ = cache
    monkeypatch.setattr(recipes, "choose", lambda device: Choice("bf16" if unit else "float32", "for the test"))
    paths = [make({"bf16": bf16}).path(Trial({}, (2, 0), 1, "")) for bf16 in (None, False, True)]
    assert (paths[0] == paths[1], paths[0] == paths[2]) == (not unit, unit)


def test_a_choice_of_epoch_is_made_on_writers_of_its_own():
    from run_compare import inner_validation

    assert inner_validation({"select": "best_on_dev"}, 5, "x") == {"validation_split_percentage": 20}
    assert inner_validation({"select": "best_on_dev", "validation_split_percentage": 10}, 5, "x") == {}
    assert inner_validation({"select": "average"}, 5, "x") == {}
    assert inner_validation({"early_stopping_patience": 2}, 5, "x") == {"validation_split_percentage": 20}
    assert inner_validation({"early_stopping_patience": 0}, 0, "x") == {}  # never stops
    for flags in ({"select": "best_on_dev"}, {"early_stopping_patience": 2}):
        with pytest.raises(InputError, match="the rows that chose its epoch"):
            inner_validation(flags, 0, "x")


# ---- Tables -------------------------------------------------------------------------------------------------------

LABELS = ["calm", "glad", "sour"]


def systems(rows=120, seeds=2):
    rng = np.random.default_rng(0)
    gold = rng.integers(0, 3, rows)
    first = rng.dirichlet([1, 1, 1], (seeds, rows))
    second = 0.6 * first + 0.4 * np.eye(3)[gold]
    return {"first": first, "second": second}, gold


def test_a_table_has_means_over_seeds_and_paired_differences():
    found, gold = systems()
    first, second = compare(found, gold, None, LABELS)
    by_seed = [f1_score(gold, each.argmax(1), average="macro") for each in found["second"]]
    assert second["macro_f1_by_seed"] == pytest.approx(by_seed)
    assert second["difference"]["macro_f1"] == pytest.approx(second["macro_f1"] - first["macro_f1"])
    assert second["difference"]["interval"][0] > 0
    assert second["difference"]["p_holm"] == second["difference"]["p"] < 0.01
    per_class = np.mean([f1_score(gold, each.argmax(1), average=None) for each in found["second"]], axis=0)
    assert list(second["f1"].values()) == pytest.approx(per_class)
    content = {
        **{"name": "t", "seeds": [1, 2], "folds": 5, "grouped": False, "groups": 120, "rows": 120, "source": "x"},
        **{"command": "c", "labels": LABELS, "machine": "m"},
        "variants": [row | {"minutes_a_training": None, "last_training_loss": None} for row in (first, second)],
    }
    assert f"| second | {second['macro_f1']:.3f} (" in comparison_page(content)


def test_errors_name_rows_and_count_every_mistake():
    found, gold = systems()
    ids = [f"r{i}" for i in range(120)]
    ages = [str(20 + i % 40) for i in range(120)]
    errors = analyse_errors(found, "first", gold, [f"w{i // 4}" for i in range(120)], LABELS, ids, {"age": ages})
    decisions = found["first"].argmax(-1)
    share = {(row["gold"], row["predicted"]): row["share_of_gold"] for row in errors["confusions"]}
    for (a, b), value in share.items():
        a, b = LABELS.index(a), LABELS.index(b)
        assert value == pytest.approx(((gold == a) & (decisions == b)).sum() / (2 * (gold == a).sum()))
    assert len(share) == 6
    mean = np.concatenate(list(found.values())).mean(0)[np.arange(120), gold]
    assert [row["id"] for row in errors["contested"]] == [ids[i] for i in np.argsort(mean)[:20]]
    assert [row["rows"] for row in errors["columns"]["age"]] == [30, 30, 30, 30]
    page = errors_section(errors)
    assert "### By age" in page
    assert errors["contested"][0]["id"] in page


def test_several_labels_a_row_are_compared_too():
    rng = np.random.default_rng(1)
    gold = rng.integers(0, 2, (80, 3))
    found = {"a": rng.random((1, 80, 3)), "b": 0.5 * rng.random((1, 80, 3)) + 0.5 * gold}
    _, second = compare(found, gold, None, LABELS)
    assert second["macro_f1"] == pytest.approx(f1_score(gold, found["b"][0] > 0.5, average="macro"))
    page = errors_section(analyse_errors(found, "a", gold, None, LABELS, list(map(str, range(80))), {"x": ["u"] * 80}))
    assert "### By x" in page


def test_bands():
    assert banded(["b", "a", "b"]) == ["b", "a", "b"]
    assert banded(["1.0", "2", "", "2.0"]) == ["1", "2", "", "2"]
    for word in ("inf", "nan", "1e999"):
        assert banded([word, *map(str, range(9))]) == [word, *map(str, range(9))]
    found = banded([str(i) for i in range(100)])
    assert sorted({found.count(value) for value in found}) == [25]


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["mlm_longer", "ablation"])  # of two stages; and of a sum over seeds
def test_a_published_table_is_computed_again_without_training(name, data_dir, tmp_path, monkeypatch):
    """As on a clean clone, with its own command: no trainings are kept, and the stages' folders do not exist."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").symlink_to(ROOT / "results")
    monkeypatch.setattr(Trials, "_run_script", None)
    command = json.loads((ROOT / "results" / "compare" / name / "comparison.json").read_text())["command"]
    _, _, recipe, *flags = shlex.split(command)
    call(run_compare.main, ROOT / recipe, *flags, "--data_dir", data_dir, "--output_dir", "new")
    published = figures(ROOT / "results" / "compare" / name)
    computed = figures(tmp_path / "new")
    for before, after in zip(published.pop("variants"), computed.pop("variants"), strict=True):
        assert after["trials"] == before["trials"]
        assert after["macro_f1"] == pytest.approx(before["macro_f1"], abs=1e-12)
        assert after["interval"] == pytest.approx(before["interval"], abs=1e-12)
    assert computed == published


def test_every_trial_that_a_table_names_is_in_its_file():
    tables = sorted((ROOT / "results" / "compare").glob("*/comparison.json"))
    assert len(tables) >= 10
    for path in tables:
        named = {name for row in json.loads(path.read_text())["variants"] for name in row["trials"]}
        assert named == set(pyarrow.parquet.read_table(path.with_name(ARCHIVE))["trial"].to_pylist())


# ---- Finished trials whose files are damaged or changed --------------------------------------------------------------
def other_values(path):
    """Whole, and with the same rows, but not what was left there."""
    saved = read_probabilities(path)
    write_probabilities(path, saved.ids, {k: v[:, ::-1].copy() for k, v in saved.values.items()}, saved.label_names)


def rows_swapped(path):
    saved = read_probabilities(path)
    ids = {split: row_ids[::-1] for split, row_ids in saved.ids.items()}
    write_probabilities(path, ids, saved.values, saved.label_names)


def changed(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def cut(path, share=0.5):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


DAMAGE = {
    "probabilities cut": lambda folder: cut(folder / PROBABILITIES),
    "header cut": lambda folder: cut(folder / PROBABILITIES, 0.01),
    "probabilities missing": lambda folder: (folder / PROBABILITIES).unlink(),
    "probabilities changed": lambda folder: other_values(folder / PROBABILITIES),
    "rows swapped": lambda folder: rows_swapped(folder / PROBABILITIES),
    "record cut": lambda folder: cut(folder / RECORD),
    "record empty": lambda folder: (folder / RECORD).write_text(""),
    "record a list": lambda folder: (folder / RECORD).write_text("[1]"),
    "record without a key": lambda folder: (folder / RECORD).write_text('{"trial": {}}'),
    "time changed": lambda folder: changed(folder / RECORD, seconds=1.0),
    "settings changed": lambda folder: changed(folder / RECORD, settings={}),
    "not UTF-8": lambda folder: (folder / RECORD).write_bytes(b"\xff"),
}


@pytest.fixture
def copied(comparison, compared, tmp_path, monkeypatch):
    """The comparison's folder as it was left, to be damaged; its trials' folders; its table."""
    for name in ("mine.csv", "mine.yaml"):
        shutil.copy(comparison / name, tmp_path)
    shutil.copytree(comparison / "outputs", tmp_path / "outputs")
    monkeypatch.chdir(tmp_path)
    names = dict.fromkeys(name for row in figures(compared[0])["variants"] for name in row["trials"])
    return [tmp_path / "outputs" / "trials" / name for name in names], figures(compared[0])


def test_damaged_trials_are_trained_again_and_that_is_said(copied, tmp_path):
    folders, table = copied
    left = [read_trial(folder)[1] for folder in folders]
    kinds = ["probabilities cut", "probabilities missing", "record cut", "probabilities changed"]
    for folder, kind in zip(folders, kinds, strict=True):
        DAMAGE[kind](folder)
    said = call(run_compare.main, "mine.yaml", "--output_dir", "table")
    for folder in folders:
        assert [str(folder.relative_to(tmp_path)) in line for line in said.splitlines() if "made again" in line].count(
            True
        ) == 1
    assert "4 trainings to do" in said
    assert figures(tmp_path / "table") == table
    for folder, before in zip(folders, left, strict=True):
        assert read_trial(folder)[1].values["test"].tobytes() == before.values["test"].tobytes()


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_trial_is_taken_from_the_archive_again(kind, copied, compared, tmp_path, monkeypatch):
    folders, table = copied
    shutil.copytree(compared[0], tmp_path / "table")
    DAMAGE[kind](folders[1])
    monkeypatch.setattr(Trials, "_run_script", None)
    said = call(run_compare.main, "mine.yaml", "--output_dir", "table")
    assert [folders[1].name in line for line in said.splitlines() if "made again" in line] == [True]
    assert "4 of 4 trainings are done already" in said
    assert figures(tmp_path / "table") == table
    read_trial(folders[1])


def test_a_trial_under_another_ones_name_is_not_believed(copied, monkeypatch):
    """With or without the check sum, which records of before do not have."""
    folders, _ = copied
    monkeypatch.setattr(Trials, "_run_script", None)
    shutil.rmtree(folders[0])
    shutil.copytree(folders[1], folders[0])
    assert "4 trainings, 3 of them done" in call(run_compare.main, "mine.yaml", "--plan")
    record = json.loads((folders[0] / RECORD).read_text())
    del record["sha256"]
    (folders[0] / RECORD).write_text(json.dumps(record))
    assert "4 trainings, 3 of them done" in call(run_compare.main, "mine.yaml", "--plan")


def test_records_of_before_without_a_check_sum_are_still_read(copied, monkeypatch, tmp_path):
    folders, table = copied
    for folder in folders:
        record = json.loads((folder / RECORD).read_text())
        assert len(record.pop("sha256")) == 64
        (folder / RECORD).write_text(json.dumps(record))
    monkeypatch.setattr(Trials, "_run_script", None)
    for attempt in range(2):  # the second time from the archive alone
        said = call(run_compare.main, "mine.yaml", "--output_dir", "table")
        assert "4 of 4 trainings are done already" in said, attempt
        assert "made again" not in said
        assert figures(tmp_path / "table") == table
        shutil.rmtree(tmp_path / "outputs")


def archived(tmp_path, change):
    """The archive's table and its metadata changed by `change`."""
    path = tmp_path / "table" / "predictions.parquet"
    table = pyarrow.parquet.read_table(path)
    about = json.loads(table.schema.metadata[b"emodeberta"])
    table, about = change(table, about)
    pyarrow.parquet.write_table(table.replace_schema_metadata({"emodeberta": json.dumps(about)}), path)


def with_other_value(table, about):
    column = table["probability_dark"].to_numpy().copy()
    column[5] = 1 - column[5]
    return table.set_column(6, "probability_dark", pyarrow.array(column, pyarrow.float32())), about


def with_bytes_turned(tmp_path):
    path = tmp_path / "table" / "predictions.parquet"
    content = bytearray(path.read_bytes())
    content[4:400] = bytes(byte ^ 0x55 for byte in content[4:400])
    path.write_bytes(content)


ARCHIVES = {
    "cut": lambda tmp_path: cut(tmp_path / "table" / "predictions.parquet"),
    "not parquet": lambda tmp_path: (tmp_path / "table" / "predictions.parquet").write_bytes(b"PAR1 cut off"),
    "bytes turned": with_bytes_turned,
    "a value changed": lambda tmp_path: archived(tmp_path, with_other_value),
    "a row lost": lambda tmp_path: archived(tmp_path, lambda table, about: (table.slice(1), about)),
    "no records": lambda tmp_path: archived(tmp_path, lambda table, about: (table, {"labels": about["labels"]})),
    "records no objects": lambda tmp_path: archived(
        tmp_path, lambda table, about: (table, about | {"trials": dict.fromkeys(about["trials"], 1)})
    ),
    "a column lost": lambda tmp_path: archived(tmp_path, lambda table, about: (table.drop_columns("row"), about)),
    "a null": lambda tmp_path: archived(
        tmp_path,
        lambda table, about: (
            table.set_column(6, "probability_dark", pyarrow.nulls(len(table), pyarrow.float32())),
            about,
        ),
    ),
}


@pytest.mark.parametrize("kind", ARCHIVES)
def test_a_damaged_archive_is_said_and_written_again(kind, copied, compared, tmp_path, monkeypatch):
    """While the trainings themselves are there it costs nothing; without them, its trainings are to be done again."""
    _, table = copied
    shutil.copytree(compared[0], tmp_path / "table")
    ARCHIVES[kind](tmp_path)
    monkeypatch.setattr(Trials, "_run_script", None)
    plan = call(run_compare.main, "mine.yaml", "--plan", "--output_dir", "table", "--trials_dir", "none")
    assert "table/predictions.parquet: " in plan
    done = int(plan.rpartition("4 trainings, ")[2].split()[0])
    assert done == {"a value changed": 3, "a row lost": 3}.get(kind, 0)

    call(run_compare.main, "mine.yaml", "--output_dir", "table")
    assert figures(tmp_path / "table") == table
    shutil.rmtree(tmp_path / "outputs")
    assert "4 trainings, 4 of them done" in call(run_compare.main, "mine.yaml", "--plan", "--output_dir", "table")


def test_a_damaged_run_of_a_killed_driver_is_trained_again(copied, monkeypatch, tmp_path):
    """Killed between the training and its record, and what the training left cut since."""
    folders, table = copied
    (folders[0] / RECORD).unlink()
    run = folders[0] / "run"
    run.mkdir()
    (run / "all_results.json").write_text('{"train_runtime": 1.0, "test_rows": 45')
    said = call(run_compare.main, "mine.yaml", "--output_dir", "table")
    assert f"{run.relative_to(tmp_path)}: is damaged" in said
    assert figures(tmp_path / "table") == table
    assert not run.exists()


def test_a_table_that_is_damaged_is_made_again(copied, compared, tmp_path):
    """Also where only some of its rows are asked for, which is looked up in the table of before."""
    shutil.copytree(compared[0], tmp_path / "table")
    cut(tmp_path / "table" / "comparison.json")
    call(run_compare.main, "mine.yaml", "--variants", "mean", "--output_dir", "table")
    assert [row["name"] for row in figures(tmp_path / "table")["variants"]] == ["mean"]


def test_rows_that_no_trial_has_are_named(copied, tmp_path):
    """As in a file of before, which has no check sum."""
    folders, _ = copied
    record = json.loads((folders[0] / RECORD).read_text())
    del record["sha256"], record["rows"]["test"]
    (folders[0] / RECORD).write_text(json.dumps(record))
    saved = read_probabilities(folders[0] / PROBABILITIES)
    lost = {split: row_ids[1:] for split, row_ids in saved.ids.items()}
    values = {split: np.ascontiguousarray(each[1:]) for split, each in saved.values.items()}
    write_probabilities(folders[0] / PROBABILITIES, lost, values, saved.label_names)
    with pytest.raises(InputError, match="no probabilities of row 'n"):
        call(run_compare.main, "mine.yaml", "--output_dir", "table")
