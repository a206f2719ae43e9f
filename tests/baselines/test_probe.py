"""Logistic regression on frozen vectors."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from support import ESSAYS, ROOT, call
from transformers import DebertaV2Model

from trainer_ext.baselines import probe
from trainer_ext.errors import InputError

FLAGS = ("--train_file", ESSAYS, "--id_column_name", "id", "--group_column_name", "writer", "--max_seq_length", 32)


def test_vectors_are_the_masked_mean_in_the_order_of_the_texts(v3_folder, tokenizer):
    texts = ["They knew, and they signed it all the same, twice over.", "Nobody told us", "The river took the road."]
    found = probe.text_vectors(str(v3_folder), texts, 32, probe.ProbeArguments())
    of_layers = probe.text_vectors(str(v3_folder), texts, 32, probe.ProbeArguments(), layers=True)
    library = DebertaV2Model.from_pretrained(v3_folder).eval()
    for text, vector in zip(texts, found, strict=True):
        with torch.no_grad():
            inputs = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
            states = library(**inputs, output_hidden_states=True).hidden_states
        means = [each[0].mean(dim=0).numpy() for each in states]
        np.testing.assert_allclose(vector, means[-1], atol=1e-5)
        np.testing.assert_allclose(of_layers[texts.index(text)], np.concatenate(means), atol=1e-5)  # it has two layers


def test_checkpoints_are_compared_on_the_same_folds(v3_folder, bert_folder, tmp_path):
    output = tmp_path / "probe.json"
    flags = map(str, [*FLAGS, "--models", v3_folder, bert_folder, "--cv_folds", 2, "--output", output])
    command = [sys.executable, "-m", "trainer_ext.baselines.probe", *flags]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    content = json.loads(output.read_text())
    assert content["command"].startswith("python -m trainer_ext.baselines.probe --train_file ")
    first, second = content["models"]
    assert content["folds"] == 2
    assert second["difference"]["macro_f1"] == pytest.approx(second["macro_f1"] - first["macro_f1"], abs=1e-3)
    assert f"{first['macro_f1']:.3f} (" in said
    assert str(tmp_path) not in output.read_text()
    assert "difference" not in first


def test_a_probe_learns_what_the_vectors_hold():
    generator = np.random.default_rng(0)
    classes = np.arange(120) % 3
    vectors = np.eye(3)[classes] * 3 + generator.normal(size=(120, 3))
    assert (probe.fit_probe(vectors, classes, None, 1).predict(vectors) == classes).mean() > 0.9


def test_without_a_checkpoint_it_says_so():
    with pytest.raises(InputError, match="give --models"):
        call(probe.main, *FLAGS)
