"""A learning rate for each depth of the model."""

import pytest
import torch
from safetensors.torch import load_file
from support import ESSAY_FLAGS, call

import run_classify
from configuration_emodeberta import EmoDebertaConfig
from modeling_emodeberta import EmoDebertaForSequenceClassification
from run_classify import EmotionTrainer
from trainer_ext.child_tuning import ChildTuningArguments
from trainer_ext.errors import InputError


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
