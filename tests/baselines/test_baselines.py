"""The systems that the paper compares with."""

import csv
import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.stats import pearsonr
from support import ESSAYS, ROOT, call
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, DebertaV2Model, Seq2SeqTrainingArguments

from modeling_emodeberta import EmoDebertaModel
from trainer_ext.baselines import mtl, probe, small_checkpoint, t5
from trainer_ext.baselines.mtl import MultiTaskModel
from trainer_ext.baselines.t5 import T5Arguments, label_log_likelihoods, name_tokens
from trainer_ext.data.emotion_corpora import WASSA_LABELS
from trainer_ext.data.load import DataArguments
from trainer_ext.errors import InputError
from trainer_ext.evaluation.metrics import SEVEN_FIGURES
from trainer_ext.recipes import RecipeParser
from trainer_ext.runs.run import CLASSIFY_ARGUMENTS
from trainer_ext.training.warm_start import warm_start

TEXTS = ["They knew about the cracks.", "She laughed, and so did we, all the way to the harbour.", "No."]


@pytest.fixture(scope="module")
def small_t5(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small") / "t5"
    call(small_checkpoint.main, "t5", folder)
    return folder


@pytest.fixture(scope="module")
def small_electra(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small") / "electra"
    call(small_checkpoint.main, "electra", folder)
    return folder


@pytest.mark.parametrize("path", sorted((ROOT / "recipes" / "baselines").glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_hold_flags_that_there_are(path):
    of_tasks = mtl.ARGUMENTS
    kinds = {
        "electra": CLASSIFY_ARGUMENTS, "t5": (T5Arguments, DataArguments, Seq2SeqTrainingArguments),
        "mtl2": of_tasks, "mi3_mtl2": of_tasks,
    }  # fmt: skip
    RecipeParser(kinds[path.stem]).parse([str(path), "--use_cpu"])
    assert path.read_text().startswith("# run: python ")


# ---- T5 -----------------------------------------------------------------------------------------------------------


def test_a_labels_likelihood_is_the_decoders(small_t5):
    """Against one pass a label and text, without padding; and against the library's beam search over the names."""
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(small_t5).eval(), AutoTokenizer.from_pretrained(small_t5)
    names = name_tokens(tokenizer, WASSA_LABELS)
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        scores = label_log_likelihoods(model, **batch, names=names)
        for row, text in enumerate(TEXTS):
            alone = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
            for label, name in enumerate(WASSA_LABELS):
                target = torch.tensor([tokenizer(name)["input_ids"]])
                loss = model(**alone, labels=target).loss * target.shape[1]
                assert scores[row, label].item() == pytest.approx(-loss.item(), abs=1e-4)

    allowed = [[model.config.decoder_start_token_id, *tokenizer(name)["input_ids"]] for name in WASSA_LABELS]

    def following(_, written):
        begun = written.tolist()
        after = {name[len(begun)] for name in allowed if name[: len(begun)] == begun and len(name) > len(begun)}
        return sorted(after) or [tokenizer.pad_token_id]

    found = model.generate(
        **batch, num_beams=7, num_return_sequences=7, prefix_allowed_tokens_fn=following, length_penalty=0.0,
        max_new_tokens=12, early_stopping=False, output_scores=True, return_dict_in_generate=True,
    )  # fmt: skip
    written = tokenizer.batch_decode(found.sequences, skip_special_tokens=True)
    for row in range(len(TEXTS)):
        of_row = written[row * 7 : row * 7 + 7]
        assert set(of_row) <= set(WASSA_LABELS)
        assert of_row[0] == WASSA_LABELS[int(scores[row].argmax())]


def test_the_loss_is_the_names_and_weighs_classes(small_t5, tmp_path):
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(small_t5).eval(), AutoTokenizer.from_pretrained(small_t5)
    names, weights = name_tokens(tokenizer, WASSA_LABELS), torch.tensor([2.0, 1, 1, 1, 0.5, 1, 1])
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt", return_token_type_ids=False)
    classes = torch.tensor([0, 4, 6])
    args = Seq2SeqTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    each = []
    for row, label in enumerate(classes.tolist()):
        target = torch.tensor([tokenizer(WASSA_LABELS[label])["input_ids"]])
        one = {key: value[row : row + 1] for key, value in batch.items()}
        each.append(model(**one, labels=target).loss)
    for given, expected in ((None, sum(each) / 3), (weights, (2 * each[0] + each[1] / 2 + each[2]) / 3)):
        trainer = t5.LabelNameTrainer(model=model, args=args, names=names, class_weights=given)
        model.eval()
        assert trainer.compute_loss(model, {**batch, "labels": classes}).item() == pytest.approx(expected.item(), 1e-5)


def test_labels_that_the_tokenizer_cannot_tell_apart_are_refused(small_t5):
    tokenizer = AutoTokenizer.from_pretrained(small_t5)
    with pytest.raises(InputError, match="the labels '\U0001f600' and '\U0001f601' are the same to this tokenizer"):
        name_tokens(tokenizer, ["\U0001f600", "\U0001f601"])


def run_t5(*flags: object) -> None:
    essays = ("--train_file", ESSAYS, "--split_column_name", "split", "--group_column_name", "writer")
    call(t5.main, *essays, "--max_seq_length", 32, "--use_cpu", "--per_device_train_batch_size", 8, *flags)


def test_t5_trains_predicts_and_goes_on(small_t5, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ("--model_name_or_path", small_t5, "--balance_classes", "--save_strategy", "steps", "--save_steps", 2)
    run_t5(*flags, "--max_steps", 4, "--output_dir", "whole")
    results = json.loads((tmp_path / "whole" / "all_results.json").read_text())
    for prefix in ("eval", "test"):
        assert {f"{prefix}_{name}" for name in SEVEN_FIGURES} <= set(results)
        assert results[f"{prefix}_macro_f1_low"] <= results[f"{prefix}_macro_f1"] <= results[f"{prefix}_macro_f1_high"]
    with open(tmp_path / "whole" / "predictions.tsv", newline="") as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t") if row["split"] == "test"]
    lines = (tmp_path / "whole" / "predictions_EMO.tsv").read_text().splitlines()
    assert lines == [row["predicted"] for row in rows]
    assert len(lines) == results["test_rows"]
    for row in rows:
        assert sum(float(row[f"probability_{label}"]) for label in WASSA_LABELS) == pytest.approx(1, abs=1e-6)
    assert not list((tmp_path / "whole").glob("*.bin"))

    # Cut off after its second step, it ends where the whole run did.
    seen = []

    def stop(self, *args, **kwargs):
        result = step(self, *args, **kwargs)
        seen.append(self.state.global_step)
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return result

    step = t5.LabelNameTrainer.training_step
    monkeypatch.setattr(t5.LabelNameTrainer, "training_step", stop)
    with pytest.raises(KeyboardInterrupt):
        run_t5(*flags, "--max_steps", 4, "--output_dir", "cut")
    monkeypatch.setattr(t5.LabelNameTrainer, "training_step", step)
    run_t5(*flags, "--max_steps", 4, "--output_dir", "cut")
    assert (tmp_path / "cut" / "predictions.tsv").read_text() == (tmp_path / "whole" / "predictions.tsv").read_text()


def test_t5_carves_validation_rows_and_draws_writers(small_t5, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = "".join(
        f"{'gate' if i % 2 else 'river'} {i},{'joy' if i % 2 else 'fear'},{int(i**0.5)}\n" for i in range(40)
    )
    (tmp_path / "rows.csv").write_text("text,label,writer\n" + rows)
    flags = ("--model_name_or_path", small_t5, "--train_file", "rows.csv", "--group_column_name", "writer", "--use_cpu")
    asked = ("--validation_split_percentage", 20, "--bagging", "--save_strategy", "best", "--eval_strategy", "steps")
    call(t5.main, *flags, *asked, "--eval_steps", 1, "--max_steps", 2, "--keep_checkpoints", "--output_dir", "out")
    results = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert results["validation_rows"] == 8
    assert results["train_rows"] != 32, "writers with other numbers of rows are drawn"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ((), "give --model_name_or_path"),
        (
            ("--model_name_or_path", "nowhere", "--output_dir", "out"),
            "nowhere: the Hub does not answer",
        ),
        (("--model_name_or_path", "BERT", "--output_dir", "out"), "no encoder and decoder; want a T5"),
    ],
)
def test_what_t5_cannot_do_is_one_line(flags, says, bert_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=says):
        run_t5(*(bert_folder if flag == "BERT" else flag for flag in flags))
    assert not (tmp_path / "out").exists()


@pytest.mark.realdata
def test_t5_on_wassa(small_t5, data_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = ROOT / "recipes" / "baselines" / "t5.yaml"
    flags = ("--data_dir", data_dir, "--model_name_or_path", small_t5, "--max_steps", 2, "--output_dir", "out")
    call(t5.main, recipe, *flags, "--use_cpu", "--max_seq_length", 32, "--per_device_train_batch_size", 4)
    assert len((tmp_path / "out" / "predictions_EMO.tsv").read_text().splitlines()) == 525
    assert "eval_macro_f1" in json.loads((tmp_path / "out" / "all_results.json").read_text())


# ---- ELECTRA ------------------------------------------------------------------------------------------------------


@pytest.mark.realdata
def test_electra_on_wassa(small_electra, data_dir, in_process, tmp_path):
    recipe = ROOT / "recipes" / "baselines" / "electra.yaml"
    flags = ("--data_dir", data_dir, "--model_name_or_path", small_electra, "--max_steps", 2, "--max_eval_samples", 16)
    results = in_process(recipe, *flags)
    assert results["train_rows"] == 1860 + 2800
    assert len((tmp_path / "out" / "predictions_EMO.tsv").read_text().splitlines()) == 525
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["pooling"], config["classifier_hidden_size"]) == ("cls", None)


def test_a_small_checkpoint_is_not_written_over_anything(small_electra, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["small_checkpoint.py", "t5", str(small_electra)])
    with pytest.raises(InputError, match="is there already"):
        small_checkpoint.main()


# ---- Multi-task ---------------------------------------------------------------------------------------------------


def test_multi_task_loss_and_gradients_are_those_by_hand(bert_folder, batch):
    torch.manual_seed(0)
    model = MultiTaskModel(warm_start(str(bert_folder), EmoDebertaModel), 7, 2, 3, 0.0, 0.7, 0.4).eval()
    inputs, labels = torch.randn(3, 3), torch.tensor([0, 4, 6])
    targets = torch.tensor([[0.5, -1.0], [math.nan, 2.0], [1.5, math.nan]])
    outputs = model(**batch, inputs=inputs, labels=labels, targets=targets)
    outputs["loss"].backward()

    read = torch.cat([model.encoder(**batch).pooler_output, inputs], dim=1).detach()
    read.requires_grad_()
    logits = read @ model.emotion.weight.T + model.emotion.bias
    numbers = read @ model.numbers.weight.T + model.numbers.bias
    emotion = -sum(logits[row].log_softmax(dim=0)[label] for row, label in enumerate(labels.tolist())) / 3
    first = ((numbers[0, 0] - 0.5) ** 2 + (numbers[2, 0] - 1.5) ** 2) / 2
    second = ((numbers[0, 1] + 1) ** 2 + (numbers[1, 1] - 2) ** 2) / 2
    loss = 0.7 * emotion + 0.4 * (first + second)
    torch.testing.assert_close(outputs["loss"], loss)
    weights = [model.emotion.weight, model.emotion.bias, model.numbers.weight, model.numbers.bias]
    for parameter, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


def test_correlations_are_scipys_over_rows_with_a_value():
    draw = np.random.default_rng(0)
    numbers, targets = draw.normal(size=(50, 2)), draw.normal(size=(50, 2))
    targets[:7, 1] = math.nan
    found = mtl.correlations(numbers, targets, ["empathy", "distress"])
    expected = [pearsonr(numbers[:, 0], targets[:, 0])[0], pearsonr(numbers[7:, 1], targets[7:, 1])[0]]
    assert [found["pearson_empathy"], found["pearson_distress"]] == pytest.approx(expected)
    assert found["pearson"] == pytest.approx(sum(expected) / 2)
    assert mtl.correlations(np.ones((5, 1)), targets[:5, :1], ["empathy"])["pearson"] == 0


def people(folder, broken: str = "") -> list:
    """Rows with numbers beside the text; one is missing, those of test all are."""
    with open(folder / "people.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["split", "text", "label", "empathy", "age"])
        for row in range(48):
            split = ("train", "train", "dev", "test")[row % 4]
            empathy = broken if row == 8 else "" if split == "test" else row % 5 + 1
            age = "" if split == "test" or row == 4 else 20 + row
            writer.writerow([split, f"The {row}th gate was shut.", WASSA_LABELS[row % 3], empathy, age])
    return ["--train_file", folder / "people.csv", "--split_column_name", "split", "--max_seq_length", 32, "--use_cpu"]


def test_several_tasks_are_trained_and_predicted(bert_folder, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO")
    flags = ["--model_name_or_path", bert_folder, "--number_targets", "empathy", "--number_inputs", "age"]
    flags += ["--num_train_epochs", 2, "--per_device_train_batch_size", 4, "--output_dir", "out"]
    call(mtl.main, *people(tmp_path), *flags)
    assert "test: 12 of 12 rows lack age; the training mean is used instead" in caplog.text
    assert "train: 1 of 24 rows lack age" in caplog.text
    results = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert -1 <= results["eval_pearson_empathy"] <= 1
    assert {f"eval_{name}" for name in SEVEN_FIGURES} <= set(results)
    values = [float(line) for line in (tmp_path / "out" / "predictions_EMP.tsv").read_text().splitlines()]
    assert len(values) == 12
    assert 0 < np.mean(values) < 6  # on the scale of the file
    saved = load_file(tmp_path / "out" / "model.safetensors")
    assert saved["emotion.weight"].shape == (3, 33)


@pytest.mark.parametrize(
    ("broken", "flags", "says"),
    [
        ("much", ("--number_targets", "empathy"), "train, the row with id 10: empathy is 'much'; want a number"),
        ("", ("--number_targets", "income"), "no column 'income'"),
    ],
)
def test_what_several_tasks_cannot_read_is_one_line(broken, flags, says, bert_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=says):
        call(
            mtl.main, *people(tmp_path, broken), "--model_name_or_path", bert_folder, "--output_dir", "out", *flags
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["mtl2", "mi3_mtl2"])
def test_several_tasks_on_wassa(name, bert_folder, data_dir, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO")
    recipe = ROOT / "recipes" / "baselines" / f"{name}.yaml"
    flags = ("--data_dir", data_dir, "--model_name_or_path", bert_folder, "--max_steps", 2, "--output_dir", "out")
    call(mtl.main, recipe, *flags, "--use_cpu", "--max_seq_length", 32)
    results = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert results["eval_pearson"] == pytest.approx(
        (results["eval_pearson_empathy"] + results["eval_pearson_distress"]) / 2
    )
    assert len((tmp_path / "out" / "predictions_EMO.tsv").read_text().splitlines()) == 525
    lines = (tmp_path / "out" / "predictions_EMP.tsv").read_text().splitlines()
    assert [line.count("\t") for line in lines] == [1] * 525
    lacking = "test: 525 of 525 rows lack iri_fantasy; the training mean is used instead"
    assert (lacking in caplog.text) == (name == "mi3_mtl2")
    assert "validation: " not in caplog.text  # dev's are in the file with its labels


PROBE_FLAGS = (
    "--train_file",
    ESSAYS,
    "--id_column_name",
    "id",
    "--group_column_name",
    "writer",
    "--max_seq_length",
    32,
)


def test_vectors_are_the_masked_mean_in_the_order_of_the_texts(v3_folder, tokenizer):
    texts = ["They knew, and they signed it all the same, twice over.", "Nobody told us", "The river took the road."]
    found = probe.text_vectors(str(v3_folder), texts, 32)
    of_layers = probe.text_vectors(str(v3_folder), texts, 32, layers=True)
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
    flags = map(str, [*PROBE_FLAGS, "--models", v3_folder, bert_folder, "--cv_folds", 2, "--output", output])
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
        call(probe.main, *PROBE_FLAGS)
