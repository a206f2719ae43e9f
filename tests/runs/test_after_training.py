"""After training: nothing loses the model, and what was fitted on validation rows reaches all that loads its folder."""

import csv
import json
import logging
from pathlib import Path

import forked
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from support import ESSAY_FLAGS, ESSAYS, ROOT, call
from transformers import AutoTokenizer

import run_classify
import run_mlm
import run_score
from modeling_emodeberta import EmoDebertaForSequenceClassification
from pipeline_emodeberta import EmotionPipeline
from trainer_ext.errors import InputError
from trainer_ext.evaluation.predictions import read_predictions
from trainer_ext.training.warm_start import warm_start

FLAGS = [*ESSAY_FLAGS, "--max_steps", 6, "--save_steps", 3, "--max_predict_samples", 20, "--bf16", "false"]


def broken(*_, **__):
    raise ZeroDivisionError("no font for this")


def whole(folder) -> bool:
    """Whether `from_pretrained` finds what it wants."""
    return all((folder / name).exists() for name in ("config.json", "model.safetensors", "tokenizer.json"))


def test_parts_that_fail_are_said_and_the_same_command_makes_them(v3_folder, tmp_path, monkeypatch, caplog):
    folder = tmp_path / "out"
    command = [run_classify.main, "--model_name_or_path", v3_folder, *FLAGS, "--output_dir", folder, "--tfidf_baseline"]
    with monkeypatch.context() as patch:
        for part in ("write_plots", "write_run_card", "tfidf_figures"):
            patch.setattr(run_classify, part, broken)
        call(*command)
    results = json.loads((folder / "all_results.json").read_text())
    assert results["not_made"] == ["the TF-IDF baseline", "the plots", "the card"]
    assert "the plots could not be made (ZeroDivisionError: no font for this). The model is in " in caplog.text
    assert whole(folder)
    assert (folder / "predictions.tsv").exists()
    assert not (folder / "README.md").exists()
    weights = load_file(folder / "model.safetensors")

    with caplog.at_level(logging.INFO):
        call(*command)
    assert "resuming from checkpoint-6" in caplog.text
    again = json.loads((folder / "all_results.json").read_text())
    assert "not_made" not in again
    assert {name: again[name] for name in results if name.startswith("test_") and "per_second" not in name} == {
        name: results[name] for name in results if name.startswith("test_") and "per_second" not in name
    } | {name: again[name] for name in again if name in ("test_runtime",)}
    assert (folder / "README.md").exists()
    assert (folder / "confusion_matrix.png").exists()
    assert all(weight.equal(weights[name]) for name, weight in load_file(folder / "model.safetensors").items())
    with pytest.raises(InputError, match="holds a finished run"):
        call(*command)


@pytest.mark.parametrize("step", ["predict_splits", "write_predictions"])
def test_an_evaluation_that_fails_leaves_the_model(step, v3_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(run_classify, step, broken)
    with pytest.raises(ZeroDivisionError):
        call(run_classify.main, "--model_name_or_path", v3_folder, *FLAGS, "--output_dir", tmp_path / "out")
    assert whole(tmp_path / "out")
    assert not (tmp_path / "out" / "all_results.json").exists()


def test_a_pretraining_whose_evaluation_fails_leaves_the_model(v3_folder, tmp_path, monkeypatch):
    (tmp_path / "texts.txt").write_text("".join(f"The river took road {number}.\n" for number in range(60)))
    monkeypatch.setattr(run_mlm.PretrainingTrainer, "evaluate", broken)
    command = [run_mlm.main, "--model_name_or_path", v3_folder, "--train_file", tmp_path / "texts.txt", "--use_cpu"]
    command += ["--max_steps", 2, "--max_seq_length", 32, "--bf16", "false", "--output_dir", tmp_path / "out"]
    with pytest.raises(InputError, match="--label_smoothing_factor is for classes"):
        call(*command, "--label_smoothing_factor", 0.1)
    with pytest.raises(ZeroDivisionError):
        call(*command)
    assert whole(tmp_path / "out")


# ---- Without training ---------------------------------------------------------------------------------------------


def test_a_finished_model_is_evaluated_as_its_run_did(finished, tmp_path):
    model, _ = finished
    flags = ["--train_file", ESSAYS, "--split_column_name", "split", "--group_column_name", "writer", "--use_cpu"]
    flags += ["--id_column_name", "id", "--model_name_or_path", model]
    for asked, splits in (
        (["--do_eval"], {"validation"}),
        (["--do_predict"], {"test"}),
        (["--do_eval", "--do_predict"], {"validation", "test"}),
    ):
        folder = tmp_path / "-".join(asked)
        call(run_classify.main, *flags, *asked, "--output_dir", folder)
        now, then = (read_predictions(path, one_label=True) for path in (folder, model))
        kept = [number for number, row in enumerate(then.rows) if row.split in splits]
        assert now.rows == [then.rows[number] for number in kept]
        assert np.allclose(now.probabilities, then.probabilities[kept], atol=1e-6)
        results, of_run = (json.loads((path / "all_results.json").read_text()) for path in (folder, model))
        prefix = "eval" if "validation" in splits else "test"
        assert results[f"{prefix}_macro_f1"] == pytest.approx(of_run[f"{prefix}_macro_f1"])
        assert results[f"{prefix}_macro_f1_low"] == pytest.approx(of_run[f"{prefix}_macro_f1_low"])
        assert not (folder / "model.safetensors").exists()


def test_an_ensemble_predicts_texts_without_labels(fused, tmp_path):
    folder, _ = fused
    with open(tmp_path / "rows.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["text", "id"], ["They knew and said nothing.", "a"], ["The road is open.", "b"]])
    done = forked.run(
        *(ROOT / "run_classify.py", "--do_predict", "--model_name_or_path", folder / "all", "--use_cpu"),
        *("--test_file", tmp_path / "rows.csv", "--id_column_name", "id", "--output_dir", tmp_path / "out"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert [row.id for row in read_predictions(tmp_path / "out", one_label=True).rows] == ["a", "b"]
    assert "training with world size" not in done.stderr


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--do_eval"], "nothing to evaluate: give --validation_file"),
        (["--do_predict"], "nothing to predict: give --test_file"),
        (["--do_eval", "--validation_file", "rows.csv"], "rows.csv, row 2: label 'glee' is not one of anger"),
        (["--do_eval", "--output_dir", "MODEL"], "is --model_name_or_path, which stays as it is"),
    ],
)
def test_what_cannot_be_evaluated_is_one_line(flags, says, finished, tmp_path, monkeypatch):
    model, _ = finished
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.csv").write_text("text,label\nThe road is open.,glee\n")
    (tmp_path / "train.csv").write_text("text,label\nThe road is open.,joy\n")
    flags = [model if flag == "MODEL" else flag for flag in flags]
    with pytest.raises(InputError) as error:
        call(
            *(run_classify.main, "--model_name_or_path", model, "--train_file", "train.csv", "--output_dir", "out"),
            *flags,
        )
    assert says in str(error.value)


# ---- What a run fits on validation rows ------------------------------------------------------------------------------
LABELS = ["anger", "fear", "joy"]


def write_rows(path: Path, several: bool, every: int) -> None:
    """Write 90 texts whose words tell their labels, except that each `every`th row has those of the next row."""
    kinds = [(["joy"], "river"), (["joy", "fear"], "boat"), ([], "road"), (["fear"], "gate"), (["anger"], "door")]
    kinds = kinds if several else [kind for kind in kinds if len(kind[0]) == 1]
    with open(path, "w", encoding="utf-8") as file:
        for number in range(90):
            labels = kinds[(number + (number % every == 0)) % len(kinds)][0]
            text = f"{kinds[number % len(kinds)][1]} {number}"
            file.write(json.dumps({"text": text, "label": labels if several else labels[0]}) + "\n")


def make_run(folder: Path, several: bool, checkpoint: Path) -> Path:
    """Train on clean rows, so that the model is too sure of itself on the validation rows."""
    for split, every in (("train", 90), ("validation", 3), ("test", 4)):
        write_rows(folder / f"{split}.jsonl", several, every)
    files = [
        part for split in ("train", "validation", "test") for part in (f"--{split}_file", folder / f"{split}.jsonl")
    ]
    call(
        *(run_classify.main, "--model_name_or_path", checkpoint, *files, "--max_steps", 40, "--learning_rate", "1e-2"),
        *("--use_cpu", "--bf16", "false", "--max_seq_length", 32, "--classifier_hidden_size", 0),
        *("--save_strategy", "no", "--per_device_train_batch_size", 16, "--output_dir", folder / "out"),
        *(() if several else ("--target_accuracy", 0.6)),
    )
    return folder / "out"


@pytest.fixture(scope="module")
def one(tmp_path_factory, v3_folder) -> Path:
    return make_run(tmp_path_factory.mktemp("one"), False, v3_folder)


@pytest.fixture(scope="module")
def several(tmp_path_factory, v3_folder) -> Path:
    return make_run(tmp_path_factory.mktemp("several"), True, v3_folder)


def load(folder: Path) -> EmotionPipeline:
    model = EmoDebertaForSequenceClassification.from_pretrained(folder).eval()
    return EmotionPipeline(model=model, tokenizer=AutoTokenizer.from_pretrained(folder, trust_remote_code=False))


def texts_of(folder: Path) -> list[str]:
    return [json.loads(line)["text"] for line in (folder.parent / "test.jsonl").read_text().splitlines()]


def read(folder: Path, name: str) -> dict:
    return json.loads((folder / name).read_text())


@pytest.mark.parametrize("kind", ["one", "several"])
def test_probabilities_at_the_temperature_agree_everywhere(kind, request, tmp_path):
    """Of the run's own table, the pipeline, bulk scoring and a later evaluation."""
    folder = request.getfixturevalue(kind)
    results = read(folder, "all_results.json")
    assert read(folder, "config.json")["calibration_temperature"] == results["calibration_temperature"] > 1
    assert results["eval_calibrated_nll"] < results["eval_nll"]
    assert f"a temperature of {results['calibration_temperature']:.2f}, fitted on" in (folder / "README.md").read_text()
    table = read_predictions(folder, one_label=kind == "one")
    written = table.probabilities[[row.split == "test" for row in table.rows]]

    names = range(len(table.label_names))
    for row, answer in zip(written, load(folder)(texts_of(folder), top_k=None), strict=True):
        found = {entry["label"]: entry["score"] for entry in answer}
        assert [found[table.label_names[label]] for label in names] == pytest.approx(row.tolist(), abs=1e-5)

    rows = folder.parent / "test.jsonl"
    call(run_score.main, "--model", folder, rows, "--dtype", "float32", "--output", tmp_path / "s", "--format", "jsonl")
    scored = [json.loads(line) for line in (tmp_path / "s" / "scores-000000.jsonl").read_text().splitlines()]
    values = [[row[f"probability_{name}"] for name in table.label_names] for row in scored]
    assert np.allclose(values, written, atol=1e-5)

    flags = ("--do_predict", "--model_name_or_path", folder, "--test_file", rows, "--use_cpu")
    call(run_classify.main, *flags, "--output_dir", tmp_path / "more")
    again = read_predictions(tmp_path / "more", one_label=kind == "one")
    assert np.allclose(again.probabilities, written, atol=1e-5)
    assert [row.predicted for row in again.rows] == [row.predicted for row in table.rows if row.split == "test"]
    figures = read(tmp_path / "more", "all_results.json")
    tuned = {name: figures[name] for name in figures if name.startswith("test_tuned_")}
    assert bool(tuned) == (kind == "several")
    assert tuned == pytest.approx({name: results[name] for name in tuned})


def test_thresholds_decide_alike_everywhere(several, tmp_path):
    thresholds = read(several, "config.json")["label_thresholds"]
    assert len(thresholds) == len(LABELS)
    table = read_predictions(several, one_label=False)
    told = [row.predicted.split(",") if row.predicted else [] for row in table.rows if row.split == "test"]
    assert len(set(map(tuple, told))) > 1
    texts, classify = texts_of(several), load(several)
    every = classify(texts, top_k=None)
    of_label = dict(zip(LABELS, thresholds, strict=True))
    reached = [sorted(entry["label"] for entry in row if entry["score"] >= of_label[entry["label"]]) for row in every]
    assert [sorted(entry["label"] for entry in answer) for answer in classify(texts)] == reached == told
    assert classify(texts[:1], thresholds=dict.fromkeys(LABELS, 1.0)) == [[]]

    command = ("--model", several, several.parent / "test.jsonl", "--dtype", "float32", "--format", "jsonl")
    call(run_score.main, *command, "--output", tmp_path / "s")
    scored = [json.loads(line) for line in (tmp_path / "s" / "scores-000000.jsonl").read_text().splitlines()]
    assert [row["label"] for row in scored] == told
    card = (several / "README.md").read_text()
    assert f"| fear | {thresholds[1]:.3f} |" in card
    assert "macro F1, at tuned thresholds" in card


def test_the_demo_is_sure_of_what_the_pipeline_gives(several, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "space")
    from classifier import Classifier

    demo, texts = Classifier(str(several)), texts_of(several)
    pairs = list(zip(demo(texts), demo._pipeline(texts), strict=True))
    assert {answer["sure"] for answer, _ in pairs} == {True, False}
    for answer, given in pairs:
        assert answer["sure"] == bool(given)
        assert not given or sorted(answer["label"].split(", ")) == sorted(entry["label"] for entry in given)
    assert [piece["text"] for piece in demo.explain("river 3")["pieces"]] == ["river ", "3"]


def test_an_answer_that_is_not_sure_has_no_label(one, tmp_path):
    """In the pipeline and in bulk, where the summary counts it."""
    below = read(one, "config.json")["abstain_below"]
    assert (
        below == read(one, "all_results.json")["abstain_below"] == read(one, "coverage.json")["target"]["abstain_below"]
    )
    assert (one / "coverage.png").exists()
    texts, classify = texts_of(one), load(one)
    plain = classify(texts, abstain_below=0)
    classify.model.config.abstain_below = middle = float(np.median([answer["score"] for answer in plain]))
    assert classify(texts) == classify(texts, abstain_below=middle) != plain
    assert len(classify(texts[0], top_k=None)) == len(LABELS)

    classify.save_pretrained(tmp_path / "model")
    flags = ("--model", tmp_path / "model", one.parent / "test.jsonl", "--dtype", "float32", "--format", "jsonl")
    printed = call(run_score.main, *flags, "--output", tmp_path / "s")
    rows = [json.loads(line) for line in (tmp_path / "s" / "scores-000000.jsonl").read_text().splitlines()]
    unsure = [row for row in rows if row["label"] is None]
    assert unsure
    assert all(row["error"] is None for row in rows)
    assert f"{len(unsure)} rows have no label, because the best one is less probable" in printed
    assert f"90 rows, {90 - len(unsure)} with a label" in printed


def test_a_training_from_a_calibrated_checkpoint_starts_from_the_plain_logits(one, batch):
    model = EmoDebertaForSequenceClassification.from_pretrained(one).eval()
    temperature = model.config.calibration_temperature
    again = warm_start(str(one), id2label=model.config.id2label).eval()
    kept = (again.config.calibration_temperature, again.config.label_thresholds, again.config.abstain_below)
    assert kept == (None, None, None)
    with torch.no_grad():
        plain = again(**batch).logits
        assert torch.allclose(plain, model(**batch).logits * temperature, rtol=1e-4)
        model.training = True  # and nothing below it, so that no dropout is drawn
        assert torch.equal(model(**batch).logits, plain)


def test_a_held_out_fold_leaves_the_configuration_alone(one, in_process, tmp_path):
    results = in_process(
        *("--train_file", one.parent / "validation.jsonl", "--cv_folds", 2, "--cv_fold", 0, "--max_steps", 1),
        *("--validation_split_percentage", 50, "--bf16", "false"),
    )
    assert results["validation_rows"] > 20
    assert "calibration_temperature" not in results
    assert "calibration_temperature" not in read(tmp_path / "out", "config.json")
    assert not (tmp_path / "out" / "coverage.json").exists()


def test_the_trainings_of_a_comparison_fit_nothing(comparison):
    recipes = list((comparison / "outputs" / "trials").glob("*/recipe.yaml"))
    assert recipes
    assert not any(yaml.safe_load(path.read_text())["calibrate"] for path in recipes)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--target_accuracy", 90], "--target_accuracy is 90; want a share above 0 and at most 1"),
        (["--target_accuracy", 0.9, "--calibrate", "false"], "neither --cv_folds nor --calibrate false"),
        (["--target_accuracy", 0.9, "--validation_split_percentage", 0], "needs labelled validation rows"),
    ],
)
def test_a_wanted_accuracy_needs_rows_to_fit_on(flags, says, one, in_process):
    rows = one.parent / "validation.jsonl"
    more = () if "--validation_split_percentage" in flags else ("--validation_file", rows)
    with pytest.raises(InputError, match=says):
        in_process("--train_file", rows, *more, *flags)
