"""LoRA: starts as the model does, trains what it should, ends as a plain model."""

import json
import logging
import shutil

import pytest
import torch
from pages import check_card
from safetensors.torch import load_file
from support import ESSAY_FLAGS, call

import run_classify
from modeling_emodeberta import EmoDebertaForSequenceClassification
from trainer_ext.errors import InputError
from trainer_ext.training.lora import add_lora, merge_lora
from trainer_ext.training.warm_start import warm_start

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
