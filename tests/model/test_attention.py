"""Attention computes what the library's does: on a CPU, in one grid as on a GPU, and by `disentangled_flash`.

Its kernels run where CUDA and the package are, and in Triton's interpreter: `TRITON_INTERPRET=1`, with `triton` and
`disentangled-flash` installed.
"""

import copy
import inspect
import logging
import os
from types import SimpleNamespace

import pytest
import torch
from accelerate import cpu_offload
from support import TINY, XXLARGE_STYLE
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

import attention_emodeberta
import gpu_emodeberta
import layers_emodeberta
from attention_emodeberta import bias_buckets
from configuration_emodeberta import EmoDebertaConfig
from gpu_emodeberta import attend_at_once, flash, flash_attention, flash_works, not_by_flash
from kernels_emodeberta import Dropout, shifted
from modeling_emodeberta import EmoDebertaForSequenceClassification, EmoDebertaModel
from packing_emodeberta import ALIGNED, Packing, relative_rows, rows_on_cpu, rows_on_gpu

ABSOLUTE = TINY | {"relative_attention": False, "position_biased_input": True, "pos_att_type": []}
PLAIN = {key: value for key, value in TINY.items() if key not in ("position_buckets", "norm_rel_ebd", "share_att_key")}
OPTIONS = {
    "v3": TINY,
    "v2-xxlarge": XXLARGE_STYLE,
    "buckets shorter than the text": TINY | {"position_buckets": 8, "max_relative_positions": 32},
    "buckets that rise faster than distances": TINY | {"position_buckets": 64, "max_relative_positions": 70},
    "no buckets, distances beyond the range": PLAIN | {"max_relative_positions": 10},
    "unshared keys": TINY | {"share_att_key": False},
    "c2p only": TINY | {"pos_att_type": ["c2p"]},
    "p2c only": TINY | {"pos_att_type": ["p2c"]},
    "p2c only, unshared": TINY | {"pos_att_type": ["p2c"], "share_att_key": False},
    "neither": TINY | {"pos_att_type": []},
    "no relative attention": TINY | {"relative_attention": False, "position_biased_input": True},
    "scale of terms that are off": TINY | {"relative_attention": False, "pos_att_type": ["c2p", "p2c"]},
    "factorised embeddings": TINY | {"embedding_size": 16},
    "position bias": ABSOLUTE | {"position_bias_buckets": 32},
    "position bias of few buckets": ABSOLUTE | {"position_bias_buckets": 6, "position_bias_max_distance": 20},
    "position bias, c2p and p2c": TINY | {"share_att_key": False, "position_bias_buckets": 32},
}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
CPU = torch.device("cpu")
LENGTHS = [1, 2, 7, 41, 300]


def both(options: dict, kind=EmoDebertaModel, seed: int = 0, device="cpu", **more):
    """The same model twice, eager and sdpa, with weights large enough for attention to matter."""
    models = []
    for implementation in ("eager", "sdpa"):
        config = EmoDebertaConfig(**options, **more)
        config._attn_implementation = implementation
        torch.manual_seed(seed)
        model = kind(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if any(part in name for part in ("proj", "rel_embeddings", "position_bias")):
                    parameter.copy_(
                        torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))) / 4
                    )
        models.append(model.to(device))
    models[1].load_state_dict(models[0].state_dict())
    return models


def padded_batch(length: int, device="cpu") -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(5, 600, (3, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, max(1, length // 2) :] = 0
    mask[2, max(1, length - 1) :] = 0
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def random_weights(states: torch.Tensor) -> torch.Tensor:
    """The same ones on every device."""
    return torch.randn(states.shape, dtype=states.dtype, generator=torch.Generator().manual_seed(1)).to(states.device)


def test_default_is_sdpa():
    assert EmoDebertaModel(EmoDebertaConfig(**TINY)).config._attn_implementation == "sdpa"


@pytest.mark.parametrize(("m", "n"), [(1, 1), (1, 5), (2, 2), (2, 7), (3, 3), (8, 8), (5, 3)])
def test_shifted_reads_the_right_entries(m, n):
    scores = torch.randn(2, m, n + m - 1)
    view = shifted(scores, n)
    assert view.shape == (2, m, n)
    assert view.untyped_storage().data_ptr() == scores.untyped_storage().data_ptr()
    for r in range(m):
        for c in range(n):
            assert torch.equal(view[:, r, c], scores[:, r, c - r + m - 1])


@pytest.mark.parametrize("length", [1, 5, 18, 130, 170, 512])
@pytest.mark.parametrize(
    ("buckets", "positions"),
    [(-1, 512), (8, 512), (256, 512), (256, 350), (256, 300), (256, 256), (256, 129), (256, 128), (32, 40)],
)
def test_reachable_rows_lie_within_the_slice(length, buckets, positions):
    span = buckets if buckets > 0 else positions
    rows, reach = rows_on_cpu(length, span, buckets, positions)
    assert torch.equal(rows, relative_rows(length, span, buckets, positions, CPU))
    assert rows.shape == (2 * length - 1,)
    assert span - reach <= rows.min()
    assert rows.max() < span + reach
    assert min(length, span) <= reach <= span
    if positions >= 1.36 * buckets:  # then no bucket's number is larger than its distance
        assert reach == min(length, span)


@pytest.mark.parametrize("length", [*range(1, 20), 63, 64, 65, 127, 128, 129, 512])
def test_buckets_of_the_position_bias_are_mpnets(length):
    found = bias_buckets(length, 32, 128, torch.device("cpu"))
    assert torch.equal(found, MPNetEncoder.relative_position_bucket(torch.arange(1 - length, length)))


def test_a_model_without_a_position_bias_has_no_parameter_for_it():
    model = EmoDebertaModel(EmoDebertaConfig(**TINY))
    assert model.encoder.position_bias is None
    assert not any("position_bias" in name for name in model.state_dict())


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", OPTIONS)
def test_hidden_states_and_gradients_are_the_librarys(name, length, device):
    batch = padded_batch(length, device)
    kept = batch["attention_mask"].bool()
    found = []
    for model in both(OPTIONS[name] | NO_DROPOUT, device=device):
        with torch.no_grad():
            inference = model.eval()(**batch, output_hidden_states=True).hidden_states
        model.train()
        outputs = model(**batch)
        (outputs.last_hidden_state * random_weights(outputs.last_hidden_state))[kept].sum().backward()
        gradients = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
        found.append((inference, outputs.last_hidden_state, outputs.pooler_output, gradients))
    eager, ours = found
    for want, state in zip(eager[0], ours[0], strict=True):
        torch.testing.assert_close(state[kept], want[kept], atol=1e-5, rtol=0)
    torch.testing.assert_close(ours[1][kept], eager[1][kept], atol=1e-5, rtol=0)
    assert not ours[1][~kept].any(), "states of padding are zeros"
    torch.testing.assert_close(ours[2], eager[2], atol=1e-5, rtol=0)
    for key, gradient in eager[3].items():
        if key in ours[3]:
            scale = gradient.abs().max().clamp(min=1)
            assert (ours[3][key] - gradient).abs().max() / scale < 1e-5, key
        else:  # a projection that nothing reads
            assert not gradient.any(), key


def test_attention_probabilities_come_from_eager_and_it_says_so_once(caplog, monkeypatch):
    eager, ours = both(TINY)
    batch = padded_batch(9)
    monkeypatch.setattr(attention_emodeberta.logger, "propagate", True)
    attention_emodeberta.logger.warning_once.cache_clear()
    with torch.no_grad():
        want, got = (model.eval()(**batch, output_attentions=True) for model in (eager, ours))
        ours(**batch, output_attentions=True)
    for a, b in zip(want.attentions, got.attentions, strict=True):
        assert torch.equal(a, b)
    assert caplog.text.count("attention probabilities come from") == 1


def test_a_text_without_tokens_gives_no_nan():
    _, ours = both(TINY)
    batch = padded_batch(6)
    batch["attention_mask"][0] = 0
    for train in (True, False):
        assert ours.train(train)(**batch).last_hidden_state.isfinite().all()


@pytest.mark.parametrize("name", ["v3", "position bias, c2p and p2c"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_lower_precision_stays_close(dtype, name, device):
    eager, ours = both(OPTIONS[name], EmoDebertaForSequenceClassification, device=device, num_labels=3)
    batch = padded_batch(41, device)
    with torch.no_grad():
        want = eager.eval()(**batch).logits
        got = ours.eval().to(dtype)(**batch).logits
        also = eager.to(dtype)(**batch).logits
    for found in (got, also):
        assert (found - want).abs().max() < 0.05 * want.abs().max().clamp(min=0.1)


@pytest.mark.parametrize("implementation", [0, 1], ids=["eager", "sdpa"])
@pytest.mark.parametrize("name", ["v3", "position bias", "position bias, c2p and p2c"])
def test_gradient_checkpointing_agrees(name, implementation, device):
    batch, gradients = padded_batch(20, device), []
    for checkpointing in (False, True):
        model = both(OPTIONS[name] | NO_DROPOUT, device=device)[implementation]
        if checkpointing:
            model.activation_checkpointing_enable()
        states = model.train()(**batch).last_hidden_state
        (states * random_weights(states)).sum().backward()
        gradients.append({key: p.grad for key, p in model.encoder.named_parameters() if "layer." not in key})
    assert gradients[0]
    torch.testing.assert_close(*gradients)


def test_dropout_reaches_the_attention(device):
    options = TINY | NO_DROPOUT | {"attention_probs_dropout_prob": 0.5}
    _, ours = both(options, device=device)
    batch = padded_batch(20, device)
    first, second = (ours.train()(**batch).last_hidden_state for _ in range(2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("part", ["attention_probs_dropout_prob", "hidden_dropout_prob"])
def test_dropout_may_be_on_in_evaluation_and_off_in_training(part):
    """By its own mode, as in the library: on for Monte Carlo dropout, and off to fine-tune without it."""
    _, model = both(TINY | NO_DROPOUT | {part: 0.5})
    batch = padded_batch(41)
    with torch.no_grad():
        wanted = model.eval()(**batch)[0]
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.train()
        first, second = (model(**batch)[0] for _ in range(2))
        assert not torch.equal(first, second)
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.eval()
        torch.testing.assert_close(model(**batch)[0], wanted)


def test_position_dropout_follows_its_own_mode_too():
    """Projections that were kept have none."""
    _, model = both(TINY | NO_DROPOUT | {"hidden_dropout_prob": 0.5})
    batch = padded_batch(41)
    model.eval()
    for layer in model.encoder.layer:
        layer.attention.self.pos_dropout.train()
    with torch.no_grad():
        assert not torch.equal(model(**batch)[0], model(**batch)[0])


def test_a_hook_may_keep_what_it_saw():
    """GELU in place would change it."""
    _, model = both(TINY | NO_DROPOUT)
    model.eval()
    dense, seen = model.encoder.layer[0].intermediate.dense, {}
    dense.register_forward_hook(lambda module, inputs, output: seen.update(inputs=inputs[0], output=output))
    with torch.no_grad():
        model(**padded_batch(41))
        torch.testing.assert_close(seen["output"], torch.nn.functional.linear(seen["inputs"], dense.weight, dense.bias))


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", ["v3", "v2-xxlarge", "position bias, c2p and p2c"])
def test_the_default_device_does_not_matter(name, train):
    """What is made for a batch is where the model is."""
    _, model = both(OPTIONS[name])
    batch, states = padded_batch(41), []
    for default in ("cpu", "meta"):
        rows_on_cpu.cache_clear()
        rows_on_gpu.cache_clear()
        torch.manual_seed(0)
        with torch.device(default), torch.set_grad_enabled(train):
            states.append(model.train(train)(**batch).last_hidden_state)
    assert torch.equal(*states)


@pytest.mark.parametrize("name", ["v3", "position bias", "position bias, c2p and p2c"])
def test_it_compiles(name):
    eager, ours = both(OPTIONS[name])
    compiled = torch.compile(ours.eval(), dynamic=True, fullgraph=True)
    for length in (9, 17):
        batch = padded_batch(length)
        kept = batch["attention_mask"].bool()
        with torch.no_grad():
            want = eager.eval()(**batch)[0]
            torch.testing.assert_close(compiled(**batch)[0][kept], want[kept], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["v3", "position bias", "position bias, c2p and p2c"])
def test_any_mask_is_exact_and_texts_may_be_empty(name, device):
    """Padding before, after and between tokens, texts of one token and of none, in groups of several texts."""
    eager, ours = both(OPTIONS[name] | NO_DROPOUT, device=device)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 600, (40, 100), generator=generator)
    mask = (torch.rand(40, 100, generator=generator) < 0.7).long()
    mask[:10, :30] = mask[10:20, 50:] = 0
    mask[20:30] = torch.eye(100, dtype=torch.long)[5:15]
    mask[30] = 0
    mask[31:] = 1
    ids, mask = ids.to(device), mask.to(device)
    kept, gradients = mask.bool(), []
    for model in (eager, ours):
        states = model.train()(ids, mask).last_hidden_state
        (states * random_weights(states))[kept].sum().backward()
        gradients.append((states, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    torch.testing.assert_close(gradients[1][0][kept], gradients[0][0][kept], atol=1e-5, rtol=0)
    for key, want in gradients[0][1].items():
        assert (gradients[1][1][key] - want).abs().max() < 1e-5 * want.abs().max().clamp(min=1), key


@pytest.mark.parametrize("change", ["in place", "new parameter", "load_state_dict", "dtype", "embedding", "bias"])
def test_kept_projections_follow_the_weights(change, device):
    eager, ours = both(OPTIONS["position bias, c2p and p2c"] if change == "bias" else TINY, device=device)
    batch = padded_batch(9, device)
    with torch.no_grad():
        before = ours.eval()(**batch)[0]
        assert torch.equal(ours(**batch)[0], before)
        for model in (eager.eval(), ours):
            attention = model.encoder.layer[1].attention.self
            if change == "in place":
                attention.key_proj.weight.mul_(-1)
            elif change == "new parameter":
                attention.query_proj.weight = torch.nn.Parameter(attention.query_proj.weight * -1)
            elif change == "load_state_dict":
                model.load_state_dict({name: value * 1.3 for name, value in model.state_dict().items()})
            elif change == "dtype":
                model.double()
            elif change == "bias":
                model.encoder.position_bias.weight.mul_(-1)
            else:
                model.encoder.rel_embeddings.weight.mul_(-1)
        after, want = ours(**batch)[0], eager(**batch)[0]
        kept = batch["attention_mask"].bool()
        torch.testing.assert_close(after[kept], want[kept], atol=1e-5, rtol=0)
        assert not torch.equal(after, before)


def test_projections_are_made_once_for_all_batches(monkeypatch):
    _, ours = both(TINY)
    made = []
    attention = attention_emodeberta.EmoDebertaSelfAttention
    original = attention.project_positions
    monkeypatch.setattr(attention, "project_positions", lambda self, rows: made.append(1) or original(self, rows))
    with torch.no_grad():
        for length in (9, 30, 4):
            ours.eval()(**padded_batch(length))
    assert len(made) == 2  # layers


def fused_step(optimizer) -> None:
    for group in optimizer.param_groups:
        for weight in group["params"]:
            weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    optimizer.step()
    optimizer.zero_grad()


UNSEEN = {  # changes of weights that leave no trace in their version, id or address
    "SGD": lambda weights: fused_step(torch.optim.SGD(weights, lr=0.1, fused=True)),
    "AdamW": lambda weights: fused_step(torch.optim.AdamW(weights, lr=0.1, fused=True)),
    "Adagrad": lambda weights: fused_step(torch.optim.Adagrad(weights, lr=0.1, fused=True)),
    "data": lambda weights: [weight.data.mul_(1.3) for weight in weights],
    "one bit": lambda weights: [weight.data.view(-1)[:1].mul_(-1) for weight in weights],
    "numpy": lambda weights: [weight.detach().numpy().__imul__(1.5) for weight in weights],
    "rows changed places": lambda weights: [weight.data.copy_(weight.data.flip(0)) for weight in weights],
}


@pytest.mark.parametrize("inference", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("change", UNSEEN)
def test_kept_projections_follow_changes_that_leave_no_trace(change, inference):
    eager, ours = both(TINY)
    batch = padded_batch(9)
    with inference():
        before = ours.eval()(**batch)[0]
    for model in (eager.eval(), ours):
        UNSEEN[change](list(model.encoder.parameters()))
    with inference():
        after, want = ours(**batch)[0], eager(**batch)[0]
    kept = batch["attention_mask"].bool()
    torch.testing.assert_close(after[kept], want[kept], atol=2e-5, rtol=0)
    assert not torch.equal(after, before)


@pytest.mark.parametrize("name", OPTIONS)
def test_weights_may_stay_on_the_cpu_until_they_are_needed(name):
    for model in both(OPTIONS[name], EmoDebertaForSequenceClassification):
        batch = padded_batch(9)
        with torch.no_grad():
            want = model.eval()(**batch).logits
            offloaded = cpu_offload(model, execution_device=torch.device("cpu"))
            assert torch.equal(offloaded(**batch).logits, want)


@pytest.mark.parametrize("way", ["jit", "export from 1", "export from 2"])
@pytest.mark.parametrize("name", ["v3", "v2-xxlarge", "position bias", "no buckets, distances beyond the range"])
def test_a_recorded_graph_holds_for_every_length(name, way):
    eager, ours = both(OPTIONS[name])
    example = tuple(padded_batch(9).values())
    if way == "jit":
        graph = torch.jit.trace(ours.eval(), example, strict=False)
    else:
        axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", min=int(way[-1]), max=512)}
        shapes = {"input_ids": axes, "attention_mask": axes}
        graph = torch.export.export(ours.eval(), example, dynamic_shapes=shapes).module()
    for length in (1, 2, 3, 20, 130):
        batch = padded_batch(length)
        kept = batch["attention_mask"].bool()
        with torch.no_grad():
            found = graph(*batch.values())["last_hidden_state"]
            torch.testing.assert_close(found[kept], eager.eval()(**batch)[0][kept], atol=1e-5, rtol=0)


def test_a_second_derivative_is_eagers_alone():
    """Under sdpa, one line names the remedy."""
    for model in both(TINY | NO_DROPOUT):
        batch = padded_batch(9)
        embeds = model.embeddings.word_embeddings(batch.pop("input_ids")).detach().requires_grad_()
        loss = model(inputs_embeds=embeds, **batch).last_hidden_state.pow(3).sum()
        if model.config._attn_implementation == "eager":
            (gradient,) = torch.autograd.grad(loss, embeds, create_graph=True)
            gradient.pow(2).sum().backward()
            assert embeds.grad.abs().max() > 0
        else:
            with pytest.raises(RuntimeError, match="attn_implementation='eager'"):
                torch.autograd.grad(loss, embeds, create_graph=True)


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_keeps_the_mean_and_the_share(p, dtype, device):
    states = torch.ones(101, 999, dtype=dtype, device=device)
    dropout = Dropout(p)
    found = dropout(states)
    assert found.dtype == dtype
    assert (found == 0).float().mean().item() == pytest.approx(p, abs=0.006)
    if p < 1:
        assert found[found != 0].unique().item() == pytest.approx(1 / (1 - p), rel=1e-2)
        assert not torch.equal(found, dropout(states)) or p == 0
    assert torch.equal(dropout.eval()(states), states)


@pytest.mark.parametrize("name", ["v3", "no relative attention", "position bias", "position bias, c2p and p2c"])
def test_the_gradient_under_dropout_is_the_derivative(name, device):
    """Directional derivative in float64, the same masks drawn for each evaluation."""
    options = OPTIONS[name] | {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.3}
    _, ours = both(options, device=device)
    ours.double().train()
    batch = padded_batch(41, device)
    weights = random_weights(torch.empty(3, 41, 32, dtype=torch.float64, device=device))

    def loss():
        torch.manual_seed(5)
        return (ours(**batch).last_hidden_state * weights).sum()

    loss().backward()
    for key, parameter in ours.named_parameters():
        if parameter.grad is None:
            continue
        direction = torch.randn_like(parameter)
        expected = (parameter.grad * direction).sum()
        with torch.no_grad():
            parameter.add_(direction, alpha=1e-6)
            up = loss()
            parameter.add_(direction, alpha=-2e-6)
            down = loss()
            parameter.add_(direction, alpha=1e-6)
        torch.testing.assert_close((up - down) / 2e-6, expected, rtol=1e-4, atol=1e-5, msg=key)


@pytest.mark.parametrize("name", ["v3", "position bias", "position bias, c2p and p2c"])
def test_autocast_trains_close_to_float32(name, device):
    """In bf16, and on a GPU in float16, too."""
    _, ours = both(OPTIONS[name] | NO_DROPOUT, device=device)
    batch, found = padded_batch(41, device), []
    for dtype in (None, torch.bfloat16, *([torch.float16] if device.type == "cuda" else [])):
        ours.zero_grad()
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            states = ours.train()(**batch).last_hidden_state
        (states.float() * random_weights(states.float())).sum().backward()
        found.append({name: p.grad for name, p in ours.named_parameters() if p.grad is not None})
    for lower in found[1:]:
        for key, want in found[0].items():
            assert lower[key].dtype == torch.float32
            assert (lower[key] - want).norm() < 0.1 * want.norm().clamp(min=1), key


# ---- As on a GPU: in one grid, and by `disentangled_flash` -----------------------------------------------------------
@pytest.fixture
def one_grid(monkeypatch):
    monkeypatch.setattr(attention_emodeberta, "in_one_grid", lambda device: True)
    monkeypatch.setattr(layers_emodeberta, "in_few_nodes", lambda device: True)


# ---- One grid -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", OPTIONS)
def test_hidden_states_and_gradients_are_the_librarys_in_one_grid(name, one_grid):
    test_hidden_states_and_gradients_are_the_librarys(name, 41, CPU)


@pytest.mark.parametrize("name", ["no relative attention", "position bias, c2p and p2c"])
def test_any_mask_is_exact_and_texts_may_be_empty_in_one_grid(name, one_grid):
    test_any_mask_is_exact_and_texts_may_be_empty(name, CPU)
    test_a_text_without_tokens_gives_no_nan()


@pytest.mark.parametrize("name", ["v3", "position bias, c2p and p2c"])
def test_the_default_device_does_not_matter_in_one_grid(name, one_grid):
    test_the_default_device_does_not_matter(name, False)


@pytest.mark.parametrize("name", ["v3", "position bias"])
def test_checkpointing_autocast_and_inference_agree(name, one_grid):
    _, model = both(OPTIONS[name] | NO_DROPOUT)
    batch = padded_batch(ALIGNED)  # one text fills the grid
    with torch.inference_mode():
        wanted = model.eval()(**batch).pooler_output.clone()
    test_gradient_checkpointing_agrees(name, 1, CPU)
    test_autocast_trains_close_to_float32(name, CPU)
    batch = {key: value[:1] for key, value in batch.items()}
    torch.testing.assert_close(model(**batch).pooler_output, wanted[:1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["v3", "position bias"])
def test_weights_in_half_precision_train_under_autocast(name, one_grid):
    _, model = both(OPTIONS[name] | NO_DROPOUT)
    model, batch = model.bfloat16(), padded_batch(20)
    with torch.inference_mode():
        model(**batch)  # what is kept from here is of use in training
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.train()(**batch).last_hidden_state.float().square().mean()
    loss.backward()
    gradients = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    assert len(gradients) > 20
    assert all(gradient.dtype == torch.bfloat16 and gradient.isfinite().all() for gradient in gradients.values())


def test_frozen_linear_layers_cost_no_product_of_their_gradient(one_grid):
    """Embeddings are trained; frozen layers pass the gradient on, as those beside LoRA's do."""
    counts = []
    for frozen in (False, True):
        _, model = both(OPTIONS["v3"] | NO_DROPOUT)
        for parameter in model.encoder.layer.parameters():
            parameter.requires_grad_(not frozen)
        loss = model.train()(**padded_batch(20)).pooler_output.square().sum()
        with Products() as products:
            loss.backward()
        counts.append(products.count)
    assert counts[0] - counts[1] == 4 * model.config.num_hidden_layers


class Products(TorchDispatchMode):
    """Counts products of two matrices."""

    count = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.count += operator is torch.ops.aten.mm.default
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["v3", "no relative attention", "position bias"])
def test_dropout_reaches_the_attention_in_one_grid(name, one_grid):
    _, model = both(OPTIONS[name] | NO_DROPOUT | {"attention_probs_dropout_prob": 0.5})
    first, second = (model.train()(**padded_batch(20)).last_hidden_state for _ in range(2))
    assert not torch.equal(first, second)


def test_what_is_frozen_gets_no_gradient_and_the_rest_does(one_grid):
    for name, part in (("position bias", "position_bias"), ("v3", "rel_embeddings")):
        found = []
        for model in both(OPTIONS[name] | NO_DROPOUT):
            for key, parameter in model.named_parameters():
                parameter.requires_grad_(part in key)
            model.train()(**padded_batch(20)).pooler_output.square().sum().backward()
            found.append({key: p.grad for key, p in model.named_parameters() if p.grad is not None})
        assert found[1].keys() == found[0].keys()
        assert len(found[0]) == 1
        torch.testing.assert_close(found[1], found[0])


def test_a_second_derivative_is_refused(one_grid):
    _, model = both(OPTIONS["v3"])
    states = model(**padded_batch(9)).last_hidden_state
    with pytest.raises(RuntimeError, match="attn_implementation='eager'"):
        torch.autograd.grad(states.square().sum(), list(model.encoder.rel_embeddings.parameters()), create_graph=True)


class Kernels(TorchDispatchMode):
    """Counts operators, without views and empty tensors."""

    count = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.count += not (operator.is_view or "empty" in operator.__name__)
        return operator(*args, **(kwargs or {}))


def test_a_layer_launches_fewer_kernels_than_the_librarys(one_grid, monkeypatch):
    """On padded texts, forward. Torch's attention counts as one, as it is on CUDA; here it is many."""
    monkeypatch.setattr("kernels_emodeberta.Dropout.forward", torch.nn.Dropout.forward)
    found, attention = {}, gpu_emodeberta.torch_attention

    def as_one(query, *more):
        query.neg()
        with _disable_current_modes():
            return attention(query, *more)

    monkeypatch.setattr(gpu_emodeberta, "torch_attention", as_one)
    for layers in (1, 2):
        for name, model in zip(("library", "ours"), both(OPTIONS["v3"] | {"num_hidden_layers": layers}), strict=True):
            model.train()(**padded_batch(41))
            with torch.no_grad(), Kernels() as kernels:
                model(**padded_batch(41))
            found[name, layers] = kernels.count
    library, ours = (found[name, 2] - found[name, 1] for name in ("library", "ours"))
    assert ours < 0.7 * library, (ours, library)


def packings() -> list[Packing]:
    """Of several texts, of none and of one, in one grid and in groups."""
    with CPU:
        mask = (torch.arange(21) < torch.tensor([[21], [9], [0], [15]])).long()
    mask[1, 4] = 0
    return [*(Packing.for_gpu(rows) for rows in (mask, mask[:0], mask[:1], mask[3:])), Packing.of(mask, 3, 40)]


def check_equal(packing: Packing, wanted: Packing) -> None:
    torch.testing.assert_close(vars(packing) | {"groups": None}, vars(wanted) | {"groups": None})
    for group, of_wanted in zip(packing.groups, wanted.groups, strict=True):
        torch.testing.assert_close(vars(group) | {"tokens": None}, vars(of_wanted) | {"tokens": None})


def test_a_packing_moves_as_it_is():
    for packing in packings():
        before = copy.deepcopy(packing)
        packing.move(CPU)
        check_equal(packing, before)


def test_a_packing_is_the_same_whatever_the_default_device_is():
    with torch.device("meta"):
        found = packings()
    for packing, wanted in zip(found, packings(), strict=True):
        check_equal(packing, wanted)


# ---- Which way ------------------------------------------------------------------------------------------------------
def reason(size=64, tokens=1030, dtype=torch.float32, positions=True, bias=None, gap=False, dropout=0.1):
    mask = torch.ones(1, tokens)
    mask[0, 1] = 0 if gap else 1
    packing = Packing.for_gpu(mask)
    packing.add(bias, dtype)
    states = torch.empty(int(packing.bounds[-1]) if not gap else tokens - 1, 2 * size, dtype=dtype)
    return not_by_flash(states, 64 if positions else 0, packing, 2, size, dropout)


@pytest.mark.parametrize("size", [32, 64, 128])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_disentangled_flash_computes_deberta(size, dtype):
    assert reason(size, dtype=dtype) is None
    assert reason(size, dtype=dtype, dropout=0.0) is None


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ({"positions": False}, "without relative positions"),
        ({"bias": torch.zeros(2, 1040, 1040)}, "a position bias"),
        ({"gap": True}, "masks with gaps"),
        ({"size": 48}, "heads of 48 features"),
        ({"dtype": torch.float64}, "float64"),
        ({"dropout": 1.0}, "dropout of 1.0"),
        ({"tokens": 70_000}, "so many tokens"),
        ({"tokens": 1000}, "within fewer than 1024 tokens"),
    ],
)
def test_torch_computes_the_rest(what, said):
    assert said in reason(**what)


def test_the_package_is_the_default_only_beside_a_gpu(monkeypatch):
    config = both(OPTIONS["v3"])[1].config
    for gpu, package, wanted in ((True, True, "disentangled"), (True, False, "sdpa"), (False, True, "sdpa")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda gpu=gpu: gpu)
        monkeypatch.setattr(gpu_emodeberta, "flash", lambda package=package: SimpleNamespace() if package else None)
        config._attn_implementation_internal = None
        assert EmoDebertaModel(config).config._attn_implementation == wanted
    model = EmoDebertaModel(config)
    for chosen in ("eager", "sdpa", "disentangled"):
        model.set_attn_implementation(chosen)
        assert model.config._attn_implementation == chosen


def test_without_the_package_it_says_so_and_is_sdpa(caplog, one_grid, monkeypatch):
    monkeypatch.setattr(gpu_emodeberta, "flash", lambda: None)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    _, model = both(OPTIONS["v3"])
    with torch.no_grad():
        wanted = model.eval()(**padded_batch(9)).pooler_output
        model.set_attn_implementation("disentangled")
        assert torch.equal(model(**padded_batch(9)).pooler_output, wanted)
    assert "needs disentangled-flash" in caplog.text


# ---- By disentangled_flash ------------------------------------------------------------------------------------------
CASES = {
    "as DeBERTa-v3": (64, (70, 41), 256, 256),
    "buckets shorter than the texts": (32, (33, 5, 1), 8, 16),
    "no buckets, distances beyond the range": (128, (20, 3), -1, 12),
    "c2p only": (32, (20, 31), 8, 16),
    "p2c only": (32, (20, 31), 8, 16),
}


@pytest.fixture(scope="module")
def flash_device():
    """The device its kernels run on: CUDA, or the CPU by Triton's interpreter."""
    if flash() is None:
        pytest.skip("disentangled-flash or triton is not installed")
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("no GPU, and TRITON_INTERPRET is not 1")
    # The package asks for a CUDA tensor, and its launch sizes for a GPU. The interpreter needs neither.
    code = inspect.getsource(flash().attention).replace('query.device.type != "cuda"', "False")
    names = flash().attention.__globals__
    exec(code, names)
    flash().attention = names["training_attention_packed"]
    flash().resolve = lambda *workload: (16, 16, 4, 1)
    return CPU


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_its_results_and_gradients_are_torchs(name, dtype, flash_device):
    if dtype == torch.bfloat16 and flash_device == CPU:
        pytest.skip("Triton's interpreter reads bf16 as integers")
    size, lengths, buckets, span = CASES[name]
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    packing = Packing.for_gpu(mask.to(flash_device))
    packing.add(None, dtype)
    rows = rows_on_gpu(packing.length, span, buckets, 512, flash_device)
    generator, reach = torch.Generator().manual_seed(0), 2 * min(packing.length, span)
    terms = {"p2c only": ("p2c",), "c2p only": ("c2p",)}.get(name, ("p2c", "c2p"))
    shapes = (sum(lengths), 6 * size), (reach, len(terms) * 2 * size)
    parts = [(torch.randn(shape, generator=generator) / size**0.25).to(flash_device, dtype) for shape in shapes]
    projected, table = (part.requires_grad_() for part in parts)
    found = []
    for attend, given in ((flash_attention, table), (attend_at_once, table * 0.5)):
        result = attend(projected, given, terms, rows, packing, 2, 0.5, 0.0)
        weights = torch.linspace(-1, 1, result.numel(), device=flash_device).view(result.shape).to(dtype)
        found.append([result, *torch.autograd.grad((result * weights).sum(), (projected, table))])
    limit = {torch.float32: 2e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}[dtype]
    for ours, wanted in zip(*found, strict=True):
        assert (ours - wanted).abs().max() < limit * wanted.abs().max()


@pytest.mark.gpu
def test_its_gradient_under_dropout_is_the_derivative(flash_device):
    packing = Packing.for_gpu((torch.arange(20) < torch.tensor([[20], [9]])).to(flash_device))
    packing.add(None, torch.float32)
    rows = rows_on_gpu(packing.length, 16, 8, 512, flash_device)
    generator = torch.Generator().manual_seed(0)
    parts = [(torch.randn(shape, generator=generator) / 2).to(flash_device) for shape in ((29, 192), (32, 128))]
    parts = [part.requires_grad_() for part in parts]
    weights = torch.randn(29, 64, generator=generator).to(flash_device)

    def total(*given):
        torch.manual_seed(5)
        return (flash_attention(*given, ("p2c", "c2p"), rows, packing, 2, 1.0, 0.3) * weights).sum()

    gradients = torch.autograd.grad(total(*parts), parts)
    for index, gradient in enumerate(gradients):
        step = torch.randn(gradient.shape, generator=generator).to(flash_device) / 100
        with torch.no_grad():
            up, down = (total(*parts[:index], parts[index] + sign * step, *parts[index + 1 :]) for sign in (1, -1))
        assert ((up - down) / 2).item() == pytest.approx((gradient * step).sum().item(), rel=0.02, abs=1e-3)


@pytest.mark.gpu
def test_a_whole_model_is_the_librarys(flash_device, one_grid, monkeypatch):
    if flash_device == CPU:
        monkeypatch.setattr(gpu_emodeberta, "flash_works", lambda *what: True)
    else:
        assert flash_works(flash_device, torch.float32, 32)
    monkeypatch.setattr(gpu_emodeberta, "FLASH_FROM", 0)
    options = OPTIONS["v2-xxlarge"] | {"hidden_size": 64, "num_attention_heads": 2} | NO_DROPOUT
    batch = {key: value.to(flash_device) for key, value in padded_batch(20).items()}
    kept, found = batch["attention_mask"].bool(), []
    for model, implementation in zip(both(options), ("eager", "disentangled"), strict=True):
        model.set_attn_implementation(implementation)
        states = model.to(flash_device).train()(**batch).last_hidden_state[kept]
        states.square().sum().backward()
        found.append((states, {key: p.grad for key, p in model.named_parameters() if p.grad is not None}))
    torch.testing.assert_close(found[1][0], found[0][0], atol=1e-4, rtol=0)
    for key, gradient in found[1][1].items():
        assert (gradient - found[0][1][key]).abs().max() < 1e-4 * found[0][1][key].abs().max().clamp(min=1), key
