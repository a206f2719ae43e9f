"""Child-Tuning: the published algorithm, exact resuming, refusals; and the same on two connected processes."""

import ast
import itertools
import math
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import forked
import pytest
import torch
from accelerate import Accelerator
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from datasets import Dataset
from safetensors.torch import load_file
from support import ESSAY_FLAGS, ROOT
from torch.utils.data import IterableDataset
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

from trainer_ext import ChildTuningArguments, ChildTuningTrainer
from trainer_ext.child_tuning import (
    ChildNetwork,
    ChildTuningError,
    Draws,
    highest_share,
    keep,
    mask_seed,
    network,
    put_back,
)
from trainer_ext.errors import InputError
from trainer_ext.training.warm_start import warm_start

BATCHES = 20


@pytest.fixture(scope="module")
def dataset(tokenizer):
    texts = [f"They closed the {word} gate and nobody came back for the {word} dog" for word in "abcdefghijklmnop"] * 5
    encoded = tokenizer(texts, return_token_type_ids=False)
    return Dataset.from_dict({**encoded, "labels": [index % 3 for index in range(len(texts))]})


@pytest.fixture
def train(v3_folder, tokenizer, dataset, tmp_path):
    """Train the tiny model, dropout and shuffling on; returns the trainer."""

    def run(
        trainer_class=ChildTuningTrainer,
        arguments_class=ChildTuningArguments,
        model=None,
        train=True,
        train_dataset=dataset,
        device=None,
        **options,
    ):
        options = {"max_steps": BATCHES, "learning_rate": 1e-3, "report_to": "none", "disable_tqdm": True} | options
        args = arguments_class(
            output_dir=str(tmp_path / "run"),
            use_cpu=device is None or device.type == "cpu",
            **({"save_strategy": "no", "per_device_train_batch_size": 4} | options),
        )
        torch.manual_seed(7)
        if model is None:
            model = warm_start(str(v3_folder), num_labels=3)
        trainer = trainer_class(model=model, args=args, train_dataset=train_dataset, processing_class=tokenizer)
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
            child = Draws(0.25, mask_seed(42, step, i), "cpu").next(gradient.numel()).view(gradient.shape) / 0.25
            first[i].mul_(0.9).add_(gradient * child, alpha=0.1)
            second[i].mul_(0.999).add_((gradient * child) ** 2, alpha=0.001)
            denominator = (second[i] / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8
            copies[i].sub_(1e-3 * (first[i] / (1 - 0.9 ** (step + 1))) / denominator)
    for parameter, copy in zip(parameters, copies, strict=True):
        torch.testing.assert_close(parameter.detach(), copy, atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize("p", [0.1, 0.2, 0.3, 0.5, 0.9])
def test_kept_fraction_is_p(p, device):
    n = 10_000_000
    kept = int(Draws(p, mask_seed(1, 2, 3), device).next(n).sum())
    assert abs(kept / n - p) < 4 * (p * (1 - p) / n) ** 0.5


@pytest.mark.parametrize("p", [1e-7, 1 - 1e-7])
def test_p_at_the_ends_neither_wraps_nor_drops_all(p, train):
    """16-bit thresholds: what rounds to 1 is no mask, what rounds to 0 is the smallest share."""
    if p > 0.5:
        plain, ours = weights(train(Trainer, TrainingArguments)), weights(train(child_tuning="F", child_tuning_p=p))
        assert all(torch.equal(plain[name], ours[name]) for name in plain)
    else:
        kept = Draws(p, 1, "cpu").next(10_000_000).sum().item()
        assert 70 < kept < 260  # 10,000,000 / 65,536 = 153


def test_masks_are_keyed_and_neither_steps_nor_parameters_nor_shards_are_correlated(device):
    n = 1_000_000
    reference = Draws(0.3, mask_seed(1, 2, 3), device).next(n)
    assert torch.equal(reference, Draws(0.3, mask_seed(1, 2, 3), device).next(n))
    for other in ((2, 2, 3), (1, 3, 3), (1, 2, 4), (3, 2, 1), (1, 2, 3, 0), (1, 2, 3, 1)):
        both = (reference & Draws(0.3, mask_seed(*other), device).next(n)).float().mean().item()
        assert abs(both - 0.09) < 5 * (0.09 * 0.91 / n) ** 0.5
    for lag in (1, 2, 3, 4, 64):  # nor the entries of one mask
        both = (reference[lag:] & reference[:-lag]).float().mean().item()
        assert abs(both - 0.09) < 5 * (0.09 * 0.91 / n) ** 0.5


def one_parameter(value: torch.Tensor, gradient: torch.Tensor, **options):
    """A parameter with a gradient under SGD with learning rate 1, and its child network."""
    parameter = torch.nn.Parameter(value.clone())
    parameter.grad = gradient.clone()
    return parameter, ChildNetwork(torch.optim.SGD([parameter], lr=1.0), **options)


def test_the_mean_of_fs_gradient_is_the_gradient():
    gradient = torch.randn(40, generator=torch.Generator().manual_seed(0)).double()
    total = torch.zeros_like(gradient)
    parameter, child = one_parameter(torch.zeros_like(gradient), gradient, p=0.3, seed=5)
    rounds = 20_000
    for _ in range(rounds):
        parameter.grad = gradient.clone()
        child.optimizer.step()
        total += parameter.grad
    error = (total / rounds - gradient).abs() / (gradient.abs() * (0.7 / 0.3 / rounds) ** 0.5)
    assert error.max() < 4.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("contiguous", [True, False])
def test_masks_keep_bits_in_every_precision_and_layout(dtype, contiguous, device):
    values, before = torch.randn(2, 700, 301).to(device, dtype)
    if not contiguous:
        values, before = values.t(), before.t()
    kept = torch.rand(values.numel(), device=device) < 0.4
    zeroed, restored = (values.clone(memory_format=torch.preserve_format) for _ in range(2))
    keep(zeroed, kept)
    put_back(restored, before, kept)
    assert torch.equal(zeroed, torch.where(kept.view(values.shape), values, 0))
    assert torch.equal(restored, torch.where(kept.view(values.shape), values, before))


def test_rows_of_an_embedding_without_a_gradient_stay_as_they_are(device):
    gradient = torch.zeros(20_000, 16, device=device)
    used = torch.tensor([3, 4, 700, 19_999])
    gradient[used] = 1.0
    parameter, child = one_parameter(torch.zeros_like(gradient), gradient, p=0.25)
    child.measure = True
    child.optimizer.step()
    assert set(parameter.grad[used].unique().tolist()) == {0.0, 4.0}
    assert parameter.grad.count_nonzero() == parameter.grad[used].count_nonzero()
    assert child.kept[1] == used.numel() * 16


def test_a_second_train_masks_once(train, monkeypatch):
    calls = []
    monkeypatch.setattr(Draws, "next", lambda self, n, real=Draws.next: calls.append(1) or real(self, n))
    trainer = train(child_tuning="F", child_tuning_p=0.5, max_steps=3)
    once = len(calls)
    trainer.train()
    assert len(calls) == 2 * once > 0


@pytest.mark.parametrize("variant", ["F", "D"])
def test_update_moves_the_child_and_nothing_else(variant, train):
    """With momentum and decay; in the child the step is the plain one."""
    options = {"max_steps": 1, "weight_decay": 0.1, "max_grad_norm": 0.0}
    before, plain = weights(train(train=False)), weights(train(Trainer, TrainingArguments, **options))
    trainer = train(child_tuning=variant, child_tuning_target="update", child_tuning_p=0.3, **options)
    after, moved, total = weights(trainer), 0, 0
    for name, old in before.items():
        stayed, stepped = after[name] == old, after[name] == plain[name]
        assert (stayed | stepped).all(), name
        if variant == "D" and "layer" not in name:
            assert torch.equal(after[name], plain[name])
        elif "word_embeddings" not in name:
            changes = plain[name] != old
            moved, total = moved + int((changes & ~stayed).sum()), total + int(changes.sum())
    assert 0.2 < moved / total < 0.4


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"])
@pytest.mark.parametrize("variant", ["F", "D"])
def test_every_optimizer_of_torch_is_masked(optim, variant, train, device):
    before = weights(train(train=False, device=device))
    options = {"optim": optim, "max_steps": 3, "child_tuning": variant, "child_tuning_scope": "all", "device": device}
    trainer = train(child_tuning_target="update", child_tuning_p=0.2, child_tuning_seed=1, **options)
    after = weights(trainer)
    stayed = sum(int((after[name] == old).sum()) for name, old in before.items())
    share = stayed / sum(old.numel() for old in before.values())
    assert share > (0.8**3 - 0.01 if variant == "F" else 0.79)
    assert share < 1


# ---- D ------------------------------------------------------------------------------------------------------------
def test_ds_child_is_the_share_with_the_highest_squared_gradients(train):
    one_text = {"per_device_train_batch_size": 1, "max_steps": 1}  # the same batches in any order
    trainer = train(train=False, child_tuning="D", child_tuning_p=0.3, **one_text)
    for layer in trainer.model.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0
    trainer.train()
    child, names = trainer._child, {id(p): name for name, p in trainer.model.named_parameters()}
    masks = {names[id(p)]: mask for p, mask in zip(child.parameters(), child.masks, strict=True) if mask is not None}
    assert masks.keys() == {name for name in names.values() if "layer" in name}
    kept = sum(int(mask.sum()) for mask in masks.values())
    assert kept / sum(mask.numel() for mask in masks.values()) == pytest.approx(0.3, abs=1e-3)

    again = train(train=False, **one_text)  # the same weights, squares summed by hand
    for layer in again.model.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0
    squares = {name: torch.zeros_like(p) for name, p in again.model.named_parameters()}
    for batch in again.get_train_dataloader():
        again.model(**batch).loss.backward()
        for name, p in again.model.named_parameters():
            if p.grad is not None:
                squares[name] += p.grad**2
        again.model.zero_grad()
    joined = torch.cat([squares[name].flatten() for name in masks])
    found = torch.cat([mask.flatten() for mask in masks.values()])
    threshold = joined.sort(descending=True).values[kept - 1]
    assert ((joined >= threshold) == found).float().mean() > 0.9999  # sums in another order


def test_the_threshold_is_that_of_sorting():
    values = [torch.rand(1000) ** 8, torch.rand(30, 40) ** 8]
    for p in (0.001, 0.3, 0.999, 1.0):
        threshold = highest_share(values, p)
        joined = torch.cat([value.flatten() for value in values])
        assert threshold == joined.sort(descending=True).values[round(p * len(joined)) - 1]
    assert highest_share([torch.zeros(10)], 0.5) > 0  # without information nothing is in the child


def test_finding_a_child_leaves_the_random_state_and_the_data_order(train, monkeypatch):
    """D with every weight in its child takes the steps of plain training."""
    plain = weights(train(Trainer, TrainingArguments))
    monkeypatch.setattr(network, "highest_share", lambda values, p, sharded: -1.0)
    ours = weights(train(child_tuning="D", child_tuning_p=0.3))
    assert all(torch.equal(plain[name], ours[name]) for name in plain)


def test_d_without_a_child_or_a_scope_says_so(train):
    trainer = train(train=False, child_tuning="D")
    optimizer = trainer.create_optimizer()
    for parameter in trainer.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with pytest.raises(RuntimeError, match=r"call find\(\)"):
        optimizer.step()
    parameter, child = one_parameter(torch.zeros(3), torch.zeros(3), variant="D")
    model = torch.nn.Module()
    model.weight = parameter
    with pytest.raises(ValueError, match="use scope all"):
        child.find(model, [])
    parameter, child = one_parameter(torch.zeros(3), torch.zeros(3), variant="D", scope="all")
    with pytest.raises(ValueError, match="no batches"):
        child.find(model, [])


def test_masks_go_through_a_file_and_are_refused_where_they_do_not_fit(tmp_path):
    _, child = one_parameter(torch.zeros(30), torch.zeros(30), variant="D", p=0.5, scope="all")
    child.masks = [torch.rand(30) < 0.5]
    child.save(tmp_path / "masks.safetensors")
    _, other = one_parameter(torch.zeros(30), torch.zeros(30), variant="D", p=0.5, scope="all")
    other.load(tmp_path / "masks.safetensors")
    assert torch.equal(other.masks[0], child.masks[0])
    for value, p in ((torch.zeros(30), 0.4), (torch.zeros(31), 0.5)):
        _, other = one_parameter(value, value, variant="D", p=p, scope="all")
        with pytest.raises(ValueError, match="child network of"):
            other.load(tmp_path / "masks.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "masks.safetensors").read_bytes()[:90])
    with pytest.raises(ChildTuningError, match=r"cut\.safetensors: not whole"):
        other.load(tmp_path / "cut.safetensors")


def found_child(batches: list[torch.Tensor], p: float = 0.25, dtype=torch.float32) -> torch.Tensor:
    """D's child of a parameter, whose gradients these are."""
    parameter = torch.nn.Parameter(torch.zeros(len(batches[0]), dtype=dtype))
    child = ChildNetwork(torch.optim.SGD([parameter], lr=1.0), "D", p, scope="all")
    child.find(torch.nn.ParameterList([parameter]), ((parameter * batch).sum() for batch in batches))
    return child.masks[0]


GOOD = [torch.randn(1000, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30])
@pytest.mark.parametrize("entries", [1, 1000])
@pytest.mark.parametrize("position", [0, 2, 4])
def test_a_bad_batch_is_left_out_of_the_information(bad, entries, position, caplog):
    batch = torch.zeros(1000)
    batch[:entries] = bad
    child = found_child([*GOOD[:position], batch, *GOOD[position:]])
    assert torch.equal(child, found_child(GOOD))
    assert child.sum() == 250
    assert "the gradients of 1 of 5 batches are not finite, or over 1e+15" in caplog.text


@pytest.mark.parametrize("scope", ["encoder", "all"])
def test_frozen_weights_are_no_part_of_the_share(scope):
    """They are in the optimizer, as in a plain loop over model.parameters()."""
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({f"layer{number}": torch.nn.Linear(40, 40) for number in range(4)})
    for number in range(3):
        model[f"layer{number}"].requires_grad_(False)
    child = ChildNetwork(torch.optim.SGD(model.parameters(), lr=1.0), "D", 0.25, scope=scope)
    rows = torch.randn(8, 40)
    for layer in model.values():
        rows = layer(rows)
    child.find(model, [rows.square().sum()])
    frozen, trained = child.masks[:6], child.masks[6:]
    assert not any(mask.any() for mask in frozen)
    assert sum(int(mask.sum()) for mask in trained) == round(0.25 * (40 * 40 + 40))


def test_information_that_no_batch_gives_is_said_so():
    with pytest.raises(ChildTuningError, match="of 2 of 2 batches are not finite"):
        found_child([torch.full((10,), torch.nan)] * 2)
    with pytest.raises(ChildTuningError, match="every gradient in scope is zero"):
        found_child([torch.zeros(10)])


@pytest.mark.parametrize("scale", [1e-12, 1e-20, 1e-25, 1e-35])
def test_tiny_gradients_have_the_child_of_larger_ones(scale):
    """The squares of the last three are zero in float32. A power of two, so that the same entries are rounded alike."""
    scale = 2.0 ** round(math.log2(scale))
    assert torch.equal(found_child([batch * scale for batch in GOOD]), found_child(GOOD))
    mixed = [GOOD[0] * scale, *GOOD[1:]]  # the first says nothing beside the others
    assert (found_child(mixed) == found_child(GOOD[1:])).float().mean() > 0.999
    assert torch.equal(found_child([torch.zeros(1000), GOOD[0] * scale]), found_child(GOOD[:1]))


class Stream(IterableDataset):
    """Rows without a length. If they can be read only once, each iteration goes on where the last one was left."""

    def __init__(self, rows: list[dict], endless: bool, once: bool):
        self.rows, self.endless, self.shared = rows, endless, self.read() if once else None

    def read(self):
        yield from itertools.cycle(self.rows) if self.endless else self.rows

    def __iter__(self):
        return self.shared or self.read()


def rows_of(dataset) -> list[dict]:
    return [{name: torch.tensor(value) for name, value in row.items()} for row in dataset]


@pytest.mark.parametrize("endless", [True, False])
def test_a_child_is_found_on_a_stream(endless, train, dataset):
    """In as many batches as training takes, of an endless one; and training still sees the first."""
    seen = []

    class Watched(Stream):
        def read(self):
            for row in super().read():
                seen.append(row)
                yield row

    stream = Watched(rows_of(dataset), endless, once=False)
    options = {"max_steps": 3, "gradient_accumulation_steps": 2, "disable_tqdm": False}
    trainer = train(train_dataset=stream, child_tuning="D", **options)
    assert trainer.state.global_step == 3
    assert len(seen) <= 2 + 2 * (3 * 2 + 2) * 4  # the check, the pass and the training, which read a batch ahead
    loaders = trainer.accelerator.gradient_state.dataloader_references
    assert sum(loader is not None for loader in loaders) <= 1  # training's, whose end was not reached
    whole = {"train_dataset": stream.rows[:24], "train_sampling_strategy": "sequential"}
    same = train(child_tuning="D", **whole, **options)
    for one, other in zip(trainer._child.masks, same._child.masks, strict=True):
        assert one is other is None or torch.equal(one, other)


@pytest.mark.parametrize("endless", [True, False])
def test_a_stream_that_can_be_read_once_is_refused_for_d_and_trains_with_f(endless, train, dataset):
    with pytest.raises(ChildTuningError, match="want one that restarts at each iteration"):
        train(train_dataset=Stream(rows_of(dataset), endless, once=True), child_tuning="D", max_steps=3)
    stream = Stream(rows_of(dataset), endless, once=True)
    assert train(train_dataset=stream, child_tuning="F", max_steps=3).state.global_step == 3


@pytest.mark.parametrize("variant", ["F", "D"])
@pytest.mark.parametrize("target", ["gradient", "update"])
def test_a_resumed_run_is_bit_exact(variant, target, train, tmp_path):
    """From a checkpoint in the middle, with accumulation 2 and clipping at 1.0."""
    options = {"child_tuning": variant, "child_tuning_target": target, "gradient_accumulation_steps": 2}
    options |= {"max_grad_norm": 1.0, "max_steps": 8, "save_strategy": "steps", "save_steps": 3}
    straight = weights(train(**options))
    checkpoint = tmp_path / "run" / "checkpoint-3"
    masks = checkpoint / "child_network.safetensors"
    assert masks.exists() == (variant == "D")
    trainer = train(train=False, **options)
    trainer.train(resume_from_checkpoint=str(checkpoint))
    resumed = weights(trainer)
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    if variant == "D":
        masks.unlink()
        with pytest.raises(ValueError, match="without its child"):
            train(train=False, **options).train(resume_from_checkpoint=str(checkpoint))


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
    for name, value in (("child_tuning", "G"), ("child_tuning_target", "weights"), ("child_tuning_scope", "head")):
        with pytest.raises(ValueError, match=f"{name} is '{value}'; it must be one of"):
            ChildTuningArguments(output_dir=str(tmp_path), **{name: value})


def test_no_default_of_training_arguments_is_changed(tmp_path):
    plain = TrainingArguments(output_dir=str(tmp_path)).to_dict()
    ours = ChildTuningArguments(output_dir=str(tmp_path)).to_dict()
    assert {key: ours[key] for key in plain} == plain
    assert {name.removeprefix("child_tuning") for name in ours.keys() - plain.keys()} == {
        *("", "_p", "_target", "_scope", "_seed")
    }


def test_plain_arguments_are_refused(train):
    with pytest.raises(ValueError, match="ChildTuningArguments"):
        train(ChildTuningTrainer, TrainingArguments, train=False)


FOREIGN = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        first = name.partition(".")[0]
        ours = first in {"benchmarks", "trainer_ext"} or first.startswith("run_")
        allowed = name == "trainer_ext" or f"{name}.".startswith("trainer_ext.child_tuning.")
        if (ours or first.endswith("_emodeberta")) and not allowed:
            raise ImportError(f"{name} is blocked in this process")

sys.meta_path.insert(0, Blocker())
import torch
from transformers import BertConfig, BertForTokenClassification
from trainer_ext.child_tuning import ChildTuningArguments, ChildTuningTrainer

shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
rows = [{"input_ids": [2, 7 + i, 9, 3], "labels": [0, 1, i % 2, 0]} for i in range(16)]
for variant in ("F", "D"):
    for target in ("gradient", "update"):
        model = BertForTokenClassification(BertConfig(vocab_size=60, **shape))
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        args = ChildTuningArguments(
            output_dir=sys.argv[1], child_tuning=variant, child_tuning_target=target, max_steps=3, save_strategy="no",
            use_cpu=True, report_to="none", disable_tqdm=True,
        )
        assert ChildTuningTrainer(model=model, args=args, train_dataset=rows).train().global_step == 3
        assert any(not torch.equal(before[name], p) for name, p in model.named_parameters())
"""


def test_a_foreign_model_trains_where_no_other_module_of_the_project_can_be_imported(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FOREIGN, str(tmp_path)],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("target", ["gradient", "update"])
def test_a_step_that_the_loss_scaler_skips_moves_nothing_and_draws_nothing(target):
    parameter, child = one_parameter(torch.zeros(4000), torch.zeros(4000), p=0.5, target=target, seed=9)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for gradient in (float("inf"), 1.0):
        scaler.scale(parameter.sum() * 0)
        parameter.grad = torch.full((4000,), gradient * scaler.get_scale())
        scaler.unscale_(child.optimizer)
        scaler.step(child.optimizer)
        scaler.update()
        if gradient != 1.0:
            assert parameter.count_nonzero() == 0
            assert child.step == 0
    moved = parameter != 0
    assert torch.equal(moved, Draws(0.5, mask_seed(9, 0, 0), "cpu").next(4000))
    assert set(parameter[moved].tolist()) == {-2.0 if target == "gradient" else -1.0}


def test_a_child_network_is_taken_off_again():
    parameter, child = one_parameter(torch.zeros(100), torch.ones(100), p=0.5)
    ChildNetwork(child.optimizer, p=1.0).remove()  # it masked nothing
    with pytest.raises(ChildTuningError, match="this optimizer has a child network, and two would both mask"):
        ChildNetwork(child.optimizer, "D", 0.5)
    child.remove()
    child.optimizer.step()
    assert torch.equal(parameter.detach(), -torch.ones(100))
    ChildNetwork(child.optimizer, p=0.5)  # one at a time


# ---- Optimizers and loops of others -------------------------------------------------------------------------------
def step_with_closure(child: ChildNetwork, parameter: torch.nn.Parameter, keyword: bool) -> None:
    """As Lightning and LBFGS step: gradients cleared, computed and clipped by the closure."""

    def closure():
        child.optimizer.zero_grad()
        loss = (parameter - 1).square().sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([parameter], 10.0)
        return loss

    loss = child.optimizer.step(closure=closure) if keyword else child.optimizer.step(closure)
    assert loss == 4000


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.Adagrad, torch.optim.LBFGS])
@pytest.mark.parametrize("target", ["gradient", "update"])
@pytest.mark.parametrize("keyword", [True, False])
def test_a_step_with_a_closure_moves_the_child_and_nothing_else(kind, target, keyword):
    for variant in ("F", "D"):
        parameter = torch.nn.Parameter(torch.zeros(4000))
        child = ChildNetwork(kind([parameter], lr=0.1), variant, 0.25, target, "all", seed=3)
        if variant == "D":
            model = torch.nn.ParameterDict({"a": parameter})
            child.find(model, [(parameter * torch.arange(4000)).sum()])
            expected = torch.arange(4000) >= 3000
        else:
            expected = Draws(0.25, mask_seed(3, 0, 0), "cpu").next(4000)
        child.measure = True
        step_with_closure(child, parameter, keyword)
        assert torch.equal(parameter != 0, expected)
        assert child.kept == (int(expected.sum()), 4000)
        assert child.step == 1


def test_a_closure_steps_as_gradients_computed_before_do():
    """Clipping and momentum too, over several steps: to the bit."""
    ends = []
    for with_closure in (False, True):
        parameter = torch.nn.Parameter(torch.zeros(4000))
        child = ChildNetwork(torch.optim.AdamW([parameter], lr=0.1), p=0.3, seed=4)
        for _ in range(5):

            def closure(parameter=parameter, child=child):
                child.optimizer.zero_grad()
                (parameter - 1).square().sum().backward()
                torch.nn.utils.clip_grad_norm_([parameter], 1.0)

            if with_closure:
                child.optimizer.step(closure)
            else:
                closure()
                child.optimizer.step()
        ends.append(parameter.detach())
    assert torch.equal(*ends)


def test_an_optimizer_that_accelerate_prepared_is_masked():
    model = torch.nn.Linear(40, 40)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    child = ChildNetwork(optimizer, p=0.3, target="update", seed=2)
    before = [parameter.detach().clone() for parameter in child.parameters()]
    for _ in range(2):
        with accelerator.accumulate(model):
            accelerator.backward(model(torch.ones(3, 40)).square().sum())
            optimizer.step()
            optimizer.zero_grad()
    assert child.step == 1  # the first call only accumulates
    for index, (old, new) in enumerate(zip(before, child.parameters(), strict=True)):
        drawn = Draws(0.3, mask_seed(2, 0, index), "cpu").next(old.numel()).view(old.shape)
        assert torch.equal(new != old, drawn)
    with pytest.raises(ChildTuningError, match=r"Counter.*calls? no hooks; want a torch.optim.Optimizer"):
        ChildNetwork(Counter())


@pytest.mark.parametrize("variant", ["F", "D"])
def test_parameters_added_later_are_masked_or_asked_for(variant):
    first, second = (torch.nn.Parameter(torch.zeros(1000)) for _ in range(2))
    child = ChildNetwork(torch.optim.SGD([first], lr=1.0), variant, 0.3, scope="all", seed=6)
    model = torch.nn.ParameterList([first, second])
    scales = torch.arange(1000.0)
    if variant == "D":
        child.find(model, [(first * scales).sum()])
    child.optimizer.add_param_group({"params": [second]})
    first.grad, second.grad = scales.clone(), scales.clone()
    if variant == "D":
        with pytest.raises(ChildTuningError, match=r"1 parameters, the optimizer now has 2.*find\(\) again"):
            child.optimizer.step()
        child.find(model, [((first + second) * scales).sum()])
        first.grad, second.grad = scales.clone(), scales.clone()
    child.optimizer.step()
    for parameter in (first, second):
        assert 0.2 < (parameter != 0).float().mean() < 0.4


def test_parameters_unfrozen_after_d_found_its_child_are_asked_for(tmp_path):
    """Without information, none of their entries would be in the child, and nothing would train them."""
    first, second = (torch.nn.Parameter(torch.zeros(100)) for _ in range(2))
    second.requires_grad_(False)
    child = ChildNetwork(torch.optim.SGD([first, second], lr=1.0), "D", 0.3, scope="all")
    child.find(torch.nn.ParameterList([first, second]), [(first * torch.arange(100)).sum()])
    first.grad = torch.ones(100)
    child.optimizer.step()
    second.requires_grad_(True)
    child.save(tmp_path / "masks.safetensors")
    resumed = ChildNetwork(torch.optim.SGD([first, second], lr=1.0), "D", 0.3, scope="all")
    resumed.load(tmp_path / "masks.safetensors")
    for asked in (child, resumed):
        with pytest.raises(ChildTuningError, match=r"call find\(\) again after requires_grad_"):
            asked.optimizer.step()


@pytest.mark.parametrize("target", ["gradient", "update"])
@pytest.mark.parametrize("variant", ["F", "D"])
def test_sparse_gradients_are_masked_as_dense_ones(variant, target):
    """Ids come twice in a batch; the table is large enough for dense gradients to be masked by rows, too."""
    ids, ends = torch.tensor([[5, 19_000, 5], [17, 3, 17]]), []
    p = 0.3 if variant == "F" else 1e-4
    for sparse in (False, True):
        torch.manual_seed(0)
        table = torch.nn.Embedding(20_000, 8, sparse=sparse)
        child = ChildNetwork(torch.optim.SGD(table.parameters(), lr=1.0), variant, p, target, "all", seed=8)
        weights = torch.arange(1.0, 49).view(2, 3, 8)
        if variant == "D":
            child.find(table, [(table(ids) * weights).sum()])
        for _ in range(2):
            child.optimizer.zero_grad()
            (table(ids) * weights).sum().backward()
            child.optimizer.step()
        ends.append(table.weight.detach())
    torch.testing.assert_close(*ends)  # without a mask, ids that come twice are added one after the other
    torch.manual_seed(0)
    start = torch.nn.Embedding(20_000, 8).weight
    assert torch.equal(*(end != start for end in ends))
    assert 8 <= (ends[0] != start).sum() < 32


def test_what_no_mask_fits_is_refused():
    value = torch.zeros(8, dtype=torch.complex128)
    _, child = one_parameter(value, value)
    with pytest.raises(ChildTuningError, match="does not mask gradients of torch"):
        child.optimizer.step()


@pytest.mark.parametrize("optim", ["schedule_free_adamw", "schedule_free_sgd"])
def test_a_schedule_free_optimizer_is_masked_by_its_gradients_alone(optim, train):
    """Between train() and eval() it moves every weight: with target update, that would be outside the child too."""
    pytest.importorskip("schedulefree", reason="schedulefree is not installed")
    options = {"optim": optim, "child_tuning": "D", "lr_scheduler_type": "constant", "max_steps": 3}
    before = weights(train(train=False))
    trainer = train(**options)
    masks = trainer._child.masks
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    for parameter, mask in zip(trainer._child.parameters(), masks, strict=True):
        if mask is not None:  # without momentum or decay, weights outside the child have no gradient
            assert torch.equal(parameter[~mask], before[names[id(parameter)]][~mask])
    with pytest.raises(ChildTuningError, match=r"update does not hold with .*ScheduleFree"):
        train(child_tuning_target="update", **options)


@pytest.mark.parametrize(
    ("package", "optim", "says"),
    [
        ("lomo_optim", "lomo", "Lomo, which moves weights in the backward pass"),
        ("galore_torch", "galore_adamw_layerwise", "LayerWiseDummyOptimizer, which holds no weight"),
        ("apollo_torch", "apollo_adamw_layerwise", "LayerWiseDummyOptimizer, which holds no weight"),
    ],
)
def test_an_optimizer_that_steps_in_the_backward_pass_is_refused(package, optim, says, train):
    pytest.importorskip(package, reason=f"{package} cannot be imported", exc_type=ImportError)
    options = {"optim": optim, "optim_target_modules": ["dense"], "max_steps": 1}
    for setting in (
        {"child_tuning": "F"},
        {"child_tuning": "D"},
        {"child_tuning": "F", "child_tuning_target": "update"},
    ):
        with pytest.raises(ChildTuningError, match=re.escape(says)):
            train(**setting, **options)
    train(child_tuning="none", **options)  # as the library trains it


@pytest.mark.parametrize("optim", ["galore_adamw", "apollo_adamw"])
def test_an_optimizer_of_projected_gradients_is_masked(optim, train):
    pytest.importorskip(f"{optim[:6]}_torch", reason=f"{optim[:6]}_torch cannot be imported", exc_type=ImportError)
    options = {"optim": optim, "optim_target_modules": ["dense"], "max_steps": 2, "child_tuning": "F"}
    before = weights(train(train=False))
    after = weights(train(child_tuning_target="update", child_tuning_p=0.2, **options))
    for name, old in before.items():
        if "dense.weight" in name:
            assert 0.55 < (after[name] == old).float().mean() < 1


def test_deepspeed_is_refused(train):
    class UnderDeepSpeed(ChildTuningTrainer):
        def create_accelerator_and_postprocess(self):
            super().create_accelerator_and_postprocess()
            self.is_deepspeed_enabled = True

    with pytest.raises(ValueError, match="does not work under DeepSpeed"):
        train(UnderDeepSpeed, train=False, child_tuning="F")


def test_mixed_precision_trains_the_child(train, device):
    """In bf16, and on a GPU in float16, too, whose loss scaler may skip the first steps."""
    before = weights(train(train=False, device=device))
    for precision, steps in (("bf16", 1), *([("fp16", 4)] if device.type == "cuda" else [])):
        options = {precision: True, "max_steps": steps, "device": device}
        trainer = train(child_tuning="F", child_tuning_target="update", child_tuning_p=0.2, **options)
        name = "classifier.out_proj.weight"
        moved = (weights(trainer)[name] != before[name]).float().mean()
        assert 0 < moved < (0.45 if steps == 1 else 0.8)


def test_it_needs_no_other_module_of_the_project():
    allowed = {*sys.stdlib_module_names, "numpy", "safetensors", "torch", "tqdm", "transformers"}
    for path in Path(network.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert {alias.name.partition(".")[0] for alias in node.names} <= allowed
            elif isinstance(node, ast.ImportFrom):  # of its own folder, or allowed
                assert node.level == 1 or node.module.partition(".")[0] in allowed


# ---- Two connected processes -----------------------------------------------------------------------------------------
JOBS = ROOT / "tests" / "forked.py"


def test_replicas_and_resumed_runs_are_identical_in_every_variant(v3_folder, tmp_path):
    said = forked.run(JOBS, "replicas_agree", v3_folder, tmp_path, cwd=tmp_path, ranks=2).stdout
    assert said.count("replicas and resumed run identical") == 4


def test_sharded_parameters_draw_streams_of_their_own(tmp_path):
    said = forked.run(JOBS, "sharded_gradients_are_masked", cwd=tmp_path, ranks=2).stdout
    for variant in ("F, gradient", "F, update", "D, gradient", "D, update"):
        assert f"{variant}: sharded gradients masked on 2 processes" in said


@pytest.fixture(scope="module")
def sharding() -> dict[str, str]:
    """What `accelerate launch --config_file recipes/accelerate/fsdp2.yaml` puts into the environment."""
    config = ROOT / "recipes" / "accelerate" / "fsdp2.yaml"
    args, *_ = _validate_launch_command(launch_command_parser().parse_args(["--config_file", str(config), "script"]))
    env = prepare_multi_gpu_env(args)
    assert env["ACCELERATE_USE_FSDP"] == "true"
    return env | {"ACCELERATE_MIXED_PRECISION": "no"}


def classify(folder, *flags, env=None, script=(JOBS, "sharded_classify"), check=True):
    """Two processes that train on the essays; the folder holds the run."""
    return forked.run(
        *(*script, *ESSAY_FLAGS, "--bf16", "false", "--max_steps", 12, "--save_steps", 6),
        *("--keep_checkpoints", "--output_dir", folder),
        *flags,
        cwd=folder.parent,
        ranks=2,
        env=env,
        check=check,
    )


def test_a_sharded_model_trains_as_whole_replicas_do(v3_folder, tmp_path, sharding):
    flags = ("--model_name_or_path", v3_folder, "--gradient_accumulation_steps", 2, "--activation_checkpointing")
    classify(tmp_path / "sharded", *flags, env=sharding)
    classify(tmp_path / "whole", *flags, script=(ROOT / "run_classify.py",))
    sharded, whole = (load_file(tmp_path / name / "model.safetensors") for name in ("sharded", "whole"))
    assert sharded.keys() == whole.keys()
    for name in whole:
        torch.testing.assert_close(sharded[name], whole[name], rtol=0, atol=1e-6)
    figures = [(tmp_path / name / "predictions.tsv").read_text() for name in ("sharded", "whole")]
    assert figures[0].count("\n") == figures[1].count("\n")
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "sharded", trust_remote_code=True)
    assert not list((tmp_path / "sharded" / "checkpoints").glob("*/_fsdp*"))  # torch's source is not the model's code


def test_a_sharded_run_goes_on_bit_for_bit(v3_folder, tmp_path, sharding):
    """Child-Tuning D has a mask for each shard; averaged checkpoints are whole."""
    flags = ("--model_name_or_path", v3_folder, "--child_tuning", "D", "--select", "average", "--save_steps", 6)
    flags += ("--max_steps", -1, "--num_train_epochs", 2, "--max_train_samples", 64, "--max_grad_norm", 0.1)
    classify(tmp_path / "run", *flags, env=sharding)
    straight = load_file(tmp_path / "run" / "model.safetensors")
    kept, last = sorted((tmp_path / "run" / "checkpoints").glob("checkpoint-*"), key=lambda path: path.stat().st_mtime)
    assert (kept / "rank1-child_network.safetensors").exists()
    for path in (tmp_path / "run").iterdir():
        if path.is_file():
            path.unlink()
    shutil.rmtree(last)
    done = classify(tmp_path / "run", *flags, env=sharding)
    assert f"resuming from {kept.name}" in done.stderr
    resumed = load_file(tmp_path / "run" / "model.safetensors")
    assert all(torch.equal(resumed[name], straight[name]) for name in straight)


@pytest.mark.parametrize(
    ("change", "flags", "want"),
    [
        ({"FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"}, [], "want FULL_STATE_DICT"),
        ({"FSDP_VERSION": "1"}, [], "want fsdp_version: 2"),
        ({}, ["--lora_rank", 4], "--lora_rank under FSDP"),
    ],
)
def test_what_would_not_shard_is_refused(v3_folder, tmp_path, sharding, change, flags, want):
    done = classify(tmp_path / "run", "--model_name_or_path", v3_folder, *flags, env=sharding | change, check=False)
    assert done.returncode
    assert want in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_cpu_does_not_pass_for_gpus(in_process):
    with pytest.raises(InputError, match="several GPUs"):
        in_process("--train_file", ROOT / "examples" / "essays.tsv", "--fsdp")
