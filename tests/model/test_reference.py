"""What a training computes, against losses recorded before: cached members are valid as long as these hold.

Where a change is meant to compute otherwise, raise `trainer_ext.runs.trials.COMPUTATION` and record anew:

    RECORD_LOSSES=1 python -m pytest tests/model/test_reference.py -n 0
"""

import csv
import json
import os
import re
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from support import ESSAY_FLAGS, ESSAYS, ESSAYS_AS_A_CORPUS, TINY
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

import run_classify
import trainer_ext.baselines.mtl
from trainer_ext.runs.trials import COMPUTATION

RECORDED = Path(__file__).parents[1] / "reference" / "losses.json"
STEPS = 6
# The flags that have code of their own in a training.
SETTINGS = {
    "plain": [],
    "relative attention, [CLS]": ["--relative_attention", "--pooling", "cls"],
    "single layer": ["--classifier_hidden_size", 0],
    "class weights, label smoothing": ["--class_weights", "balanced", "--label_smoothing_factor", 0.1],
    "F": ["--child_tuning", "F", "--child_tuning_p", 0.3],
    "D": ["--child_tuning", "D", "--child_tuning_p", 0.3],
    "F, update": ["--child_tuning", "F", "--child_tuning_p", 0.3, "--child_tuning_target", "update"],
    "tokens_per_batch": ["--tokens_per_batch", 512],
    "BA": ["--transfer_datasets", "essays.yaml", "--augmentation", "BA", "--augmentation_rows", 40],
    "RA, joined": [
        *("--transfer_datasets", "essays.yaml", "--augmentation", "RA", "--augmentation_rows", 40),
        *("--join_to_words", 100),
    ],
    "two tasks": ["--number_targets", "words", "--number_inputs", "vowels"],
    "average": ["--select", "average", "--max_train_samples", 24, "--num_train_epochs", 2],
}  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """BERT-shaped, with the essays' most frequent words: the same everywhere, which trained word pieces are not."""
    with open(ESSAYS, newline="", encoding="utf-8") as file:
        words = Counter(
            word for row in csv.DictReader(file, delimiter="\t") for word in re.findall(r"\w+", row["text"].lower())
        )
    frequent = sorted(words, key=lambda word: (-words[word], word))[:595]
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*special, *frequent])}, unk_token="[UNK]"))
    inner.normalizer, inner.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    folder = tmp_path_factory.mktemp("reference")
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "cls", "sep", "unk", "mask")}
    PreTrainedTokenizerFast(tokenizer_object=inner, **names).save_pretrained(folder)
    torch.manual_seed(0)
    shape = {key: TINY[key] for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")}
    BertModel(BertConfig(**shape, intermediate_size=64)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def essays(tmp_path_factory) -> Path:
    """With numbers."""
    path = tmp_path_factory.mktemp("reference") / "essays.tsv"
    with open(ESSAYS, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*rows[0], "words", "vowels"], delimiter="\t")
        writer.writeheader()
        for row in rows:
            writer.writerow(
                row | {"words": len(row["text"].split()), "vowels": len(re.findall("[aeiou]", row["text"]))}
            )
    return path


def losses(flags: list, checkpoint: Path, essays: Path, folder: Path, monkeypatch) -> list[float]:
    """Of each step, and at last on validation, which the final weights decide."""
    program, shared = run_classify, ESSAY_FLAGS
    if "--number_targets" in flags:
        program, at = trainer_ext.baselines.mtl, ESSAY_FLAGS.index("--classifier_hidden_size")
        shared = ESSAY_FLAGS[:at] + ESSAY_FLAGS[at + 2 :]
    command = [
        *(program.__name__, "--model_name_or_path", checkpoint, *shared, "--learning_rate", 2e-2),
        *("--logging_steps", 1, "--save_steps", STEPS, "--bf16", "false", "--output_dir", folder, "--seed", 1),
        *("--max_eval_samples", 40, "--max_predict_samples", 2, "--train_file", essays),
        "--keep_checkpoints",
        *("--warmup_steps", 0, "--weight_decay", 0, "--eval_strategy", "no"),  # as in a recipe that leaves them out
        *([] if "--num_train_epochs" in flags else ["--max_steps", STEPS]),
        *flags,
    ]
    monkeypatch.setattr(sys, "argv", [*map(str, command)])
    program.main()
    state = max(folder.glob("checkpoints/checkpoint-*/trainer_state.json"))
    found = [entry["loss"] for entry in json.loads(state.read_text())["log_history"] if "loss" in entry]
    return [*found, json.loads((folder / "all_results.json").read_text())["eval_loss"]]


@pytest.mark.parametrize("name", SETTINGS)
def test_a_training_computes_what_it_did(name, checkpoint, essays, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("essays.yaml").write_text(ESSAYS_AS_A_CORPUS)
    found = losses(SETTINGS[name], checkpoint, essays, tmp_path / "run", monkeypatch)
    if os.environ.get("RECORD_LOSSES"):
        content = json.loads(RECORDED.read_text()) if RECORDED.exists() else {"losses": {}}
        content = {"computation": COMPUTATION, "losses": content["losses"] | {name: found}}
        RECORDED.parent.mkdir(exist_ok=True)
        RECORDED.write_text(json.dumps(content, indent=1) + "\n")
    recorded = json.loads(RECORDED.read_text())["losses"][name]
    assert found == pytest.approx(recorded, abs=1e-3), "see the top of this file"


def test_the_recorded_losses_are_those_of_this_computation():
    content = json.loads(RECORDED.read_text())
    assert content["computation"] == COMPUTATION
    assert content["losses"].keys() == SETTINGS.keys()
    assert len({tuple(found) for found in content["losses"].values()}) == len(SETTINGS)  # each setting shows
