"""The model: its encoder, pooling, heads and loss; saved, under the lowest and the newest transformers, and others."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from support import ROOT, TINY, XXLARGE_STYLE
from torch.nn import functional as F
from transformers import AutoModel, DebertaV2Config, DebertaV2Model
from transformers.dynamic_module_utils import get_relative_import_files, get_relative_imports

from configuration_emodeberta import EmoDebertaConfig, EmoDebertaEnsembleConfig
from ensemble_emodeberta import EmoDebertaEnsembleForSequenceClassification
from modeling_emodeberta import EmoDebertaForSequenceClassification, EmoDebertaModel, classification_loss, masked_mean


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
