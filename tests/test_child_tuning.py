import pytest
import torch
from datasets import Dataset
from transformers import BertConfig, BertForTokenClassification, Trainer, TrainingArguments

from trainer_ext import ChildTuningArguments, ChildTuningTrainer
from trainer_ext import child_tuning as module
from trainer_ext.child_tuning import draw_dropped, mask_seed
from trainer_ext.warm_start import warm_start

BATCHES = 20


@pytest.fixture(scope="module")
def dataset(tokenizer):
    texts = [f"They closed the {word} gate and nobody came back for the {word} dog" for word in "abcdefghijklmnop"] * 5
    encoded = tokenizer(texts, return_token_type_ids=False)
    return Dataset.from_dict({**encoded, "labels": [index % 3 for index in range(len(texts))]})


@pytest.fixture
def train(v3_folder, tokenizer, dataset, tmp_path):
    """Train the tiny model, dropout and shuffling on; returns the trainer."""

    def run(trainer_class=ChildTuningTrainer, arguments_class=ChildTuningArguments, model=None, train=True, **options):
        options = {"max_steps": BATCHES, "learning_rate": 1e-3, "report_to": "none", "disable_tqdm": True} | options
        args = arguments_class(
            output_dir=str(tmp_path / "run"), per_device_train_batch_size=4, save_strategy="no", use_cpu=True, **options
        )
        torch.manual_seed(7)
        if model is None:
            model = warm_start(str(v3_folder), num_labels=3)
        trainer = trainer_class(model=model, args=args, train_dataset=dataset, processing_class=tokenizer)
        if train:
            trainer.train()
        return trainer

    return run


def weights(trainer) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}


def test_p_one_is_plain_trainer(train):
    plain = weights(train(Trainer, TrainingArguments))
    for options in ({"child_tuning": "F", "child_tuning_p": 1.0}, {"child_tuning": "none"}):
        ours = weights(train(**options))
        assert all(torch.equal(plain[name], ours[name]) for name in plain)


def test_masks_change_the_run_but_not_the_global_generator(train):
    plain = train(Trainer, TrainingArguments)
    state = torch.get_rng_state()
    masked = train(child_tuning="F", child_tuning_p=0.5)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(weights(plain)["classifier.out_proj.weight"], weights(masked)["classifier.out_proj.weight"])


def test_it_is_the_published_algorithm_given_the_same_masks(train):
    """Gradients masked and divided by p before a hand-written AdamW step, ten times."""
    trainer = train(train=False, child_tuning="F", child_tuning_p=0.25, max_grad_norm=0.0, max_steps=10)
    optimizer = trainer.create_optimizer()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    copies = [p.detach().clone() for p in parameters]
    first, second = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    generator = torch.Generator().manual_seed(0)
    for step in range(10):
        trainer.state.global_step = step
        gradients = [torch.randn(p.shape, generator=generator) for p in parameters]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
        for i, gradient in enumerate(gradients):
            child = (~draw_dropped(gradient, 0.25, mask_seed(42, step, i))).float() / 0.25
            first[i].mul_(0.9).add_(gradient * child, alpha=0.1)
            second[i].mul_(0.999).add_((gradient * child) ** 2, alpha=0.001)
            denominator = (second[i] / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8
            copies[i].sub_(1e-3 * (first[i] / (1 - 0.9 ** (step + 1))) / denominator)
    for parameter, copy in zip(parameters, copies, strict=True):
        torch.testing.assert_close(parameter.detach(), copy, atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize("p", [0.1, 0.2, 0.3, 0.5, 0.9])
def test_kept_fraction_is_p(p):
    n = 10_000_000
    kept = n - int(draw_dropped(torch.empty(n), p, mask_seed(1, 2, 3)).sum())
    assert abs(kept / n - p) < 4 * (p * (1 - p) / n) ** 0.5


@pytest.mark.parametrize("p", [1e-7, 1 - 1e-7])
def test_p_at_the_ends_neither_wraps_nor_drops_all(p, train):
    """16-bit thresholds: what rounds to 1 is no mask, what rounds to 0 is the smallest share."""
    if p > 0.5:
        plain, ours = weights(train(Trainer, TrainingArguments)), weights(train(child_tuning="F", child_tuning_p=p))
        assert all(torch.equal(plain[name], ours[name]) for name in plain)
    else:
        kept = (~draw_dropped(torch.empty(10_000_000), p, 1)).sum().item()
        assert 70 < kept < 260  # 10,000,000 / 65,536 = 153


def test_masks_are_keyed_by_seed_step_and_parameter():
    gradient = torch.empty(100_000)
    reference = draw_dropped(gradient, 0.3, mask_seed(1, 2, 3))
    assert torch.equal(reference, draw_dropped(gradient, 0.3, mask_seed(1, 2, 3)))
    for other in ((2, 2, 3), (1, 3, 3), (1, 2, 4), (3, 2, 1)):
        agree = (reference == draw_dropped(gradient, 0.3, mask_seed(*other))).float().mean().item()
        assert abs(agree - (0.3**2 + 0.7**2)) < 0.01  # independent


def test_a_second_train_masks_once(train, monkeypatch):
    calls = []
    monkeypatch.setattr(module, "draw_dropped", lambda *args: calls.append(1) or draw_dropped(*args))
    trainer = train(child_tuning="F", child_tuning_p=0.5, max_steps=3)
    once = len(calls)
    trainer.train()
    assert len(calls) == 2 * once > 0


@pytest.mark.parametrize("strategy", ["steps", "epoch"])
def test_the_log_has_the_masks_figures(train, strategy):
    trainer = train(child_tuning="F", child_tuning_p=0.3, logging_strategy=strategy, logging_steps=5)
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert logged
    for entry in logged:
        assert abs(entry["child_tuning_kept_fraction"] - 0.3) < 0.02
        assert entry["child_tuning_grad_norm"] <= 1.001  # after clipping at 1.0
        assert entry["child_tuning_masked_grad_norm"] > entry["child_tuning_grad_norm"]
    plain = train(logging_steps=5)
    assert not any("child_tuning_kept_fraction" in entry for entry in plain.state.log_history)


def test_accumulation_gives_the_gradient_of_the_large_batch(train):
    """Batch 16 against batch 4 with 4 accumulation steps: the heads of the library get this wrong by a factor of 4."""
    gradients = []
    for size, steps in ((16, 1), (4, 4)):
        trainer = train(train=False, gradient_accumulation_steps=steps, max_grad_norm=0.0, max_steps=1)
        trainer.args.per_device_train_batch_size = trainer._train_batch_size = size
        trainer.args.train_sampling_strategy = "sequential"
        for layer in trainer.model.modules():
            if isinstance(layer, torch.nn.Dropout):
                layer.p = 0.0
        seen = {}
        optimizer = trainer.create_optimizer()
        optimizer.register_step_pre_hook(
            lambda optimizer, args, kwargs, seen=seen, model=trainer.model: seen.update(
                {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
            )
        )
        trainer.train()
        gradients.append(torch.cat([gradient.flatten() for gradient in seen.values()]))
    difference = (gradients[0] - gradients[1]).norm() / gradients[0].norm()
    assert difference < 1e-4  # not a number fails


@pytest.mark.parametrize("p", [0.0, -0.1, 1.5, float("nan")])
def test_p_outside_its_range_is_refused(p, tmp_path):
    with pytest.raises(ValueError, match=r"child_tuning_p is .*\(0, 1\]"):
        ChildTuningArguments(output_dir=str(tmp_path), child_tuning_p=p)


def test_another_variant_is_refused(tmp_path):
    with pytest.raises(ValueError, match="one of none, F"):
        ChildTuningArguments(output_dir=str(tmp_path), child_tuning="G")


def test_no_default_of_training_arguments_is_changed(tmp_path):
    plain = TrainingArguments(output_dir=str(tmp_path)).to_dict()
    ours = ChildTuningArguments(output_dir=str(tmp_path)).to_dict()
    assert {key: ours[key] for key in plain} == plain
    assert ours.keys() - plain.keys() == {"child_tuning", "child_tuning_p", "child_tuning_seed"}


def test_plain_arguments_are_refused(train):
    with pytest.raises(ValueError, match="ChildTuningArguments"):
        train(ChildTuningTrainer, TrainingArguments, train=False)


def test_a_foreign_model_trains(train, tokenizer, tmp_path):
    model = BertForTokenClassification(
        BertConfig(vocab_size=600, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    )
    rows = tokenizer(["They closed the gate"] * 16, return_token_type_ids=False)
    data = Dataset.from_dict({**rows, "labels": [[1] * len(ids) for ids in rows["input_ids"]]})
    args = ChildTuningArguments(
        output_dir=str(tmp_path), child_tuning="F", max_steps=2, save_strategy="no", use_cpu=True
    )
    trainer = ChildTuningTrainer(model=model, args=args, train_dataset=data, processing_class=tokenizer)
    assert trainer.train().global_step == 2


def test_it_needs_no_other_module_of_the_project():
    import ast
    from pathlib import Path

    tree = ast.parse(Path(module.__file__).read_text())
    imported = {
        (node.module or "." * node.level) if isinstance(node, ast.ImportFrom) else alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert {name.partition(".")[0] for name in imported} <= {"dataclasses", "typing", "torch", "transformers"}
