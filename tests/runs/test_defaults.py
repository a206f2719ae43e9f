"""Defaults for people's own data: what they set, what they leave alone, and what a run prints with them."""

import csv
import json
import logging
import re
import sys
from dataclasses import asdict

import pytest
import yaml
from support import ESSAYS
from transformers import TrainerControl, TrainerState, TrainingArguments

from trainer_ext.data import load
from trainer_ext.data.corpus import Corpus
from trainer_ext.data.load import corpus_arguments
from trainer_ext.data.tables import read_file
from trainer_ext.errors import InputError
from trainer_ext.recipes import RecipeParser
from trainer_ext.runs.checkpoints import checkpoints
from trainer_ext.runs.defaults import Defaults
from trainer_ext.runs.flags import apply_selection, check_corpus
from trainer_ext.runs.run import CLASSIFY_ARGUMENTS, training_settings
from trainer_ext.training import callbacks
from trainer_ext.training.callbacks import StopEarly

LINE = re.compile(r" *[\d.]+/\d+( +([\d.]+|-)){4}")


@pytest.fixture
def mine(tmp_path) -> str:
    """A csv of 48 essays whose columns have other names than the project's."""
    with open(ESSAYS, newline="", encoding="utf-8") as file:
        essays = list(csv.DictReader(file, delimiter="\t"))[:48]
    path = tmp_path / "mine.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["Essay Text", "How they feel", "Author"])
        writer.writerows([row["text"], row["label"], f"a{index // 3}"] for index, row in enumerate(essays))
    return str(path)


def completed(*flags: object) -> tuple[dict, dict, Corpus]:
    """What the flags come to, what was filled in, and the corpus."""
    parser = RecipeParser(CLASSIFY_ARGUMENTS)
    model_args, data_args, transfer_args, run_args, args = parser.parse(
        [*map(str, flags), "--output_dir", "out", "--use_cpu", "--bf16", "false"]
    )
    defaults = Defaults.begin(parser, model_args, data_args, trains=True)
    apply_selection(run_args, args)
    corpus = defaults.load(corpus_arguments(data_args))
    corpus = defaults.with_validation(corpus, args.seed)
    defaults.complete(corpus, model_args, run_args, args)
    check_corpus(corpus, data_args, run_args, args)
    return training_settings(model_args, data_args, transfer_args, run_args, args), defaults.chosen, corpus


# ---- What is set --------------------------------------------------------------------------------------------------
def test_two_flags_train_stop_and_go_on_alike(mine, in_process, tmp_path, caplog, monkeypatch):
    """With a rate of 0 nothing improves: three evaluations, and a second start takes no step more."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(callbacks, "_UNTIL_KNOWN", 0.0)  # seconds
    results = in_process("--train_file", mine, "--learning_rate", 0, "--save_total_limit", 3, "--keep_checkpoints")
    assert (results["train_rows"], results["validation_rows"]) == (39, 9)  # three of sixteen authors
    said = caplog.messages
    assert any(line.endswith("text 'Essay Text', label 'How they feel', group 'Author'") for line in said)
    assert next(line.split() for line in said if line.startswith("class ")) == ["class", "train", "validation"]
    assert "steps: 100 (epochs: 20)" in said
    assert [bool(re.fullmatch(r"step 1 of 100; about \d+\.\d minutes left", line)) for line in said].count(True) == 1
    epochs = [line for line in said if LINE.fullmatch(line)]
    assert [line.split()[0] for line in epochs] == ["1/20", "2/20", "3/20"]
    assert max(map(len, epochs)) <= 80
    assert "stopped early, because validation did not improve" in said
    assert any(line.startswith("kept: epoch 1, with macro F1 ") for line in said)
    record = json.loads((tmp_path / "out" / "run.json").read_text())["defaults"]
    assert (record["early_stopping_patience"], record["select"], record["warmup_steps"]) == (2, "best_on_dev", 0.1)
    assert not {"learning_rate", "per_device_train_batch_size", "model_name_or_path"} & record.keys()  # were given
    assert {"eval_loss", "loss"} <= {key for entry in log_of(tmp_path / "out") for key in entry}

    before = log_of(tmp_path / "out")
    for path in (tmp_path / "out").iterdir():
        if path.name != "checkpoints":
            path.unlink()
    caplog.clear()
    in_process("--train_file", mine, "--learning_rate", 0, "--save_total_limit", 3, "--keep_checkpoints")
    assert log_of(tmp_path / "out") == before
    assert not any(LINE.fullmatch(line) for line in caplog.messages)


def log_of(folder) -> list[dict]:
    return json.loads((checkpoints(folder)[-1] / "trainer_state.json").read_text())["log_history"]


def test_a_recipe_keeps_its_silence(mine, v3_folder, tmp_path):
    flags = {"train_file": mine, "model_name_or_path": str(v3_folder), "text_column_name": "Essay Text"}
    flags["label_column_name"] = "How they feel"
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(flags))
    settings, chosen, corpus = completed(tmp_path / "mine.yaml")
    assert not chosen
    assert corpus.splits.keys() == {"train"}
    plain = TrainingArguments("out", use_cpu=True)
    for name in ("learning_rate", "num_train_epochs", "warmup_steps", "logging_strategy", "save_strategy"):
        assert settings[name] == asdict(plain)[name]
    assert (settings["select"], settings["group_column_name"]) == ("last", None)
    assert "early_stopping_patience" not in settings  # so that trials keep their names


@pytest.mark.parametrize(
    ("flags", "want"),
    [
        (["--num_train_epochs", 3], {"num_train_epochs": 3, "select": "best_on_dev", "warmup_steps": 0.1}),
        (["--max_steps", 5], {"max_steps": 5, "warmup_steps": 0, "num_train_epochs": 3}),
        (["--select", "last"], {"select": "last", "eval_strategy": "epoch", "num_train_epochs": 10}),
        (["--save_steps", 5], {"select": "last", "save_strategy": "steps", "save_total_limit": None}),
        (["--validation_split_percentage", 0], {"select": "last", "eval_strategy": "no", "num_train_epochs": 10}),
        (["--lora_rank", 4, "--num_train_epochs", 2], {"learning_rate": 1e-3}),
        (["--num_train_epochs", 9, "--early_stopping_patience", 3], {"early_stopping_patience": 3}),
    ],
)
def test_given_flags_win(mine, v3_folder, flags, want):
    settings, chosen, _ = completed("--train_file", mine, "--model_name_or_path", v3_folder, *flags)
    assert {name: settings[name] for name in want} == want
    assert "early_stopping_patience" not in chosen
    assert not {str(flag)[2:] for flag in flags} & chosen.keys()


def test_a_search_starts_from_the_same_values(mine, v3_folder, caplog):
    caplog.set_level(logging.INFO)
    found = Defaults.of_search(["--train_file", mine, "--model_name_or_path", str(v3_folder), "--learning_rate", "0.5"])
    assert found == {
        "text_column_name": "Essay Text", "label_column_name": "How they feel", "group_column_name": "Author",
        "per_device_train_batch_size": 8, "per_device_eval_batch_size": 64, "weight_decay": 0.01, "warmup_steps": 0.1,
        "num_train_epochs": 10,
    }  # fmt: skip
    said = next(line for line in caplog.messages if line.startswith("defaults: "))
    assert set(re.findall(r"--(\w+)", said)) == {name for name in found if not name.endswith("_column_name")}
    assert not Defaults.of_search(["--dataset_name", "wassa2022", "--data_dir", "x"])


def test_the_users_file_is_read_once(mine, v3_folder, monkeypatch):
    read = []
    monkeypatch.setattr(load, "read_file", lambda *path: read.append(path) or read_file(*path))
    completed("--train_file", mine, "--model_name_or_path", v3_folder)
    assert len(read) == 1


def test_patience_needs_evaluations(mine, v3_folder):
    start = ["--train_file", mine, "--model_name_or_path", v3_folder, "--early_stopping_patience", 2]
    with pytest.raises(InputError, match="early_stopping_patience needs evaluations"):
        completed(*start, "--eval_strategy", "no")
    with pytest.raises(InputError, match="early_stopping_patience needs"):
        completed(*start, "--validation_split_percentage", 0)


# ---- What is printed ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("flags", "epochs", "begins", "cells"),
    [
        ({"max_steps": 5000}, 1, "steps: 5,000", ["step", "3/5,000"]),
        ({"max_steps": 5000}, sys.maxsize, "steps: 5,000", ["step", "3/5,000"]),  # a stream
        ({"max_steps": 5000}, 7, "steps: 5,000 (epochs: 7)", ["epoch", "0/7"]),
        ({}, 7, "steps: 5,000 (epochs: 7)", ["epoch", "0/7"]),
    ],
)
def test_a_training_within_its_first_epoch_counts_steps(flags, epochs, begins, cells, caplog):
    caplog.set_level(logging.INFO)
    lines, control = callbacks.EpochLines(callbacks.PERPLEXITY), TrainerControl()
    args = TrainingArguments("out", use_cpu=True, disable_tqdm=True, **flags)
    state = TrainerState(max_steps=5000, num_train_epochs=epochs)
    lines.on_evaluate(args, state, control, {"eval_perplexity": 2.0})  # before a training: no line
    lines.on_train_begin(args, state, control)
    state.global_step, state.epoch, control.should_evaluate = 3, 0.0005862, True
    lines.on_step_end(args, state, control)
    assert control.should_log
    state.log_history.append({"loss": 1.5, "step": 3})
    lines.on_evaluate(args, state, control, {"eval_loss": 9.6, "eval_perplexity": 15213.456})
    first, header, line = (message.split() for message in caplog.messages)
    assert " ".join(first) == begins
    assert [header[0], line[0]] == cells
    assert line[1:4] == ["1.5000", "9.6000", "15213.46"]
    assert max(map(len, caplog.messages)) <= 80


# ---- When it stops ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("f1", "loss", "stops"),
    [
        ([0.5, 0.6, 0.6, 0.5], [1.0, 0.9, 0.9, 1.1], True),
        ([0.5, 0.6, 0.6], [1.0, 0.9, 0.9], False),
        ([0.0, 0.0, 0.0, 0.0], [1.0, 0.9, 0.8, 0.7], False),  # several classes per row: nothing is above 0.5 yet
        ([0.5, 0.4, 0.6, 0.7], [1.0, 1.1, 1.2, 1.3], False),
        ([0.7, 0.6, 0.6], [1.0, 1.1, 1.2], True),
        ([], [], False),
    ],
)
def test_patience_counts_evaluations_without_a_better_figure(f1, loss, stops):
    control = TrainerControl()
    history = [{"eval_macro_f1": each, "eval_loss": other} for each, other in zip(f1, loss, strict=True)]
    StopEarly(2).on_train_begin(None, TrainerState(log_history=[{"loss": 1.0}, *history]), control)
    assert control.should_training_stop == stops


def test_a_log_file_has_lines_and_no_bars(finished):
    _, done = finished
    assert "\r" not in done.stderr
    assert "'eval_loss'" not in done.stdout + done.stderr
    assert [line.split()[0] for line in done.stderr.splitlines() if LINE.fullmatch(line)]
