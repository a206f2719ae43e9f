"""How a model is fine-tuned: a learning rate for each depth, LoRA, batches of similar length, and precision."""

import json
import logging
import shutil
import subprocess
import sys
import time
from pathlib import Path

import forked
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from support import ESSAY_FLAGS, ROOT, call, check_card

import run_classify
from configuration_emodeberta import EmoDebertaConfig
from modeling_emodeberta import EmoDebertaForSequenceClassification
from run_classify import EmotionTrainer
from trainer_ext import precision, recipes
from trainer_ext.child_tuning import ChildTuningArguments
from trainer_ext.errors import InputError
from trainer_ext.precision import Choice, Timing, choose, measure, timed
from trainer_ext.recipes import RecipeParser
from trainer_ext.training.large_models import add_lora, merge_lora
from trainer_ext.training.trainer import TokenBudgetSampler
from trainer_ext.training.warm_start import warm_start


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
def batch():
    ids = torch.randint(5, 100, (4, 30), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "labels": torch.tensor([0, 1, 2, 0])}


def test_it_starts_as_the_model_and_merges_into_one(v3_folder, batch):
    torch.manual_seed(0)
    model = warm_start(str(v3_folder), num_labels=3).eval()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    logits = model(**batch).logits
    add_lora(model, RANK)
    torch.testing.assert_close(model(**batch).logits, logits, rtol=0, atol=0)

    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(3):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        trained = model(**batch).logits
        merge_lora(model)
        torch.testing.assert_close(model(**batch).logits, trained, rtol=1e-4, atol=1e-4)
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
    cache = tmp_path / "cache" / "emodeberta" / "precision.json"
    cache.parent.mkdir(parents=True)
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
    env = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "ACCELERATE_MIXED_PRECISION": "no"}

    def run(times: dict, *more: object) -> subprocess.CompletedProcess:
        cache.write_text(json.dumps({precision.machine(CPU): times}))
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
