"""Masked-language pre-training: the model against the library's, masks by count, and run_mlm.py as its own process."""

import csv
import json
import os
import re
import sys
import time
from pathlib import Path

import forked
import pyarrow
import pyarrow.parquet
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from support import ESSAY_FLAGS, ESSAYS, ROOT, TINY, call, check_card, once
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    Trainer,
    TrainingArguments,
)
from transformers.integrations.neftune import activate_neftune, deactivate_neftune

import run_mlm
from configuration_emodeberta import EmoDebertaConfig
from modeling_emodeberta import EmoDebertaForMaskedLM
from trainer_ext.child_tuning import ChildTuningArguments
from trainer_ext.data.pretraining_texts import PretrainingArguments, load_pretraining_corpus
from trainer_ext.errors import InputError, run_command
from trainer_ext.recipes import RecipeParser
from trainer_ext.training.callbacks import ReturnMemory
from trainer_ext.training.masking import (
    MaskedTexts,
    Masking,
    PaddingCollator,
    Tokenising,
    masked_metrics,
    masked_scores,
)
from trainer_ext.training.saved_model import load_tokenizer
from trainer_ext.training.warm_start import CheckpointArguments, warm_start

# ---- Model --------------------------------------------------------------------------------------------------------


@pytest.fixture
def pair(batch, device):
    """The library's model and ours with its weights, and a batch with labels; padding stands in it."""
    torch.manual_seed(0)
    options = TINY | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    library = DebertaV2ForMaskedLM(DebertaV2Config(**options, legacy=False))
    ours = EmoDebertaForMaskedLM(EmoDebertaConfig(**options))
    assert ours.state_dict().keys() == library.state_dict().keys()
    ours.load_state_dict(library.state_dict())
    chosen = (torch.rand(batch["input_ids"].shape) < 0.3) & batch["attention_mask"].bool()
    batch = batch | {"labels": batch["input_ids"].where(chosen, -100)}
    return library.to(device), ours.to(device), {name: values.to(device) for name, values in batch.items()}


@pytest.mark.parametrize("full_logits", [False, True])
def test_loss_and_gradients_are_the_librarys(pair, full_logits):
    library, ours, batch = pair
    wanted, found = library(**batch), ours(**batch, full_logits=full_logits)
    chosen = batch["labels"] != -100
    assert found.loss.item() == pytest.approx(wanted.loss.item(), rel=1e-5)
    logits = found.logits[chosen] if full_logits else found.logits
    torch.testing.assert_close(logits, wanted.logits[chosen], rtol=1e-5, atol=1e-5)
    wanted.loss.backward()
    found.loss.backward()
    theirs = dict(library.named_parameters())
    for name, parameter in ours.named_parameters():
        scale = theirs[name].grad.abs().max().clamp(min=1e-8)
        assert (parameter.grad - theirs[name].grad).abs().max() < 1e-5 * scale + 1e-9, name


def test_lower_precision_trains_close_to_float32(pair, device):
    """In bf16, and on a GPU in float16, too."""
    _, ours, batch = pair
    found = []
    for dtype in (None, torch.bfloat16, *([torch.float16] if device.type == "cuda" else [])):
        ours.zero_grad()
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            loss = ours.train()(**batch).loss
        loss.backward()
        found.append((loss.item(), ours.deberta.embeddings.word_embeddings.weight.grad))
    for loss, gradient in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-2)
        assert (gradient - found[0][1]).norm() < 0.1 * found[0][1].norm()


def test_without_labels_every_token_has_logits(pair):
    library, ours, batch = pair
    batch.pop("labels")
    with torch.no_grad():
        wanted, found = library(**batch).logits, ours(**batch).logits
    tokens = batch["attention_mask"].bool()
    torch.testing.assert_close(found[tokens], wanted[tokens], rtol=1e-5, atol=1e-5)


def test_the_metric_of_the_librarys_run_mlm_works(pair, tokenizer, tmp_path):
    """Accuracy over masked tokens, from logits at every token; `full_logits = False` asks for those that are needed."""
    library, ours, batch = pair
    rows = [{name: values[row].tolist() for name, values in batch.items()} for row in range(len(batch["labels"]))]

    def accuracy(prediction):
        labels, predicted = prediction.label_ids.reshape(-1), prediction.predictions.reshape(-1)
        return {"right": int((predicted == labels)[labels != -100].sum())}

    def evaluate(model, metric=accuracy, choose=lambda logits, labels: logits.argmax(-1)):
        args = TrainingArguments(str(tmp_path), use_cpu=True, per_device_eval_batch_size=2, report_to="none")
        trainer = Trainer(model, args, compute_metrics=metric, preprocess_logits_for_metrics=choose)
        return trainer.evaluate(rows)

    want = evaluate(library)
    found = evaluate(ours)
    assert (found["eval_right"], found["eval_loss"]) == (want["eval_right"], pytest.approx(want["eval_loss"], rel=1e-4))
    ours.full_logits = False
    few = evaluate(ours, lambda prediction: masked_metrics(prediction.predictions), masked_scores)
    assert few["eval_masked_tokens"] == int((batch["labels"] != -100).sum())
    assert few["eval_masked_accuracy"] * few["eval_masked_tokens"] == pytest.approx(want["eval_right"])


def test_hooks_on_the_word_embeddings_fire(pair):
    """NEFTune is one; gradients are the library's under the same noise."""
    library, ours, batch = pair
    losses = []
    for model in (library, ours):
        plain = model.train()(**batch).loss
        handle = activate_neftune(model, 5.0)
        torch.manual_seed(3)
        loss = model(**batch).loss
        loss.backward()
        losses.append((plain.item(), loss.item()))
        deactivate_neftune(model, handle)
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert abs(losses[1][0] - losses[1][1]) > 1e-3
    name = "deberta.embeddings.word_embeddings.weight"
    want, found = (model.get_parameter(name).grad for model in (library, ours))
    assert (found - want).abs().max() < 1e-5 * want.abs().max()


@pytest.mark.parametrize("size", [607, 640, 590])
def test_the_heads_bias_follows_the_vocabulary(pair, size, tmp_path):
    _, ours, batch = pair
    batch.pop("labels")
    batch["input_ids"].clamp_(max=580)
    with torch.no_grad():
        before = ours.eval()(**batch).logits
        ours.resize_token_embeddings(size)
        ours.save_pretrained(tmp_path)
        for model in (ours, EmoDebertaForMaskedLM.from_pretrained(tmp_path).to(ours.device)):
            found = model.eval()(**batch).logits
            assert found.shape[-1] == len(model.lm_predictions.lm_head.bias) == model.config.vocab_size == size
            torch.testing.assert_close(found[..., :590], before[..., :590])


def test_the_tied_table_gets_both_gradients_once(pair):
    """Also where a loss comes from the states alone, where the encoder is frozen, and where a graph runs twice."""
    _, ours, batch = pair
    table = ours.deberta.embeddings.word_embeddings.weight

    def gradient(of, **options):
        ours.zero_grad()
        of.backward(**options)
        return table.grad.clone()

    loss = ours(**batch).loss
    torch.testing.assert_close(gradient(loss, retain_graph=True), gradient(loss))
    states = ours(**batch, output_hidden_states=True).hidden_states[-1].sum()
    assert gradient(states).abs().sum() > 0
    ours.deberta.requires_grad_(False)
    ours.zero_grad()
    ours(**batch).loss.backward()
    assert table.grad is None
    assert ours.lm_predictions.lm_head.dense.weight.grad.abs().sum() > 0


def test_accumulated_batches_give_the_gradient_of_one(pair):
    _, ours, batch = pair
    items = (batch["labels"] != -100).sum()
    ours(**batch).loss.backward()
    whole = ours.lm_predictions.lm_head.dense.weight.grad.clone()
    ours.zero_grad()
    for row in range(len(batch["labels"])):
        part = {name: values[row : row + 1] for name, values in batch.items()}
        ours(**part, num_items_in_batch=items).loss.backward()
    torch.testing.assert_close(ours.lm_predictions.lm_head.dense.weight.grad, whole, rtol=1e-4, atol=1e-7)


def randomise_vectors(model: nn.Module) -> None:
    """Biases and norms that would not show if they were lost."""
    for parameter in model.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, std=0.05)


@pytest.mark.parametrize("kind", ["v2", "legacy", "bert"])
def test_a_pretrained_head_is_taken_over(kind, batch, tmp_path):
    torch.manual_seed(0)
    if kind == "bert":
        shape = {key: TINY[key] for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")}
        library = BertForMaskedLM(BertConfig(**shape, intermediate_size=64))
    else:
        library = DebertaV2ForMaskedLM(DebertaV2Config(**TINY, legacy=kind == "legacy"))
    randomise_vectors(library)
    library.eval().save_pretrained(tmp_path)
    ours = warm_start(str(tmp_path), EmoDebertaForMaskedLM).eval()
    assert not ours.drawn_anew
    tokens = batch["attention_mask"].bool()
    with torch.no_grad():
        torch.testing.assert_close(ours(**batch).logits[tokens], library(**batch).logits[tokens], rtol=1e-5, atol=1e-5)
    ours.save_pretrained(tmp_path / "ours")
    again = DebertaV2ForMaskedLM.from_pretrained(tmp_path / "ours") if kind != "bert" else None
    if again is not None:  # the configuration says which head it has
        with torch.no_grad():
            torch.testing.assert_close(again.eval()(**batch).logits[tokens], ours(**batch).logits[tokens])


def test_a_head_that_was_never_trained_is_drawn_anew_and_said(tmp_path, caplog):
    """DeBERTa-v3's checkpoints carry one beside the head that tells replaced tokens."""
    library = DebertaV2ForMaskedLM(DebertaV2Config(**TINY, legacy=False))
    randomise_vectors(library)
    library.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["mask_predictions.dense.weight"] = torch.zeros(32, 32)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with caplog.at_level("INFO"):
        ours = warm_start(str(tmp_path), EmoDebertaForMaskedLM)
    assert "no usable head for masked words" in caplog.text
    assert "lm_predictions.lm_head" in ours.drawn_anew
    assert not ours.lm_predictions.lm_head.bias.any()


# ---- Masks --------------------------------------------------------------------------------------------------------


@pytest.mark.realdata
def test_a_million_tokens_are_masked_in_the_right_shares(data_dir):
    """Of the recipe's corpus and tokenizer, in run_mlm.py's own batches."""
    data = PretrainingArguments(dataset_name=["go_emotions", "xed"], data_dir=data_dir, validation_split_percentage=0)
    corpus = load_pretraining_corpus(data, seed=1)
    name = "sentence-transformers/all-MiniLM-L6-v2"
    tokenizer = load_tokenizer(name, 128, EmoDebertaConfig(vocab_size=30522))
    rows = corpus.train.map(Tokenising(tokenizer, 128, True, False), batched=True, remove_columns=["text"])
    texts, collate = MaskedTexts(rows, Masking(tokenizer, 0.15, seed=1)), PaddingCollator(tokenizer)
    special = torch.tensor(tokenizer.all_special_ids)
    tokens = chosen = masked = kept = 0
    for start in range(0, len(texts), 512):
        before = [torch.tensor(ids) for ids in rows[start : start + 512]["input_ids"]]
        batch = collate([texts[i] for i in range(start, min(start + 512, len(texts)))])
        before = nn.utils.rnn.pad_sequence(before, batch_first=True, padding_value=tokenizer.pad_token_id)
        with_label = batch["labels"] != -100
        assert (batch["labels"] == before)[with_label].all()
        assert (batch["input_ids"] == before)[~with_label].all()
        ordinary = ~torch.isin(before, special)
        assert not (with_label & ~ordinary).any()
        assert not (with_label & (batch["attention_mask"] == 0)).any()
        tokens += int(ordinary.sum())
        chosen += int(with_label.sum())
        masked += int((batch["input_ids"] == tokenizer.mask_token_id)[with_label].sum())
        kept += int((batch["input_ids"] == before)[with_label].sum())
        if tokens > 1_000_000:
            break
    chance = 1 / len(tokenizer)  # a random token may be [MASK], or the one that stood there
    assert tokens > 900_000
    for count, of, share in (
        (chosen, tokens, 0.15),
        (masked, chosen, 0.8 + 0.1 * chance),
        (kept, chosen, 0.1 + 0.1 * chance),
    ):
        assert abs(count - of * share) < 4 * (of * share * (1 - share)) ** 0.5, (count, of, share)


def test_masks_depend_on_seed_epoch_and_row_alone(tokenizer):
    row = tokenizer("They knew about the cracks for two years and sent the night shift in anyway, twice over.")
    rows = Dataset.from_dict({"input_ids": [row["input_ids"]] * 3})
    texts = MaskedTexts(rows, Masking(tokenizer, 0.3, seed=1))
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = [texts[i]["labels"].tolist() for i in range(3)]
    assert torch.equal(torch.get_rng_state(), state)
    assert [texts[i]["labels"].tolist() for i in (2, 1, 0)] == first[::-1]
    texts.set_epoch(1)
    second = [texts[i]["labels"].tolist() for i in range(3)]
    other = MaskedTexts(rows, Masking(tokenizer, 0.3, seed=2))[0]["labels"].tolist()
    evaluation = MaskedTexts(rows, Masking(tokenizer, 0.3, seed=1, stream="evaluation"))[0]["labels"].tolist()
    assert len({str(each) for each in [*first, *second, other, evaluation]}) == 8


def test_whole_words_are_masked_whole(tokenizer):
    essays = ROOT / "examples" / "essays.tsv"
    with open(essays, newline="", encoding="utf-8") as file:
        texts = [row["text"] for row in csv.DictReader(file, delimiter="\t")][:200]
    rows = Tokenising(tokenizer, 128, True, True)({"text": texts})
    masking, chosen_words, words_seen = Masking(tokenizer, 0.15, whole_words=True), 0, 0
    for key, (ids, words) in enumerate(zip(rows["input_ids"], rows["words"], strict=True)):
        labels = masking({"input_ids": ids, "words": words}, key)["labels"] != -100
        words = torch.tensor(words)
        assert not labels[words < 0].any()
        special = torch.isin(torch.tensor(ids), torch.tensor(tokenizer.all_special_ids))
        for word in range(int(words.max()) + 1):
            of_word = labels[(words == word) & ~special]
            if len(of_word):
                assert of_word.all() or not of_word.any()
                chosen_words += bool(of_word.any())
                words_seen += 1
    assert abs(chosen_words - 0.15 * words_seen) < 4 * (words_seen * 0.15 * 0.85) ** 0.5


def test_a_long_text_is_cut_or_becomes_several_rows(tokenizer):
    text = " ".join(["They knew about the cracks for two years."] * 12)
    whole = tokenizer(text)["input_ids"]
    (cut,) = Tokenising(tokenizer, 32, True, False)({"text": [text]})["input_ids"]
    parts = Tokenising(tokenizer, 32, False, False)({"text": [text]})["input_ids"]
    assert len(cut) == 32
    assert max(map(len, parts)) <= 32
    assert [token for part in parts for token in part[1:-1]] == whole[1:-1]


def test_figures_are_means_over_tokens_not_batches():
    logits, labels = torch.randn(5, 7), torch.full((3, 4), -100)
    labels[0, :2], labels[2, 1:] = torch.tensor([1, 2]), torch.tensor([3, 4, 5])
    found = masked_metrics(masked_scores(logits, labels).numpy())
    wanted = nn.functional.cross_entropy(logits, torch.tensor([1, 2, 3, 4, 5]))
    assert found["perplexity"] == pytest.approx(wanted.exp().item(), rel=1e-5)
    right = (logits.argmax(1) == torch.tensor([1, 2, 3, 4, 5])).float().mean().item()
    assert found["masked_accuracy"] == pytest.approx(right)
    assert found["masked_tokens"] == 5


# ---- run_mlm.py ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def corpus_file(tmp_path_factory):
    """Sentences of the project's own essays, one a line; two with nothing to read and one twice."""
    with open(ESSAYS, newline="", encoding="utf-8") as file:
        texts = [row["text"] for row in csv.DictReader(file, delimiter="\t")][:120]
    path = tmp_path_factory.mktemp("mlm") / "texts.txt"
    path.write_text("\n".join([*texts[:60], "\u200b\x01", *texts[60:], texts[0].upper(), ""]) + "\n", encoding="utf-8")
    return path


SCRIPT = ROOT / "run_mlm.py"
FLAGS = [
    *("--max_seq_length", 48, "--use_cpu", "--bf16", "false", "--learning_rate", "1e-3", "--tokens_per_batch", 384),
    *("--logging_steps", 2, "--eval_strategy", "steps", "--eval_steps", 8, "--save_steps", 8, "--seed", 3),
    *("--head_warmup_steps", 3, "--validation_split_percentage", 10),
]


@pytest.fixture(scope="session")
def pretrained(v3_folder, corpus_file, tmp_path_factory):
    flags = ("--model_name_or_path", v3_folder, "--train_file", corpus_file, *FLAGS, "--max_steps", 40)
    folder, done = once(
        tmp_path_factory, "pretrained", lambda folder: forked.run(SCRIPT, *flags, "--output_dir", "model", cwd=folder)
    )
    return folder / "model", done


def test_the_output_folder_is_whole_and_says_what_was_left_out(pretrained):
    folder, done = pretrained
    results = json.loads((folder / "all_results.json").read_text())
    assert results["train_rows"] + results["validation_rows"] == 120
    assert "left out: 1 (a second time" in done.stderr
    assert "left out: 2 (texts.txt: empty line)" in done.stderr
    assert json.loads((folder / "left_out.json").read_text())["counts"]["texts.txt: empty line"] == 2
    assert "the new head alone: 3 steps" in done.stderr
    assert f"perplexity {results['eval_perplexity']:.2f}" in done.stdout
    assert "'eval_loss'" not in done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if re.fullmatch(r" *[\d.]+/\d+( +([\d.]+|-)){4}", line)]
    assert max(map(len, lines)) <= 80
    measured = [line.split()[1:4] for line in lines if line.split()[3] != "-"]
    assert [float(loss) > 0 for loss, _, _ in measured] == [True] * 5
    history = json.loads((folder / "learning_curve.json").read_text())
    perplexity = [entry["eval_perplexity"] for entry in history if "eval_perplexity" in entry]
    assert perplexity[0] > perplexity[-1] == pytest.approx(results["eval_perplexity"])
    assert (folder / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    card = (folder / "README.md").read_text()
    assert "15% of the tokens" in card
    found = check_card(folder / "README.md")
    assert [row[1] for row in found.tables[1][1:]] == ["8", "16", "24", "32", "40"]
    assert found.tables[1][0][2:] == ["training loss", "validation loss", "perplexity", "masked accuracy"]
    assert found.data.tags == ["emodeberta", "deberta-v2"]
    assert "Left out: 2 (texts.txt: empty line)" in card
    with open(ESSAYS, newline="", encoding="utf-8") as file:
        essays = [row["text"] for row in csv.DictReader(file, delimiter="\t")][:120]
    written = done.stdout + done.stderr + card + (folder / "left_out.json").read_text()
    assert not any(essay[:30] in written for essay in essays)  # texts are not logged


def test_the_folder_opens_where_the_project_is_not(pretrained, python_without_project):
    folder, _ = pretrained
    out = python_without_project(
        f"""
import torch
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer, pipeline
folder = {str(folder)!r}
model = AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True)
encoder = AutoModel.from_pretrained(folder, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
inputs = tokenizer("The river took the [MASK].", return_tensors="pt")
with torch.no_grad():
    logits = model(inputs["input_ids"]).logits
    assert torch.equal(model.deberta(inputs["input_ids"])[0], encoder(inputs["input_ids"])[0])
(best,) = pipeline("fill-mask", model=folder, trust_remote_code=True)("The river took the [MASK].", top_k=1)
where = (inputs["input_ids"][0] == tokenizer.mask_token_id).nonzero().item()
print(best["token"] == logits[0, where].argmax().item())
"""
    )
    assert out.strip().splitlines()[-1] == "True"


def test_a_finished_model_is_measured_without_training(pretrained, corpus_file, tmp_path):
    """On the rows that it trained on it does better than on others."""
    model, _ = pretrained
    lines = corpus_file.read_text(encoding="utf-8").splitlines()
    (tmp_path / "other.txt").write_text("\n".join(" ".join(reversed(line.split())) for line in lines if line))
    perplexity = {}
    for file in (corpus_file, tmp_path / "other.txt"):
        folder = tmp_path / file.stem
        printed = call(
            *(run_mlm.main, "--do_eval", "--model_name_or_path", model, "--validation_file", file, "--use_cpu"),
            *("--max_seq_length", 48, "--bf16", "false", "--output_dir", folder),
        )
        results = json.loads((folder / "all_results.json").read_text())
        assert f"perplexity {results['eval_perplexity']:.2f}, " in printed
        assert "train_loss" not in results
        assert not (folder / "model.safetensors").exists()
        perplexity[file.stem] = results["eval_perplexity"]
    assert perplexity["texts"] < perplexity["other"]


def test_the_best_checkpoint_is_that_of_the_lowest_perplexity(v3_folder, corpus_file, tmp_path):
    call(
        *(run_mlm.main, "--model_name_or_path", v3_folder, "--train_file", corpus_file, *FLAGS, "--max_steps", 2),
        *("--eval_steps", 1, "--save_strategy", "best", "--keep_checkpoints", "--output_dir", tmp_path / "out"),
    )
    state = json.loads((max((tmp_path / "out").glob("checkpoints/*/trainer_state.json"))).read_text())
    measured = [entry["eval_perplexity"] for entry in state["log_history"] if "eval_perplexity" in entry]
    assert state["best_metric"] == min(measured)


def test_rows_without_a_masked_token_are_said_and_not_measured(tokenizer, caplog):
    rows = Dataset.from_dict({"input_ids": [[1, 9, 2]] * 3})
    never, always = (MaskedTexts(rows, Masking(tokenizer, share)) for share in (1e-9, 1 - 1e-9))
    args = ChildTuningArguments("out", use_cpu=True, eval_strategy="epoch")
    assert run_mlm.masked_validation(always, args) is always
    assert run_mlm.masked_validation(never, args) is None
    assert "none of the tokens in 3 held-out rows is masked" in caplog.text
    assert (args.eval_strategy, run_mlm.trains(args)) == ("no", True)
    with pytest.raises(InputError, match="none of the tokens in 3 held-out rows is masked"):
        run_mlm.masked_validation(never, ChildTuningArguments("out", use_cpu=True, do_eval=True))


@pytest.mark.parametrize("texts", [40, 2000])
def test_a_short_stream_keeps_rows_to_train_on(texts, tmp_path):
    (tmp_path / "few.txt").write_text("".join(f"The river took road {number}.\n" for number in range(texts)))
    data = PretrainingArguments(train_file=[str(tmp_path / "few.txt")], streaming=True, data_dir=None)
    corpus = load_pretraining_corpus(data, seed=1)
    held_out = {40: 2, 2000: 1000}[texts]
    assert len(corpus.validation) == held_out
    assert sum(1 for _ in corpus.train) == texts - held_out


def test_fine_tuning_starts_from_it(pretrained, run_classify, tmp_path):
    folder, _ = pretrained
    done = run_classify("--model_name_or_path", folder, *ESSAY_FLAGS, "--max_steps", 2, "--output_dir", tmp_path / "x")
    assert "with random weights: classifier.dense, classifier.out_proj" in done.stderr
    assert "not used: lm_predictions" in done.stderr


def test_killed_and_resumed_it_is_bit_exact(pretrained, v3_folder, corpus_file, tmp_path):
    """SIGKILL between a checkpoint and the end; masks of later epochs, dropout and the order of batches go on."""
    folder, _ = pretrained
    flags = ("--model_name_or_path", v3_folder, "--train_file", corpus_file, *FLAGS, "--max_steps", 40)
    process = forked.Forked(SCRIPT, *flags, "--output_dir", "again", cwd=tmp_path)
    started = time.time()
    while not (tmp_path / "again" / "checkpoints" / "checkpoint-16" / "trainer_state.json").exists():
        assert process.poll() is None, process.stderr[-3000:]
        assert time.time() - started < 300
        time.sleep(0.01)
    process.kill()
    assert not (tmp_path / "again" / "all_results.json").exists()
    done = forked.run(SCRIPT, *flags, "--output_dir", "again", cwd=tmp_path)
    assert "resuming from checkpoint-" in done.stderr
    wanted, found = load_file(folder / "model.safetensors"), load_file(tmp_path / "again" / "model.safetensors")
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)


def test_two_processes_train_one_model(v3_folder, corpus_file, tmp_path):
    flags = ("--model_name_or_path", v3_folder, "--train_file", corpus_file, *FLAGS, "--max_steps", 8)
    done = forked.run(SCRIPT, *flags, "--output_dir", "two", cwd=tmp_path, ranks=2)
    assert "training with world size 2" in done.stderr
    history = json.loads((tmp_path / "two" / "learning_curve.json").read_text())
    assert all(torch.isfinite(torch.tensor(entry["loss"])) for entry in history if "loss" in entry)
    results = json.loads((tmp_path / "two" / "all_results.json").read_text())
    assert results["validation_rows"] == 12


def test_a_stream_is_trained_on_without_being_held(v3_folder, tmp_path):
    texts = [f"row {i} of a stream about the river and the night shift" for i in range(4000)]
    table = pyarrow.table({"body": [*texts[:3000], "", *texts[3000:]]})
    pyarrow.parquet.write_table(table, tmp_path / "many.parquet", row_group_size=500)
    flags = (
        *("--model_name_or_path", v3_folder, "--train_file", "many.parquet", "--text_column_name", "body"),
        *("--streaming", "--max_steps", 70, "--per_device_train_batch_size", 64, "--max_eval_samples", 50),
        *("--use_cpu", "--bf16", "false", "--max_seq_length", 32, "--output_dir", "out", "--save_strategy", "no"),
    )
    done = forked.run(SCRIPT, *flags, cwd=tmp_path)
    assert "masked accuracy" in done.stdout
    content = json.loads((tmp_path / "out" / "left_out.json").read_text())
    assert content["counts"] == {"empty, or no text": 2}  # 70 x 64 rows: the file, and a part of it again


def test_a_stream_lets_go_of_what_it_read_and_numbers_its_rows(tmp_path, monkeypatch):
    """Of a parquet file, pyarrow holds no more than a few row groups; a planted text is named by its row."""
    monkeypatch.setattr("trainer_ext.data.pretraining_texts.SHUFFLE_BUFFER", 100)
    texts = [f"{i} " + f"word{i} " * 100 for i in range(12_000)]
    planted = "They knew about the cracks in the bridge and did nothing for a year."
    texts[7000] = planted
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "many.parquet", row_group_size=200)
    for name, held_out in (("target.txt", planted), ("held_out.txt", "another text")):
        (tmp_path / name).write_text(f"text\n{held_out}\n")
    (tmp_path / "target.txt").rename(tmp_path / "target.csv")
    data = PretrainingArguments(
        train_file=[str(tmp_path / "many.parquet")],
        validation_file=[str(tmp_path / "held_out.txt")],
        target_file=[str(tmp_path / "target.csv")],
        streaming=True,
        data_dir=None,
    )
    before = pyarrow.total_allocated_bytes()
    corpus = load_pretraining_corpus(data, seed=1)
    held = [pyarrow.total_allocated_bytes() - before for _ in corpus.train]
    assert len(held) == 11_999
    assert max(held) < sum(map(len, texts)) / 3
    assert corpus.guard.found == [("many.parquet, row 7001", "target.csv, text 1")]


@pytest.mark.parametrize("plant", ["whole", "capitals and commas", "half of it", "inside a longer text"])
def test_a_planted_target_text_is_found_and_named(plant, tmp_path):
    with open(ESSAYS, newline="", encoding="utf-8") as file:
        texts = [row["text"] for row in csv.DictReader(file, delimiter="\t")]
    target = texts[500]
    words = target.split()
    planted = {
        "whole": target,
        "capitals and commas": ", ".join(words).upper(),
        "half of it": " ".join(words[: len(words) // 2]),
        "inside a longer text": f"{texts[1]} {target} {texts[2]}",
    }[plant]
    write = {"target.tsv": [target, texts[501]], "corpus.tsv": [*texts[:40], planted, *texts[40:80]]}
    for name, rows in write.items():
        with open(tmp_path / name, "w", newline="", encoding="utf-8") as file:
            csv.writer(file, delimiter="\t").writerows([["text"], *([row] for row in rows)])
    data = PretrainingArguments(
        train_file=[str(tmp_path / "corpus.tsv")], target_file=[str(tmp_path / "target.tsv")], data_dir=None
    )
    corpus = load_pretraining_corpus(data, seed=1)
    assert corpus.guard.found == [("corpus.tsv, text 41", "target.tsv, text 1")]
    assert len(corpus.train) + len(corpus.validation) == 80


@pytest.mark.realdata
def test_a_planted_dev_essay_is_found(data_dir, tmp_path, v3_folder):
    from trainer_ext.data.load import load_corpus

    dev = load_corpus(dataset_name="wassa2022", data_dir=data_dir).splits["validation"]
    (tmp_path / "corpus.txt").write_text("The river took the road.\n" + dev["text"][7].replace("\n", " ") + "\n" * 2)
    done = forked.run(
        SCRIPT,
        *("--model_name_or_path", v3_folder, "--train_file", "corpus.txt", "--target_dataset_name", "wassa2022"),
        *("--data_dir", data_dir, "--max_steps", 1, "--use_cpu", "--bf16", "false", "--output_dir", "out"),
        *("--validation_split_percentage", 0, "--head_warmup_steps", 300),
        cwd=tmp_path,
    )
    assert "the new head alone: 1 steps" in done.stderr  # --max_steps is a limit to both parts
    assert f"corpus.txt, line 2 copies {dev['id'][7]}" in done.stderr
    assert dev["text"][7][:40] not in done.stderr + done.stdout
    assert json.loads((tmp_path / "out" / "all_results.json").read_text())["train_rows"] == 1


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "give either --dataset_name"),
        (["--train_file", "no.txt"], "no.txt: no such file"),
        (["--dataset_name", "go_emotions", "other"], "want go_emotions and xed, or one other"),
        (["--train_file", "t.txt", "--streaming"], "give --max_steps"),
        (["--train_file", "t.txt", "--streaming", "--max_steps", "2", "--tokens_per_batch", "9"], "leave one out"),
        (["--train_file", "t.txt", "--streaming", "--max_steps", "2", "--dataloader_num_workers", "1"], "skip a part"),
        (["--train_file", "t.txt", "--preprocessing_num_workers", "-1"], "_num_workers is -1; want 0 or more"),
        (["--train_file", "t.txt", "--mlm_probability", "0"], "--mlm_probability is 0.0; want more than 0"),
        (["--train_file", "t.txt", "--include_target_train"], "needs --target_dataset_name"),
        (["--train_file", "t.txt", "--validation_split_percentage", "80"], "want 0 to 50"),
        (["--train_file", "empty.txt"], "no texts are left"),
        (["--train_file", "t.txt", "--mlm_prob", "0.2"], "did you mean --mlm_probability?"),
        (["--train_file", "t.parquet", "--streaming", "--max_steps", "2"], "t.parquet"),
        (["--train_file", "t.txt", "--model_name_or_path", "nowhere"], "nowhere"),
        (["--train_file", "t.txt", "--streaming", "--max_steps", "2", "--max_eval_samples", "2"], "has 2 texts; want"),
        (
            ["--train_file", "t.txt", "--dataloader_persistent_workers", "--dataloader_num_workers", "1"],
            "--dataloader_persistent_workers: workers that stay would mask the same tokens in every epoch",
        ),
        (["--train_file", "t.txt", "--dataloader_drop_last"], "2 training rows are less than one batch of 8"),
        (["--do_eval"], "without --do_train this script measures perplexity: --do_eval and --validation_file"),
        (["--do_eval", "--validation_file", "t.txt"], "has no trained head for masked words, so its perplexity would"),
        (["--do_predict", "--train_file", "t.txt"], "without --do_train this script measures perplexity"),
    ],
)
def test_errors_are_one_line(flags, says, v3_folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "t.txt").write_text("A text.\nAnother one.\n")
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "t.parquet").write_text("no parquet")
    monkeypatch.chdir(tmp_path)
    start = ["run_mlm.py", "--model_name_or_path", str(v3_folder), "--output_dir", "out", "--use_cpu"]
    monkeypatch.setattr(sys, "argv", [*start, *flags])
    with pytest.raises(SystemExit) as stopped:
        run_command(run_mlm.main)
    assert stopped.value.code == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert says in line
    assert not (tmp_path / "out").exists()


def test_the_recipe_parses_and_says_how_to_run_it():
    path = ROOT / "recipes" / "mlm.yaml"
    assert path.read_text(encoding="utf-8").startswith("# run: python run_mlm.py recipes/mlm.yaml")
    _, data, args = RecipeParser((CheckpointArguments, PretrainingArguments, ChildTuningArguments)).parse([str(path)])
    assert data.dataset_name == ["go_emotions", "xed"]
    assert not data.include_target_train  # the paper's row does not see the target
    assert args.learning_rate > 0


def test_a_tokenizer_without_mask_is_refused(tokenizer):
    class Bare:
        mask_token = None

    with pytest.raises(InputError, match="no mask token"):
        Masking(Bare())


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_memory_that_is_not_used_goes_back_to_the_system(monkeypatch):
    """Scattered over the heap, so that free() alone keeps it."""

    def resident() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

    callback = ReturnMemory()
    rows = [bytes(8_000) for _ in range(20_000)]  # 160 MB
    kept = rows[::40]
    before = resident()
    del rows
    callback.on_step_end(None, None, None)  # too soon
    assert resident() > before - 50
    monkeypatch.setattr(callback, "_last", time.monotonic() - 6)
    callback.on_step_end(None, None, None)
    assert resident() < before - 100
    assert len(kept) == 500
