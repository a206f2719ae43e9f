"""Damaged and crafted model folders: each script says in one line what is wrong, and nothing is drawn at random."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import call

import run_export
import run_score
from modeling_emodeberta import EmoDebertaForMaskedLM, EmoDebertaForSequenceClassification
from pipeline_emodeberta import EmotionPipeline
from trainer_ext.errors import InputError
from trainer_ext.release.ensemble_folder import compare_folders, read_members, save_ensemble
from trainer_ext.training.tokenizer import load_tokenizer
from trainer_ext.training.warm_start import warm_start

LABELS = {0: "anger", 1: "fear", 2: "joy"}


@pytest.fixture(scope="module")
def good(v3_folder, tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("classifier")
    EmotionPipeline(model=warm_start(str(v3_folder), id2label=LABELS), tokenizer=tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(good, tmp_path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "model"))


def score(folder):
    texts = folder.parent / "texts.txt"
    texts.write_text("a day\n")
    call(
        run_score.main, "--model", folder, "--input", texts, "--output", folder.parent / "scores", "--dtype", "float32"
    )


def start(folder):
    model = warm_start(str(folder), id2label=LABELS)
    load_tokenizer(str(folder), 32, model.config)


USES = {
    "run_score": score,
    "run_export": lambda folder: run_export.load(str(folder)),
    "run_fuse": lambda folder: read_members([folder, folder], ["a", "b"]),
    "warm start": start,
}


def values(**changes):
    def change(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def written(name: str, content: bytes):
    return lambda folder: (folder / name).write_bytes(content)


def without(*names: str):
    return lambda folder: [(folder / name).unlink() for name in names]


def cut(name: str, size: int):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def tensors(change):
    def apply(folder):
        found = load_file(folder / "model.safetensors")
        change(found)
        save_file(found, folder / "model.safetensors", metadata={"format": "pt"})

    return apply


def a_folder(name: str):
    return lambda folder: [(folder / name).unlink(), (folder / name).mkdir()]


HARMFUL = {
    "config is a list": written("config.json", b"[1, 2]"),
    "config is a number": written("config.json", b"7"),
    "config is null": written("config.json", b"null"),
    "config is cut": cut("config.json", 100),
    "config is empty": written("config.json", b""),
    "config is not UTF-8": written("config.json", b'{"model_type": "\xff"}'),
    "config is deep": written("config.json", b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "config is a folder": a_folder("config.json"),
    "no config": without("config.json"),
    "hidden size is a text": values(hidden_size="32"),
    "hidden size is a list": values(hidden_size=[32]),
    "hidden size is 0": values(hidden_size=0),
    "hidden size is negative": values(hidden_size=-32),
    "hidden size is huge": values(hidden_size=10**9),
    "heads are 0": values(num_attention_heads=0),
    "heads do not divide": values(num_attention_heads=5),
    "layers are a text": values(num_hidden_layers="two"),
    "more layers": values(num_hidden_layers=3),
    "vocabulary is null": values(vocab_size=None),
    "another width": values(intermediate_size=63),
    "labels are a list": values(id2label=["a", "b", "c"]),
    "labels have texts for numbers": values(id2label={"a": "b"}),
    "labels leave a number out": values(id2label={"0": "a", "2": "b", "3": "c"}),
    "labels are one name": values(id2label={"0": "a", "1": "a", "2": "a"}),
    "a label is a list": values(id2label={"0": ["a"], "1": "b", "2": "c"}),
    "architectures is a number": values(architectures=7),
    "model type is a list": values(model_type=["emodeberta"]),
    "model type is unknown": values(model_type="emodeberto"),
    "activation is unknown": values(hidden_act="gelo"),
    "positions are a number": values(pos_att_type=7),
    "dropout is a text": values(hidden_dropout_prob="much"),
    "problem type is unknown": values(problem_type="guessing"),
    "no weights": without("model.safetensors"),
    "weights are cut": cut("model.safetensors", 5000),
    "weights are empty": written("model.safetensors", b""),
    "weights are a text": written("model.safetensors", b"these are no weights"),
    "weights claim too much": written("model.safetensors", b"\xff" * 8 + b"{}"),
    "weights are a folder": a_folder("model.safetensors"),
    "weights of another shape": tensors(
        lambda found: found.update({"deberta.encoder.rel_embeddings.weight": torch.ones(2, 2)})
    ),
    "a layer is missing": tensors(lambda found: found.pop("deberta.encoder.layer.1.output.dense.weight")),
    "the classifier is missing": tensors(lambda found: [found.pop(key) for key in list(found) if "classifier" in key]),
    "one bias of the classifier is missing": tensors(lambda found: found.pop("classifier.out_proj.bias")),
    "shards are missing": lambda folder: [
        (folder / "model.safetensors").unlink(),
        (folder / "model.safetensors.index.json").write_text('{"metadata": {}, "weight_map": {"a": "b.safetensors"}}'),
    ],
    "the index is a list": lambda folder: [
        (folder / "model.safetensors").unlink(),
        (folder / "model.safetensors.index.json").write_text("[]"),
    ],
    "tokenizer is cut": cut("tokenizer.json", 300),
    "tokenizer is a list": written("tokenizer.json", b"[]"),
    "tokenizer is not UTF-8": written("tokenizer.json", b"\xff\xfe"),
    "its configuration is a list": written("tokenizer_config.json", b"[]"),
    "its configuration is cut": cut("tokenizer_config.json", 20),
    "no tokenizer": without("tokenizer.json", "tokenizer_config.json"),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("what", HARMFUL)
def test_a_folder_that_does_not_fit_is_refused_in_one_line(what, use, folder):
    HARMFUL[what](folder)
    with pytest.raises(InputError) as error:
        USES[use](folder)
    assert "\n" not in str(error.value)
    assert str(folder.name) in str(error.value)


@pytest.mark.parametrize("use", USES)
def test_a_whole_folder_passes_in_one_file_or_in_shards(use, folder):
    USES[use](folder)
    shutil.rmtree(folder.parent / "scores", ignore_errors=True)
    model = EmoDebertaForSequenceClassification.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="40KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    USES[use](folder)


def test_an_ensemble_of_sharded_members_is_that_of_whole_ones(good, folder, tmp_path):
    model = EmoDebertaForSequenceClassification.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="40KB")
    saved = []
    for number, second in enumerate((good, folder)):
        members = read_members([good, second], ["a", "b"])
        save_ensemble(tmp_path / str(number), members, "hard", compare_folders(members, "hard"))
        saved.append(load_file(tmp_path / str(number) / "model.safetensors"))
    assert saved[0].keys() == saved[1].keys()
    assert all(torch.equal(saved[0][name], saved[1][name]) for name in saved[0])


def test_a_head_of_another_size_or_for_other_labels_may_be_new(folder):
    """Where a stage asks for it; a classifier without its own head is refused (above)."""
    assert "classifier.dense" in warm_start(str(folder), id2label=LABELS, classifier_hidden_size=8).drawn_anew
    assert warm_start(str(folder), id2label={0: "dark", 1: "light"}).num_labels == 2
    assert "lm_predictions.lm_head.dense" in warm_start(str(folder), EmoDebertaForMaskedLM).drawn_anew


def test_a_card_that_cannot_be_read_is_named(folder):
    (folder / "README.md").write_text("---\nlicense: [other\n---\n")
    with pytest.raises(InputError, match=r"README\.md: cannot be read"):
        read_members([folder, folder], ["a", "b"])
