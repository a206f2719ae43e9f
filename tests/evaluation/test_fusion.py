"""Late fusion: votes against brute force, what is fitted against noise, and one folder from many."""

import csv
import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import forked
import numpy as np
import pytest
import torch
import yaml
from datasets import Dataset
from huggingface_hub.errors import StrictDataclassError
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sklearn.metrics import f1_score
from support import ESSAYS, ROOT, call
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import run_classify
import run_fuse
import run_reproduce
from configuration_emodeberta import EmoDebertaEnsembleConfig
from ensemble_emodeberta import EmoDebertaEnsembleForSequenceClassification, fuse, to_logits
from modeling_emodeberta import EmoDebertaForSequenceClassification
from pipeline_emodeberta import EmotionPipeline
from trainer_ext.baselines.probe import fit_tfidf
from trainer_ext.data.corpus import Corpus
from trainer_ext.data.emotion_corpora import WASSA_LABELS
from trainer_ext.data.folds import cross_validation_folds, group_folds
from trainer_ext.data.label_maps import TransferRows
from trainer_ext.data.load import load_corpus
from trainer_ext.errors import InputError
from trainer_ext.evaluation.decisions import (
    apply_temperature,
    brier_score,
    expected_calibration_error,
    fit_temperature,
)
from trainer_ext.evaluation.fusion import (
    _macro_f1,
    cross_fitted,
    disagreement,
    fit_rule,
    fit_weights,
    fuse_by_rule,
    hard_vote,
    select_greedily,
    soft_vote,
)
from trainer_ext.evaluation.predictions import read_predictions
from trainer_ext.files import file_digest
from trainer_ext.recipe_file import DATA_FLAGS, DRIVER_FLAGS, FusionFile
from trainer_ext.release.ensemble_folder import read_members
from trainer_ext.release.licence import restricted_upstream
from trainer_ext.runs.fusion_recipe import bagged_votes, read_fusion_recipe
from trainer_ext.runs.trials import Trials
from trainer_ext.runs.variants import read_variants
from trainer_ext.training.distillation import soften_labels, write_out_of_fold


def random_members(members, rows, labels, seed, sharpness=1.0):
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.full(labels, sharpness), size=(members, rows))


# ---- Votes --------------------------------------------------------------------------------------------------------


@given(st.integers(1, 9), st.integers(2, 7), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_the_hard_vote_is_the_majority_and_ties_go_to_the_higher_mean(members, labels, seed):
    probabilities = random_members(members, 40, labels, seed)
    fused = hard_vote(probabilities)
    assert np.allclose(fused.sum(axis=1), 1)
    for row in range(40):
        votes = [0] * labels
        for member in range(members):
            votes[max(range(labels), key=lambda label: probabilities[member, row, label])] += 1
        tied = [label for label in range(labels) if votes[label] == max(votes)]
        assert fused[row].argmax() == max(tied, key=lambda label: probabilities[:, row, label].mean())


def test_the_votes_logits_are_finite_and_name_the_vote():
    """In float32, with members that are sure to the last bit."""
    logits = torch.tensor([[[200.0, -200.0, 0.0]], [[-200.0, 200.0, 0.0]], [[-200.0, 200.0, 0.0]]])
    for fusion in ("hard", "soft"):
        found = to_logits(fuse(logits.softmax(dim=-1), fusion), temperature=0.7)
        assert found.isfinite().all()
        assert found.argmax(dim=-1).tolist() == [1]


def test_the_soft_vote_is_the_weighted_mean():
    probabilities = random_members(3, 20, 4, 0)
    assert np.allclose(soft_vote(probabilities), probabilities.mean(axis=0))
    assert np.allclose(soft_vote(probabilities, [0.5, 0.5, 0.0]), (probabilities[0] + probabilities[1]) / 2)


# ---- What is fitted -----------------------------------------------------------------------------------------------


def noisy_members(rng, gold, strengths, labels=7):
    """Members that know the answer as well as their strength says, with errors of their own."""
    logits = rng.normal(size=(len(strengths), len(gold), labels))
    logits[:, np.arange(len(gold)), gold] += np.asarray(strengths)[:, None]
    return torch.from_numpy(logits).softmax(dim=-1).numpy()


def test_weights_go_to_the_members_that_know():
    rng = np.random.default_rng(0)
    gold = rng.integers(7, size=1500)
    probabilities = noisy_members(rng, gold, [2.5, 0.0, 0.0])
    weights = fit_weights(probabilities, gold)
    assert weights.sum() == pytest.approx(1)
    assert weights[0] > 0.9
    assert select_greedily(probabilities, gold)[0] > 0.7


def test_the_weights_gradient_is_right():
    """The fit ends where a small step to any side makes the likelihood worse."""
    rng = np.random.default_rng(1)
    gold = rng.integers(5, size=300)
    probabilities = noisy_members(rng, gold, [1.0, 0.7, 0.3], labels=5)
    weights = fit_weights(probabilities, gold, penalty=0.0)

    def likelihood(weights):
        return np.log(np.einsum("m,mr->r", weights, probabilities[:, np.arange(300), gold])).sum()

    for member in range(3):
        for step in (-0.02, 0.02):
            moved = weights.copy()
            moved[member] = max(moved[member] + step, 1e-9)
            assert likelihood(moved / moved.sum()) <= likelihood(weights) + 1e-6


@pytest.mark.parametrize("rule", ["weighted", "selected"])
def test_on_pure_noise_fitting_gains_nothing(rule):
    """Members that know nothing: cross-fitted, the fused ones score as chance does; fitted in place, they would not."""
    labels, rows, writers = 4, 400, 80
    cross, in_place = [], []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        gold, groups = rng.integers(labels, size=rows), np.repeat(np.arange(writers), rows // writers)
        probabilities = rng.dirichlet(np.ones(labels), size=(8, rows))
        folds = group_folds(gold, [str(group) for group in groups])
        fused = cross_fitted(
            lambda here, p=probabilities, g=gold: fit_rule(rule, p[:, here], g[here]),
            lambda weights, here, p=probabilities: fuse_by_rule(rule, p[:, here], weights),
            folds,
        )
        cross.append((fused.argmax(axis=1) == gold).mean())
        in_place.append(
            (fuse_by_rule(rule, probabilities, fit_rule(rule, probabilities, gold)).argmax(axis=1) == gold).mean()
        )
    error = np.std(cross) / np.sqrt(len(cross))
    assert abs(np.mean(cross) - 1 / labels) < 4 * error
    assert np.mean(in_place) > np.mean(cross) + 2 * error


def test_cross_fitting_never_sees_the_row_it_scores():
    folds = np.array([0, 1, 2, 0, 1, 2, 0])
    seen = cross_fitted(lambda rows: set(rows), lambda fitted, rows: [[row in fitted] for row in rows], folds)
    assert not seen.any()


def test_macro_f1_is_scikit_learns():
    rng = np.random.default_rng(3)
    for labels in (2, 5, 7):
        gold, predicted = rng.integers(labels, size=30), rng.integers(labels, size=(4, 30))
        expected = [f1_score(gold, row, average="macro", zero_division=0) for row in predicted]
        assert _macro_f1(predicted, gold, labels) == pytest.approx(expected)


def test_disagreement():
    probabilities = np.eye(3)[[[0, 1, 2, 0], [0, 1, 0, 0], [1, 2, 0, 1]]]
    assert disagreement(probabilities).tolist() == [[0, 0.25, 1], [0.25, 0, 0.75], [1, 0.75, 0]]


# ---- Calibration --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sharpening", [2.0, 3.5])
def test_the_temperature_undoes_over_confidence(sharpening):
    rng = np.random.default_rng(0)
    honest = random_members(1, 4000, 5, 0, sharpness=0.7)[0]
    gold = np.array([rng.choice(5, p=row) for row in honest])
    sure = apply_temperature(honest, 1 / sharpening)
    folds = np.arange(len(gold)) % 5
    cooled = cross_fitted(
        lambda rows: fit_temperature(sure[rows], gold[rows]), lambda t, rows: apply_temperature(sure[rows], t), folds
    )
    assert fit_temperature(sure, gold) == pytest.approx(sharpening, rel=0.1)
    assert expected_calibration_error(cooled, gold) < 0.03 < expected_calibration_error(sure, gold)
    assert brier_score(cooled, gold) < brier_score(sure, gold)
    assert np.array_equal(cooled.argmax(axis=1), sure.argmax(axis=1))


def test_calibration_figures_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.4, 0.6]])
    gold = np.array([0, 1, 0, 0])
    # Two rows at .9, half of them right; two at .6, half of them right.
    assert expected_calibration_error(probabilities, gold) == pytest.approx(0.5 * 0.4 + 0.5 * 0.1)
    assert brier_score(probabilities, gold) == pytest.approx((0.02 + 1.62 + 0.32 + 0.72) / 4)


# ---- One folder from many -----------------------------------------------------------------------------------------


# The essays as a corpus for a target with two moods.
MAP = {
    "train_file": str(ESSAYS),
    "labels": {"dark": ["anger", "disgust", "fear", "sadness"], "light": ["joy", "neutral", "surprise"]},
}


def test_the_folder_says_what_was_measured(fused):
    folder, done = fused
    figures = json.loads((folder / "all" / "fusion.json").read_text())
    assert [row["name"] for row in figures["variants"]] == [
        *("first", "cls", "other", "hard vote", "soft vote", "weighted", "selected"),
    ]
    assert figures["scored_on"] == "labelled validation rows"
    assert figures["grouped"]
    assert sum(figures["weights"]) == pytest.approx(1)
    assert np.diag(figures["disagreement"]).tolist() == [0, 0, 0]
    assert figures["disagreement"][0][1] > 0
    for name in ("fusion.png", "reliability.png"):
        assert (folder / "all" / name).read_bytes().startswith(b"\x89PNG")
    card = (folder / "all" / "README.md").read_text()
    for row in figures["variants"]:
        assert f"| {row['name']} | {row['macro_f1']:.3f} |" in card
        assert f"{row['macro_f1']:.3f}" in done.stdout
    assert not list((folder / "all").rglob("*.bin"))
    shipped = {path.name for path in ROOT.glob("*_emodeberta.py")} | {"handler.py"}
    assert {path.name for path in (folder / "all").glob("*.py")} == shipped


def test_the_ensembles_predictions_are_its_own(fused):
    """Computed from the members' files; against the ensemble itself on the texts."""
    folder = fused[0] / "all"
    with open(folder / "predictions.tsv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    with open(ESSAYS, newline="", encoding="utf-8") as file:
        texts = {row["id"]: row["text"] for row in csv.DictReader(file, delimiter="\t")}
    model = EmoDebertaEnsembleForSequenceClassification.from_pretrained(folder)
    classify = EmotionPipeline(model=model, tokenizer=AutoTokenizer.from_pretrained(folder))
    assert {row["split"] for row in rows} == {"validation", "test"}
    for row, result in zip(rows, classify([texts[row["id"]] for row in rows], top_k=None), strict=True):
        assert row["predicted"] == result[0]["label"]
        scores = {entry["label"]: entry["score"] for entry in result}
        assert {name: float(row[f"probability_{name}"]) for name in scores} == pytest.approx(scores, abs=1e-4)
    lines = (folder / "predictions_EMO.tsv").read_text().splitlines()
    assert lines == [row["predicted"] for row in rows if row["split"] == "test"]


def test_it_loads_without_the_project_and_fuses_the_members(fused, python_without_project):
    """Logits from the folder alone against those computed here from the members' folders."""
    folder, _ = fused
    texts = ["They knew about the cracks.", "The river took the road, and nobody came for two days.", "Evacuation."]
    printed = python_without_project(
        f"""
import json, torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, pipeline
folder, texts = {str(folder / "all")!r}, {texts!r}
classify = pipeline("text-classification", model=folder, trust_remote_code=True)
assert type(classify).__name__ == "EmotionPipeline"
model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
base = AutoModel.from_pretrained(folder, trust_remote_code=True)
first = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)(texts, padding=True, return_tensors="pt")
other = AutoTokenizer.from_pretrained(folder, subfolder="tokenizer_1")(texts, padding=True, return_tensors="pt")
inputs = dict(first) | {{name + "_1": value for name, value in other.items()}}
with torch.no_grad():
    outputs = model(**inputs, output_member_logits=True)
    pooled = base(**inputs).pooler_output
print(json.dumps({{
    "logits": outputs.logits.tolist(), "members": outputs.member_logits.tolist(), "pooled": list(pooled.shape),
    "piped": classify(texts, top_k=None), "with members": classify(texts[0], return_members=True),
}}))
"""
    )
    found = json.loads(printed.splitlines()[-1])
    assert found["pooled"] == [3, 96]
    expected = []
    for name in ("first", "cls", "other"):
        model = EmoDebertaForSequenceClassification.from_pretrained(folder / name).eval()
        inputs = PreTrainedTokenizerFast.from_pretrained(folder / name)(texts, padding=True, return_tensors="pt")
        with torch.no_grad():
            expected.append(model(**inputs).logits)
    members = torch.stack(expected)
    torch.testing.assert_close(torch.tensor(found["members"]).transpose(0, 1), members, atol=1e-5, rtol=0)
    figures = json.loads((folder / "all" / "fusion.json").read_text())
    mixed = torch.einsum("m,mrl->rl", torch.tensor(figures["weights"]), members.softmax(dim=-1))
    logits = mixed.log() / figures["temperature"]
    torch.testing.assert_close(torch.tensor(found["logits"]), logits, atol=1e-5, rtol=0)
    labels = json.loads((folder / "all" / "config.json").read_text())["id2label"]
    for row, want in zip(found["piped"], logits.softmax(dim=-1), strict=True):
        for entry in row:
            assert entry["score"] == pytest.approx(float(want[list(labels.values()).index(entry["label"])]), abs=1e-5)
    (one,) = found["with members"]
    assert list(one["members"]) == ["first", "cls", "other"]
    assert one["disagreement"] == sum(m["label"] != one["label"] for m in one["members"].values()) / 3


def test_an_ensemble_saves_and_loads(fused, tmp_path, device):
    folder, _ = fused
    model = EmoDebertaEnsembleForSequenceClassification.from_pretrained(folder / "all")
    model.save_pretrained(tmp_path)
    again = EmoDebertaEnsembleForSequenceClassification.from_pretrained(tmp_path)
    assert again.config.member_names == ["first", "cls", "other"]
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    with pytest.raises(ValueError, match="no input_ids_1: the members use 2 tokenizers"):
        model(input_ids=torch.tensor([[1, 5, 2]]))

    ids, mask = torch.tensor([[1, 5, 9, 2], [1, 7, 2, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    inputs = {"input_ids": ids, "attention_mask": mask, "input_ids_1": ids, "attention_mask_1": mask}
    inputs = {name: values.to(device) for name, values in inputs.items()}
    with torch.no_grad():
        want = model.eval()(**{name: values.cpu() for name, values in inputs.items()}, output_member_logits=True)
        labels = torch.tensor([0, 1])
        first, *others = model(
            **{name: values.cpu() for name, values in inputs.items()}, labels=labels, return_dict=False
        )
        torch.testing.assert_close(first, torch.nn.functional.cross_entropy(want.logits, labels))  # as in the library
        torch.testing.assert_close(others, [want.logits])
        for dtype, within in ((torch.float32, 1e-5), *([(torch.float16, 2e-2)] if device.type == "cuda" else [])):
            found = again.to(device, dtype).eval()(**inputs, output_member_logits=True)
            torch.testing.assert_close(found.logits.cpu(), want.logits, atol=within, rtol=within)
            torch.testing.assert_close(found.member_logits.cpu(), want.member_logits, atol=within, rtol=within)


def test_a_pipeline_saves_every_tokenizer_of_an_ensemble(fused, tmp_path, python_without_project):
    """Twice, as remote code: what is saved again says what the first folder says."""
    folder, _ = fused
    out = python_without_project(f"""
from transformers import pipeline
texts = ["They closed the mill during the evacuation.", "Nobody came."]
folder, said = {str(folder / "all")!r}, []
for number in range(3):
    classify = pipeline("sentiment-analysis", model=folder, trust_remote_code=True)
    said.append(classify(texts, top_k=None))
    folder = {str(tmp_path)!r} + f"/{{number}}"
    classify.save_pretrained(folder)
print(said[0] == said[1] == said[2], len(said[0]))
""")
    assert out.split() == ["True", "2"]
    assert (tmp_path / "2" / "tokenizer_1" / "tokenizer.json").is_file()


def test_members_that_lack_weights_are_refused_before_anything_is_written(fused, monkeypatch, tmp_path):
    folder, _ = fused
    broken = shutil.copytree(folder / "cls", tmp_path / "broken", ignore=shutil.ignore_patterns("checkpoints"))
    weights = load_file(broken / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.startswith("classifier.")}
    save_file(kept, broken / "model.safetensors", metadata={"format": "pt"})
    argv = ["run_fuse.py", "--members", str(folder / "first"), str(broken), "--output_dir", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(InputError, match=r"broken: its weights lack classifier\.\S+ and \d+ more"):
        run_fuse.main()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--members", "first"], "needs at least two"),
        (["--members", "first", "nowhere"], "nowhere: no config.json and model.safetensors there"),
        (["--members", "first", "cls", "--names", "a", "a"], "two members are called 'a'"),
        (["--members", "first", "cls", "../{folder}/first", "--names", "a", "b", "c"], "first: are one folder; want"),
        (["--members", "first", "all"], "all: no EmoDeBERTa classifier"),
        (["--members", "first", "cls", "--names", "a"], "--names: 1 for 2 members"),
        (["--members", "first", "cls", "--output_dir", "first"], "holds a finished run"),
    ],
)
def test_bad_members_are_named(arguments, says, fused, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(fused[0])
    arguments = [argument.format(folder=fused[0].name) for argument in arguments]
    output = [] if "--output_dir" in arguments else ["--output_dir", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["run_fuse.py", *arguments, *output])
    with pytest.raises(InputError) as error:
        run_fuse.main()
    assert says in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"weights": [0.5, 0.6], "fusion": "soft"}, "sum of 1"),
        ({"weights": [0.5, 0.5]}, "weights are for the soft vote"),
        ({"tokenizer_of_member": [0, 2]}, "none left out"),
        ({"tokenizer_of_member": [0, 10**12]}, "none left out"),
        ({"tokenizer_of_member": [-1, 0]}, "none left out"),
        ({"member_names": ["a"]}, "member_names has 1 values for 2 members"),
        ({"temperature": 0.0}, "want more than 0"),
    ],
)
def test_a_configuration_that_does_not_fit(change, says):
    with pytest.raises(StrictDataclassError) as error:
        EmoDebertaEnsembleConfig(members=[{}, {}], **change)
    assert says in str(error.value.__cause__ or error.value)


def test_the_old_name_of_tokenizer_of_member_is_still_read(fused, tmp_path):
    """Folders saved before the name changed hold `families`; only the new name is written."""
    path = fused[0] / "all" / "config.json"
    content = json.loads(path.read_text())
    assert "families" not in content
    numbers = content.pop("tokenizer_of_member")
    assert numbers == [0, 0, 1]
    (tmp_path / "config.json").write_text(json.dumps(content | {"families": numbers}))
    config = EmoDebertaEnsembleConfig.from_pretrained(tmp_path)
    assert config.tokenizer_of_member == numbers
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == json.loads(path.read_text())
    (tmp_path / "config.json").write_text(json.dumps(content | {"families": [0, 2, 2]}))
    with pytest.raises(StrictDataclassError) as error:
        EmoDebertaEnsembleConfig.from_pretrained(tmp_path)
    assert "none left out" in str(error.value.__cause__ or error.value)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("tokenizer_config.json", "null", "its tokenizer cannot be read"),
        ("README.md", "---\nlicense: [\n---\n", "README.md: cannot be read .* so its licence is unknown"),
        ("predictions.tsv", "split\tid\tgold\tpredicted\tfear\tjoy\n", "predictions.tsv: labels are fear, joy"),
    ],
)
def test_a_damaged_file_of_a_member_is_named(name, content, says, fused, tmp_path):
    """What is wrong with its configuration or weights is in test_checkpoints.py."""
    shutil.copytree(fused[0] / "cls", tmp_path / "cls", ignore=shutil.ignore_patterns("checkpoints"))
    (tmp_path / "cls" / name).write_text(content)
    with pytest.raises(InputError, match=f"^{re.escape(str(tmp_path / 'cls'))}.*{says}") as error:
        read_members([tmp_path / "cls"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", ["nan", "-1", "1e308"])
def test_predictions_that_are_none_are_refused(value, fused, tmp_path):
    shutil.copytree(fused[0] / "cls", tmp_path / "cls", ignore=shutil.ignore_patterns("checkpoints"))
    path = tmp_path / "cls" / "predictions.tsv"
    lines = path.read_text().splitlines()
    lines[5] = "\t".join([*lines[5].split("\t")[:-1], value])
    path.write_text("\n".join(lines))
    with pytest.raises(
        InputError, match=rf"cls/predictions\.tsv, row 5, surprise: '{value}'; want a probability, 0 to 1"
    ):
        read_members([fused[0] / "first", tmp_path / "cls"])


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_member_that_diverged_is_refused(value, fused, tmp_path):
    shutil.copytree(fused[0] / "cls", tmp_path / "cls", ignore=shutil.ignore_patterns("checkpoints"))
    weights = load_file(tmp_path / "cls" / "model.safetensors")
    weights["classifier.out_proj.bias"][2] = float(value)
    save_file(weights, tmp_path / "cls" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"cls: classifier\.out_proj\.bias is not finite"):
        read_members([fused[0] / "first", tmp_path / "cls"])
    (tmp_path / "cls" / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(InputError, match="cls: its weights cannot be loaded"):
        read_members([fused[0] / "first", tmp_path / "cls"])


def test_without_labelled_rows_there_is_a_plain_vote(fused, tmp_path, monkeypatch, caplog):
    folder, _ = fused
    for name in ("first", "cls"):
        shutil.copytree(folder / name, tmp_path / name, ignore=shutil.ignore_patterns("predictions*", "checkpoints"))
    monkeypatch.chdir(tmp_path)
    command = ["run_fuse.py", "--members", "first", "cls", "--output_dir", "all"]
    monkeypatch.setattr(sys, "argv", [*command, "--fusion", "selected"])
    with pytest.raises(InputError, match="is fitted on labelled rows; first, cls has none"):
        run_fuse.main()
    monkeypatch.setattr(sys, "argv", command)
    with caplog.at_level("INFO"):
        run_fuse.main()
    assert "nothing is compared or calibrated" in caplog.text
    config = json.loads((tmp_path / "all" / "config.json").read_text())
    assert (config["fusion"], config["temperature"]) == ("hard", 1.0)
    assert not (tmp_path / "all" / "fusion.png").exists()


def test_a_recipe_trains_members_that_differ_and_fuses_them(comparison, tmp_path, monkeypatch):
    """The folds of two members are those that a comparison has trained; they are trained on all rows, then."""
    shutil.copytree(comparison / "outputs" / "trials", tmp_path / "outputs" / "trials")
    shutil.copy(comparison / "mine.csv", tmp_path)
    settings = yaml.safe_load((comparison / "mine.yaml").read_text())["settings"]
    content = {"settings": settings, "members": {"mean": {}, "[CLS]": {"pooling": "cls", "seed": 1}}, "cv_folds": 2}
    content |= {"tfidf": True, "without": {"[CLS]": ["[CLS]"]}}
    (tmp_path / "fuse.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    flags = ("--output_dir", "all", "--jobs", 2, "--fusion", "weighted")
    done = forked.run(ROOT / "run_fuse.py", "fuse.yaml", *flags, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "4 of 4 trainings are done already" in done.stdout
    monkeypatch.chdir(tmp_path)
    figures = json.loads((tmp_path / "all" / "fusion.json").read_text())
    for name in ("fusion.json", "fusion.png", "reliability.png"):
        kept = (tmp_path / "results" / "fuse" / "fuse" / name).read_bytes()
        assert kept == (tmp_path / "all" / name).read_bytes()
    assert figures["members"] == ["mean", "[CLS]"]
    assert figures["scored_on"] == "training rows, 2-fold cross-validation,"
    table = {row["name"]: row["macro_f1"] for row in figures["variants"]}
    corpus = load_corpus(files={"train": "mine.csv"}, text_column="body", label_column="mood", id_column="number")
    texts, gold = corpus.splits["train"]["text"][:], corpus.classes("train")
    held_out = cross_validation_folds(corpus, 2) == 0
    predicted = np.zeros(len(gold), dtype=int)
    for rows in (held_out, ~held_out):
        model = fit_tfidf([text for text, out in zip(texts, rows, strict=True) if not out], gold[~rows], None, 1)
        predicted[rows] = model.predict([text for text, out in zip(texts, rows, strict=True) if out])
    assert table["TF-IDF + logistic regression"] == pytest.approx(f1_score(gold, predicted, average="macro"))
    assert table.keys() > {"hard vote, with TF-IDF + logistic regression"}
    against = {row["name"]: row for row in figures["against_the_ensemble"]}
    assert list(against) == ["the ensemble", "without [CLS]"]
    assert against["without [CLS]"]["macro_f1"] == pytest.approx(table["mean"])
    assert f"| without [CLS] | {table['mean']:.3f} |" in (tmp_path / "all" / "README.md").read_text()
    config = json.loads((tmp_path / "all" / "config.json").read_text())
    assert [member["pooling"] for member in config["members"]] == ["mean", "cls"]
    assert config["temperature"] == figures["temperature"] != 1
    stage = run_reproduce.Stage("ensemble", ["run_fuse.py", "fuse.yaml", "--fusion", "weighted"], Path("all"), 1)
    assert stage.made_otherwise() is None
    (tmp_path / "fuse.yaml").write_text(yaml.safe_dump(content | {"tfidf": False}, sort_keys=False))
    assert stage.made_otherwise().endswith(", with another fuse.yaml")
    (tmp_path / "fuse.yaml").write_text(yaml.safe_dump(content))
    plan = call(run_fuse.main, "fuse.yaml", "--output_dir", "again", "--plan")
    assert "2 members, 2 folds and all rows: 6 trainings, 6 of them done" in plan
    assert not (tmp_path / "again").exists()

    flags = [f"--{name}={value}" for name, value in settings.items()]
    (tmp_path / "map.yaml").write_text(yaml.safe_dump(MAP))
    transfer = ["--transfer_datasets", "map.yaml", "--augmentation", "RA", "--augmentation_rows", 9]
    all_rows = ["--validation_split_percentage", 0, "--distill_from", "all"]
    call(run_classify.main, *flags, *transfer, *all_rows, "--output_dir", "student")
    assert json.loads((tmp_path / "student" / "all_results.json").read_text())["train_rows"] == 99


def test_a_students_teachers_saw_neither_its_fold_nor_the_row(comparison, tmp_path, monkeypatch):
    """What each student learnt is computed again from the records of the trainings without two folds."""
    settings = yaml.safe_load((comparison / "mine.yaml").read_text())["settings"] | {"num_train_epochs": 1}
    content = {"settings": settings, "members": {"mean": {}, "[CLS]": {"pooling": "cls", "seed": 3}}, "cv_folds": 3}
    content |= {"student": {"num_train_epochs": 2, "seed": 2}, "teachers": ["[CLS]"]}
    (tmp_path / "fuse.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    shutil.copy(comparison / "mine.csv", tmp_path)
    monkeypatch.chdir(tmp_path)
    recipe = read_fusion_recipe(Path("fuse.yaml"), {})
    corpus = load_corpus(files={"train": "mine.csv"}, text_column="body", label_column="mood", id_column="number")
    driver = Trials(tmp_path / "trials", recipe.shared, corpus, "fuse.yaml", 2)
    planned = recipe.plan(driver)
    assert "1 teacher without each two folds; and 3 of the student: 11 trainings, 0 of them done" in planned
    figures, _ = run_fuse.cross_validate(recipe, driver, corpus, "soft")
    assert not list((tmp_path / "trials").glob("teacher-*"))

    train, gold = corpus.splits["train"], corpus.classes("train")
    ids, texts = (np.array(train[name][:], dtype=object) for name in ("id", "text"))
    assigned = cross_validation_folds(corpus, 3)
    of_pair, of_student = {}, {}
    for path in driver.folder.glob("*/trial.json"):
        record = json.loads(path.read_text())
        with safe_open(path.with_name("probabilities.safetensors"), "numpy") as file:
            of_row = dict(
                zip(json.loads(file.metadata()["emodeberta"])["ids"]["test"], file.get_tensor("test"), strict=True)
            )
        held_out = record["settings"].get("cv_fold", 0)
        if isinstance(held_out, list):
            of_pair[frozenset(held_out)] = of_row
        elif "distill_from" in record["settings"]:
            of_student[held_out] = record["settings"]["distill_from"], of_row
    assert len(of_pair) == len(of_student) == 3
    decided = np.zeros(len(gold), dtype=int)
    for scored, (learnt, said) in of_student.items():
        rows = np.flatnonzero(assigned != scored)
        taught = np.stack([of_pair[frozenset((scored, assigned[row]))][ids[row]] for row in rows])
        write_out_of_fold(tmp_path, ids[rows].tolist(), texts[rows].tolist(), taught, corpus.label_names)
        assert file_digest(tmp_path / "out_of_fold.safetensors") == learnt
        for row in np.flatnonzero(assigned == scored):
            decided[row] = said[ids[row]].argmax()
    table = {row["name"]: row["macro_f1"] for row in figures["variants"]}
    against = {row["name"]: row for row in figures["against_the_ensemble"]}
    assert list(against) == ["the ensemble", "the student's teachers", "student"]
    assert table["student"] == pytest.approx(f1_score(gold, decided, average="macro"))
    assert against["the student's teachers"]["macro_f1"] == pytest.approx(table["[CLS]"])
    assert against["student"]["difference"]["macro_f1"] == pytest.approx(table["student"] - table["soft vote"])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"without": {"pooling": ["mean", "cls"]}}, "without, pooling: .* not of all"),
        ({"without": {"pooling": ["max"]}}, r"without, pooling: \['max'\]; want a list of some of the members"),
        ({"without": {"pooling": "mean"}}, "want a list"),
        ({"student": {}}, "teachers train without two folds; want cv_folds of at least 3"),
        ({"teachers": ["max"]}, r"teachers: \['max'\]; want a list of some of the members \(mean, cls\)"),
        ({"student": {"polling": "cls"}}, "student: unknown key 'polling'; did you mean 'pooling'"),
        ({"student": {"select": "best_on_dev"}}, "student: select best_on_dev is for single models"),
        (
            {"members": {"a": {}, "b": {"distill_from": "t"}}},
            "b: distill_from t: its teachers trained on the scored folds",
        ),
        ({"members": {"mean": {}}}, "one member; an ensemble needs at least two"),
        ({"settings": {"extra_tests": ["x.csv"]}}, "extra_tests is not for what run_fuse.py's members share"),
        ({"final": {"seed": 2}}, "final: seed is the same for all members"),
        ({"final": {"train_on_validatoin": True}}, "final: unknown key 'train_on_validatoin'; did you mean"),
    ],
)
def test_a_recipe_that_does_not_fit(change, says, comparison, tmp_path, monkeypatch):
    settings = yaml.safe_load((comparison / "mine.yaml").read_text())["settings"]
    settings["train_file"] = str(comparison / "mine.csv")
    content = {"settings": settings, "members": {"mean": {}, "cls": {"pooling": "cls"}}, "cv_folds": 2} | change
    (tmp_path / "fuse.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=says):
        call(run_fuse.main, "fuse.yaml", "--output_dir", "all", "--plan")


def test_the_folders_members_have_more_flags_than_their_folds(tmp_path):
    content = {"members": {"mean": {}, "cls": {"pooling": "cls", "seed": 2}}, "final": {"train_on_validation": True}}
    (tmp_path / "fuse.yaml").write_text(yaml.safe_dump(content | {"settings": {"train_file": "mine.csv"}}))
    recipe = read_fusion_recipe(tmp_path / "fuse.yaml", {})
    assert recipe.on_all_rows("cls").overrides == {"pooling": "cls", "train_on_validation": True}
    assert recipe.member("cls")[0] == {"pooling": "cls"}


def test_the_votes_of_bagged_members_stand_beside_those_of_their_likes():
    probabilities = random_members(5, 30, 4, 0)
    flags = [{}, {"pooling": "cls", "bagging": True}, {"bagging": True}, {"pooling": "cls"}, {"pooling": "max"}]
    found = bagged_votes(dict(zip("abcde", flags, strict=True)), probabilities)
    assert found.keys() == {
        *("hard vote, 2 bagged", "soft vote, 2 bagged"),
        *("hard vote, the same 2, not bagged", "soft vote, the same 2, not bagged"),
    }
    assert np.allclose(found["soft vote, 2 bagged"], probabilities[[1, 2]].mean(axis=0))
    assert np.allclose(found["hard vote, the same 2, not bagged"], hard_vote(probabilities[[0, 3]]))
    assert not bagged_votes(dict(zip("abc", [{}, {"bagging": True}, {"pooling": "cls"}], strict=True)), found)


def test_members_that_selection_never_picks_stay_out_of_the_folder(fused, tmp_path, monkeypatch):
    """Of a good member, and two that say the wrong thing: the good one alone."""
    folder = fused[0]
    for name in ("first", "cls", "other"):
        shutil.copytree(folder / name, tmp_path / name, ignore=shutil.ignore_patterns("checkpoints"))
        with open(tmp_path / name / "predictions.tsv", newline="", encoding="utf-8") as file:
            header, *rows = csv.reader(file, delimiter="\t")
        for row in rows:
            gold = f"probability_{row[header.index('gold')]}"
            wrong = header[5:].index(gold) + 1 if gold in header else 0
            said = wrong - 1 if name == "cls" else wrong % 7
            row[5:] = [f"{0.94 if label == said else 0.01}" for label in range(7)]
        with open(tmp_path / name / "predictions.tsv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file, delimiter="\t").writerows([header, *rows])
    monkeypatch.chdir(tmp_path)
    flags = ("--fusion", "selected", "--output_dir", "all")
    said = call(run_fuse.main, "--members", "first", "cls", "other", *flags)
    assert "never picked, so not in the folder: first, other" in said
    figures = json.loads((tmp_path / "all" / "fusion.json").read_text())
    assert figures["members"] == ["first", "cls", "other"]
    assert figures["weights"] == [0, 1, 0]
    model = EmoDebertaEnsembleForSequenceClassification.from_pretrained(tmp_path / "all")
    assert model.config.member_names == ["cls"]
    assert len(model.members) == 1
    assert "1 EmoDeBERTa classifier as one model: cls." in (tmp_path / "all" / "README.md").read_text()
    lines = (tmp_path / "all" / "predictions_EMO.tsv").read_text().splitlines()
    table = read_predictions(tmp_path / "cls", one_label=True)
    said = zip(table.rows, table.probabilities.argmax(axis=1), strict=True)
    assert lines == [table.label_names[label] for row, label in said if row.split == "test"]


def test_a_students_labels_are_what_the_teacher_says(fused, tmp_path):
    """Out-of-fold for the target's rows, predicted for the others; an unknown row is named."""
    folder = tmp_path / "teacher"
    shutil.copytree(fused[0] / "all", folder)
    text = "They knew about the cracks."
    distributions = random_members(1, 3, 7, 0)[0]
    columns = {"id": ["a", "b", "c", "x"], "text": ["one", "two", "three", text], "labels": [0, 1, 2, 3]}

    def corpus(rows):
        picked = {name: [values[row] for row in rows] for name, values in columns.items()}
        return Corpus({"train": Dataset.from_dict(picked)}, WASSA_LABELS, "single_label_classification", "test")

    with pytest.raises(InputError, match=r"no out_of_fold\.safetensors there"):
        soften_labels(corpus([0]), folder, None)
    write_out_of_fold(folder, ["c", "a", "b"], ["three", "one", "two"], distributions, WASSA_LABELS)
    written = set()
    for _ in range(8):  # the same to the byte: a student's name in the cache is by this file's hash
        write_out_of_fold(tmp_path, ["c", "a", "b"], ["three", "one", "two"], distributions, WASSA_LABELS)
        written.add((tmp_path / "out_of_fold.safetensors").read_bytes())
    assert len(written) == 1
    added = TransferRows(WASSA_LABELS, ids=["x"], texts=[text], labels=["joy"], corpora=["essays"])
    found = soften_labels(corpus([0, 1, 2, 3]), folder, added)
    assert np.allclose(found.splits["train"]["labels"][:3], distributions[[1, 2, 0]], atol=1e-6)
    model = EmoDebertaEnsembleForSequenceClassification.from_pretrained(folder).eval()
    assert model.config.temperature != 1
    model.config.temperature = 1.0  # the target's rows have none either
    scores = EmotionPipeline(model=model, tokenizer=PreTrainedTokenizerFast.from_pretrained(folder))(
        text, return_members=True
    )
    assert np.allclose(found.splits["train"]["labels"][3], list(scores[0]["scores"].values()), atol=1e-6)
    with pytest.raises(InputError, match="not cross-validated on row x and 0 more"):
        soften_labels(corpus([0, 3]), folder, None)
    columns["text"][1] = "two, edited"
    with pytest.raises(InputError, match="row b and 0 more, or on another text under these ids"):
        soften_labels(corpus([0, 1]), folder, None)
    other = replace(corpus([0]), label_names=["joy", "fear"])
    with pytest.raises(InputError, match="its labels are anger, disgust"):
        soften_labels(other, folder, None)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--members", "first", "cls", "--output_dir", "first", "--overwrite_output_dir"], "first is a member"),
        (["--members", "first", "cls", "--output_dir", "new", "--plan"], "--plan is for a recipe"),
        (["--members", "first", "cls", "--output_dir", "new", "--results_dir", "x"], "--results_dir is for a recipe"),
        (["--members", "first", "cls", "--output_dir", "new", "--trials_dir", "x"], "--trials_dir is for a recipe"),
        (["--members", "first", "cls", "--output_dir", "new", "--jobs", "2"], "--jobs is for a recipe"),
        (["--members", "first", "cls", "--names", "a", "selected", "--output_dir", "new"], "as one of the fusions"),
        (["fuse.yaml", "--names", "a", "--output_dir", "new"], "--names is for --members"),
    ],
)
def test_what_would_lose_a_member_is_refused(fused, flags, says, monkeypatch):
    monkeypatch.chdir(fused[0])
    with pytest.raises(InputError, match=says):
        call(run_fuse.main, *flags)
    assert (fused[0] / "first" / "model.safetensors").is_file()


def test_restricted_terms_are_inherited(tmp_path):
    for name, card in (
        ("wassa", "---\nlicense: other\n---\n"),
        ("open", "---\nlicense: mit\n---\n"),
        ("bare", "no card"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "README.md").write_text(card)
    folders = [str(tmp_path / name) for name in ("open", "bare", "none", "wassa")]
    assert restricted_upstream(*folders[:3], None, "owner/model") is None
    assert restricted_upstream(*folders) == "use under the terms of wassa, see its card"


@pytest.mark.parametrize("path", sorted((ROOT / "recipes" / "fuse").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_fusion_recipe_is_one_and_says_how_to_run_it(path):
    _, members, _ = read_variants(path, FusionFile, (DRIVER_FLAGS | DATA_FLAGS) - {"seed"})
    assert len(members) > 1
    assert path.read_text(encoding="utf-8").startswith(f"# run: python run_fuse.py recipes/fuse/{path.name}")
