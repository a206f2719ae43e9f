"""The search: its nested score, its space and budget, and one search whose trainings a comparison has made already."""

import csv
import json
import random
import re
import shutil
from pathlib import Path

import forked
import numpy as np
import optuna
import pyarrow.parquet
import pytest
import yaml
from sklearn.metrics import f1_score
from support import ROOT, call, once

import run_classify
import run_search
from trainer_ext.errors import InputError
from trainer_ext.evaluation.comparison import choose_by_other_folds, nested_comparison, running_scores
from trainer_ext.evaluation.pages import search_page
from trainer_ext.runs.search import OWN, STUDY, Search
from trainer_ext.runs.search_space import Range, parse_budget, read_search


# ---- A search on a user's csv -------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def searched(tmp_path_factory, comparison):
    """A search of three configurations. Two are in the cache of a comparison, and one has a rate that diverges."""

    def make(folder):
        shutil.copy(comparison / "mine.csv", folder)
        shutil.copytree(comparison / "outputs", folder / "outputs")
        content = yaml.safe_load((comparison / "mine.yaml").read_text())
        space = {"pooling": ["mean", "cls"], "learning_rate": ["1e30", "1e-3"]}  # which YAML reads as text
        content = {"settings": content["settings"], "search": space, "cv_folds": 2}
        (folder / "mine.yaml").write_text(yaml.safe_dump(content))
        return forked.run(ROOT / "run_search.py", "mine.yaml", "--trials", 3, cwd=folder)

    folder, done = once(tmp_path_factory, "searched", make)
    return folder, done


def result_of(folder: Path) -> dict:
    """What a search found, without what may differ between two starts."""
    content = json.loads((folder / "search.json").read_text())
    return {key: value for key, value in content.items() if key not in ("command", "minutes")}


def test_a_search_uses_the_trainings_of_a_comparison_and_survives_failed_ones(searched, compared):
    folder, done = searched
    found = result_of(folder / "results" / "search" / "mine")
    states = {(row["values"]["pooling"], row["values"]["learning_rate"]): row for row in found["configurations"]}
    assert sorted(row["state"] for row in states.values()) == ["failed", "finished", "finished"]
    assert states["mean", 0.001]["state"] == states["cls", 0.001]["state"] == "finished"
    (failed,) = (row for row in states.values() if row["state"] == "failed")
    assert re.match(r"training \d, seed 1, fold 0 failed: the training diverged: its loss is not finite", failed["why"])
    assert len(list((folder / "outputs" / "trials").iterdir())) == 5  # one training more than the comparison's
    table = json.loads((compared[0] / "comparison.json").read_text())["variants"]
    trained = {tuple(row["trials"]): row["macro_f1"] for row in table}
    assert {
        tuple(row["trials"]): pytest.approx(row["scores"][-1])
        for row in found["configurations"]
        if row["state"] == "finished"
    } == trained
    assert "2 finished, 0 stopped early, 1 failed" in done.stdout
    assert "training diverged" in (folder / "results" / "search" / "mine" / "search.md").read_text()
    assert (folder / "results" / "search" / "mine" / "search.md").read_text() in done.stdout
    assert "best macro F1" in done.stderr


def test_the_nested_score_can_be_computed_from_the_file_of_predictions(searched):
    folder, _ = searched
    folder = folder / "results" / "search" / "mine"
    found = result_of(folder)
    table = pyarrow.parquet.read_table(folder / "predictions.parquet").to_pandas()
    moods = dict(csv_columns(folder.parents[2] / "mine.csv"))
    labels = [name for name in table.columns if name.startswith("probability_")]
    table["said"] = table[labels].to_numpy().argmax(axis=1)
    table["gold"] = [labels.index(f"probability_{moods[row]}") for row in table["row"]]
    of_fold = {}
    for row in found["configurations"]:
        for fold, name in enumerate(row["trials"]):
            of_fold[row["name"], fold] = table[table["trial"] == name]
    finished = [row["name"] for row in found["configurations"] if row["state"] == "finished"]
    score = {
        key: f1_score(rows["gold"], rows["said"], average="macro")
        for key, rows in of_fold.items()
        if key[0] in finished
    }
    chosen = [max(finished, key=lambda name: score[name, 1 - fold]) for fold in (0, 1)]
    assert found["nested"]["chosen"] == chosen
    rows = [of_fold[name, fold] for fold, name in enumerate(chosen)]
    gold, said = (np.concatenate([part[column] for part in rows]) for column in ("gold", "said"))
    assert found["nested"]["nested"]["macro_f1"] == pytest.approx(f1_score(gold, said, average="macro"))


def csv_columns(path: Path) -> list[tuple[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return [(row["number"], row["mood"]) for row in csv.DictReader(file)]


def test_a_second_start_trains_nothing_and_finds_the_same(searched, tmp_path, monkeypatch):
    folder, _ = searched
    shutil.copytree(folder, tmp_path / "again")
    monkeypatch.chdir(tmp_path / "again")
    shutil.rmtree("outputs")  # the predictions are in the output folder, too
    before = result_of(Path("results/search/mine"))
    said = call(run_search.main, "mine.yaml", "--trials", 3)
    assert result_of(Path("results/search/mine")) == before
    assert not list(Path("outputs").rglob("log.txt"))
    assert "Report the nested score" in said


def test_the_best_flags_run_as_they_are_from_another_folder(searched, tmp_path, monkeypatch):
    folder, _ = searched
    best = folder / "results" / "search" / "mine" / "best.yaml"
    monkeypatch.chdir(tmp_path)
    call(run_classify.main, best, "--output_dir", "out", "--max_steps", 2)
    flags, winner = yaml.safe_load(best.read_text()), result_of(best.parent)["best"]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["pooling"] == winner["pooling"]
    assert Path(flags["output_dir"]) == best.parent / "best"
    assert flags["train_file"] == str(folder / "mine.csv")
    assert (flags["seed"], flags["select"], flags["num_train_epochs"]) == (1, "last", 3)


def test_the_file_of_predictions_keeps_what_earlier_starts_stopped(comparison, tmp_path, monkeypatch):
    """So that a clone without outputs/ goes on from it."""
    shutil.copy(comparison / "mine.csv", tmp_path)
    shutil.copytree(comparison / "outputs", tmp_path / "outputs")
    settings = yaml.safe_load((comparison / "mine.yaml").read_text())["settings"]
    content = {"settings": settings, "search": {"pooling": ["mean", "cls"]}, "cv_folds": 2}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.chdir(tmp_path)
    never_good_enough = optuna.pruners.ThresholdPruner(lower=2.0)
    monkeypatch.setattr(optuna.pruners, "MedianPruner", lambda **_: never_good_enough)
    call(run_search.main, "mine.yaml", "--trials", 2)
    first = result_of(Path("results/search/mine"))
    assert [row["state"] for row in first["configurations"]] == ["finished", "stopped"]
    call(run_search.main, "mine.yaml", "--trials", 2)
    shutil.rmtree("outputs")
    call(run_search.main, "mine.yaml", "--trials", 2)
    assert result_of(Path("results/search/mine")) == first
    assert not list(Path("outputs").rglob("log.txt"))


# ---- Proposals, stopping and the budget ---------------------------------------------------------------------------
class Scored:
    """A cache whose trainings take no time: the score of a fold follows from the flags."""

    jobs, folder = 1, Path("trials")

    def __init__(self, until: int = 10**6):
        self.trained, self.until = {}, until

    def path(self, trial):
        return Path(f"{sorted(trial.overrides.items())}-{trial.fold}")

    def finished(self, trial):
        return self.path(trial) in self.trained

    def settings(self, trial):
        return trial.overrides

    def estimate(self, trials):
        return 10.0 * sum(not self.finished(trial) for trial in trials)

    def attempt(self, trials, bar):
        if len(self.trained) >= self.until:
            raise KeyboardInterrupt
        failed = {trial.name: InputError("no memory") for trial in trials if trial.overrides.get("pooling") == "cls"}
        self.trained |= {self.path(trial): trial for trial in trials if trial.name not in failed}
        return failed

    @staticmethod
    def score(trials):
        """A fold that is easier than the next, noise, and a best rate."""
        scores = []
        for done, trial in enumerate(trials, 1):
            off = abs(np.log10(float(trial.overrides.get("learning_rate", 1e-4))) + 3.5)
            noise = random.Random(f"{sorted(trial.overrides.items())}{done}").gauss(0, 0.01)
            scores.append(0.7 - 0.2 * off - 0.05 * done + noise)
        return scores


@pytest.fixture
def recipe(tmp_path, v3_folder):
    """A search of a rate, and of a pooling of which one fails."""
    space = {"learning_rate": {"low": "1e-5", "high": "3e-3", "log": True}, "pooling": ["mean", "cls"]}
    settings = {"model_name_or_path": str(v3_folder), "train_file": "x.csv", "learning_rate": 1e-4}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"settings": settings, "search": space}))
    return read_search(tmp_path / "mine.yaml", {}, None)


def found_by(recipe, folder, cache, **how) -> Search:
    search = Search(recipe, cache, cache.score, folder, **how)
    search.run(14, None)
    return search


def summary(search: Search) -> list[tuple]:
    return [(each.name, each.state, each.values, each.scores) for each in search.configurations]


def test_a_configuration_that_is_behind_is_stopped_and_a_failed_one_is_passed_over(recipe, tmp_path):
    cache = Scored()
    search = found_by(recipe, tmp_path, cache)
    assert len(search.configurations) == 13
    states = [each.state for each in search.configurations]
    assert {"finished", "stopped", "failed"} == set(states)
    assert all((each.values["pooling"] == "cls") == (each.state == "failed") for each in search.configurations)
    stopped = [each for each in search.configurations if each.state == "stopped"]
    assert all(1 <= len(each.scores) < 5 for each in stopped)
    assert max(cache.score(each.trials)[-1] for each in stopped) < max(each.scores[-1] for each in search.finished())
    assert len(cache.trained) == 5 * len(search.finished()) + sum(len(each.scores) for each in stopped)


def test_without_a_pruner_all_folds_are_trained(recipe, tmp_path):
    search = found_by(recipe, tmp_path, Scored(), pruner="none", sampler="random")
    assert {each.state for each in search.configurations} == {"finished", "failed"}


def test_an_interrupted_search_ends_as_an_uninterrupted_one(recipe, tmp_path):
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    whole = found_by(recipe, tmp_path / "whole", Scored())
    cache = Scored()
    for cache.until in (3, 5, 12, 23):
        with pytest.raises(KeyboardInterrupt):
            found_by(recipe, tmp_path / "parts", cache)
    cache.until = 10**6
    assert summary(found_by(recipe, tmp_path / "parts", cache)) == summary(whole)


def test_a_training_that_would_not_fit_into_the_budget_is_not_started(recipe, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("trainer_ext.runs.search.measured_rate", lambda folder, jobs, dtype: 1.0)
    cache = Scored()
    search = Search(recipe, cache, cache.score, tmp_path)
    with pytest.raises(InputError, match=r"the next training takes about 10 s; the recipe's own values have 0 of 5"):
        search.run(None, 5)
    cache.estimate = lambda trials: 10.0 * (len(cache.trained) >= 12)
    search.run(None, 9)
    assert [len(cache.trained), len(search.finished())] == [12, 2]
    assert "of the budget are left, and the next training takes about 10 s; stopped." in capsys.readouterr().out
    cache.estimate = lambda trials: 10.0 * (len(cache.trained) >= 20)
    search = Search(recipe, cache, cache.score, tmp_path)
    search.run(None, 9)
    assert [len(cache.trained), len(search.finished())] == [20, 4]


def test_a_space_that_is_used_up_ends_the_search(tmp_path, v3_folder, capsys):
    settings = {"model_name_or_path": str(v3_folder), "train_file": "x.csv", "learning_rate": 1e-4}
    content = {"settings": settings, "search": {"learning_rate": [1e-4, 1e-3, 1e-2]}, "cv_folds": 2}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    search = found_by(read_search(tmp_path / "mine.yaml", {}, None), tmp_path, Scored())
    assert sorted(each.values["learning_rate"] for each in search.finished()) == [1e-4, 1e-3, 1e-2]
    assert "the space is used up" in capsys.readouterr().out


def test_a_study_that_cannot_be_read_is_one_line(recipe, tmp_path):
    (tmp_path / STUDY).write_text("{}\nno json\n{}\n")
    with pytest.raises(InputError, match=rf"{STUDY}: cannot be used \(.*; remove it"):
        Search(recipe, Scored(), Scored.score, tmp_path)


# ---- The nested score ---------------------------------------------------------------------------------------------
def test_each_fold_is_scored_by_what_is_best_on_the_others():
    gold = np.tile([0, 1, 2], 30)
    assigned = np.repeat([0, 1, 2], 30)
    right, wrong = np.eye(3)[gold], np.eye(3)[(gold + 1) % 3]
    systems = {
        "all half right": np.where((np.arange(90) % 2)[:, None], right, wrong),
        "right on fold 0": np.where((assigned == 0)[:, None], right, wrong),
        "right on folds 0 and 1": np.where((assigned < 2)[:, None], right, wrong),
    }
    assert choose_by_other_folds(systems, gold, assigned) == [
        "all half right",
        "all half right",
        "right on folds 0 and 1",
    ]
    found = nested_comparison(systems, gold, assigned, None, ["a", "b", "c"])
    assert found["winner"] == "right on folds 0 and 1"
    assert found["nested"]["macro_f1"] == pytest.approx(1 / 3)  # half of two folds, nothing of the third
    assert found["selection"]["macro_f1"] == pytest.approx(2 / 3)
    assert running_scores(systems["right on fold 0"], gold, assigned) == pytest.approx([1, 1 / 2, 1 / 3])


def test_of_equally_good_configurations_the_nested_score_shows_no_gain():
    found, assigned, seven = [], np.arange(300) % 5, np.eye(7)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        gold = rng.integers(7, size=300)
        said = [np.where(rng.random(300) < 0.5, gold, rng.integers(7, size=300)) for _ in range(20)]
        systems = {str(index): seven[each] for index, each in enumerate(said)}
        nested = np.stack([systems[name] for name in choose_by_other_folds(systems, gold, assigned)])
        nested = nested[assigned, np.arange(300)]
        all_folds = [running_scores(each, gold, assigned)[-1] for each in (*systems.values(), nested)]
        found.append((np.mean(all_folds[:-1]), max(all_folds[:-1]), all_folds[-1]))
    level, selection, honest = np.mean(found, axis=0)
    assert selection > level + 0.04
    assert abs(honest - level) < 0.015


def test_rows_with_several_labels_have_a_nested_score():
    gold = np.array([[1, 0, 1], [0, 1, 0], [1, 1, 0], [0, 0, 1]] * 4)
    found = nested_comparison({OWN: gold * 0.4, "1": gold * 0.9}, gold, np.arange(16) % 2, None, list("abc"))
    assert (found["winner"], found["nested"]["macro_f1"], found["own"]["macro_f1"]) == ("1", 1, 0)


def test_equal_configurations_leave_the_recipe_as_it_is():
    gold = np.tile([0, 1], 10)
    systems = {OWN: np.eye(2)[gold], "1": np.eye(2)[gold]}
    found = nested_comparison(systems, gold, np.arange(20) % 2, [str(i // 4) for i in range(20)], ["a", "b"])
    assert (found["winner"], found["chosen"]) == (OWN, [OWN, OWN])


# ---- Flags and files ----------------------------------------------------------------------------------------------
def test_a_budget_is_a_time():
    given = {"2h": 7200, "90m": 5400, "1h30m": 5400, "1.5h": 5400, "300s": 300, "1H 5M 2S": 3902}
    assert {text: parse_budget(text) for text in given} == given
    for text in ("", "2", "h", "0s", "2x", "-1h", "1m2h", "1.2.3h", "inf", "9999999999h"):
        with pytest.raises(InputError, match=re.escape(f"--budget {text}; want a time such as 2h, 90m")):
            parse_budget(text)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"search": {"learning_rate": 1}}, "learning_rate: 1; want a list of values, or low and high"),
        ({"search": {"learning_rate": [1]}}, "learning_rate: [1]; want a list of two or more different values"),
        ({"search": {"learning_rate": [1, 1]}}, "learning_rate: [1, 1]; want a list of two or more different values"),
        ({"search": {"learning_rate": {"low": 1}}}, "learning_rate: no high; want low and high"),
        ({"search": {"learning_rate": {"low": 1, "hi": 2}}}, "learning_rate: unknown key 'hi'; want low, high"),
        ({"search": {"learning_rate": {"low": "a", "high": 2}}}, "learning_rate: low: 'a'; want a number"),
        ({"search": {"learning_rate": {"low": 2, "high": 1}}}, "learning_rate: low 2 and high 1; want low below high"),
        ({"search": {"learning_rate": {"low": 0, "high": 1, "log": True}}}, "log: true; want low above 0"),
        ({"search": {"learning_rate": {"low": 1, "high": 2, "log": 1}}}, "log: 1; want true or false"),
        ({"search": {"learning_rate": {"low": 1, "high": 2, "step": 3}}}, "step 3; want more than 0"),
        ({"search": {"learning_rat": [1, 2]}}, "unknown key 'learning_rat'; did you mean 'learning_rate'?"),
        ({"search": {"pooling": ["mean", "max"]}}, "argument --pooling"),
        ({"search": {"seed": [1, 2]}}, "search: seed is the same for all configurations; put it under settings"),
        ({"search": {"train_file": ["a", "b"]}}, "search: train_file is the same for all configurations"),
        ({"search": {"child_tuning_p": [0.1, 0.2]}}, "child_tuning_p has no effect without Child-Tuning"),
        ({"search": {"child_tuning_p": [0.1, 1.2], "child_tuning": ["none", "F"]}}, "search, child_tuning_p: "),
        ({"search": {}}, "search: {}; want at least one"),
        ({"search": None, "serch": {}}, "unknown key 'serch'; want cv_folds, recipe, search, settings"),
        ({"search": None, "cv_folds": 1}, "cv_folds: 1; want greater than or equal to 2"),
        ({"recipe": "gone.yaml"}, "gone.yaml: no such recipe"),
        ({"settings": {"cv_fold": [1]}}, "cv_fold is not for a search's trainings"),
        ({"settings": {"lerning_rate": 1}}, "unknown key 'lerning_rate'; did you mean 'learning_rate'?"),
        ({"lerning_rate": 1}, "unknown key 'lerning_rate'; did you mean 'learning_rate'?"),
        ({"learning_rate": 0}, "--learning_rate is 0.0; want more than 0"),
        ({"settings": {"distill_from": "t"}}, "mine.yaml: distill_from t: its teachers trained on the scored folds"),
        ({"search": {"distill_from": [None, "t"]}}, "search: distill_from t: its teachers trained on the scored folds"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_one_line_that_says_where(content, says, tmp_path, v3_folder):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(InputError) as error:
        read_search(path, {"model_name_or_path": str(v3_folder)}, None)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["mine.yaml"], "say how long to search: --budget 2h, --trials 20, or both"),
        (["--trials", "1"], "--trials 1; want 2 or more, since the recipe's own values are the first"),
        (["--budget", "soon"], "--budget soon; want a time such as 2h"),
        (["--trials", "3", "--lerning_rate", "1"], "unknown argument '--lerning_rate'; did you mean --learning_rate?"),
        (["--trials", "3", "gone.yaml"], "gone.yaml: no such recipe"),
        (["gone.yaml", "--trials", "3"], "gone.yaml: no such recipe"),
        (["--trials", "3", "--cv_folds", "1"], "--cv_folds 1; a search needs 2 folds or more"),
        (["--trials", "3", "--extra_tests", "x.csv"], "extra_tests is not for a search's trainings"),
        (["--trials", "3", "--push_to_hub"], "push_to_hub is not for a search's trainings"),
    ],
)
def test_flags_that_do_not_fit_are_one_line(arguments, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=re.escape(says)):
        call(run_search.main, *arguments)
    assert not list(tmp_path.iterdir())


def test_a_recipe_or_flags_alone_get_a_space_around_their_own_values(tmp_path, v3_folder):
    flags = {"model_name_or_path": str(v3_folder), "classifier_hidden_size": 64, "learning_rate": 2e-4}
    (tmp_path / "plain.yaml").write_text(yaml.safe_dump(flags | {"output_dir": "x", "seed": 7, "num_train_epochs": 4}))
    recipe = read_search(tmp_path / "plain.yaml", {"train_file": "x.csv"}, None)
    assert (recipe.name, recipe.seed, recipe.cv_folds) == ("plain", 7, 5)
    assert "output_dir" not in recipe.settings
    assert recipe.space["learning_rate"] == Range(4e-5, 1e-3, log=True)
    assert recipe.space["num_train_epochs"] == Range(2, 8)
    assert recipe.space["classifier_hidden_size"] == [0, 64, 1024]
    assert recipe.overrides({"pooling": "mean", "learning_rate": 2e-4, "num_train_epochs": 4}) == {}
    assert recipe.overrides({"pooling": "cls", "num_train_epochs": 4}) == {"pooling": "cls"}
    alone = read_search(None, {"train_file": "essays.csv"}, 3)
    assert (alone.name, alone.cv_folds) == ("essays", 3)
    assert alone.settings["model_name_or_path"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert alone.applies("child_tuning_p", {"child_tuning": "F"})
    assert not alone.applies("child_tuning_p", {"child_tuning": "none"})


def test_the_published_search_is_read():
    recipe = read_search(ROOT / "recipes" / "search" / "wassa2022.yaml", {}, None)
    assert recipe.settings["dataset_name"] == "wassa2022"
    assert {"learning_rate", "child_tuning", "class_weights"} <= recipe.space.keys()


def test_the_page_says_when_nothing_of_a_fold_was_seen(searched):
    content = json.loads((searched[0] / "results" / "search" / "mine" / "search.json").read_text())
    assert "`--sampler random --pruner none` rules that out" in search_page(content)
    assert "drawn without looking at scores" in search_page(content | {"sampler": "random", "pruner": "none"})
