"""run_classify.py from the outside: real processes, real files."""

import csv
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import forked
import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from support import ESSAY_FLAGS, ESSAYS, ESSAYS_AS_A_CORPUS, ROOT, TINY, XXLARGE_STYLE, call
from transformers import AutoTokenizer, DebertaV2Config, DebertaV2Model

import run_classify
import run_classify as script
import run_mlm
import run_score
from modeling_emodeberta import EmoDebertaForSequenceClassification
from pipeline_emodeberta import EmotionPipeline
from run_reproduce import read_stages
from trainer_ext.data.emotion_corpora import WASSA_LABELS
from trainer_ext.errors import InputError
from trainer_ext.evaluation.metrics import SEVEN_FIGURES
from trainer_ext.evaluation.predictions import read_predictions
from trainer_ext.files import digest
from trainer_ext.recipes import RecipeParser
from trainer_ext.runs.checkpoints import checkpoint_digest, checkpoints
from trainer_ext.runs.defaults import Defaults
from trainer_ext.runs.flags import complete_arguments
from trainer_ext.runs.provenance import without_secrets
from trainer_ext.runs.run import CLASSIFY_ARGUMENTS, training_settings
from trainer_ext.runs.trial_archive import TrialArchive
from trainer_ext.training.warm_start import warm_start


def prediction_rows(folder) -> list[dict]:
    with open(folder / "predictions.tsv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t"))


# ---- What a finished run leaves -----------------------------------------------------------------------------------


def test_the_output_folder_is_whole(finished):
    folder, _ = finished
    names = {path.name for path in folder.iterdir()}
    assert names == {
        *(".lock", "README.md", "all_results.json", "attention_emodeberta.py", "checkpoints", "config.json"),
        *("configuration_emodeberta.py", "gpu_emodeberta.py", "kernels_emodeberta.py", "layers_emodeberta.py"),
        "packing_emodeberta.py",
        "pipeline_emodeberta.py",
        *("confusion_matrix.json", "confusion_matrix.png", "coverage.json", "coverage.png", "handler.py"),
        *("learning_curve.json", "learning_curve.png"),
        *("model.safetensors", "modeling_emodeberta.py", "predictions.tsv", "predictions_EMO.tsv"),
        *(
            "reliability.json",
            "reliability.png",
            "requirements.txt",
            "run.json",
            "tokenizer.json",
            "tokenizer_config.json",
        ),
        *("texts_emodeberta.py", "training_args.json"),
    }
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["run.json"]  # what the run is known by
    for name in ("confusion_matrix.png", "learning_curve.png", "reliability.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


def test_results_are_flat_and_complete(finished):
    folder, done = finished
    results = json.loads((folder / "all_results.json").read_text())
    assert {
        f"{p}_{name}" for p in ("eval", "test", "eval_tfidf", "test_tfidf") for name in SEVEN_FIGURES
    } <= results.keys()
    assert any(f"eval_f1_{label}" in results for label in WASSA_LABELS)
    assert results["eval_macro_f1_low"] <= results["eval_macro_f1"] <= results["eval_macro_f1_high"]
    assert all(isinstance(value, int | float) for value in results.values())
    assert f"{results['test_macro_f1']:.4f}" in done.stdout
    assert f"{results['test_tfidf_macro_f1']:.4f}" in done.stdout
    assert results["train_truncated_texts"] > 0
    assert f"{results['train_truncated_texts']} of {results['train_rows']} texts are longer than 48" in done.stderr


def test_predictions_hold_probabilities_by_id_and_no_text(finished):
    folder, _ = finished
    rows = prediction_rows(folder)
    results = json.loads((folder / "all_results.json").read_text())
    probabilities = [f"probability_{label}" for label in WASSA_LABELS]
    assert list(rows[0]) == ["split", "id", "group", "gold", "predicted", *probabilities]
    test = [row for row in rows if row["split"] == "test"]
    assert len(test) == results["test_rows"]
    assert np.mean([row["gold"] == row["predicted"] for row in test]) == pytest.approx(results["test_accuracy"])
    for row in rows:
        assert sum(float(row[f"probability_{label}"]) for label in WASSA_LABELS) == pytest.approx(1, abs=1e-5)
    official = (folder / "predictions_EMO.tsv").read_text().splitlines()
    assert official == [row["predicted"] for row in test]


def test_the_card_reads_back(finished):
    folder, _ = finished
    results = json.loads((folder / "all_results.json").read_text())
    card = ModelCard.load(folder / "README.md")
    figures = {(r.dataset_split, r.metric_name): r.metric_value for r in card.data.eval_results}
    assert figures["test", "macro F1"] == pytest.approx(results["test_macro_f1"], abs=1e-4)
    assert "| Child-Tuning | F, p = 0.3, masks the gradient |" in card.text
    assert "--child_tuning F" in card.text


def test_it_loads_without_the_project_and_gives_the_same_logits(finished, python_without_project):
    """AutoModel…, AutoTokenizer and pipeline in a new process elsewhere, against the training process's figures."""
    folder, _ = finished
    printed = python_without_project(
        f"""
import csv, json, torch
from transformers import (
    AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer, pipeline
)
folder = {str(folder)!r}
model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
base = AutoModel.from_pretrained(folder, trust_remote_code=True)
assert type(base).__name__ == "EmoDebertaModel"
assert AutoConfig.from_pretrained(folder, trust_remote_code=True).model_type == "emodeberta"
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
assert tokenizer.model_max_length == 48
texts = {{row["id"]: row["text"] for row in csv.DictReader(open({str(ESSAYS)!r}, newline=""), delimiter="\\t")}}
rows = [row for row in csv.DictReader(open(folder + "/predictions.tsv", newline=""), delimiter="\\t")][::20]
classify = pipeline("text-classification", model=folder, trust_remote_code=True)
assert type(classify).__name__ == "EmotionPipeline"
worst = 0.0
for row in rows:
    batch = tokenizer(texts[row["id"]], truncation=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**batch).logits[0]
        pooled = base(**batch).pooler_output
        torch.testing.assert_close(model.classifier(pooled)[0], logits, atol=1e-5, rtol=0)
    piped = {{entry["label"]: entry["score"] for entry in classify(texts[row["id"]], top_k=None, truncation=True)}}
    for label, probability in zip(piped, [piped[label] for label in piped]):
        written = float(row["probability_" + label])
        worst = max(worst, abs(probability - written))
        worst = max(worst, abs(float(logits.softmax(-1)[model.config.label2id[label]]) - written))
print(json.dumps({{"worst": worst, "rows": len(rows)}}))
"""
    )
    answer = json.loads(printed.splitlines()[-1])
    assert answer["rows"] > 10
    assert answer["worst"] < 1e-5


def test_a_finished_folder_is_refused_and_stays(finished, run_classify, v3_folder):
    folder, _ = finished
    before = (folder / "model.safetensors").stat().st_mtime_ns
    done = run_classify("--model_name_or_path", v3_folder, *ESSAY_FLAGS, "--output_dir", folder, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"error: {folder}: holds a finished run; give another --output_dir")
    assert (folder / "model.safetensors").stat().st_mtime_ns == before


def test_a_folder_is_the_next_stages_start(finished, run_classify, tmp_path):
    folder, _ = finished
    flags = [flag for flag in ESSAY_FLAGS if flag not in ("--classifier_hidden_size", 32)]  # the head is as it was
    arguments = ["--model_name_or_path", folder, *flags, "--max_steps", 1, "--output_dir", tmp_path / "next"]
    run_classify(*arguments, "--learning_rate", "0")
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "next" / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)  # the head too: the labels are the same


# ---- Kinds of targets and selections ------------------------------------------------------------------------------


def test_several_classes_a_row(in_process, tmp_path):
    rows = [{"text": f"gate {i}", "label": [["joy"], ["joy", "fear"], []][i % 3]} for i in range(24)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    results = in_process("--train_file", path, "--validation_file", path, "--max_steps", 2)
    assert 0 <= results["eval_macro_f1"] <= 1
    predictions = prediction_rows(tmp_path / "out")
    assert {row["gold"] for row in predictions} == {"joy", "fear,joy", ""}
    assert not (tmp_path / "out" / "predictions_EMO.tsv").exists()


def test_distributions_and_options_of_the_loss(in_process, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text(
        "text,joy,fear\n" + "".join(f"gate {i},{0.9 if i % 2 else 0.2},{0.1 if i % 2 else 0.8}\n" for i in range(16))
    )
    in_process(
        *("--train_file", path, "--validation_file", path, "--label_column_name", "joy,fear", "--max_steps", 2),
        *("--class_weights", "balanced", "--label_smoothing_factor", "0.1", "--pooling", "cls"),
        *("--classifier_hidden_size", 0),
    )
    config = EmoDebertaForSequenceClassification.from_pretrained(tmp_path / "out").config
    assert (config.pooling, config.classifier_hidden_size) == ("cls", None)
    assert (config.class_weights, config.label_smoothing) == (None, 0.0), "they end with the training"
    assert config.id2label == {0: "joy", 1: "fear"}


def test_average_is_the_mean_of_the_last_epochs(in_process, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("text,label\n" + "".join(f"gate {i},{'joy' if i % 2 else 'fear'}\n" for i in range(16)))
    in_process(
        *("--train_file", path, "--select", "average", "--average_epochs", 2, "--num_train_epochs", 3),
        *("--learning_rate", "1e-2", "--keep_checkpoints"),
    )
    saved = [load_file(p / "model.safetensors") for p in checkpoints(tmp_path / "out")]
    assert len(saved) == 2
    kept = {path.stat().st_mode & 0o777 for path in (tmp_path / "out" / "checkpoints").rglob("*") if path.is_file()}
    assert kept == {(tmp_path / "rows.csv").stat().st_mode & 0o777}  # readable by others, as the rest
    for name, weight in load_file(tmp_path / "out" / "model.safetensors").items():
        torch.testing.assert_close(weight, (saved[0][name] + saved[1][name]) / 2)
    assert not torch.equal(saved[0]["classifier.out_proj.weight"], saved[1]["classifier.out_proj.weight"])
    last = checkpoints(tmp_path / "out")[-1]
    with pytest.raises(InputError, match=r"--select average needs the checkpoints of all epochs in"):
        in_process(
            *("--train_file", path, "--select", "average", "--resume_from_checkpoint", last),
            *("--output_dir", tmp_path / "other"),
        )


def test_best_on_dev_keeps_the_best_epoch(in_process, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("text,label\n" + "".join(f"{'gate' if i % 2 else 'river'} {i},{i % 2}\n" for i in range(16)))
    results = in_process(
        *("--train_file", path, "--validation_file", path, "--select", "best_on_dev", "--num_train_epochs", 4),
        *("--learning_rate", "3e-2", "--save_total_limit", 1),
    )
    curve = json.loads((tmp_path / "out" / "learning_curve.json").read_text())
    scores = [entry["eval_macro_f1"] for entry in curve if "eval_macro_f1" in entry]
    assert len(scores) == 4
    assert results["eval_macro_f1"] == pytest.approx(max(scores))
    assert "so that line is a selection score" in (tmp_path / "out" / "README.md").read_text()


def test_bagging_draws_writers(in_process):
    """As many as there are, with all of their rows: 7 for each of the 90 draws."""
    results = in_process(
        *("--train_file", ESSAYS, "--split_column_name", "split", "--group_column_name", "writer", "--bagging"),
        *("--max_steps", 1, "--max_eval_samples", 4, "--max_predict_samples", 4),
    )
    assert results["train_rows"] == 630


def test_a_validation_split_can_be_carved_out(in_process):
    results = in_process(
        *("--train_file", ESSAYS, "--group_column_name", "writer", "--validation_split_percentage", 10),
        *("--max_steps", 1, "--max_train_samples", 64),
    )
    assert results["train_rows"] == 64
    assert 60 < results["validation_rows"] < 150


# ---- Kill and resume, two processes -------------------------------------------------------------------------------


def test_without_validation_rows_nothing_is_evaluated_at_the_start_either(in_process, tmp_path):
    (tmp_path / "rows.csv").write_text("text,label\n" + "".join(f"gate {i},{i % 2}\n" for i in range(16)))
    flags = ["--train_file", tmp_path / "rows.csv", "--validation_split_percentage", 0, "--max_steps", 1]
    assert "eval_loss" not in in_process(*flags, "--eval_on_start", "true", "--eval_strategy", "epoch")


def test_a_card_has_the_name_of_the_folder_that_a_dot_stands_for(v3_folder, tmp_path, monkeypatch):
    (tmp_path / "rows.csv").write_text("text,label\n" + "".join(f"gate {i},{i % 2}\n" for i in range(16)))
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    flags = ("--model_name_or_path", v3_folder, "--train_file", tmp_path / "rows.csv", "--max_steps", 1, "--use_cpu")
    call(script.main, *flags, "--output_dir", ".")
    assert "\n# mine\n" in Path("README.md").read_text()


def test_a_killed_run_resumes_bit_exact(run_classify, v3_folder, tmp_path):
    """SIGKILL at least two steps after the last checkpoint, dropout and shuffling on, over several epochs; the other
    variants of Child-Tuning are killed and resumed on two processes, in tests/forked.py."""
    options = ["--child_tuning", "D", "--child_tuning_target", "update", "--tokens_per_batch", 1500]
    flags = ["--model_name_or_path", v3_folder, *ESSAY_FLAGS, "--max_steps", 18, "--save_steps", 6, *options]
    flags += ["--gradient_accumulation_steps", 2, "--eval_strategy", "steps", "--eval_steps", 1]
    flags += ["--max_eval_samples", 4]
    run_classify(*flags, "--output_dir", tmp_path / "straight")
    process = forked.Forked(ROOT / "run_classify.py", *flags, "--output_dir", tmp_path / "killed", cwd=tmp_path)
    while len(re.findall(r"^ +[\d.]+/\d+ ", process.stderr, re.MULTILINE)) < 15:  # one line per step
        assert process.poll() is None, process.stderr[-3000:]
        time.sleep(0.01)
    process.kill()
    assert [p.name for p in checkpoints(tmp_path / "killed")] == ["checkpoint-6", "checkpoint-12"]
    assert not (tmp_path / "killed" / "model.safetensors").exists()

    # what a kill in the middle of a save leaves: no complete checkpoint, and passed over
    broken = tmp_path / "killed" / "checkpoints" / "checkpoint-18"
    broken.mkdir()
    (broken / "model.safetensors").write_bytes(b"\x10")
    done = run_classify(*flags, "--output_dir", tmp_path / "killed")
    assert "checkpoint-18 was cut short and is removed" in done.stderr
    assert "resuming from checkpoint-12" in done.stderr
    straight, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("straight", "killed"))
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


def test_an_unfinished_run_goes_on_only_with_the_same_settings(in_process, tmp_path):
    (tmp_path / "rows.csv").write_text("text,label\n" + "".join(f"gate {i},{i % 2}\n" for i in range(16)))
    flags = ["--train_file", tmp_path / "rows.csv", "--max_steps", 2, "--save_steps", 1, "--keep_checkpoints"]
    in_process(*flags)
    (tmp_path / "out" / "all_results.json").unlink()  # as if it had been killed before the end
    with pytest.raises(InputError, match="unfinished run with another learning_rate; give the same"):
        in_process(*flags, "--learning_rate", "1e-5")
    (tmp_path / "rows.csv").write_text("text,label\n" + "".join(f"door {i},{i % 2}\n" for i in range(16)))
    with pytest.raises(InputError, match="another training data"):
        in_process(*flags)
    (tmp_path / "out" / "predictions_EMO.tsv").write_text("of the earlier run")
    checkpoint = tmp_path / "out" / "checkpoints" / "checkpoint-2"
    with pytest.raises(InputError, match="would remove"):
        in_process(*flags, "--overwrite_output_dir", "--resume_from_checkpoint", checkpoint)
    in_process(*flags, "--overwrite_output_dir")
    assert not (tmp_path / "out" / "predictions_EMO.tsv").exists()
    (tmp_path / "out" / "all_results.json").unlink()  # killed after the last step: only the end is done again
    before = load_file(tmp_path / "out" / "model.safetensors")
    in_process(*flags)
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_two_processes_end_with_identical_replicas(v3_folder, tmp_path):
    """And train on the rows of one process: what it was stands in a run's settings, as a hash."""
    port = str(20000 + time.time_ns() % 20000)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--main_process_port", port]
    hook = tmp_path / "sitecustomize.py"  # every process writes down its weights' hash when it ends
    hook.write_text(
        "import atexit, os, hashlib\n"
        "def note():\n"
        "    import gc, torch\n"
        "    from modeling_emodeberta import EmoDebertaForSequenceClassification as M\n"
        "    models = [o for o in gc.get_objects() if isinstance(o, M)]\n"
        "    if models and 'RANK' in os.environ:\n"
        "        digest = hashlib.sha256(b''.join(p.detach().numpy().tobytes() for p in models[0].parameters()))\n"
        "        open(f\"replica-{os.environ['RANK']}\", 'w').write(digest.hexdigest())\n"
        "atexit.register(note)\n"
    )
    flags = ["--model_name_or_path", v3_folder, *ESSAY_FLAGS, "--max_steps", 6, "--child_tuning", "F"]
    (tmp_path / "essays.yaml").write_text(ESSAYS_AS_A_CORPUS)
    flags += ["--transfer_datasets", tmp_path / "essays.yaml", "--augmentation", "BA", "--augmentation_rows", 9]
    flags += ["--output_dir", tmp_path / "out", "--tokens_per_batch", 800]
    done = subprocess.run(
        [*command, ROOT / "run_classify.py", *map(str, flags)],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "training with world size 2" in done.stderr
    replicas = [(tmp_path / f"replica-{rank}").read_text() for rank in (0, 1)]
    assert replicas[0] == replicas[1]
    settings = json.loads((tmp_path / "out" / "checkpoints" / "run.json").read_text())
    model_args, data_args, transfer_args, run_args, args = RecipeParser(CLASSIFY_ARGUMENTS).parse([*map(str, flags)])
    nothing_filled_in = Defaults(set(), own_data=False)
    corpus, transferred, _ = script.read_rows(
        data_args, model_args, transfer_args, run_args, args.seed, nothing_filled_in
    )
    assert settings["training data"] == digest(corpus.splits["train"].remove_columns("id").to_list())
    assert len(transferred) == 7 * 9
    assert json.loads((tmp_path / "out" / "all_results.json").read_text())["test_rows"] > 100


# ---- Errors leave nothing behind ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "content", "says"),
    [
        ([], None, "rows.csv: no such file"),
        ([], "text,row\nx,joy\n", "no column is surely the label; it has text and row; name it with --label"),
        ([], "text,label\nx,joy\n,fear\n", "row 3: text is empty"),
        ([], "text,label\nx,joy\ny,joy\n", "one class only"),
        ([], "text,label\n", "no rows"),
        (["--label_set", "joy", "fear"], "text,label\nx,joy\ny,feer\n", "did you mean 'fear'?"),
        (["--child_tuning_p", "0"], "text,label\nx,joy\ny,fear\n", "must lie in (0, 1]"),
        (["--select", "best_on_dev"], "text,label\nx,joy\ny,fear\n", "needs labelled validation rows"),
        (["--model_name_or_path", "/nowhere"], "text,label\nx,joy\ny,fear\n", "no config.json there"),
        (["--push_to_hub"], "text,label\nx,joy\ny,fear\n", "the Hub does not let us in"),
        (["--train_sampling_strategy", "group_by_length"], "text,label\nx,joy\ny,fear\n", "use --tokens_per_batch"),
        (["--tokens_per_batch", 0], "text,label\nx,joy\ny,fear\n", "--tokens_per_batch is 0; want at least 1"),
        (
            ["--load_best_model_at_end", "--eval_strategy", "epoch", "--save_strategy", "epoch"],
            "text,label\nx,joy\ny,fear\n",
            "--select best_on_dev",
        ),
        (["--do_predict"], "text,label\nx,joy\ny,fear\n", "want a text classifier"),
        (["--prediction_loss_only"], "text,label\nx,joy\ny,fear\n", "--prediction_loss_only: not supported"),
        (["--eval_do_concat_batches", "no"], "text,label\nx,joy\ny,fear\n", "--eval_do_concat_batches: not supported"),
        (["--select", "average", "--save_only_model"], "text,label\nx,joy\ny,fear\n", "needs whole checkpoints"),
        (["--resume_from_checkpoint", "True"], "text,label\nx,joy\ny,fear\n", "no complete checkpoint there"),
        (["--validation_split_percentage", "-5"], "text,label\nx,joy\ny,fear\n", "want 0 to 50"),
        (["--learning_rate", "-1"], "text,label\nx,joy\ny,fear\n", "--learning_rate is -1.0; want 0 or more"),
        (["--learning_rate", "nan"], "text,label\nx,joy\ny,fear\n", "--learning_rate is nan; want 0 or more"),
        (["--per_device_train_batch_size", "0"], "text,label\nx,joy\ny,fear\n", "batch_size is 0; want at least 1"),
        (["--num_train_epochs", "0"], "text,label\nx,joy\ny,fear\n", "--num_train_epochs is 0.0; want more than 0"),
        (["--adam_beta2", "1"], "text,label\nx,joy\ny,fear\n", "--adam_beta2 is 1.0; want 0 or more, and less than 1"),
        (["--max_seq_length", "2"], "text,label\nx,joy\ny,fear\n", "--max_seq_length is 2; want at least 3"),
        (["--report_to", "comet_ml"], "text,label\nx,joy\ny,fear\n", "--report_to comet_ml: "),
        (["--optim", "stable_adamw"], "text,label\nx,joy\ny,fear\n", "--optim stable_adamw: You need to install"),
        (["--optim_args", "betas"], "text,label\nx,joy\ny,fear\n", "--optim_args betas: want name=value"),
        (["--optim", "rmsprop", "--optim_args", "alpha=x"], "text,label\nx,joy\ny,fear\n", "--optim rmsprop: could"),
        (
            ["--lr_scheduler_type", "cosine_with_min_lr"],
            "text,label\nx,joy\ny,fear\n",
            "--lr_scheduler_type cosine_with_min_lr: One of min_lr or min_lr_rate should be set",
        ),
        (
            ["--lr_scheduler_type", "cosine", "--lr_scheduler_kwargs", '{"cycles": 1}'],
            "text,label\nx,joy\ny,fear\n",
            "unexpected keyword argument 'cycles'; want --lr_scheduler_kwargs that fit it",
        ),
        (["--save_strategy", "best"], "text,label\nx,joy\ny,fear\n", "say so with --select best_on_dev"),
        (["--output_dir="], "text,label\nx,joy\ny,fear\n", "give --output_dir"),
        (["--max_train_samples", "0"], "text,label\nx,joy\ny,fear\n", "want at least 1"),
        (["--preprocessing_num_workers", "-1"], "text,label\nx,joy\ny,fear\n", "is -1; want 0 or more"),
        (["--tfidf_baseline"], "text,label\nx,joy\ny,fear\n", "4 folds, and a class has 1 training rows only"),
        (
            ["--dataloader_drop_last"],
            "text,label\nx,joy\ny,fear\n",
            "2 training rows are less than one batch of 8, so nothing would be trained; leave it out",
        ),
        (["--data_die", "x"], "text,label\nx,joy\ny,fear\n", "did you mean --data_dir?"),
    ],
)
def test_an_error_leaves_no_output(in_process, tmp_path, arguments, content, says):
    path = tmp_path / "rows.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError) as error:
        in_process("--train_file", path, *arguments)
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_an_error_is_one_line_on_standard_error(run_classify, tmp_path):
    done = run_classify("no_such_recipe.yaml", check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: no_such_recipe.yaml: no such recipe\n"


def test_a_folder_in_use_is_refused(in_process, tmp_path):
    (tmp_path / "rows.csv").write_text("text,label\nx,joy\ny,fear\n")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    for more in ([], ["--overwrite_output_dir"]):
        with pytest.raises(InputError, match="is in use"):
            in_process("--train_file", tmp_path / "rows.csv", *more)
    with pytest.raises(InputError, match=r"thesis\.txt: is a file; want a folder"):
        in_process("--train_file", tmp_path / "rows.csv", "--output_dir", tmp_path / "out" / "thesis.txt" / "deep")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_positions_limit_the_length(bert_folder, in_process, tmp_path):
    (tmp_path / "rows.csv").write_text("text,label\nx,joy\ny,fear\n")
    with pytest.raises(InputError, match=r"--max_seq_length is 1000; .* has positions for 512"):
        in_process("--train_file", tmp_path / "rows.csv", "--model_name_or_path", bert_folder, "--max_seq_length", 1000)


def test_secrets_do_not_reach_the_card():
    argv = ["r.yaml", "--token", "hf_a", "--hub_token=hf_b", "--hub-token", "hf_c", "--seed", "1"]
    assert without_secrets(argv) == [
        "r.yaml",
        "--token",
        "***",
        "--hub_token=***",
        "--hub-token",
        "***",
        "--seed",
        "1",
    ]


# ---- Real data ----------------------------------------------------------------------------------------------------


@pytest.mark.realdata
def test_the_wassa_recipe_runs_from_a_data_folder(in_process, data_dir, tmp_path):
    results = in_process(ROOT / "recipes" / "wassa2022.yaml", "--data_dir", data_dir, "--max_steps", 2)
    assert (results["train_rows"], results["validation_rows"], results["test_rows"]) == (1860, 270, 525)
    assert "eval_macro_f1" in results
    assert "test_macro_f1" not in results
    lines = (tmp_path / "out" / "predictions_EMO.tsv").read_text().splitlines()
    assert len(lines) == 525
    assert set(lines) <= set(WASSA_LABELS)

    flags = ("--train_on_validation", "--max_steps", 1, "--max_predict_samples", 7, "--overwrite_output_dir")
    results = in_process(ROOT / "recipes" / "wassa2022.yaml", "--data_dir", data_dir, *flags)
    assert (results["train_rows"], results["test_rows"]) == (2130, 7)
    assert not {"validation_rows", "eval_macro_f1"} & results.keys()


# Of the published configurations, what makes their layers.
WIDTHS = {
    "deberta_v3_base": {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
    "deberta_v3_large": {"hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096},
    "paper_xxlarge": {"hidden_size": 1536, "num_attention_heads": 24, "intermediate_size": 6144},
}
WIDTHS["xxlarge_lora"] = WIDTHS["paper_xxlarge"]


@pytest.mark.realdata
@pytest.mark.parametrize("name", WIDTHS)
def test_recipes_of_large_models_train_at_their_true_width(name, in_process, data_dir, tokenizer, tmp_path, caplog):
    """Two layers, with a small vocabulary; everything else as the checkpoint and the recipe have it."""
    options = {"vocab_size": len(tokenizer), "num_hidden_layers": 2, **WIDTHS[name]}
    style = XXLARGE_STYLE if "xxlarge" in name else TINY
    DebertaV2Model(DebertaV2Config(**style | options)).save_pretrained(tmp_path / "two-layers")
    tokenizer.save_pretrained(tmp_path / "two-layers")
    with caplog.at_level(logging.WARNING):
        results = in_process(
            *(ROOT / "recipes" / f"{name}.yaml", "--data_dir", data_dir, "--max_steps", 2, "--bf16", "false"),
            *("--model_name_or_path", tmp_path / "two-layers", "--max_train_samples", 32),
            *("--max_eval_samples", 4, "--max_predict_samples", 4, "--per_device_train_batch_size", 2),
        )
    assert results["train_loss"] > 0
    assert ("gradient is about" in caplog.text) == (name == "paper_xxlarge")


def test_a_tokenizer_with_code_of_its_own_wants_consent(v3_folder, in_process, tmp_path, capfd):
    """And texts are tokenised by several processes."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(v3_folder, folder)
    code = "from transformers import PreTrainedTokenizerFast\n\nclass Own(PreTrainedTokenizerFast):\n"
    (folder / "own.py").write_text(code + "    told = print('its code ran')\n")
    content = json.loads((folder / "tokenizer_config.json").read_text())
    content |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": [None, "own.Own"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(content))
    (tmp_path / "rows.csv").write_text("text,label\n" + "".join(f"gate {i},{i % 2}\n" for i in range(8)))
    flags = ["--train_file", tmp_path / "rows.csv", "--model_name_or_path", folder, "--max_steps", 1]
    in_process(*flags)
    assert "its code ran" not in capfd.readouterr().out
    flags += ["--trust_remote_code", "--preprocessing_num_workers", 2, "--overwrite_output_dir"]
    results = in_process(*flags)
    assert "its code ran" in capfd.readouterr().out
    assert results["train_rows"] + results["validation_rows"] == 8


def test_minilm_is_saved_whole_with_a_tokenizer_of_full_length(tmp_path, in_process):
    """The checkpoint's tokenizer.json pads and cuts at 128; the saved one must not."""
    (tmp_path / "rows.csv").write_text("text,label\n" + "".join(f"gate {i},{i % 2}\n" for i in range(8)))
    in_process(
        *("--train_file", tmp_path / "rows.csv", "--model_name_or_path", "sentence-transformers/all-MiniLM-L6-v2"),
        *("--max_steps", 1, "--max_seq_length", 300),
    )
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    saved = load_file(tmp_path / "out" / "model.safetensors").keys()
    assert saved == EmoDebertaForSequenceClassification.from_pretrained(tmp_path / "out").state_dict().keys()
    assert len(tokenizer("gate " * 200)["input_ids"]) == 202
    assert len(tokenizer("gate")["input_ids"]) == 3
    assert json.loads((tmp_path / "out" / "tokenizer.json").read_text())["padding"] is None


def test_a_share_of_the_checkpoints_weights_is_mixed_in_at_the_end(in_process, tmp_path, v3_folder):
    """The encoder's weights lie between start and end of the training, the head's at its end."""
    flags = ("--train_file", ESSAYS, "--split_column_name", "split", "--max_steps", 3, "--learning_rate", "1e-2")
    flags += ("--max_eval_samples", 4, "--max_predict_samples", 4, "--bf16", "false", "--overwrite_output_dir")
    in_process(*flags)
    trained = load_file(tmp_path / "out" / "model.safetensors")
    in_process(*flags, "--pretrained_share", 0.25)
    mixed = load_file(tmp_path / "out" / "model.safetensors")
    start = load_file(v3_folder / "model.safetensors")
    moved = 0
    for name, weight in mixed.items():
        expected = trained[name]
        if name.startswith("deberta."):
            expected = 0.75 * expected + 0.25 * start[name.removeprefix("deberta.")]
            moved += not torch.equal(weight, trained[name])
        torch.testing.assert_close(weight, expected, atol=1e-6, rtol=0)
    assert moved > 10
    with pytest.raises(InputError, match=r"--pretrained_share is 1\.0; want 0 or more"):
        in_process(*flags, "--pretrained_share", 1)
    with pytest.raises(InputError, match="--from_scratch takes none"):
        in_process(*flags, "--pretrained_share", 0.5, "--from_scratch")


def test_trainings_keep_the_names_they_had_before_a_later_flag_came():
    parser = RecipeParser(CLASSIFY_ARGUMENTS)
    plain, mixed = (
        training_settings(*parser.parse(["--output_dir", "x", "--bf16", "false", *more]))
        for more in ([], ["--pretrained_share", "0.2"])
    )
    assert mixed == plain | {"pretrained_share": 0.2}


# The hash of a stage's training rows, which are not in the repository, by its folder in recipes/wassa2022_full.yaml.
ROWS_OF_STAGES = {
    "outputs/transfer": "8874a4cd0e44445a",
    "outputs/transfer-goemotions": "a2d8e84a38f25004",
    "outputs/transfer-goemotions-then-xed": "439df51bd514fb8a",
    "outputs/transfer-balanced": "8874a4cd0e44445a",
    "outputs/transfer-joined": "e0e0af1a33fa8a8d",
    "outputs/transfer-after-mlm": "8874a4cd0e44445a",
}


@pytest.mark.parametrize("folder", ROWS_OF_STAGES)
def test_a_stage_trained_anew_finds_the_published_trials(folder, tmp_path, monkeypatch):
    """Else the full recipe repeats 70 trainings. What fails here names a flag that belongs in `_LATER`."""
    monkeypatch.chdir(ROOT)
    published = TrialArchive(ROOT / "results/fuse/wassa2022_candidates/predictions.parquet").stages
    _, stages, *_ = read_stages(Path("recipes/wassa2022_full.yaml"))
    [command] = [stage.command[1:] for stage in stages if str(stage.output_dir) == folder]
    model_args, *others, run_args, args = RecipeParser(CLASSIFY_ARGUMENTS).parse([*command, "--output_dir", folder])
    complete_arguments(model_args, *others, run_args, args)
    start = model_args.model_name_or_path
    settings = training_settings(model_args, *others, run_args, args) | {
        "model_name_or_path": published.get(start, start),
        "training data": ROWS_OF_STAGES[folder],
        "number of processes": 1,
    }
    (tmp_path / "checkpoints").mkdir()
    for name, content in {"config.json": {}, "all_results.json": {}, "checkpoints/run.json": settings}.items():
        (tmp_path / name).write_text(json.dumps(content))
    assert checkpoint_digest(str(tmp_path)) == published[folder]
    (tmp_path / "checkpoints/run.json").write_text(json.dumps(settings | {"train_on_validation": False}))
    assert checkpoint_digest(str(tmp_path)) == published[folder]  # as some versions wrote it
    (tmp_path / "checkpoints/run.json").write_text(json.dumps(settings | {"train_on_validation": True}))
    assert checkpoint_digest(str(tmp_path)) != published[folder]


# ---- After training: nothing loses the model, and what was fitted reaches all that loads its folder ------------------
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
        (["--do_predict", "--resume_from_checkpoint", "x"], "--resume_from_checkpoint is for a training; give the"),
        (["--do_predict", "--push_to_hub"], "--push_to_hub publishes after a training; run_publish.py publishes"),
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
    (tmp_path / "texts.jsonl").write_text("".join(f'{{"text": "{text}"}}\n' for text in texts))
    (tmp_path / "one.csv").write_text("text,anger,fear,joy\nriver 3,0,0,1\n")
    flags = ("--do_predict", "--model_name_or_path", several, "--use_cpu", "--test_file")
    call(run_classify.main, *flags, tmp_path / "texts.jsonl", "--output_dir", tmp_path / "unlabelled")
    predicted = read_predictions(tmp_path / "unlabelled", one_label=False)
    assert [row.predicted.split(",") if row.predicted else [] for row in predicted.rows] == told
    columns = ("--label_column_name", ",".join(LABELS))
    call(run_classify.main, *flags, tmp_path / "one.csv", *columns, "--output_dir", tmp_path / "one")
    assert read(tmp_path / "one", "all_results.json")["test_rows"] == 1
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
    assert f"{len(unsure)} rows have no label, because none is probable enough" in printed
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
