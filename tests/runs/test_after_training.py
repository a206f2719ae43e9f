"""After training nothing loses the model; and a finished model is evaluated without training."""

import csv
import json
import logging

import forked
import numpy as np
import pytest
from safetensors.torch import load_file
from support import ESSAY_FLAGS, ESSAYS, ROOT, call

import run_classify
import run_mlm
from trainer_ext.errors import InputError
from trainer_ext.evaluation.predictions import read_predictions

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
